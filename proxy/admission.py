"""A request's way past the limits of its route and its service, before it is given to an instance.

Made only where there are limits. A request first takes its tokens, and waits for them where it may; then a
place, and waits for that; and gives the place back when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum

from proxy.capacity import Entry, Waiter
from proxy.errors import ProxyError, Reason
from proxy.head import RequestHead
from proxy.limit import admit
from proxy.plane import Plane
from proxy.table import RouteState


class Stage(Enum):
    """How far a request is."""

    OUTSIDE = "outside"
    """It has no place: it waits for its tokens or in the queue, or needs none."""
    CALLED = "called"
    """It has a place, and goes on in the loop's next turn."""
    INSIDE = "inside"
    """It has a place."""
    OVER = "over"


class Refused(ProxyError):
    """A request that found no room. `retry_after` is in seconds."""

    def __init__(self, reason: Reason, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Admission:
    """One request's, on one route. After it was made to wait, `go_on` is called when its turn has come, and
    `refuse` when it has waited in vain."""

    __slots__ = ("_go_on", "_handshake", "_plane", "_refuse", "_service", "_stage", "_timer")

    def __init__(
        self,
        plane: Plane,
        route: RouteState,
        head: RequestHead,
        go_on: Callable[[], None],
        refuse: Callable[[Refused], None],
    ) -> None:
        self._plane = plane
        self._service = route.service
        self._handshake = bool(head.upgrade)
        self._go_on = go_on
        self._refuse = refuse
        self._stage = Stage.OUTSIDE
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, route: RouteState, head: RequestHead, client: bytes, now: float) -> bool:
        """Whether the request may go on at once; otherwise it waits.

        Raises `Refused` when it may not even wait.
        """
        limiters = (*route.limiters, *self._service.limiters)
        if limiters:
            within, seconds = admit(limiters, head, client, now)
            if not within:
                raise Refused(Reason.RATE_LIMITED, seconds)
            if seconds:
                self._timer = self._plane.loop.call_later(seconds, self._has_tokens)
                return False
        return self._take_place()

    def leave(self, latency: float = -1.0) -> None:
        """It is over, however far it was. `latency`: seconds to its answer's head, if there was an answer."""
        stage, self._stage = self._stage, Stage.OVER
        self._stop_waiting()
        service, capacity = self._service, self._service.capacity
        if stage is Stage.OUTSIDE:
            capacity.step_out(self)
        elif stage is not Stage.OVER:
            if capacity.gradient is not None and latency >= 0.0 and not self._handshake:
                capacity.gradient.observe(latency, capacity.inflight, self._plane.clock())
            call(capacity.leave(service.tunnels, handshake=self._handshake))

    def called(self) -> None:
        """See `proxy.capacity.Waiter`."""
        self._stop_waiting()
        self._stage = Stage.CALLED
        self._plane.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._stage is Stage.CALLED:
            self._stage = Stage.INSIDE
            self._go_on()

    def _has_tokens(self) -> None:
        try:
            if self._take_place():
                self._go_on()
        except Refused as error:
            self._refuse(error)

    def _take_place(self) -> bool:
        service, capacity = self._service, self._service.capacity
        match capacity.enter(self, service.tunnels, handshake=self._handshake):
            case Entry.ADMITTED:
                self._stage = Stage.INSIDE
                return True
            case Entry.QUEUED:
                self._timer = self._plane.loop.call_later(capacity.config.wait, self._waited_in_vain)
                return False
            case Entry.REFUSED:
                raise Refused(Reason.OVERLOADED, 1.0)

    def _waited_in_vain(self) -> None:
        self._service.capacity.step_out(self)
        self._refuse(Refused(Reason.QUEUE_TIMEOUT, 1.0))

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def call(waiters: Iterable[Waiter]) -> None:
    """Tell those whose turn it is."""
    for waiter in waiters:
        waiter.called()
