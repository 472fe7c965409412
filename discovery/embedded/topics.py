"""The index that every change advances, and who wants to hear of which change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Callback = Callable[[], None]


class Kind(Enum):
    """What one can wait for."""

    SERVICE = "service"
    """Instances or checks of the service called `name`."""
    SERVICES = "services"
    """The names of services and their tags."""
    CHECKS = "checks"
    """Any check or instance."""
    KEY = "key"
    """The key called `name`."""
    PREFIX = "prefix"
    """All keys that begin with `name`."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing to wait for."""

    kind: Kind
    name: str = ""


SERVICES = Topic(Kind.SERVICES)
CHECKS = Topic(Kind.CHECKS)


class Topics:
    """Counts changes and tells subscribers. Callbacks run inside the change and must only take note of it."""

    def __init__(self, index: int = 1) -> None:
        self.index = index
        """Of the last change; never goes backwards. Consul's smallest is 1."""
        self._subscribers: dict[Topic, set[Callback]] = {}

    def advance(self) -> int:
        """Counts one change and returns its index."""
        self.index += 1
        return self.index

    def subscribe(self, topic: Topic, callback: Callback) -> Callback:
        """Calls `callback` after each change of `topic` until the returned function is called."""
        self._subscribers.setdefault(topic, set()).add(callback)

        def unsubscribe() -> None:
            subscribers = self._subscribers.get(topic)
            if subscribers is not None:
                subscribers.discard(callback)
                if not subscribers:
                    del self._subscribers[topic]

        return unsubscribe

    def publish(self, *topics: Topic) -> None:
        """Tells the subscribers of each topic, once per topic."""
        for topic in topics:
            for callback in tuple(self._subscribers.get(topic, ())):
                callback()

    def publish_key(self, key: str) -> None:
        """Tells those who wait for `key`, or for a prefix of it."""
        self.publish(
            *(
                topic
                for topic in tuple(self._subscribers)
                if (topic.kind is Kind.KEY and topic.name == key)
                or (topic.kind is Kind.PREFIX and key.startswith(topic.name))
            )
        )
