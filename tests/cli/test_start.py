"""The command as a process: what it starts, how it ends, and what it does not load."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

HOLDFAST = [sys.executable, "-m", "proxy.cli"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST")}

BAD = """listen: [{address: ":8080"}]
servces: {}
routes: [{match: {path: /}, service: chat}]
"""


def holdfast(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HOLDFAST, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**ENVIRONMENT, **changed},
    )


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*HOLDFAST, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} did not come: {''.join(seen)}")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_plain_run_starts_without_click_and_rich_and_aiohttp():
    modules = loaded_by("import proxy.cli, proxy.app")
    assert not modules & {"click", "rich", "aiohttp", "prometheus_client", "sqlalchemy", "ruamel"}


def test_the_verbs_load_rich_and_aiohttp_and_the_proxy_only_when_they_need_them():
    modules = loaded_by("import proxy.cli.commands")
    assert "click" in modules
    assert not modules & {"rich", "aiohttp", "uvloop", "proxy.app", "chat.server", "prometheus_client"}


def test_help_names_every_verb():
    text = holdfast("--help").stdout
    verbs = (
        "demo run chat registry check schema plan reload status services instances events top weight drain "
        "undrain eject split explain completion"
    )
    for verb in verbs.split():
        assert re.search(rf"^  {verb} ", text, re.MULTILINE), verb


def test_check_tells_every_mistake_with_its_place_and_exits_with_2(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    done = holdfast("check", "-c", str(file))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"{file}:2:1: servces: is not a known key (did you mean 'services'?)",
        f"{file}:3:38: routes[0].service: there is no service 'chat'",
    ]
    told = json.loads(holdfast("check", "-c", str(file), "--json").stdout)
    assert told["ok"] is False
    assert (told["problems"][0]["line"], told["problems"][0]["path"]) == (2, "servces")


def test_check_of_a_good_file_exits_with_0(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("services: {web: {instances: ['127.0.0.1:1']}}\nroutes: [{service: web}]\n")
    done = holdfast("check", "-c", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: good; 1 service, 1 route\n")
    assert json.loads(holdfast("check", "-c", str(file), "--json").stdout) == {"ok": True, "problems": []}


def test_check_opens_the_files_that_are_named(tmp_path):
    file = tmp_path / "files.yaml"
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    file.write_text(f"""listen:
  - address: ":8443"
    tls: {{certificate: /nonexistent/tls.crt, key: {nonsense}}}
  - address: ":8444"
    tls: {{certificate: {nonsense}, key: {nonsense}}}
registry:
  - {{kind: consul, tls: {{ca: /nonexistent/ca.pem}}}}
  - {{kind: kubernetes, token_file: {tmp_path}}}
