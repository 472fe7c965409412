"""A registry that calls services otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from discovery.model import Instance, Update
from discovery.renamed import Renamed


class Told:
    """Tells one thing of each service it is asked for, and whether its stream was closed."""

    kind = "told"

    def __init__(self) -> None:
        self.asked: frozenset[str] = frozenset()
        self.closed = False

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        self.asked = services
        try:
            for name in sorted(services):
                yield Update(name, (Instance(name, "a", "h", 1),) if name != "gone" else None, 1.0, "told")
        finally:
            self.closed = True


async def test_services_are_asked_for_by_their_names_there_and_told_by_their_names_here() -> None:
    told = Told()
    watcher = Renamed(told, {"chat": "chat-api", "shop": "gone"})
    async with aclosing(watcher.watch(frozenset({"chat", "shop", "same"}))) as stream:  # type: ignore[type-var]
        updates = [update async for update in stream]
    assert watcher.kind == "told"
    assert told.asked == {"chat-api", "gone", "same"}
    assert {u.service: u.instances for u in updates} == {
        "chat": (Instance("chat", "a", "h", 1),),
        "shop": None,
        "same": (Instance("same", "a", "h", 1),),
    }
    assert told.closed


async def test_one_service_there_may_be_two_here() -> None:
    async with aclosing(Renamed(Told(), {"a": "x", "b": "x"}).watch(frozenset("ab"))) as stream:  # type: ignore[type-var]
        assert [update.service async for update in stream] == ["a", "b"]


async def test_the_stream_below_ends_with_its_reader() -> None:
    told = Told()
    async with aclosing(Renamed(told, {"chat": "x"}).watch(frozenset({"chat", "y"}))) as stream:  # type: ignore[type-var]
        await anext(stream)
        assert not told.closed
    assert told.closed
