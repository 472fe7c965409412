"""Active health checks: one task per endpoint, and a single question on demand.

A check is a connection of its own, and what comes back is parsed by the same strict parser as all traffic, so
that "healthy" means healthy for us. Three meanings are kept apart: an instance that has not passed yet is
starting, one that answers but not as wanted is not ready, one that does not answer at all may be dead.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from config.schema import Health, HealthKind
from discovery.model import Instance
from proxy.body import BodyError, make_decoder
from proxy.dialing import accept_for, field_value
from proxy.endpoint import Endpoint, State
from proxy.errors import ProxyError
from proxy.head import ResponseHead, parse_response
from proxy.plane import RESPONSE_LIMITS, Plane
from proxy.table import Departure

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""A name's addresses; see `proxy.resolve`."""

_ASK_TIMEOUT = 1.0
"""Seconds for a question on demand to an instance without a configured check: whether it accepts."""
_BODY = 64 << 10
"""Bytes of an answer's body in which the wanted text is looked for."""
_HURRY = 0.25
"""Share of the interval after a first failure, and while an instance is starting."""
_ACCEPTS = Health(kind=HealthKind.TCP)
_BROKEN = (OSError, EOFError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `wrong` is for people, None when healthy; `silent`: nothing answered at all."""

    wrong: str | None = None
    silent: bool = False


class Checker:
    """Runs the checks of every endpoint whose service has one, and tells the table.

    `depart` is given the endpoints that the checks show to be dead.
    """

    def __init__(
        self,
        plane: Plane,
        depart: Callable[[Sequence[Departure]], None] = lambda departures: None,
        random: Random | None = None,
    ) -> None:
        self._plane = plane
        self._depart = depart
        self._random = random or Random()
        self._tasks: dict[str, dict[Endpoint, tuple[Health, asyncio.Task[None]]]] = {}
        """Running checks by service."""

    def sync(self, service: str) -> None:
        """Begin and end checks so that they fit one service's endpoints; called after each change of them."""
        running = self._tasks.setdefault(service, {})
        state = self._plane.table.services.get(service)
        config = state.config.health if state is not None else None
        endpoints = set(state.endpoints.values()) if state is not None and config is not None else set()
        for endpoint in list(running):
            if endpoint not in endpoints or running[endpoint][0] != config:
                running.pop(endpoint)[1].cancel()
        for endpoint in endpoints:
            if endpoint not in running and config is not None:
                task = self._plane.loop.create_task(self._check_for_ever(endpoint, config))
                running[endpoint] = (config, task)

    async def close(self) -> None:
        """End every check."""
        tasks = [task for running in self._tasks.values() for _, task in running.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, instance: Instance) -> bool:
        """Whether an instance answers now: by its service's check, or by accepting a connection."""
        service = self._plane.table.services.get(instance.service)
        config = service.config.health if service is not None else None
        timeout = _ASK_TIMEOUT if config is None else config.timeout
        found = await probe(instance, config or _ACCEPTS, timeout, self._plane.resolver.resolve)
        return found.wrong is None

    async def _check_for_ever(self, endpoint: Endpoint, config: Health) -> None:
        table, clock = self._plane.table, self._plane.clock
        started_by = clock() + config.startup
        while True:
            early = endpoint.state is State.STARTING and clock() < started_by
            if endpoint.state is not State.GONE:
                resolve = self._plane.resolver.resolve
                found = await probe(endpoint.instance, config, config.timeout, resolve)
                departures = table.health(
                    endpoint,
                    found.wrong is None,
                    clock(),
                    found.wrong or "",
                    silent=found.silent,
                    early=early,
                )
                self._depart(departures)
            # The first failures are followed up quickly; jitter keeps many proxies from asking in step.
            hurried = early or 0 < endpoint.fails < config.unhealthy
            wait = config.interval * (_HURRY if hurried else 1.0)
            await asyncio.sleep(wait * self._random.uniform(0.9, 1.1))


async def probe(instance: Instance, check: Health, timeout: float, resolve: Resolve | None = None) -> Finding:
    """Ask one instance once, within `timeout` seconds. Never raises."""
    answered = False
    try:
        async with asyncio.timeout(timeout):
            if instance.path:
                reader, writer = await asyncio.open_unix_connection(instance.path)
            else:
                host = instance.host if resolve is None else (await resolve(instance.host))[0]
                reader, writer = await asyncio.open_connection(host, instance.port)
            try:
                if check.kind is HealthKind.TCP:
                    return Finding()
                writer.write(_question(instance, check))
                head, body = await _answer_head(reader)
                answered = True
                return Finding(await _judge(reader, check, head, body))
            finally:
                writer.transport.abort()
    except TimeoutError:
        return Finding(f"no answer within {timeout:g} s", silent=not answered)
    except (ProxyError, BodyError) as error:
        return Finding(str(error))
    except _BROKEN as error:
        return Finding(f"{type(error).__name__}: {error}", silent=not answered)


_KEY = b64encode(b"holdfast-health!")
"""A handshake's key proves that a WebSocket server answered, not who asked: it may be the same each time."""


def _question(instance: Instance, check: Health) -> bytes:
    host = check.host or ("localhost" if instance.path else instance.address)
    fields = [f"GET {check.path} HTTP/1.1", f"Host: {host}", "User-Agent: holdfast-health"]
    if check.kind is HealthKind.WEBSOCKET:
        fields += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        fields += [f"Sec-WebSocket-Key: {_KEY.decode()}"]
    else:
        fields += ["Connection: close"]
    return "\r\n".join((*fields, "", "")).encode()


async def _answer_head(reader: asyncio.StreamReader) -> tuple[ResponseHead, bytes]:
    received = b""
    while True:
        data = await reader.read(16 << 10)
        if not data:
            raise EOFError("the connection was closed before an answer")
        received += data
        while (parsed := parse_response(received, b"GET", RESPONSE_LIMITS)) is not None:
            head, end = parsed
            received = received[end:]
            if head.status == 101 or head.status >= 200:
                return head, received


async def _judge(reader: asyncio.StreamReader, check: Health, head: ResponseHead, body: bytes) -> str | None:
    """What is wrong with an answer."""
    if check.kind is HealthKind.WEBSOCKET:
        if head.status != 101:
            return f"status {head.status} instead of 101"
        if field_value(head, b"sec-websocket-accept") != accept_for(_KEY):
            return "Sec-WebSocket-Accept does not fit the key"
        return None
    if not any(low <= head.status <= high for low, high in map(_range, check.status)):
        return f"status {head.status}"
    if check.body is not None and not await _contains(reader, head, body, check.body.encode()):
        return f"the answer's body does not contain {check.body!r}"
    return None


async def _contains(reader: asyncio.StreamReader, head: ResponseHead, data: bytes, wanted: bytes) -> bool:
    """Whether `wanted` is in the beginning of the body. Raises what `proxy.body` does for wrong framing."""
    decoder, seen = make_decoder(head.body), b""
    while True:
        seen = (seen + decoder.feed(data))[:_BODY]
        if wanted in seen:
            return True
        if decoder.done or len(seen) == _BODY:
            return False
        if decoder.more:
            data = b""
        elif not (data := await reader.read(16 << 10)):
            return False


@cache
def _range(status: str) -> tuple[int, int]:
    """`200`, `2xx` or `200-399` as first and last status."""
    if status.endswith("xx"):
        return int(status[0]) * 100, int(status[0]) * 100 + 99
    first, _, last = status.partition("-")
    return int(first), int(last or first)
