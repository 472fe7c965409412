"""The bus between local processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chat.bus import Kind, LocalBus, Notice, UnixBus, make_bus
from chat.record import Origin
from chat.store import Store


class Ear:
    """A bus and what it heard."""

    def __init__(self, directory: Path) -> None:
        self.bus = UnixBus(directory)
        self.heard: list[Notice] = []
        self._came = asyncio.Event()

    def take(self, notice: Notice) -> None:
        self.heard.append(notice)
        self._came.set()

    async def until(self, notice: Notice) -> None:
        async with asyncio.timeout(10):
            while notice not in self.heard:
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def ear(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Ear]]]:
    made: list[Ear] = []

    async def make(directory: Path = tmp_path / "bus") -> Ear:
        one = Ear(directory)
        await one.bus.open(one.take)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.bus.close()


A = Notice("a", Kind.CHANGED)
B = Notice("b", Kind.TYPING, Origin.AGENT)


async def test_notices_reach_every_other_process_and_not_the_sender(ear) -> None:  # type: ignore[no-untyped-def]
    one, two, three = await ear(), await ear(), await ear()
    one.bus.publish(A)
    one.bus.publish(B)
    for other in (two, three):
        await other.until(B)
        assert other.heard == [A, B]
    assert one.heard == []


async def test_the_same_notice_within_one_turn_is_told_once(ear) -> None:  # type: ignore[no-untyped-def]
    one, two = await ear(), await ear()
    for _ in range(100):
        one.bus.publish(A)
    one.bus.publish(B)
    await two.until(B)
    assert two.heard == [A, B]


async def test_a_peer_that_is_busy_is_told_everything_later(ear) -> None:  # type: ignore[no-untyped-def]
    one, two = await ear(), await ear()
    notices = [Notice(f"s{number}", Kind.CHANGED) for number in range(5000)]
    for notice in notices:
        one.bus.publish(notice)
    await two.until(notices[-1])
    assert two.heard == notices


async def test_the_socket_of_a_dead_process_is_removed(ear, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, two = await ear(), await ear()
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    file = tmp_path / "bus" / "1-dead.sock"
    dead.bind(str(file))
    dead.close()
    one.bus.publish(A)
    await two.until(A)
    assert not file.exists()


async def test_a_path_longer_than_a_socket_address_works(ear, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path / ("d" * 120) / "bus"
    one, two = await ear(directory), await ear(directory)
    one.bus.publish(A)
    await two.until(A)


async def test_nonsense_on_the_socket_is_passed_over(ear, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, two = await ear(), await ear()
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for file in (tmp_path / "bus").iterdir():
        for data in (b"", b"\xff", b"7", b'[["a"]]', b'[["a","nope","user"]]'):
            stranger.sendto(data, str(file))
    stranger.close()
    one.bus.publish(A)
    await two.until(A)
    assert two.heard == [A]


async def test_only_the_owner_may_enter_the_directory_and_it_is_left_clean(tmp_path: Path) -> None:
    one = Ear(tmp_path / "bus")
    await one.bus.open(one.take)
    assert (tmp_path / "bus").stat().st_mode & 0o777 == 0o700
    await one.bus.close()
    await one.bus.close()
    assert list((tmp_path / "bus").iterdir()) == []


async def test_the_url_or_the_store_decides(tmp_path: Path) -> None:
    memory, file = Store("sqlite://"), Store(f"sqlite:///{tmp_path}/chat.db")
    assert isinstance(make_bus(None, memory), LocalBus)
    assert isinstance(make_bus(None, file), UnixBus)
    assert isinstance(make_bus("local:", file), LocalBus)
    assert isinstance(make_bus(f"unix:{tmp_path}", memory), UnixBus)
    for url in ("", "unix:", "local:x", "redis://localhost"):
        with pytest.raises(ValueError, match="is not a bus"):
            make_bus(url, memory)
    await memory.close()
    await file.close()
