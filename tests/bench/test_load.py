from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from bench.children import BenchError
from bench.load import OpenLoop, Wrk
from bench.origin import Answer, Echo
from bench.tunnels import idle_cost, ping_pong, tunnels

CLEAN = """\
Running 3s test @ http://127.0.0.1:1234/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms  210.11us   9.98ms   91.20%
    Req/Sec    62.52k     2.01k   66.02k    70.00%
  Latency Distribution
     50%    0.97ms
     75%    1.08ms
     90%    1.20ms
     99%    1.60s
  187100 requests in 3.00s, 37.82MB read
Requests/sec:  62366.66
Transfer/sec:     12.60MB
"""


@asynccontextmanager
async def listening(factory: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_wrk_output_is_read_in_seconds() -> None:
    result = Wrk.parse(CLEAN)
    assert (result.requests, result.seconds, result.failed) == (187100, 3.0, 0)
    assert result.p50 == pytest.approx(0.00097)
    assert result.p99 == pytest.approx(1.6)
    assert result.rate == pytest.approx(187100 / 3)


def test_wrk_errors_of_both_kinds_count_as_failed() -> None:
    errors = "  Socket errors: connect 1, read 20, write 0, timeout 3\n  Non-2xx or 3xx responses: 400\n"
    assert Wrk.parse(CLEAN + errors).failed == 424


def test_wrk_run_of_minutes_is_understood() -> None:
    assert Wrk.parse(CLEAN.replace("in 3.00s", "in 1.50m")).seconds == 90


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused"])
def test_other_output_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(BenchError, match="something else than expected"):
        Wrk.parse(text)


async def test_open_loop_sends_at_its_rate_and_all_are_answered() -> None:
    async with listening(Answer) as port, OpenLoop(port, rate=500, connections=4) as load:
        await asyncio.sleep(0.3)
    assert load.outcome.failures == []
    # Never more than the schedule allows; fewer only if this machine stood still.
    assert 1 <= load.outcome.sent <= 500 * 3
    assert all(latency > 0 for latency in load.outcome.latencies)


class Slow(Answer):
    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(0.05, super().data_received, data)


async def test_waiting_for_a_free_connection_counts_as_latency() -> None:
    async with listening(Slow) as port, OpenLoop(port, rate=200, connections=1) as load:
        await asyncio.sleep(0.2)
    # One connection does 20 a second: the later ones waited for several others.
    assert load.outcome.failures == []
    assert max(load.outcome.latencies) > 0.09


class Refusing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class Cutting(Refusing):
    def data_received(self, data: bytes) -> None:
        self.transport.close()


class Babbling(Refusing):
    def data_received(self, data: bytes) -> None:
        self.transport.write(b"what?\r\n\r\n")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [(Refusing, "status 503"), (Cutting, "connection lost"), (Babbling, "unreadable answer")],
)
async def test_every_kind_of_failure_is_counted(factory: Callable[[], Refusing], reason: str) -> None:
    async with listening(factory) as port, OpenLoop(port, rate=200, connections=2) as load:
        await asyncio.sleep(0.1)
    assert load.outcome.latencies == []
    assert load.outcome.failures
    # The last ones may still have been on their way when the load ended.
    told = [failure for failure in load.outcome.failures if failure != "no answer"]
    assert told
    assert all(failure.startswith(reason) for failure in told)


async def test_requests_that_are_never_answered_fail_once_each_when_patience_ends() -> None:
    written: list[int] = []
    all_busy = asyncio.Event()

    def request(number: int) -> bytes:
        written.append(number)
        if len(written) == 3:
            all_busy.set()
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

    async with (
        listening(asyncio.Protocol) as port,
        OpenLoop(port, rate=100, connections=3, request=request, patience=0.05) as load,
    ):
        await all_busy.wait()
        await asyncio.sleep(0.03)
    assert written == [0, 1, 2]
    assert set(load.outcome.failures) == {"no answer"}
    assert len(load.outcome.failures) == load.due > 3


async def test_ping_pong_counts_the_echoes_and_the_cpu_of_its_window() -> None:
    readings = iter((1.0, 1.25))
    async with listening(Echo) as port:
        echoed = await ping_pong(port, connections=3, seconds=0.1, cpu=lambda: next(readings), warm=0.01)
    assert echoed.messages > 3
    assert echoed.seconds >= 0.1
    assert echoed.cpu == 0.25


async def test_an_answer_that_is_no_handshake_is_told() -> None:
    async with listening(Refusing) as port:
        with pytest.raises(BenchError, match=r"0 of 2 tunnels opened.*503"):
            async with tunnels(port, 2):
                pass


class Distorting(Echo):
    def data_received(self, data: bytes) -> None:
        if self._open and self._transport is not None:
            self._transport.write(b"\x81\x02no")
        else:
            super().data_received(data)


async def test_a_wrong_echo_ends_the_measurement() -> None:
    async with listening(Distorting) as port:
        with pytest.raises(BenchError, match="unexpected frame"):
            await ping_pong(port, connections=1, seconds=0.05, cpu=lambda: 0.0, warm=0)


async def test_cost_of_a_tunnel_is_the_growth_over_the_number_of_tunnels() -> None:
    readings = iter((1000, 1000 + 5 * 40))
    async with listening(Echo) as port:
        assert await idle_cost(port, count=5, memory=lambda: next(readings), warm=2) == 40
