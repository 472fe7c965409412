"""Which route a request takes: the most specific one whose conditions all hold.

Pure. A router is immutable and compiled once for each configuration; a request costs some dictionary lookups,
whatever the number of routes.

Most specific first, by
1. host: the exact name, then wildcards by length, then routes without one;
2. path: exact, then prefixes by length, then regular expressions, then routes without one (the prefix `/`
   holds for everything and is counted as none, lest it hide every regular expression);
3. the number of further conditions (method, headers, cookies, query);
4. order in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

from config.schema import Limit, Match, Mirror, Route
from proxy.head import RequestHead
from proxy.keys import Head, cookie_values, query_values
from proxy.split import Split

_PRESENT = "*"

SEVERAL_PATHS = "the path can be read in several ways, which take different routes"
"""Why a request is refused that `Router.agrees` says no to."""


_ODD = re.compile(r"[;%\\]")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing beyond host and path that a request must have: `kind` is method, header, cookie or query."""

    kind: str
    name: bytes
    values: frozenset[bytes]
    """Any of these; empty: present is enough."""

    def holds(self, head: Head) -> bool:
        """Whether the request has it; of a repeated field, cookie or parameter any may have it."""
        if self.kind == "method":
            return head.method in self.values
        if self.kind == "header":
            found = [value.strip(b" \t") for name, value in head.fields if name.lower() == self.name]
        elif self.kind == "cookie":
            found = list(cookie_values(head, self.name))
        else:
            found = list(query_values(head.query, self.name))
        return not self.values.isdisjoint(found) if self.values else bool(found)

    def __str__(self) -> str:
        values = " or ".join(sorted(_text(value) for value in self.values))
        if self.kind == "method":
            return f"the method is not {values}"
        what = f"the {self.kind} {_text(self.name)}"
        return f"{what} is not {values}" if values else f"{what} is missing"


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRoute:
    """A route in the form that requests are matched by. `index` is its place in the file."""

    name: str
    service: str
    index: int
    match: Match
    conditions: tuple[Condition, ...]
    regex: re.Pattern[str] | None
    split: Split | None
    """As configured; what holds at run time is the table's."""
    limits: tuple[Limit, ...]
    mirror: Mirror | None

    def holds(self, head: Head) -> bool:
        """Whether everything but host and a literal path holds."""
        if self.regex is not None and self.regex.fullmatch(_text(head.path)) is None:
            return False
        for condition in self.conditions:  # noqa: SIM110 - a generator costs three times as much
            if not condition.holds(head):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `Router.why` says of one route: `failed` is the first condition that did not hold, or None."""

    route: CompiledRoute
    failed: str | None
    chosen: bool


class _Paths:
    """The routes of one host."""

    __slots__ = ("_anywhere", "_exact", "_longest", "_prefixes")

    def __init__(self, routes: Iterable[CompiledRoute]) -> None:
        self._exact: dict[bytes, list[CompiledRoute]] = {}
        self._prefixes: dict[bytes, list[CompiledRoute]] = {}
        self._anywhere: list[CompiledRoute] = []
        for route in sorted(routes, key=_specific):
            match = route.match
            if match.path_exact is not None:
                self._exact.setdefault(match.path_exact.encode(), []).append(route)
            elif prefix := _prefix(match):
                self._prefixes.setdefault(prefix, []).append(route)
            else:
                self._anywhere.append(route)
        self._longest = max(map(len, self._prefixes), default=0)

    def find(self, head: Head) -> CompiledRoute | None:
        path = head.path
        if self._exact:
            for route in self._exact.get(path, ()):
                if route.holds(head):
                    return route
        if self._prefixes:
            # Nothing beyond the longest prefix is looked at, so that a path of a thousand segments costs no
            # more than a short one. The end is one segment border further than the longest prefix may reach.
            end = len(path) if len(path) <= self._longest else path.rfind(b"/", 0, self._longest + 1)
            while end > 0:
                for route in self._prefixes.get(path[:end], ()):
                    if route.holds(head):
                        return route
                end = path.rfind(b"/", 0, end)
        for route in self._anywhere:
            if not route.conditions and route.regex is None:
                return route
            if route.holds(head):
                return route
        return None


class Router:
    """All routes of a configuration; `routes` is in the order of the file."""

    __slots__ = ("_anywhere", "_exact", "_longest", "_wildcards", "routes")

    def __init__(self, routes: Sequence[CompiledRoute]) -> None:
        self.routes = tuple(routes)
        exact: dict[bytes, list[CompiledRoute]] = {}
        wildcards: dict[bytes, list[CompiledRoute]] = {}
        anywhere: list[CompiledRoute] = []
        for route in routes:
            host = _host(route.match)
            if not host:
                anywhere.append(route)
            elif host.startswith(b"*."):
                wildcards.setdefault(host[1:], []).append(route)
            else:
                exact.setdefault(host, []).append(route)
        self._exact = {host: _Paths(group) for host, group in exact.items()}
        self._wildcards = {suffix: _Paths(group) for suffix, group in wildcards.items()}
        self._longest = max(map(len, wildcards), default=0)
        self._anywhere = _Paths(anywhere)

    def match(self, head: Head) -> CompiledRoute | None:
        """The route for a request, or None."""
        if self._exact or self._wildcards:
            found = self._by_host(head)
            if found is not None:
                return found
        return self._anywhere.find(head)

    def agrees(self, head: RequestHead, route: CompiledRoute | None) -> bool:
        """Whether every reading of the path leads to `route`, to which its normal form does.

        What differs would be let in by one route and served as if it had come by another. A route that names
        such a path itself means it.
        """
        if route is not None and _ODD.search(route.match.path_exact or route.match.path or ""):
            return True
        for reading in head.readings:
            other = copy(head)
            other.path = reading
            if self.match(other) is not route:
                return False
        return True

    def _by_host(self, head: Head) -> CompiledRoute | None:
        host = head.host.removesuffix(b".")
        paths = self._exact.get(host)
        if paths is not None:
            found = paths.find(head)
            if found is not None:
                return found
        # A wildcard stands for one label or more, so a suffix begins after the first character at least.
        dot = host.find(b".", max(1, len(host) - self._longest))
        while dot > 0:
            paths = self._wildcards.get(host[dot:])
            if paths is not None:
                found = paths.find(head)
                if found is not None:
                    return found
            dot = host.find(b".", dot + 1)
        return None

    def why(self, head: Head) -> list[Verdict]:
        """What became of each route, in the order of the file: for `explain`, not for the hot path."""
        chosen = self.match(head)
        return [Verdict(route, _first_failure(route, head), route is chosen) for route in self.routes]


def compile_routes(routes: Iterable[Route]) -> Router:
    """The router for a configuration's routes, whose names `Config` has filled in."""
    return Router([_compile(route, index) for index, route in enumerate(routes)])


