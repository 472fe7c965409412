"""Runs the HTTP and TCP checks that registrars asked for, one task for each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import aiohttp

from discovery.embedded.definition import CheckStatus, HttpProbe, TcpProbe

OUTPUT_LIMIT = 4096
"""Bytes of an HTTP check's answer that are kept as its output (Consul's limit)."""

Probe = HttpProbe | TcpProbe
Report = Callable[[str, CheckStatus, str], None]


async def run_http(session: aiohttp.ClientSession, probe: HttpProbe) -> tuple[CheckStatus, str]:
    """One run: 2xx passes, 429 warns, everything else, also no answer in time, is critical."""
    try:
        async with session.request(
            probe.method,
            probe.url,
            headers=probe.headers,
            data=probe.body or None,
            timeout=aiohttp.ClientTimeout(total=probe.timeout),
            ssl=probe.verify,
        ) as response:
            body = (await response.content.read(OUTPUT_LIMIT)).decode(errors="replace")
            said = f"HTTP {probe.method} {probe.url}: {response.status} {response.reason} Output: {body}"
            if 200 <= response.status < 300:
                return CheckStatus.PASSING, said
            return CheckStatus.WARNING if response.status == 429 else CheckStatus.CRITICAL, said
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        return CheckStatus.CRITICAL, f"HTTP {probe.method} {probe.url}: {reason}"


async def run_tcp(probe: TcpProbe) -> tuple[CheckStatus, str]:
    """One run: a connection that is accepted in time passes."""
    address = probe.address
    try:
        async with asyncio.timeout(probe.timeout):
            if address.path:
                _, writer = await asyncio.open_unix_connection(address.path)
            else:
                _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as error:
        return CheckStatus.CRITICAL, f"TCP connect {address}: {str(error) or type(error).__name__}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return CheckStatus.PASSING, f"TCP connect {address}: Success"


class Prober:
    """Owns the tasks; `report` is called with check id, status and output after each run."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._tasks: dict[str, tuple[Probe, asyncio.Task[None]]] = {}
        self._session: aiohttp.ClientSession | None = None

    def sync(self, probes: Mapping[str, Probe]) -> None:
        """Starts what is new and ends what is gone or changed. The first run of a check is at once."""
        for check_id, (probe, task) in list(self._tasks.items()):
            if probes.get(check_id) != probe:
                task.cancel()
                del self._tasks[check_id]
        for check_id, probe in probes.items():
            if check_id not in self._tasks:
                self._tasks[check_id] = probe, asyncio.create_task(self._repeat(check_id, probe))

    async def close(self) -> None:
        """Ends all checks."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _repeat(self, check_id: str, probe: Probe) -> None:
        while True:
            if isinstance(probe, HttpProbe):
                if self._session is None:
                    # A kept connection would answer for a process that no longer accepts new ones.
                    connector = aiohttp.TCPConnector(
                        limit=0, force_close=True, resolver=aiohttp.ThreadedResolver()
                    )
                    self._session = aiohttp.ClientSession(connector=connector)
                status, output = await run_http(self._session, probe)
            else:
                status, output = await run_tcp(probe)
            self._report(check_id, status, output)
            await asyncio.sleep(probe.interval)
