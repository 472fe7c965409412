"""Why a request would go where it goes: the decision of `proxy.choose`, rehearsed and put into words.

Pure: nothing is moved, no cursor and no binding. The decision is made by the very function that the data
plane uses, on stand-ins for the parts of it that remember, so the two cannot come to differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from urllib.parse import quote, urlsplit

from config.schema import StickyBy
from discovery.model import Status
from proxy.choose import choose
from proxy.endpoint import Endpoint, State
from proxy.errors import ProxyError, Reason
from proxy.head import Limits, RequestHead, parse_request
from proxy.route import SEVERAL_PATHS
from proxy.sticky import Stickiness
from proxy.table import Pool, RouteState, ServiceState, Table

_LIMITS = Limits(64 << 10, 64 << 10, 1000)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class RouteVerdict:
    """A route that was not taken, and its first condition that the request does not meet."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class RouteTaken:
    """The route that the request takes."""

    name: str
    service: str


@dataclass(frozen=True, slots=True)
class SplitVerdict:
    """How the version came about. `version` is None when no version with a share has a ready instance."""

    shares: dict[str, int]
    version: str | None
    why: str


@dataclass(frozen=True, slots=True)
class StickyVerdict:
    """Whether the client is bound, and to which instance."""

    by: str
    instance: str | None
    why: str


