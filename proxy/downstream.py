"""One client connection: cuts what arrives into requests and has them answered one after the other.

Requests that a client sends ahead (pipelining) wait in the buffer, so answers come in order; the buffer is
bounded because reading stops while it is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import re
import socket
import struct
import sys
import termios
from enum import Enum
from typing import Any, cast

from proxy.errors import ProxyError, Reason, error_response
from proxy.exchange import Exchange
from proxy.handover import Parked
from proxy.head import parse_request
from proxy.headers import Peer, client_address, is_trusted
from proxy.plane import FULL_READ, Plane
from proxy.timers import NEVER

_AHEAD_MOST = 64 << 10
"""Bytes that a client may send ahead of the answer to its current request."""

_UNSENT_MOST = 64 << 10
"""Bytes that wait for a slow client behind TLS before its instance has to: the loop's default without TLS."""

_LINGER_TIME = 2.0
"""Seconds in which a client may still be sending what nobody reads, before it is cut off."""


_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_NO_LINGER = struct.pack("ii", 1, 0)


class Stage(Enum):
    """Where a client connection is."""

    IDLE = "idle"
    """Between requests."""
    HEAD = "head"
    """A request head has begun."""
    BUSY = "busy"
    """An exchange is under way."""
    LINGER = "linger"
    """The last answer is written; what still arrives is thrown away (RFC 9112 9.6)."""
    CLOSED = "closed"


# Members as globals: looking one up on its class costs ten times as much, and these are on the hot path.
_IDLE, _HEAD, _BUSY, _LINGER, _CLOSED = Stage


