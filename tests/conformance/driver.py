"""Plays one case: a raw client on one side of a proxy, raw origins on the other; notes what was seen.

One thread and one selector: the order of what the suite itself does is fixed by the case.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from tests.conformance.message import Message, read_requests, read_responses

_NO_LINGER = struct.pack("ii", 1, 0)
_REREAD_MOST = 1 << 20
"""Bytes on an origin's connection beyond which nobody waits for a request's end."""


@dataclass(frozen=True)
class Pause:
    """Let this time (seconds) pass."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """End the connection; of a client only its sending side."""


@dataclass(frozen=True)
class Reset:
    """Break the connection off."""


@dataclass(frozen=True)
class Endless:
    """Go on sending this for ever: at most `most` bytes."""

    data: bytes
    most: int = 64 << 20


@dataclass(frozen=True)
class Early:
    """Of an origin: answer as soon as the head is there, not when the request is complete."""


@dataclass(frozen=True)
class Answered:
    """Of a client: wait until this many final responses are there, or the connection is over."""

    count: int = 1


@dataclass(frozen=True)
class Until:
    """Of a client: wait until it has been sent these bytes, or the connection is over."""

    mark: bytes


@dataclass(frozen=True)
class AtOrigin:
    """Wait until an origin, or the one that answers, has got these bytes; a client no longer than `most`."""

    mark: bytes
    most: float = 1.0


@dataclass(frozen=True)
class Another:
    """Of a client: go on over another connection. `wait` until the present one is over."""


@dataclass(frozen=True)
class Unread:
    """Of a client: read nothing from here on."""


Step = bytes | Pause | Close | Reset | Endless | Early | Answered | Until | AtOrigin | Another | Unread


def usual(request: Message) -> bytes:
    """200 with the request's target as its body, so that answers can be told from each other."""
    head = b"HTTP/1.1 200 OK\r\nX-Origin: yes\r\nContent-Length: %d\r\n\r\n" % len(request.target)
    return head if request.method == b"HEAD" else head + request.target


class End:
    """The suite's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.data = bytearray()
        self.unsent = bytearray()
        self.sent = 0
        self.over = ""
        """`closed` in order, or `reset`; empty while open."""
        self.reading = True
        self.finish: Close | Reset | None = None
        """To be done when everything is sent."""
        self.shut = False
        self.steps: list[Step] = []
        """Of an origin: what is left of the answer under way."""

    def receive(self) -> None:
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self.over = "reset"
            return
        if data:
            self.data += data
        else:
            self.over = "closed"

    def send(self) -> None:
        with suppress(BlockingIOError):
            try:
                while self.unsent:
                    count = self.sock.send(self.unsent[: 1 << 18])
                    self.sent += count
                    del self.unsent[:count]
            except BlockingIOError:
                raise
            except OSError:
                self.unsent.clear()
                self.steps.clear()
        if not self.unsent and self.finish is not None:
            if isinstance(self.finish, Reset):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                self.sock.close()
                self.over = self.over or "closed"
            elif not self.shut:
                self.shut = True
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_WR)
            self.finish = None


class OriginEnd(End):
    """One connection that a proxy has made to an origin."""

    def __init__(self, sock: socket.socket, private: bool) -> None:
        super().__init__(sock)
        self.private = private
        self.answered = 0
        self.resume_at = 0.0


@dataclass
class Seen:
    """What was seen of one case. The lists of messages are what the strict reader makes of the bytes."""

    clients: list[End] = field(default_factory=list)
    origins: list[OriginEnd] = field(default_factory=list)
    responses: list[Message] = field(default_factory=list)
    """On the first client connection; 1xx included."""
    requests: list[Message] = field(default_factory=list)
    """At the public origin, whole and unfinished ones."""
    private: list[Message] = field(default_factory=list)
    """The same at the origin behind `/admin`."""
    broken: list[str] = field(default_factory=list)
    """What is wrong with what an origin or a client was sent, by itself."""

    @property
    def final(self) -> list[Message]:
        """Responses that are not 1xx."""
        return [r for r in self.responses if r.status >= 200 or r.status == 101]

    @property
    def complete(self) -> list[Message]:
        """Requests that reached an origin whole."""
        return [r for r in self.requests + self.private if r.complete]


class Playable(Protocol):
    """What the driver needs of a case."""

    @property
    def client(self) -> Sequence[Step]:
        """What the client does."""

    @property
    def answers(self) -> Sequence[Sequence[Step] | None]:
        """For the requests in their order; None, and what follows the last, is the usual answer."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Of the requests on the first connection."""

    @property
    def awaited(self) -> int:
        """Final responses on the last connection after which the case is over."""

    def judge(self, seen: Seen) -> str:
        """What is wrong, or an empty text."""


