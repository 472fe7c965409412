"""The key/value part of the embedded registry: pure and synchronous.

Source: Consul HTTP API, "KV Store". Sessions and locks are not part of the subset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from discovery.embedded.topics import Topics

TOMBSTONES = 4096
"""Deletions remembered one by one, so that a deletion wakes only those who watch that key or prefix."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One key with its value and the indexes of its making and last change."""

    key: str
    value: bytes
    flags: int
    create_index: int
    modify_index: int


class KeyValue:
    """Owns all keys; changes are counted by and told through the `Topics` it shares with the services."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._pairs: dict[str, Pair] = {}
        self._tombstones: dict[str, int] = {}
        self._floor = topics.index

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs.values())

    def get(self, key: str) -> tuple[int, Pair | None]:
        """The pair, and the index to wait on for its next change."""
        pair = self._pairs.get(key)
        if pair is not None:
            return pair.modify_index, pair
        return self._tombstones.get(key, self._floor), None

    def under(self, prefix: str) -> tuple[int, list[Pair]]:
        """All pairs whose key begins with `prefix`, by key, and the index to wait on for the next change."""
        pairs = sorted((p for k, p in self._pairs.items() if k.startswith(prefix)), key=lambda pair: pair.key)
        index = max(
            self._floor,
            max((pair.modify_index for pair in pairs), default=0),
            max((i for k, i in self._tombstones.items() if k.startswith(prefix)), default=0),
        )
        return index, pairs

    def put(self, key: str, value: bytes, *, flags: int = 0, cas: int | None = None) -> bool:
        """Sets `key`. With `cas`: only if its modify index is that (0: only if it does not exist).

        Returns whether it was set. Setting what is there already succeeds and is no change.
        """
        old = self._pairs.get(key)
        if cas is not None and cas != (old.modify_index if old else 0):
            return False
        if old is not None and (old.value, old.flags) == (value, flags):
            return True
        index = self._topics.advance()
        self._tombstones.pop(key, None)
        self._pairs[key] = Pair(key, value, flags, old.create_index if old else index, index)
        self._topics.publish_key(key)
        return True

    def delete(self, key: str, *, cas: int | None = None) -> bool:
        """Removes `key`. With `cas`: only if its modify index is that. Returns False if `cas` forbade it."""
        old = self._pairs.get(key)
        if cas is not None and old is not None and cas != old.modify_index:
            return False
        if old is not None:
            self._remove([key])
        return True

    def delete_under(self, prefix: str) -> None:
        """Removes all keys that begin with `prefix`, as one change."""
        self._remove([key for key in self._pairs if key.startswith(prefix)])

    def restore(self, pairs: list[Pair]) -> None:
        """Takes over what was saved; nobody is told."""
        self._pairs = {pair.key: pair for pair in pairs}
        self._floor = self._topics.index

    def _remove(self, keys: list[str]) -> None:
        if not keys:
            return
        index = self._topics.advance()
        for key in keys:
            del self._pairs[key]
            self._tombstones[key] = index
        while len(self._tombstones) > TOMBSTONES:
            oldest = next(iter(self._tombstones))
            self._floor = max(self._floor, self._tombstones.pop(oldest))
        for key in keys:
            self._topics.publish_key(key)
