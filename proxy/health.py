"""Active health checks: one task per endpoint, and a single question on demand.

A check is an HTTP request of its own on a new connection, parsed by the same strict parser as all traffic, so
that "healthy" means healthy for us.
"""

from __future__ import annotations

import asyncio
from random import Random

from config.schema import Health
from discovery.model import Instance
from proxy.endpoint import Endpoint, State
from proxy.errors import ProxyError
from proxy.head import parse_response
from proxy.plane import RESPONSE_LIMITS, Plane

_ASK_TIMEOUT = 1.0
"""Seconds for a question on demand to an instance without a configured check: whether it accepts."""


class Checker:
    """Runs the checks of every endpoint whose service has one, and tells the table."""

    def __init__(self, plane: Plane, random: Random | None = None) -> None:
        self._plane = plane
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
        if config is None:
            return await probe(instance, "", _ASK_TIMEOUT) is None
        return await probe(instance, config.path, config.timeout) is None

    async def _check_for_ever(self, endpoint: Endpoint, config: Health) -> None:
        table, clock = self._plane.table, self._plane.clock
        while True:
            if endpoint.state is not State.GONE:
                wrong = await probe(endpoint.instance, config.path, config.timeout)
                table.health(endpoint, wrong is None, clock(), wrong or "")
            # The first failures are followed up quickly; jitter keeps many proxies from asking in step.
            hurry = 0.25 if 0 < endpoint.fails < config.unhealthy else 1.0
            await asyncio.sleep(config.interval * hurry * self._random.uniform(0.9, 1.1))


async def probe(instance: Instance, path: str, timeout: float) -> str | None:
    """Ask once; None when healthy, else what was wrong. With an empty path connecting is enough."""
    try:
        async with asyncio.timeout(timeout):
            if instance.path:
                reader, writer = await asyncio.open_unix_connection(instance.path)
            else:
                reader, writer = await asyncio.open_connection(instance.host, instance.port)
            try:
                return await _request(reader, writer, instance, path) if path else None
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except (OSError, EOFError, ValueError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, instance: Instance, path: str
) -> str | None:
    host = "localhost" if instance.path else instance.address
    question = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: holdfast-health\r\nConnection: close\r\n\r\n"
    )
    writer.write(question.encode())
    received = b""
    while True:
        data = await reader.read(16 << 10)
        if not data:
            return "the connection was closed before an answer"
        received += data
        try:
            while (parsed := parse_response(received, b"GET", RESPONSE_LIMITS)) is not None:
                head, end = parsed
                if head.status >= 200:
                    return None if head.status < 400 else f"status {head.status}"
                received = received[end:]
        except ProxyError as error:
            return str(error)
