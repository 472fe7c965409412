"""The router does what a plain sort and scan of all routes would do."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from config.schema import Match, Route
from proxy.head import Limits, RequestHead, parse_request
from proxy.route import compile_routes

SEGMENT = st.sampled_from(["a", "b", "ab", "abc"])
PATH = st.lists(SEGMENT, max_size=4).map(lambda parts: "/" + "/".join(parts))
HOST = st.sampled_from(["a.test", "b.test", "x.a.test", "y.x.a.test", "test"])
REGEX = st.sampled_from(["/a.*", "/[ab]+", ".*c", "/a/b"])
VALUES = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2", "*"]), max_size=2)
SENT = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2)
METHODS = ["GET", "POST", "PUT"]


@st.composite
def matches(draw: st.DrawFn) -> Match:
    given: dict[str, Any] = {}
    if draw(st.booleans()):
        given["host"] = draw(st.one_of(HOST, HOST.map("*.{}".format)))
    path = draw(st.sampled_from(["none", "path", "path_exact", "path_regex"]))
    if path != "none":
        value = draw(REGEX if path == "path_regex" else PATH)
        given[path] = value + draw(st.sampled_from(["", "/"])) if path == "path" else value
    if draw(st.booleans()):
        given["method"] = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=2))
    for kind in ("headers", "cookies", "query"):
        if draw(st.integers(0, 3)) == 0:
            given[kind] = draw(VALUES)
    return Match(**given)


@st.composite
def requests(draw: st.DrawFn) -> tuple[RequestHead, dict[str, dict[str, str]]]:
    sent = {kind: draw(SENT) for kind in ("headers", "cookies", "query")}
    query = "&".join(f"{name}={value}" for name, value in sent["query"].items())
    target = draw(PATH) + draw(st.sampled_from(["", "/"])) + (f"?{query}" if query else "")
    lines = [f"{draw(st.sampled_from(METHODS))} {target} HTTP/1.1", f"Host: {draw(HOST)}"]
    lines += [f"{name}: {value}" for name, value in sent["headers"].items()]
    if sent["cookies"]:
        lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in sent["cookies"].items()))
    parsed = parse_request("\r\n".join([*lines, "", ""]).encode(), Limits(16384, 65536, 100))
    assert parsed is not None
    return parsed[0], sent


def holds(match: Match, head: RequestHead, sent: dict[str, dict[str, str]]) -> bool:
    path, host = head.path.decode(), head.host.decode()
    if match.host is not None:
        wild = match.host.startswith("*.")
        if not (host.endswith(match.host[1:]) if wild else host == match.host):
            return False
    if match.path is not None and not (path + "/").startswith(match.path.rstrip("/") + "/"):
        return False
    if match.path_exact is not None and path != match.path_exact:
        return False
    if match.path_regex is not None and not re.fullmatch(match.path_regex, path):
        return False
    if match.method and head.method.decode() not in match.method:
        return False
    return all(
        name in sent[kind] and value in ("*", sent[kind][name])
        for kind in ("headers", "cookies", "query")
        for name, value in getattr(match, kind).items()
    )


def specificity(item: tuple[int, Match]) -> tuple[int, ...]:
    index, match = item
    host = match.host or ""
    prefix = (match.path or "").rstrip("/")
    path = 3 if match.path_exact is not None else 2 if prefix else 1 if match.path_regex is not None else 0
    conditions = bool(match.method) + len(match.headers) + len(match.cookies) + len(match.query)
    host_rank = 0 if not host else 1 if host.startswith("*.") else 2
    return -host_rank, -len(host), -path, -len(prefix), -conditions, index


@given(wanted=st.lists(matches(), max_size=12), request=requests())
def test_the_router_agrees_with_a_plain_scan(
    wanted: list[Match], request: tuple[RequestHead, dict[str, dict[str, str]]]
) -> None:
    head, sent = request
    router = compile_routes(Route(name=f"r{n}", match=match, service="s") for n, match in enumerate(wanted))
    ranked = sorted(enumerate(wanted), key=specificity)
    expected = next((f"r{n}" for n, match in ranked if holds(match, head, sent)), None)
    found = router.match(head)
    assert (found.name if found is not None else None) == expected
    for verdict, match in zip(router.why(head), wanted, strict=True):
        assert (verdict.failed is None) is holds(match, head, sent)
        assert verdict.chosen is (verdict.route is found)