class Driver:
    """The origins' listening sockets, and the loop that plays cases against the proxy at `port`.

    `quiet`: seconds without a byte after which nothing more is expected. `patience`: seconds in
    which a proxy has to have answered.
    """

    def __init__(self, quiet: float, patience: float) -> None:
        self._quiet = quiet
        self._patience = patience
        self._listening = {private: _listen() for private in (False, True)}
        self.public_port, self.private_port = (sock.getsockname()[1] for sock in self._listening.values())
        self.port = 0
        self._answers: list[Sequence[Step] | None] = []
        self._origins: list[OriginEnd] = []
        self._seen = Seen()

    def close(self) -> None:
        for sock in self._listening.values():
            sock.close()

    def wait_until_open(self) -> None:
        """Until requests get through to both origins. Raises `TimeoutError`."""
        until = time.monotonic() + 5 * self._patience
        for path in (b"/", b"/admin"):
            while not self._gets_through(b"GET %b HTTP/1.1\r\nHost: h.test\r\n\r\n" % path):
                if time.monotonic() > until:
                    raise TimeoutError(f"{path.decode()} does not get through")
                time.sleep(0.05)

    def _gets_through(self, request: bytes) -> bool:
        seen = self._seen = Seen(origins=self._origins)
        end = self._connect()
        self._take(end, request, [])
        self._take(end, Answered(), [])
        self._read(seen, [])
        end.sock.close()
        self._part()
        return [r.status for r in seen.responses] == [200]

    def play(self, case: Playable) -> tuple[Seen, str]:
        """Play one case to its end: what was seen, and what is wrong with it.

        What has to come is waited for; that nothing more comes is believed after `quiet`.
        """
        seen = self._seen = Seen(origins=self._origins)
        methods = list(case.methods)
        self._answers = list(case.answers)
        end = self._connect()
        for step in case.client:
            if isinstance(step, Another):
                end = self._connect()
            else:
                self._take(end, step, methods)
        last = methods if end is seen.clients[0] else []
        self._pump(lambda: bool(end.over) or self._count(end, last) >= case.awaited, self._patience)
        self._settle(0.0 if end.over else self._quiet)
        self._read(seen, methods)
        until = time.monotonic() + self._patience / 2
        while case.judge(seen) and time.monotonic() < until:
            self._settle(self._quiet)
            self._read(seen, methods)
        wrong = case.judge(seen)
        for client in seen.clients:
            client.sock.close()
            client.reading = False
        self._settle(self._quiet / 2)
        self._read(seen, methods)
        self._part()
        return seen, wrong or case.judge(seen)

    def _read(self, seen: Seen, methods: list[str]) -> None:
        """Make messages of the bytes so far."""
        seen.requests, seen.private, seen.broken = [], [], []
        for number, client in enumerate(seen.clients):
            read, wrong = read_responses(
                bytes(client.data), methods if not number else [], client.over == "closed"
            )
            if not number:
                seen.responses = read
            if wrong:
                seen.broken.append(f"a client was sent: {wrong}")
        for origin in self._origins:
            requests, wrong = read_requests(bytes(origin.data))
            (seen.private if origin.private else seen.requests).extend(requests)
            if wrong:
                seen.broken.append(f"an origin was sent: {wrong}")

    def _connect(self) -> End:
        end = End(socket.create_connection(("127.0.0.1", self.port), timeout=self._patience))
        self._seen.clients.append(end)
        return end

    def _take(self, end: End, step: Step, methods: list[str]) -> None:
        if end is not self._seen.clients[0]:
            methods = []
        match step:
            case bytes():
                end.unsent += step
                # What is left, as when a proxy reads no further, goes on in the background.
                self._pump(lambda: not end.unsent or bool(end.over), 0.5)
            case Pause(seconds):
                self._pump(lambda: bool(end.over), seconds)
            case Close() | Reset():
                end.finish = step
                self._pump(lambda: end.finish is None, 0.5)
            case Answered(count):
                self._pump(lambda: bool(end.over) or self._count(end, methods) >= count, self._patience)
            case Until(mark):
                self._pump(lambda: bool(end.over) or mark in end.data, self._patience)
            case AtOrigin(mark, most):
                self._pump(lambda: any(mark in origin.data for origin in self._origins), most)
            case Unread():
                end.reading = False
            case Endless(data, most):
                until = time.monotonic() + self._patience
                while end.sent < most and not end.over and time.monotonic() < until:
                    end.unsent += data
                    self._pump(lambda: not end.unsent or bool(end.over), 0.3)
                    if end.unsent:
                        break
                end.unsent.clear()
            case _:
                raise TypeError(step)

    @staticmethod
    def _count(end: End, methods: list[str]) -> int:
        read, _ = read_responses(bytes(end.data), methods, bool(end.over))
        return sum(1 for r in read if r.complete and (r.status >= 200 or r.status == 101))

    def _ends(self) -> Iterator[End]:
        yield from self._seen.clients
        yield from self._origins

    def _pump(self, done: Callable[[], bool], seconds: float) -> bool:
        """Move bytes until something holds; whether anything moved."""
        until = time.monotonic() + seconds
        moved = False
        while True:
            self._act()
            if done():
                return moved
            left = until - time.monotonic()
            if left <= 0:
                return moved
            moved = self._turn(min(left, self._next_due())) or moved

    def _settle(self, quiet: float) -> None:
        """Until nothing has moved for a while; what is there already is always taken."""
        until = time.monotonic() + self._patience
        while self._pump(lambda: False, quiet) and time.monotonic() < until:
            pass
        self._turn(0.0)

    def _next_due(self) -> float:
        now = time.monotonic()
        return min([max(0.0, o.resume_at - now) for o in self._origins if o.resume_at > now], default=1.0)

    def _turn(self, seconds: float) -> bool:
        moved = False
        with selectors.DefaultSelector() as selector:
            for private, sock in self._listening.items():
                selector.register(sock, selectors.EVENT_READ, private)
            for end in self._ends():
                events = selectors.EVENT_READ if end.reading and not end.over else 0
                events |= selectors.EVENT_WRITE if end.unsent or end.finish is not None else 0
                if events and end.sock.fileno() >= 0:
                    selector.register(end.sock, events, end)
            for key, events in selector.select(seconds):
                moved = True
                if isinstance(key.data, bool):
                    accepted, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    self._origins.append(OriginEnd(accepted, key.data))
                    continue
                if events & selectors.EVENT_READ:
                    key.data.receive()
                if events & selectors.EVENT_WRITE:
                    key.data.send()
        return moved

    def _act(self) -> None:
        """Have origins answer what has come, and go on with answers under way."""
        for origin in self._origins:
            if origin.over:
                continue
            if not origin.steps and not origin.unsent and len(origin.data) < _REREAD_MOST:
                self._next_answer(origin)
            while origin.steps and not origin.unsent and origin.resume_at <= time.monotonic():
                step = origin.steps.pop(0)
                match step:
                    case bytes():
                        origin.unsent += step
                        origin.send()
                    case Pause(seconds):
                        origin.resume_at = time.monotonic() + seconds
                    case Close() | Reset():
                        origin.finish = step
                        origin.send()
                    case Endless(data, most):
                        origin.unsent += data
                        if origin.sent < most:
                            origin.steps.insert(0, step)
                        origin.send()
                    case AtOrigin(mark):
                        if mark not in origin.data:
                            origin.steps.insert(0, step)
                            break
                    case Early():
                        pass
                    case _:
                        raise TypeError(step)

    def _next_answer(self, origin: OriginEnd) -> None:
        requests, _ = read_requests(bytes(origin.data))
        if len(requests) <= origin.answered:
            return
        request = requests[origin.answered]
        answer = self._answers[0] if self._answers else None
        if not request.complete and not (answer and isinstance(answer[0], Early)):
            return
        origin.answered += 1
        if self._answers:
            self._answers.pop(0)
        origin.steps = [usual(request)] if answer is None else list(answer)

    def _part(self) -> None:
        """End every connection to the origins, so that the next case begins with none."""
        for origin in self._origins:
            origin.reading, origin.steps = True, []
            origin.unsent.clear()
            origin.finish = Close()
            origin.send()
        self._pump(lambda: all(origin.over for origin in self._origins), 0.5)
        for origin in self._origins:
            origin.sock.close()
        self._origins = []


def _listen() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    sock.setblocking(False)
    return sock
