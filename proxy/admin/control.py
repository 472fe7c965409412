"""What the admin API needs of the process it is the face of; `proxy.app` is it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from config.schema import Config
from proxy.events import EventLog
from proxy.plane import Plane
from proxy.sidecar import Sidecar
from proxy.table import Departure


class Source(Protocol):
    """A registry as it is doing now."""

    kind: str
    name: str
    """Its place in the configuration, from 0, and its kind; a lower place takes precedence."""
    failures: int
    """In a row."""
    last_error: str | None
    failed_total: int
    mass_losses: int
    refused_total: int
    """Failures, mass losses that were not believed at once, and entries left out, since the start."""

    @property
    def state(self) -> Enum:
        """`connecting`, `live` or `failed`."""

    @property
    def held(self) -> int:
        """Instances that stay although the registry no longer lists them."""

    @property
    def flapping(self) -> int:
        """Instances that are last choice because they come and go."""

    @property
    def remembered(self) -> int:
        """Services for which the last good set is in use, for want of an answer since the start."""

    def staleness(self, now: float) -> float:
        """Seconds since it was last known to be right."""


class Change(Protocol):
    """One difference between two configurations; its `str` is a line for people, without secrets."""

    @property
    def path(self) -> str:
        """Of the key."""

    @property
    def before(self) -> object:
        """Former value, secrets masked; None when there was none."""

    @property
    def after(self) -> object:
        """New value, likewise."""

    @property
    def effect(self) -> str:
        """When it takes effect."""


class Control(Protocol):
    """The running process. Everything is called on the loop that the data plane runs on."""

    @property
    def plane(self) -> Plane:
        """Table, counters, sessions, access log, clock and randomness."""

    @property
    def events(self) -> EventLog:
        """What has happened."""

    @property
    def config(self) -> Config:
        """What holds now. Its admin token is the one that requests must carry."""

    @property
    def sources(self) -> Sequence[Source]:
        """The registries, in the order of the configuration."""

    @property
    def sidecar(self) -> Sidecar:
        """What is entered in registries."""

    async def leave(self, settle: float | None) -> None:
        """Not ready from now on, taken out of every registry; returns when everybody can have heard of it.

        `settle`: seconds to wait for that, instead of the configured ones. Requests are served as before.
        """

    def unready(self) -> list[str]:
        """Why no traffic should be sent here, in sentences; empty when it is ready."""

    def depart(self, departures: Sequence[Departure], deadline: float | None) -> None:
        """Begin to empty endpoints, within `deadline` seconds or, when None, their service's drain timeout.

        A departure of an endpoint that is being emptied already gives it the new deadline.
        """

    async def reload(self) -> Sequence[Change]:
        """Take over the configuration file: all of it, or nothing. Returns what has changed.

        Raises `config.load.ConfigError`.
        """

    async def upgrade(self) -> int:
        """Start a new process that takes everything over; its process id, once it accepts.

        Raises `proxy.handover.HandoverError`, and this process goes on as if nothing had happened.
        """

    async def plan(self, data: bytes | None, source: str) -> Sequence[Change]:
        """What a reload with `data` (None: the file as it is) would change; messages call it `source`.

        Raises `config.load.ConfigError`.
        """
