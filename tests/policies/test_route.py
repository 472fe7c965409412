"""Which route wins, and what `explain` is told of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from config.schema import Match, Route
from proxy.head import RequestHead
from proxy.route import Router, compile_routes

MakeHead = Callable[..., RequestHead]


def router(**matches: dict[str, Any]) -> Router:
    return compile_routes(
        Route(name=name, match=Match(**match), service="s") for name, match in matches.items()
    )


def winner(routes: Router, head: RequestHead) -> str | None:
    found = routes.match(head)
    return found.name if found is not None else None


def test_without_routes_nothing_matches(request_head: MakeHead) -> None:
    assert compile_routes(()).match(request_head()) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.example.com", "exact"),
        ("API.Example.com", "exact"),
        ("api.example.com:8443", "exact"),
        ("api.example.com.", "exact"),
        ("www.example.com", "wide"),
        ("a.b.example.com", "wide"),
        ("x.eu.example.com", "narrow"),
        ("example.com", "any"),
        ("badexample.com", "any"),
        ("example.com.evil.test", "any"),
        (".example.com", "any"),
        (".a.example.com", "wide"),
    ],
)
def test_hosts_go_from_exact_to_wildcard_to_any(request_head: MakeHead, host: str, expected: str) -> None:
    routes = router(
        any={"path": "/deep/down"},
        wide={"host": "*.example.com"},
        narrow={"host": "*.eu.example.com"},
        exact={"host": "api.example.com"},
    )
    assert winner(routes, request_head("/deep/down", host=host)) == expected


def test_a_host_that_has_no_route_for_the_path_leaves_it_to_the_less_specific(request_head: MakeHead) -> None:
    routes = router(
        exact={"host": "a.example.com", "path": "/one"},
        wide={"host": "*.example.com", "path": "/two"},
        any={"path": "/three"},
    )
    found = [
        winner(routes, request_head(path, host="a.example.com")) for path in ("/one", "/two", "/three", "/")
    ]
    assert found == ["exact", "wide", "any", None]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x", "api"),
        ("/api/v1", "v1"),
        ("/api/v1/users/7", "v1"),
        ("/api/v10", "api"),
        ("/apix", "root"),
        ("/ap", "root"),
        ("/", "root"),
        ("/API", "root"),
        ("/exact", "exact"),
        ("/exact/", "root"),
        ("/f/1", "regex"),
        ("/f/1x", "root"),
        ("/api/9", "api"),
        ("/tail", "tail"),
        ("/tail/x", "tail"),
    ],
)
def test_paths_go_from_exact_to_prefix_to_regex_to_none(
    request_head: MakeHead, path: str, expected: str
) -> None:
    routes = router(
        root={"path": "/"},
        regex={"path_regex": r"/(f|api)/\d"},
        api={"path": "/api"},
        v1={"path": "/api/v1"},
        tail={"path": "/tail/"},
        exact={"path_exact": "/exact"},
    )
    assert winner(routes, request_head(path)) == expected


def test_the_prefix_slash_hides_no_regex_and_takes_what_has_no_slash(request_head: MakeHead) -> None:
    routes = router(root={"path": "/"}, regex={"path_regex": "/v[0-9]+"})
    assert winner(routes, request_head("/v2")) == "regex"
    assert winner(routes, request_head("*", method="OPTIONS")) == "root"


def test_a_path_of_very_many_segments_is_looked_up_like_any_other(request_head: MakeHead) -> None:
    routes = router(api={"path": "/a/a"}, other={"path": "/b"})
    assert winner(routes, request_head("/a" * 8000)) == "api"
    assert winner(routes, request_head("/c" * 8000)) is None


def test_more_conditions_win_and_then_the_order_of_the_file(request_head: MakeHead) -> None:
    routes = router(
        plain={"path": "/"},
        post={"path": "/", "method": ["POST", "PUT"]},
        both={"path": "/", "method": "POST", "headers": {"X-Canary": "*"}},
        late={"path": "/", "method": "POST"},
    )
    assert winner(routes, request_head("/")) == "plain"
    assert winner(routes, request_head("/", method="POST")) == "post"
    assert winner(routes, request_head("/", method="PUT")) == "post"
    assert winner(routes, request_head("/", "x-canary: ", method="POST")) == "both"


def test_a_longer_path_beats_more_conditions(request_head: MakeHead) -> None:
    routes = router(short={"path": "/a", "headers": {"x": "1"}}, long={"path": "/a/b"})
    assert winner(routes, request_head("/a/b", "X: 1")) == "long"


@pytest.mark.parametrize(
    ("match", "fields", "target", "expected"),
    [
        ({"headers": {"X-Env": "beta"}}, ("x-env: beta",), "/", True),
        ({"headers": {"X-Env": "beta"}}, ("X-Env: alpha", "X-Env: beta  "), "/", True),
        ({"headers": {"X-Env": "beta"}}, ("X-Env: Beta",), "/", False),
        ({"headers": {"X-Env": "*"}}, ("X-Env:",), "/", True),
        ({"headers": {"X-Env": "*"}}, (), "/", False),
        ({"cookies": {"beta": "1"}}, ("Cookie: a=b; beta=1",), "/", True),
        ({"cookies": {"beta": "1"}}, ("Cookie: beta=0", "Cookie: beta=1"), "/", True),
        ({"cookies": {"beta": "1"}}, ("Cookie: Beta=1",), "/", False),
        ({"cookies": {"beta": "*"}}, ("Cookie: beta=",), "/", True),
        ({"query": {"v": "2"}}, (), "/?v=2", True),
        ({"query": {"v": "2"}}, (), "/?v=1&v=2", True),
        ({"query": {"v": "a b"}}, (), "/?v=a%20b", True),
        ({"query": {"v": "*"}}, (), "/?v", True),
        ({"query": {"v": "2"}}, (), "/", False),
    ],
)
def test_conditions(
    request_head: MakeHead, match: dict[str, Any], fields: tuple[str, ...], target: str, expected: bool
) -> None:
    assert (winner(router(r=match), request_head(target, *fields)) == "r") is expected


def test_why_names_the_first_condition_that_failed(request_head: MakeHead) -> None:
    routes = router(
        host={"host": "other.test"},
        wild={"host": "*.other.test"},
        exact={"path_exact": "/y"},
        prefix={"path": "/api"},
        regex={"path_regex": "/[0-9]"},
        method={"method": ["POST", "PUT"]},
        header={"headers": {"X-A": "1"}},
        cookie={"cookies": {"c": "*"}},
        query={"query": {"q": "1"}},
        fallback={"path": "/"},
        chosen={"method": "GET"},
    )
    told = {
        verdict.route.name: (verdict.failed, verdict.chosen) for verdict in routes.why(request_head("/x"))
    }
    assert told == {
        "host": ("the host is not other.test", False),
        "wild": ("the host is not *.other.test", False),
        "exact": ("the path is not /y", False),
        "prefix": ("the path is not below /api", False),
        "regex": ("the path does not match /[0-9]", False),
        "method": ("the method is not POST or PUT", False),
        "header": ("the header x-a is not 1", False),
        "cookie": ("the cookie c is missing", False),
        "query": ("the query q is not 1", False),
        "fallback": (None, False),
        "chosen": (None, True),
    }


def test_a_route_carries_what_the_configuration_says(request_head: MakeHead) -> None:
    config = Route.model_validate(
        {
            "name": "r",
            "service": "s",
            "split": {"stable": 95, "canary": 5},
            "limit": {"rate": "10/s"},
            "mirror": {"to": "canary", "share": "10%"},
        }
    )
    route = compile_routes([config]).match(request_head())
    assert route is not None
    assert (route.name, route.service, route.index) == ("r", "s", 0)
    assert route.split is not None and dict(route.split.shares) == {"stable": 95, "canary": 5}
    assert route.limits == config.limit and route.mirror == config.mirror


@pytest.mark.parametrize(
    ("target", "agreed"),
    [
        ("/admin", True),
        ("//admin", True),
        ("/%61dmin", True),
        ("/public/a%2Fb;c", True),
        ("/public/../other", True),
        ("/admin/../admin/x", True),
        ("/public/../admin", False),
        ("/admin/../public", False),
        ("/./admin", False),
        ("/admin%2Fx", False),
        ("/admin\\x", False),
        ("/admin;x/y", False),
        ("/admin/a;x/y", True),
    ],
)
def test_a_path_is_agreed_on_when_every_reading_takes_the_same_route(
    request_head: MakeHead, target: str, agreed: bool
) -> None:
    routes = router(root={"path": "/"}, admin={"path": "/admin"})
    head = request_head(target)
    assert routes.agrees(head, routes.match(head)) is agreed


def test_a_path_that_only_one_reading_has_a_route_for_is_not_agreed_on(request_head: MakeHead) -> None:
    routes = router(admin={"path": "/admin"})
    for target in ("/x/../admin", "/admin/../x"):
        head = request_head(target)
        assert not routes.agrees(head, routes.match(head))


def test_a_route_that_names_an_odd_path_means_it(request_head: MakeHead) -> None:
    routes = router(root={"path": "/"}, odd={"path": "/a;b"}, exact={"path_exact": "/x%2Fy"})
    for target, name in (("/a;b/c", "odd"), ("/x%2Fy", "exact")):
        head = request_head(target)
        found = routes.match(head)
        assert found is not None and (found.name, routes.agrees(head, found)) == (name, True)