@dataclass(frozen=True, slots=True)
class InstanceVerdict:
    """One instance of the service: taken, or why not."""

    id: str
    address: str
    version: str
    state: str
    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of a request. `outcome` is `forwarded` or the reason code of a refusal."""

    outcome: str
    detail: str
    route: RouteTaken | None
    other_routes: list[RouteVerdict]
    split: SplitVerdict | None
    sticky: StickyVerdict | None
    instances: list[InstanceVerdict]


def make_request(url: str, method: str = "GET", headers: list[tuple[str, str]] | None = None) -> RequestHead:
    """The head of a request as the data plane would read it from the wire.

    Raises `ValueError` for what cannot be written as a request at all, `ProxyError` for what the proxy would
    refuse. `url` may be whole or begin with `/`; a Host among `headers` replaces the URL's.
    """
    parts = urlsplit(url)
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"method: {method!r} is not a method")
    if parts.scheme not in ("", "http", "https", "ws", "wss") or not (parts.netloc or url.startswith("/")):
        raise ValueError(f"url: {url!r} is neither http://host/path nor /path")
    fields = list(headers or ())
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise ValueError(f"header: {name!r} is not a header field")
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", parts.netloc.rpartition("@")[2] or "localhost"))
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    parsed = parse_request(("\r\n".join(lines) + "\r\n\r\n").encode(), _LIMITS)
    if parsed is None:
        raise ValueError("url: the request is not complete")
    return parsed[0]


def refused(error: ProxyError) -> Explanation:
    """The explanation of a request that the proxy would not even route."""
    return Explanation(error.reason.code, error.detail, None, [], None, None, [])


def explain(
    table: Table, head: RequestHead, client: bytes, secure: bool, now: float, random: Random
) -> Explanation:
    """What the next such request from `client` (an address) would get, as things are.

    Where chance decides, `random` plays its part: another request may get another instance.
    """
    others = [
        RouteVerdict(verdict.route.name, verdict.failed or "a more specific route matches")
        for verdict in table.router.why(head)
        if not verdict.chosen
    ]
    compiled = table.router.match(head)
    if compiled is None:
        reason = Reason.NO_ROUTE
        return Explanation(reason.code, reason.detail, None, others, None, None, [])
    if not table.router.agrees(head, compiled):
        return Explanation(Reason.BAD_REQUEST.code, SEVERAL_PATHS, None, others, None, None, [])
    route = table.routes[compiled.index]
    stand_in = _stand_in(route, head, client)
    chosen, _ = choose(stand_in, head, client, secure, now, random)
    bound = _bound(route, head, client, now)
    service = route.service
    split = _split(route, chosen, bound, client)
    return Explanation(
        outcome="forwarded" if chosen is not None else Reason.NO_HEALTHY_INSTANCE.code,
        detail="" if chosen is not None else Reason.NO_HEALTHY_INSTANCE.detail,
        route=RouteTaken(route.name, service.name),
        other_routes=others,
        split=split,
        sticky=_sticky(service, chosen, bound),
        instances=[
            InstanceVerdict(
                id=endpoint.instance.id,
                address=endpoint.instance.address,
                version=endpoint.instance.version,
                state=endpoint.state.value,
                taken=endpoint is chosen,
                why=_why(table, route, endpoint, chosen, bound, now),
            )
            for endpoint in service.endpoints.values()
        ],
    )


def _stand_in(route: RouteState, head: RequestHead, client: bytes) -> RouteState:
    """The route with copies of all that a decision moves: turns, and bindings."""
    service = route.service
    twin = ServiceState(service.name, service.config, _rehearsal(service.stickiness, head, client))
    twin.pool = Pool(service.pool.ready, service.config, service.pool)
    stand_in = RouteState(route.compiled, twin)
    stand_in.split = route.split
    return stand_in


def _rehearsal(stickiness: Stickiness | None, head: RequestHead, client: bytes) -> Stickiness | None:
    return None if stickiness is None else stickiness.rehearsal(head, client)


def _bound(route: RouteState, head: RequestHead, client: bytes, now: float) -> Endpoint | None:
    """Whom the client is bound to, whether or not the split lets it stay there."""
    service = route.service
    stickiness = _rehearsal(service.stickiness, head, client)
    if stickiness is None:
        return None
    by_token = {endpoint.token: endpoint for endpoint in service.endpoints.values() if endpoint.token}
    return stickiness.find(head, client, by_token, now)


def _split(
    route: RouteState, chosen: Endpoint | None, bound: Endpoint | None, client: bytes
) -> SplitVerdict | None:
    split = route.split
    if split is None:
        return None
    shares = dict(split.shares)
    if chosen is None:
        return SplitVerdict(shares, None, "no version with a share has a ready instance")
    version = chosen.instance.version
    if chosen is bound:
        return SplitVerdict(shares, version, "the client is bound to an instance of it")
    stickiness = route.service.stickiness
    if not client or (stickiness is not None and stickiness.by is StickyBy.COOKIE):
        return SplitVerdict(shares, version, "by chance: the client is on no side yet")
    return SplitVerdict(shares, version, "by the client's address, which always lands on this side")


def _sticky(service: ServiceState, chosen: Endpoint | None, bound: Endpoint | None) -> StickyVerdict | None:
    stickiness = service.stickiness
    if stickiness is None:
        return None
    by = stickiness.by.value
    if bound is None:
        made = chosen is not None
        return StickyVerdict(by, None, "not bound yet; this request binds it" if made else "not bound")
    if bound is chosen:
        return StickyVerdict(by, bound.instance.id, "bound")
    if bound not in service.pool.ready:
        why = f"bound, but that instance is {bound.state.value}"
        if bound.state is State.READY:
            why = "bound, but that instance gets nothing new"
    else:
        why = "bound, but its version has no share in the split"
    return StickyVerdict(by, bound.instance.id, why)


def _why(
    table: Table,
    route: RouteState,
    endpoint: Endpoint,
    chosen: Endpoint | None,
    bound: Endpoint | None,
    now: float,
) -> str:
    service, split = route.service, route.split
    balance = service.config.balance.value
    if endpoint is chosen:
        return "the client is bound to it" if endpoint is bound else f"chosen by {balance}"
    if endpoint.state is not State.READY and not endpoint.available:
        return _why_not_ready(table, endpoint, now)
    if endpoint.weight == 0:
        return "its weight is 0"
    if endpoint not in service.pool.ready:
        if endpoint.instance.status is Status.DOUBTFUL:
            return "its registry lost it, or it comes and goes: used only while no other instance is ready"
        return "a backup: used only while no other instance is ready"
    version = endpoint.instance.version
    if split is not None and not split.shares.get(version, 0):
        return f"version {version or '(none)'} has no share in the split"
    if chosen is not None and chosen is bound:
        return f"the client is bound to {chosen.instance.id}"
    if split is not None and chosen is not None and chosen.instance.version != version:
        return f"version {version}; the request goes to version {chosen.instance.version}"
    return f"{balance} chose another one"


def _why_not_ready(table: Table, endpoint: Endpoint, now: float) -> str:
    if endpoint.state is State.STARTING:
        return "its first health check has not passed yet"
    if endpoint.state is State.EJECTED:
        return f"ejected for {max(0.0, endpoint.ejected_until - now):.1f} s more"
    if endpoint.state is State.DRAINING:
        override = table.overridden(endpoint)
        by = "an operator" if override is not None and override.draining else "its registry"
        return f"draining: asked for by {by}"
    return "its health check fails or its registry calls it critical"
