"""What is said about a configuration that is wrong: everything, at the right place, without secrets."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from config.load import ConfigError, read


def wrong(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        read(data, source="f.yaml", environ=environ or {})
    return str(caught.value).splitlines()


def service(body: str) -> str:
    return f"registry: {{kind: embedded}}\nservices:\n  a: {body}\n"


def route(body: str) -> str:
    return f"services: {{a: {{instances: [a:1]}}}}\nroutes:\n- {body}\n"


TEN = """\
listen:
  - address: ":8080"
    tlss: {certificate: a, key: b}
  - {address: "0.0.0.0:8080"}
timeout: {header: 10x}
limits: {connections: many}
trusted_proxies: [10.0.0.0/8, banana]
registry: {kind: consull}
services:
  chat:
    balance: leastconn
    sticky: {by: cookie}
    retry: {on: [connect, 500]}
routes:
  - match: {path: /, path_regex: "("}
    service: chta
"""


def test_every_mistake_is_reported_once_in_the_order_of_the_file() -> None:
    assert wrong(TEN) == [
        "f.yaml:3:5: listen[0].tlss: is not a known key (did you mean 'tls'?)",
        "f.yaml:4:15: listen[1].address: '0.0.0.0:8080' is taken by listen[0].address (':8080')",
        "f.yaml:5:19: timeout.header: '10x' is not a duration; write it as 250ms, 30s, 5m or 1h",
        "f.yaml:6:23: limits.connections: must be a whole number, not 'many'",
        "f.yaml:7:31: trusted_proxies[1]: 'banana' is not an address or a network such as 10.0.0.0/8",
        "f.yaml:8:18: registry.kind: 'consull' is not one of embedded, consul, etcd, nacos, kubernetes, dns, "
        "file (did you mean 'consul'?)",
        "f.yaml:11:14: services.chat.balance: 'leastconn' is not one of round_robin, "
        "weighted, least_conn, p2c, "
        "ewma, ring_hash, maglev, ip_hash, random (did you mean 'least_conn'?)",
        "f.yaml:12:5: services.chat.sticky.name: sticky by cookie needs a name",
        "f.yaml:13:27: services.chat.retry.on[1]: '500' is not one of connect, reset, timeout, 502, 503, 504 "
        "(did you mean '504'?)",
        "f.yaml:15:34: routes[0].match.path_regex: cannot be given together with path",
        "f.yaml:15:34: routes[0].match.path_regex: is not a regular expression: missing ), unterminated "
        "subpattern at position 0",
        "f.yaml:16:14: routes[0].service: there is no service 'chta' (did you mean 'chat'?)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n  b: 2", "2:4: not valid YAML: mapping values are not allowed here"),
        (
            "a: [1",
            "1:6: not valid YAML: expected ',' or ']', but got '<stream end>' (while parsing a "
            "flow sequence)",
        ),
        ("a: *x", "1:4: not valid YAML: found an alias without anchor"),
        (
            "a:\n\tb: 1",
            "2:1: not valid YAML: found character '\\t' that cannot start any token (while "
            "scanning for the next token)",
        ),
        (
            "{}\n---\n{}",
            "2:1: not valid YAML: but found another document (expected a single document in the stream)",
        ),
        ("admin:\n  token: x\x01", "2:11: the character U+0001 is not allowed in YAML"),
        (b"admin: {}\n# \xff", "2:3: is not UTF-8 text"),
        ("- a\n- b", "1:1: must be sections: `key: value`"),
        ("just text", "1:1: must be sections: `key: value`"),
        ("admin: !vault x", "1:8: admin: YAML tags are not supported"),
        ("admin: !!binary x", "1:8: admin: YAML tags are not supported"),
        ("? [a]\n: b", "1:3: a key must be plain text"),
        ("shutdown: 1s\nadmin: {}\nshutdown: 2s", "3:1: shutdown: is given twice; the first is at line 1"),
        ("<<: 5", "1:5: << takes a mapping or a list of mappings"),
    ],
)
def test_text_that_is_not_what_it_should_be_is_shown_its_place(text: str | bytes, message: str) -> None:
    assert wrong(text) == [f"f.yaml:{message}"]


def test_an_alias_inside_itself_is_refused() -> None:
    assert any("contains itself through an alias" in line for line in wrong("services: &a {x: *a}"))


def test_nesting_without_end_is_refused() -> None:
    assert wrong("a: " + "[" * 500)[-1].startswith("f.yaml:1:")


def test_aliases_that_multiply_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert sum("its aliases make it too large" in line for line in wrong("\n".join(lines))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shutdwon: 3s", "1:1: shutdwon: is not a known key (did you mean 'shutdown'?)"),
        ("zzz: 3s", "1:1: zzz: is not a known key"),
        ("admin: 5", "1:8: admin: must be a section (key: value), not a single value"),
        ("admin: [a]", "1:1: admin: must be a section (key: value), not a list"),
        ("listen: {address: ':1'}", "1:1: listen: must be a list, not a section"),
        ("listen: []", "1:1: listen: needs at least one listener"),
        (
            "listen: [{address: 8080}]",
            "1:20: listen[0].address: '8080' is not an address; write it as :8080, "
            "127.0.0.1:8080, [::1]:8080 or unix:/run/x.sock",
        ),
        ("listen: [{}]", "1:10: listen[0].address: is required"),
        ("listen: [{address: }]", "1:19: listen[0].address: needs a value"),
        (
            "listen: [{address: ':1', proxy_protocol: perhaps}]",
            "1:42: listen[0].proxy_protocol: must be true or false, not 'perhaps'",
        ),
        (
            "listen: [{address: ':1', tls: {certificate: [a], key: k}}]",
            "1:32: listen[0].tls.certificate: must be text, not a list",
        ),
        ("limits: {connections: 0}", "1:23: limits.connections: must be at least 1, not '0'"),
        ("limits: {connections: 1.5}", "1:23: limits.connections: must be a whole number, not '1.5'"),
        ("timeout: {header: 0s}", "1:19: timeout.header: must be more than 0, not '0s'"),
        ("admin: {address: ':9900'}", "1:18: admin.address: an admin address beyond loopback needs a token"),
        ("admin: {token: ''}", "1:16: admin.token: must not be empty"),
        (
            "admin: {address: '127.0.0.1:8080'}",
            "1:18: admin.address: '127.0.0.1:8080' is taken by listen[0].address (':8080')",
        ),
        (
            "registry: {listen: ':1'}",
            "1:1: registry: needs a kind, one of embedded, consul, etcd, nacos, kubernetes, dns, file",
        ),
        (
            "registry: [{kind: embedded, lisen: ':1'}]",
            "1:29: registry[0].lisen: is not a known key (did you mean 'listen'?)",
        ),
        ("registry: {kind: consul, consul: 1}", "1:26: registry.consul: is not a known key"),
        (
            "registry: {kind: embedded, listen: ':9900'}",
            "1:36: registry.listen: ':9900' is taken by admin.address ('127.0.0.1:9900')",
        ),
        (
            "registry: {kind: consul, address: 'h:1'}",
            "1:35: registry.address: 'h:1' is not a URL such as http://127.0.0.1:8500",
        ),
        (
            "registry: {kind: etcd, user: a}",
            "1:1: registry.password: is needed with user",
        ),
        (
            "registry: {kind: dns, record: address}",
            "1:1: registry.port: is needed for record: address; only SRV records tell a port",
        ),
        (
            "registry: {kind: dns, server: 'unix:/run/dns'}",
            "1:31: registry.server: 'unix:/run/dns' is a unix socket; a name server has a host and a port",
        ),
        ("registry: consul", "1:11: registry: must be a section (key: value), not a single value"),
        (
            "services: {a/b: {instances: [a:1]}}",
            "1:12: services.a/b: 'a/b' is not a name without spaces and slashes",
        ),
        ("services: {a: {}}", "1:12: services.a: has no instances, and there is no registry to ask for them"),
        (
            "services: {a: {instances: []}}",
            "1:12: services.a: has no instances, and there is no registry to ask for them",
        ),
        (
            "services: {a: {instances: [a:1, b:1, a:1]}}",
            "1:38: services.a.instances[2]: instances[0] has the id 'a:1' as well",
        ),
        (
            "services: {a: {instances: [{address: 'a:1', id: b:1}, b:1]}}",
            "1:55: services.a.instances[1]: instances[0] has the id 'b:1' as well",
        ),
        (
            "services: {a: {instances: [{address: 'a:1', id: x}, {address: 'b:1', id: x}]}}",
            "1:74: services.a.instances[1].id: instances[0] has the id 'x' as well",
        ),
        (
            "services: {a: {instances: [nope]}}",
            "1:28: services.a.instances[0]: 'nope' is not an address; write it as :8080, "
            "127.0.0.1:8080, [::1]:8080 or unix:/run/x.sock",
        ),
        (
            service("{hash_on: body}"),
            "3:16: services.a.hash_on: 'body' is not ip, path, header:NAME, cookie:NAME or query:NAME",
        ),
        (
            service("{websocket: {replay: true}}"),
            "3:27: services.a.websocket.replay: replay needs on_drain: migrate",
        ),
        (
            service("{health: {path: readyz}}"),
            "3:22: services.a.health.path: 'readyz' is not a request target; it starts with /",
        ),
        (
            service("{health: }\n  b: {healt: {}}"),
            "4:7: services.b.healt: is not a known key (did you mean 'health'?)",
        ),
        (
            service("{sticky: {by: cookie, name: 'a;b'}}"),
            "3:34: services.a.sticky.name: 'a;b' is not a name that HTTP allows (RFC 9110 section 5.6.2)",
        ),
        (
            service("{limit: {rate: 5/s, per: route}}"),
            "3:31: services.a.limit.per: a service has no bucket per route; write service",
        ),
        (
            service("{limit: [{rate: 5/s}, {rate: 5/s, per: header}]}"),
            "3:45: services.a.limit[1].per: 'header' is not client, route, service, header:NAME, cookie:NAME "
            "or query:NAME",
        ),
        (
            service("{capacity: {adaptive: {min: 9, max: 3}}}"),
            "3:42: services.a.capacity.adaptive.max: is less than min",
        ),
        (
            service("{retry: {hedge: 50ms}, sticky: {by: ip}}"),
            "3:22: services.a.retry.hedge: a sticky service cannot have it: only the client's own instance "
            "knows it",
        ),
        (
            service("{health: {dead: 1}}"),
            "3:22: services.a.health.dead: must be 0 or at least unhealthy (2)",
        ),
        (
            service("{health: {kind: tcp, body: x}}"),
            "3:33: services.a.health.body: says nothing to a check of the kind tcp",
        ),
        (
            service("{health: {status: [200, 99]}}"),
            "3:30: services.a.health.status[1]: '99' is not a status such as 200, 2xx or 200-399",
        ),
        (
            service("{outlier: {max_ejected: 120%}}"),
            "3:30: services.a.outlier.max_ejected: '120%' is not a share; write it as 20% or 0.2",
        ),
        (route("{}"), "3:3: routes[0].service: is required"),
        (
            route("{service: a, split: {x: 0}}"),
            "3:16: routes[0].split: a split needs at least one share above 0",
        ),
        (route("{service: a, split: {x: 1}}"), "3:27: routes[0].split.x: no instance of 'a' has version 'x'"),
        (
            route("{service: a, mirror: {to: x}}"),
            "3:29: routes[0].mirror.to: no instance of 'a' has version 'x'",
        ),
        (
            route("{service: a, name: x}\n- {service: a, name: x}"),
            "4:22: routes[1].name: routes[0] is called 'x' as well",
        ),
        (
            route("{service: a, match: {path: api}}"),
            "3:30: routes[0].match.path: 'api' is not a path; it starts with / and has no ? or #",
        ),
        (
            route("{service: a, match: {host: 'x:80'}}"),
            "3:30: routes[0].match.host: 'x:80' is not a host such as example.com or "
            "*.example.com, without port",
        ),
        (
            route("{service: a, match: {headers: {'a b': c}}}"),
            "3:34: routes[0].match.headers.a b: 'a b' is not a name that HTTP allows (RFC 9110 "
            "section 5.6.2)",
        ),
        (
            route("{service: a, limit: {rate: 0/s}}"),
            "3:30: routes[0].limit.rate: '0/s' is not a rate; write it as 100/s, 30/m or 5/h",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_path(text: str, message: str) -> None:
    assert wrong(text) == [f"f.yaml:{message}"]


def test_a_version_that_some_static_instance_has_may_be_split_to() -> None:
    text = "services: {a: {instances: [{address: 'a:1', metadata: {version: %s}}]}}\n"
    text += "routes: [{service: a, split: {v2: 1, v9: 0}}]"
    read((text % "v2").encode(), source="f", environ={})
    assert wrong(text % "v3") == ["f.yaml:2:35: routes[0].split.v2: no instance of 'a' has version 'v2'"]


def test_a_mistake_in_a_merged_section_is_shown_where_it_was_written() -> None:
    text = "registry: {kind: embedded}\nservices:\n  a: &a {slow_start: 1x}\n  b: {<<: *a}\n"
    lines = wrong(text)
    assert [line.split(": ")[0:2] for line in lines] == [
        ["f.yaml:3:22", "services.a.slow_start"],
        ["f.yaml:3:22", "services.b.slow_start"],
    ]


def test_no_message_shows_a_secret() -> None:
    text = (
        "admin: {address: ${SECRET}, token: ['s3cr3t']}\n"
        "shutdown: ${SECRET}\n"
        "limits: {connections: ${SECRET}}\n"
        "trusted_proxies: [${SECRET}]\n"
        "registry: {kind: ${SECRET}}\n"
        "services: {a: {sticky: {by: ${SECRET}, name: x, key: {a: s3cr3t}}, instances: ['${SECRET}:x']}}\n"
        "routes: [{service: ${SECRET}, name: a}, {service: a, name: ${SECRET}, match: "
        "{path_regex: '(${SECRET}'}}]\n"
    )
    environ = {"SECRET": "s3cr3t", "HOLDFAST_LIMITS__HEADER_COUNT": "1", "HOLDFAST_ADMIN_TOKEN": "s3cr3t"}
    lines = wrong(text, environ)
    assert len(lines) >= 9
    assert not [line for line in lines if "s3cr3t" in line]


@pytest.mark.parametrize(
    "text",
    [
        "services: {a: {instances: [a:1]}}\nroutes: [{service: a, match: {path_regex: '(?P=${SECRET})'}}]",
        "services: {a: {instances: [{address: '${SECRET}:1'}, {address: '${SECRET}:1'}]}}",
        "listen: [{address: '${SECRET}:1'}, {address: ':1'}]",
        "services: {a: {instances: [{address: 'a:1', metadata: {version: '${SECRET}'}}]}}\n"
        "routes: [{service: a, split: {s3cr3: 1}}]",
        "services: {a: {}}\nroutes: [{service: a, name: '${SECRET}'}, {service: a, name: '${SECRET}'}]",
    ],
)
def test_no_part_of_a_message_about_another_place_shows_a_secret(text: str) -> None:
    assert not [line for line in wrong(text, {"SECRET": "s3cr3t"}) if "s3cr3t" in line]


def test_a_syntax_error_does_not_show_the_line_it_is_in() -> None:
    assert "s3cr3t" not in "".join(wrong("admin: {token: s3cr3t"))
    assert "s3cr3t" not in "".join(wrong("admin: {token: *s3cr3t}"))