def _compile(route: Route, index: int) -> CompiledRoute:
    match = route.match
    conditions = []
    if match.method:
        methods = frozenset(method.encode() for method in match.method)
        conditions.append(Condition("method", b"", methods))
    for kind, wanted in (("header", match.headers), ("cookie", match.cookies), ("query", match.query)):
        for name, value in wanted.items():
            key = name.lower() if kind == "header" else name
            values = frozenset() if value == _PRESENT else frozenset((value.encode(),))
            conditions.append(Condition(kind, key.encode(), values))
    return CompiledRoute(
        name=route.name,
        service=route.service,
        index=index,
        match=match,
        conditions=tuple(conditions),
        regex=re.compile(match.path_regex) if match.path_regex is not None else None,
        split=Split(route.split) if route.split is not None else None,
        limits=route.limit,
        mirror=route.mirror,
    )


def _specific(route: CompiledRoute) -> tuple[bool, int, int]:
    return route.regex is None, -len(route.conditions), route.index


def _host(match: Match) -> bytes:
    """The wanted host, `*.` and all; empty for any."""
    return (match.host or "").encode()


def _prefix(match: Match) -> bytes:
    """The prefix without the slash at its end: `/api/` and `/api` mean the same."""
    return (match.path or "").rstrip("/").encode()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _first_failure(route: CompiledRoute, head: Head) -> str | None:
    match, path = route.match, head.path
    wanted, host = _host(match), head.host.removesuffix(b".")
    fits = host.endswith(wanted[1:]) and len(host) >= len(wanted) if wanted[:2] == b"*." else host == wanted
    if wanted and not fits:
        return f"the host is not {match.host}"
    if match.path_exact is not None and path != match.path_exact.encode():
        return f"the path is not {match.path_exact}"
    prefix = _prefix(match)
    if prefix and path != prefix and not path.startswith(prefix + b"/"):
        return f"the path is not below {match.path}"
    if route.regex is not None and route.regex.fullmatch(_text(path)) is None:
        return f"the path does not match {match.path_regex}"
    return next((str(condition) for condition in route.conditions if not condition.holds(head)), None)
