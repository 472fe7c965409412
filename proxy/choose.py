"""Which endpoint a request gets: route, split, stickiness and balancer put together in one decision."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from config.schema import StickyBy
from proxy.balance import Balancer
from proxy.endpoint import Endpoint
from proxy.head import RequestHead
from proxy.split import position_of
from proxy.table import RouteState


def choose(
    route: RouteState,
    head: RequestHead,
    client: bytes,
    secure: bool,
    now: float,
    random: Random,
    tried: Collection[Endpoint] = (),
) -> tuple[Endpoint | None, bytes]:
    """The endpoint, or None when nobody is left; and the Set-Cookie value to bind the client, or nothing.

    `client` is the client's address, `secure` whether it came by TLS; `tried` have failed this request
    already. A client that is bound stays where it is for as long as that instance is ready and its version
    still has a share.
    """
    service = route.service
    pool = service.pool
    stickiness = service.stickiness
    split = route.split
    if stickiness is not None:
        bound = stickiness.find(head, client, pool.by_token, now)
        if (
            bound is not None
            and bound not in tried
            and (split is None or split.shares.get(bound.instance.version, 0) > 0)
        ):
            return bound, b""
    balancer: Balancer[Endpoint] = pool.balancer
    if split is not None:
        ready = pool.versions
        if tried:
            ready = {endpoint.instance.version for endpoint in pool.ready if endpoint not in tried}
        by_cookie = stickiness is not None and stickiness.by is StickyBy.COOKIE
        # Who carries a cookie is kept on a side by it; all others by who they are.
        position = random.random() if by_cookie or not client else position_of(client, route.key)
        version = split.choose(position, ready)
        if version is None:
            return None, b""
        balancer = pool.subset(version)
    if stickiness is None:
        key = service.key_of(head, client) if service.key_of is not None else b""
        return balancer.pick(key, now, random, tried), b""
    members = [member for member in balancer.members if member not in tried] if tried else balancer.members
    chosen = stickiness.bind(head, client, members, now)
    if chosen is not None:
        return chosen, b""
    key = service.key_of(head, client) if service.key_of is not None else b""
    chosen = balancer.pick(key, now, random, tried)
    if chosen is None or stickiness.by is not StickyBy.COOKIE:
        return chosen, b""
    return chosen, stickiness.set_cookie(chosen.token, secure)