""")
    done = holdfast("check", "-c", str(file))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    nothing = "cannot be read: No such file or directory"
    assert lines[0] == f"{file}:3:24: listen[0].tls.certificate: /nonexistent/tls.crt {nothing}"
    assert lines[1].startswith(f"{file}:5:5: listen[1].tls: cannot use the certificate {nonsense}: ")
    assert lines[2] == f"{file}:7:30: registry[0].tls.ca: /nonexistent/ca.pem {nothing}"
    assert lines[3] == f"{file}:8:36: registry[1].token_file: {tmp_path} cannot be read: Is a directory"
    assert len(lines) == 4


def test_check_of_no_file_exits_with_2():
    done = holdfast("check", "-c", "/nonexistent.yaml")
    assert done.returncode == 2
    assert "/nonexistent.yaml: cannot be read" in done.stderr


def test_schema_is_a_json_schema_of_the_configuration():
    schema = json.loads(holdfast("schema").stdout)
    assert schema["properties"].keys() >= {"listen", "services", "routes"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell):
    done = holdfast("completion", shell)
    assert done.returncode == 0
    assert "_HOLDFAST_COMPLETE" in done.stdout


@pytest.mark.parametrize("arguments", [("run", "-c"), ("run", "--config")])
def test_run_with_a_bad_file_exits_with_2_and_says_where(tmp_path, arguments):
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    done = holdfast(*arguments, str(file))
    assert done.returncode == 2
    assert f"{file}:2:1: servces" in done.stderr


@pytest.mark.parametrize("workers", ["0", "2", "x"])
def test_run_takes_one_worker_so_far(tmp_path, workers):
    done = holdfast("run", "-c", str(tmp_path / "x.yaml"), "--workers", workers)
    assert done.returncode == 2
    assert "--workers" in done.stderr


def test_run_serves_until_it_is_told_to_end(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(
        'listen: [{address: "127.0.0.1:0"}]\n'
        f'admin: {{address: "unix:{tmp_path}/admin.sock"}}\n'
        "access_log: {path: null}\n"
        "services: {web: {instances: ['127.0.0.1:1']}}\nroutes: [{service: web}]\n"
    )
    with started("run", "-c", str(file)) as process:
        read_until(process, r"forwarding on 127\.0\.0\.1:\d+")
        told = holdfast("status", "--json", HOLDFAST_ADMIN=f"unix:{tmp_path}/admin.sock")
        assert json.loads(told.stdout)["ready"] is True
        changed = holdfast("weight", "web", "127.0.0.1:1", "5", HOLDFAST_ADMIN=f"unix:{tmp_path}/admin.sock")
        assert changed.returncode == 0, changed.stderr
        read_until(process, rf'admin_change .*by="unix uid {os.getuid()} pid \d+"')
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_registry_serves_until_it_is_told_to_end(number):
    with started("registry", "--listen", "127.0.0.1:0") as process:
        url = read_until(process, r"listening on (http://\S+)")[1]
        with urlopen(f"{url}/v1/catalog/services", timeout=10) as response:
            assert response.status == 200
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_registry_on_a_port_in_use_fails_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = holdfast("registry", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 1
    assert done.stderr.startswith("holdfast: ")
    assert done.stderr.count("\n") == 1


def test_registry_with_a_wrong_address_is_wrong_usage():
    assert holdfast("registry", "--listen", "nonsense").returncode == 2


@pytest.mark.parametrize("verb", ["registry", "demo"])
def test_a_directory_that_cannot_be_had_is_named(verb, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    ports = {"registry": ["--listen", "127.0.0.1:0"], "demo": ["--port=0", "--admin-port=0"]}[verb]
    done = holdfast(verb, *ports, "--data", str(file / "below"))
    assert done.returncode == 1
    assert f"the directory {file / 'below'}: Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--no-such-option",), "--no-such-option"),
        (("--weight", "-1"), "argument --weight: '-1' is not a whole number from 0 to 65535"),
        (("--weight", "70000"), "'70000' is not a whole number from 0 to 65535"),
        (("--port", "70000"), "'70000' is not a whole number from 0 to 65535"),
        (("--burst", "0"), "'0' is not a whole number from 1 to"),
        (("--registry", "foo"), "not a URL such as http://127.0.0.1:8500, or none"),
        (("--registry", "http://:85"), "is not a URL"),
        (("--deadline", "soon"), "'soon' is not a duration"),
    ],
)
def test_a_chat_that_is_wrongly_called_says_so(arguments, said):
    done = holdfast("chat", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("usage: holdfast chat ")


def test_a_chat_on_a_port_in_use_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = holdfast("chat", "--port", str(port), "--store", f"sqlite:///{tmp_path}/chat.db")
    assert done.returncode == 1
    wanted = f"holdfast chat: cannot start: cannot listen on 127.0.0.1:{port}: the address is in use\n"
    assert done.stderr.endswith(wanted)


def test_a_reader_that_goes_away_is_no_traceback():
    process = subprocess.Popen(
        f"{sys.executable} -m proxy.cli schema | head -c 10",
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
