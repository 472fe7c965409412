"""Whether a request may be sent to another instance, and how many such retries a service can bear.

Pure: time is an argument.
"""

from __future__ import annotations

from enum import Enum

from config.schema import Retry

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""Methods whose repetition changes nothing more (RFC 9110 section 9.2.2)."""


class Failure(Enum):
    """How an attempt ended, before any byte of its answer was passed on."""

    CONNECT = "connect"
    """No connection could be made: nothing of the request has been sent."""
    RESET = "reset"
    """The connection ended, or broke, before the first byte of the answer."""
    TIMEOUT = "timeout"
    """One try took too long."""
    STATUS = "status"
    """An answer came, with a status the policy may name."""


def may_retry(
    policy: Retry,
    failure: Failure,
    *,
    method: bytes,
    attempt: int,
    body_sent: bool,
    reused: bool = False,
    status: int = 0,
) -> bool:
    """Whether a failed attempt may be repeated, as far as policy and safety go; the budget is another matter.

    `attempt` counts the retries made so far. `body_sent`: bytes of the request body have left and are not
    kept, so it cannot be repeated. `reused`: the connection had served another request before.

    An idempotent request on a reused connection that ends without an answer is repeated whatever `on` says,
    and once even where `attempts` is 0: the instance had most likely closed the idle connection already (RFC
    9112 section 9.3.1), which nobody but the proxy could have known.
    """
    if body_sent:
        return False
    idempotent = method in IDEMPOTENT
    if failure is Failure.RESET and reused and idempotent and attempt < max(1, policy.attempts):
        return True
    if attempt >= policy.attempts:
        return False
    if failure is Failure.CONNECT:
        return "connect" in policy.on
    return idempotent and ((status if failure is Failure.STATUS else failure.value) in policy.on)


class Budget:
    """Keeps retries from multiplying a service's load when it is already in trouble.

    Over the last 10 to 11 seconds there may be as many retries as `share` of the requests, plus 3 per second,
    so that a service with little traffic has some at all.
    """

    __slots__ = ("_requests", "_retries", "_second", "share")

    _WINDOW = 10
    _FLOOR = 3 * _WINDOW

    def __init__(self, share: float) -> None:
        """`share`: a fraction from 0 to 1; with 0 there are no retries, and no floor either."""
        self.share = share
        self._second = 0
        self._requests = [0] * (self._WINDOW + 1)
        self._retries = [0] * (self._WINDOW + 1)

    def request(self, now: float) -> None:
        """Count a request (not a retry). `now` in seconds, never going back."""
        second = int(now)
        if second != self._second:
            self._advance(second)
        self._requests[second % (self._WINDOW + 1)] += 1

    def take(self, now: float) -> bool:
        """Whether one more retry is within the budget; it is counted when it is."""
        second = int(now)
        if second != self._second:
            self._advance(second)
        if not self.share or sum(self._retries) >= self.share * sum(self._requests) + self._FLOOR:
            return False
        self._retries[second % (self._WINDOW + 1)] += 1
        return True

    def _advance(self, second: int) -> None:
        slots = self._WINDOW + 1
        for passed in range(self._second + 1, self._second + 1 + min(slots, second - self._second)):
            self._requests[passed % slots] = self._retries[passed % slots] = 0
        self._second = second