class Downstream(asyncio.Protocol):
    """One client connection. `scheme` is `http` or `https`.

    `address` is the client's when something other than the socket tells it, as a PROXY header does.
    """

    __slots__ = (
        "_address",
        "_buffer",
        "_ended",
        "_holds",
        "_resuming",
        "_scheme",
        "_stage",
        "_unsent",
        "_yielding",
        "deadline",
        "due",
        "exchange",
        "leaving",
        "peer",
        "plane",
        "stalled",
        "transport",
    )

    transport: asyncio.Transport
    peer: Peer

    def __init__(self, plane: Plane, scheme: str, address: str | None = None) -> None:
        self.plane = plane
        self._address = address
        self._scheme = scheme
        self._stage = _IDLE
        self._buffer = b""
        self._ended = False
        """The client has closed its sending side."""
        self._holds = 0
        """Reasons for not reading from the client at the moment."""
        self._yielding = False
        """Another one: it is the others' turn."""
        self._resuming = False
        """What it has sent ahead is looked at in the next turn."""
        self.stalled = False
        """The client does not read: its transport is full. Owner: the transport's callbacks."""
        self._unsent = 0
        """What `_measure` gave at the last look at a client that reads slowly."""
        self.exchange: Exchange | None = None
        self.leaving = False
        """The next answer is the last on this connection."""
        self.deadline = self.due = NEVER

    # -- the transport's callbacks -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports are not asyncio.Transport by inheritance.
        self.transport = cast(asyncio.Transport, transport)
        plane = self.plane
        counters = plane.counters
        counters.connections_accepted += 1
        counters.connections_open += 1
        plane.clients.add(self)
        peername = transport.get_extra_info("peername")
        of_socket = peername[0] if isinstance(peername, tuple) else ""
        self.set_peer(of_socket if self._address is None else self._address)
        if self._scheme == "https":
            self.transport.set_write_buffer_limits(_UNSENT_MOST)
        open_now = counters.connections_open + counters.tunnels_open + plane.opening
        if open_now > plane.most_connections or plane.draining:
            counters.connections_refused += 1
            reason = Reason.DRAINING if plane.draining else Reason.TOO_MANY_CONNECTIONS
            self._refuse(ProxyError(reason), retry_after=1.0)
            return
        plane.wheel.set(self, plane.clock() + plane.keepalive_timeout)

    def set_peer(self, address: str) -> None:
        """Who is at the other end."""
        self.peer = Peer(address, self._scheme, is_trusted(address, self.plane.trusted), self.plane.via)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._stage is _BUSY:
            exchange = self.exchange
            if exchange is not None and not exchange.request_done:
                exchange.request_data(data)
                if len(data) >= FULL_READ or exchange.request_more:
                    self._yield()
                return
            self._keep_ahead(data)
        elif self._stage is _IDLE or self._stage is _HEAD:
            if self._resuming:
                self._keep_ahead(data)
                return
            self._buffer = self._buffer + data if self._buffer else data
            self._serve()

    def _keep_ahead(self, data: bytes) -> None:
        """What comes ahead of its time waits."""
        self._buffer += data
        if len(self._buffer) > _AHEAD_MOST:
            self.hold()  # until less is ahead: see _read_on

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. A client may close its sending side and still read the answer."""
        self._ended = True
        exchange = self.exchange
        if self._stage is _BUSY and exchange is not None:
            if not exchange.request_done:
                exchange.request_cut()
            return True
        if self._resuming:
            return True
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._leave()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_lost()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: the client reads slowly, so the instance has to wait."""
        self.stalled = True
        if self.exchange is not None:
            self.exchange.hold_response()
        self._watch_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.stalled = False
        plane, exchange = self.plane, self.exchange
        if self._stage is _BUSY and exchange is not None:
            self.deadline = NEVER
            exchange.unhold_response()
            if not exchange.request_done:
                self.await_body()
        elif self._stage is _IDLE:
            plane.wheel.set(self, plane.clock() + plane.keepalive_timeout)
            self._read_on()
            self._resume_soon()

    # -- requests ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer what is in the buffer, as far as it goes without waiting."""
        plane = self.plane
        while self._buffer:
            if self.stalled:
                # Who does not read answers is not given more of them: they would pile up here.
                if not self._holds:
                    self.hold()
                return
            if self._buffer.startswith(b"\r\n"):
                # Empty lines before a request are to be ignored (RFC 9112 2.2).
                empty = _EMPTY_LINES.match(self._buffer)
                self._buffer = self._buffer[empty.end() if empty else 0 :]
                continue
            try:
                parsed = parse_request(self._buffer, plane.limits)
            except ProxyError as error:
                self._refuse(error)
                return
            if parsed is None:
                self._release_holds()
                if self._stage is _IDLE:
                    self._stage = _HEAD
                    plane.wheel.set(self, plane.clock() + plane.header_timeout)
                return
            head, end = parsed
            rest = self._buffer[end:]
            self._buffer = b""
            self._stage = _BUSY
            self.deadline = NEVER
            ahead = self._holds
            if self.peer.trusted and head.forwarded:
                address = client_address(self.peer.address, head.get_all(b"x-forwarded-for"), plane.trusted)
            else:
                address = self.peer.address
            exchange = self.exchange = Exchange(plane, self, head, address)
            exchange.begin(rest)
            if not exchange.request_done:
                if ahead:
                    self.unhold()  # all that was ahead belongs to this request's body
                if exchange.request_more:
                    self._yield()
            return
        if self._ended and self._stage is _IDLE:
            self.close()

    def exchange_over(self, rest: bytes, keep: bool) -> None:
        """The exchange has answered. `rest` came behind its request; `keep` says that another may follow."""
        self.exchange = None
        if self._stage is not _BUSY:
            return
        if not keep:
            self._linger()
            return
        self._buffer = rest + self._buffer if rest else self._buffer
        self._stage = _IDLE
        if self._holds or len(self._buffer) > _AHEAD_MOST:
            self._read_on()
        plane = self.plane
        if not self.stalled:
            plane.wheel.set(self, plane.clock() + plane.keepalive_timeout)
        if self._buffer:
            # Through the loop: a client that sends thousands ahead must not starve the others.
            self._resume_soon()
        elif self._ended:
            self.close()

    def _resume_soon(self) -> None:
        if not self._resuming:
            self._resuming = True
            self.plane.loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if self._stage is _IDLE:
            self._serve()

    def _refuse(self, error: ProxyError, retry_after: float | None = None) -> None:
        """Answer what never became an exchange, and close."""
        self.plane.log_refused(self.peer.address, error.reason)
        self.transport.write(error_response(error, close=True, retry_after=retry_after, date=self.plane.date))
        self._linger()

    # -- flow control --------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop reading from the client until `unhold`."""
        self._holds += 1
        if self._holds == 1 and not self.transport.is_closing():
            self.transport.pause_reading()

    def unhold(self) -> None:
        """One reason for not reading is gone."""
        if self._holds:
            self._holds -= 1
            if not self._holds and not self._yielding and not self.transport.is_closing():
                self.transport.resume_reading()

    def _read_on(self) -> None:
        """No exchange has a reason left for not reading; there is still one while too much was sent ahead."""
        if len(self._buffer) <= _AHEAD_MOST:
            self._release_holds()
        elif self._holds:
            self._holds = 1
        else:
            self.hold()

    def _release_holds(self) -> None:
        if self._holds:
            self._holds = 0
            if not self._yielding and not self.transport.is_closing():
                self.transport.resume_reading()

    def _yield(self) -> None:
        """Let others have their turn before more is read."""
        self._yielding = True
        if not self.transport.is_closing():
            self.transport.pause_reading()
        self.plane.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        exchange = self.exchange
        if self._stage is _BUSY and exchange is not None and exchange.request_more:
            exchange.request_data(b"")
            if self._stage is _BUSY and exchange.request_more:
                self._yield()
                return
        self._yielding = False
        if not self._holds and self._stage is not _CLOSED and not self.transport.is_closing():
            self.transport.resume_reading()

    def await_body(self) -> None:
        """The exchange needs more of the request's body: start its clock anew."""
        plane = self.plane
        plane.wheel.set(self, plane.clock() + plane.body_timeout)

    # -- the end -------------------------------------------------------------------------------------------

    def on_deadline(self) -> None:
        """See `proxy.timers.Timed`."""
        stage = self._stage
        if self.stalled or stage is _LINGER:
            unsent = self._measure()
            if 0 < unsent < self._unsent:
                self._watch_reading()  # slow, but not dead
            else:
                self.transport.abort()
        elif stage is _HEAD:
            self._refuse(ProxyError(Reason.HEADER_TIMEOUT))
        elif stage is _IDLE:
            self.close()
        elif self.exchange is not None and not self.exchange.request_done:
            if self._holds:
                self.await_body()  # it is not the client that everybody waits for
            else:
                self.exchange.request_timed_out()

    def _watch_reading(self) -> None:
        """Give the client time to read some of what it has been sent."""
        self._unsent = self._measure()
        self.plane.wheel.set(self, self.plane.clock() + self.plane.body_timeout)

    def _measure(self) -> int:
        """Bytes that the client has not taken yet, in our buffer and in the kernel's."""
        transport = self.transport
        size = transport.get_write_buffer_size()
        with contextlib.suppress(OSError):
            descriptor = transport.get_extra_info("socket").fileno()
            size += int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), "little")
        return size

    @property
    def pinned(self) -> bool:
        """See `proxy.plane.Client`."""
        return self._scheme == "https"

    def shut_when_idle(self) -> None:
        """The proxy is ending: close now when nothing is under way; else the next answer says close."""
        self.leaving = True
        if self._stage in (_IDLE, _HEAD):
            self.close()

    def cut(self, reason: Reason) -> None:
        """See `proxy.plane.Client`."""
        self.leaving = True
        if self.exchange is not None:
            self.exchange.cut_short(reason)
        elif self._stage is not _LINGER:
            self.close()

    def _linger(self) -> None:
        """Close so that the answer arrives: a reset for unread data would take it from the client."""
        if self._stage is _CLOSED:
            return
        self._stage = _LINGER
        self._buffer = b""
        if self._ended or self.transport.is_closing():
            self.close()
            return
        self._holds = 0
        self._yielding = False
        self.transport.resume_reading()
        if not self.transport.can_write_eof():
            self.close()
            return
        self.transport.write_eof()
        if self.transport.get_write_buffer_size():
            self._watch_reading()
        else:
            self.plane.wheel.set(self, self.plane.clock() + _LINGER_TIME)

    def close(self) -> None:
        """Flush and close; a client that does not take what is left gets as long as any other."""
        if self.transport.get_write_buffer_size() and not self.transport.is_closing():
            self._stage = _LINGER
            self._watch_reading()
        elif self._scheme == "https" and self._stage is not _CLOSED:
            # Until the client has said goodbye too (RFC 8446 6.1) the connection is there, and counts.
            self._stage = _LINGER
            self._unsent = sys.maxsize  # what has not been taken by the first look is watched from there on
            self.plane.wheel.set(self, self.plane.clock() + _LINGER_TIME)
        else:
            self._leave()
        self.transport.close()

    def abort(self) -> None:
        """Break the connection off with a reset, so that a broken message cannot be taken for a whole one.

        A unix socket knows no reset: there the client sees an end.
        """
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
        self.transport.abort()

    def hand_over(self) -> bytes:
        """Give the transport away to a tunnel; the bytes that the client has sent ahead."""
        ahead, self._buffer = self._buffer, b""
        self.exchange = None
        self._leave()
        return ahead

    # -- between processes ---------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Any], asyncio.Transport] | None:
        """What another process needs to go on with it, and the connection; None while an answer is due."""
        if self._stage not in (_IDLE, _HEAD) or self._ended or self.stalled:
            return None
        facts = {"scheme": self._scheme, "address": self.peer.address, "buffer": self._buffer}
        return facts, self.transport

    def let_go(self) -> None:
        """Another process has it now: leave this one's books without ending it."""
        self._leave()

    @classmethod
    def load(cls, plane: Plane, saved: dict[str, Any], connection: Parked) -> None:
        """Go on with a connection, from what `save` gave in another process."""
        client = cls(plane, saved["scheme"])
        client.connection_made(connection.transport)
        plane.counters.connections_accepted -= 1  # it was accepted long ago
        client.set_peer(saved["address"])
        if saved["buffer"]:
            client.data_received(saved["buffer"])
        connection.give_to(client)

    def _leave(self) -> None:
        if self._stage is not _CLOSED:
            self._stage = _CLOSED
            self.plane.counters.connections_open -= 1
            self.plane.clients.discard(self)
            self.plane.wheel.cancel(self)
            self.plane.left()
