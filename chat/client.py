"""One WebSocket, from handshake to Close: reads frames, lets the sessions act on them, writes what is due.

The reader and the writer are two tasks that share only the `Member`. The Close that this side begins leaves
through the writer, after everything that was due; the reader goes on until the peer's Close, so what the peer
had sent before it saw ours is stored too (it gets its ack from the next instance). Every Close carries the
client's position as its reason, which `Holdfast-Resume` brings to the next instance.

A Close is not always to be had. So a proxy that can move this WebSocket is told in front of each frame what
will hold once the client has it: the position, and how many of the client's frames have been dealt with and
answered. Wherever this process dies, the next one goes on from what the client has seen, and is given again
exactly what the client has seen no answer to (docs/architecture.md, "Checkpoints").
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMsgType, web

from chat import message as wire
from chat.hub import Due, Hub, Leaving, Member
from chat.limit import RateLimit
from chat.message import Bye, CallAgent, ErrorCode, Frame, Invalid, Join, Position, Role, Say, Typing
from chat.metrics import Metrics
from chat.record import Change, Origin
from chat.responder import Responder
from chat.session import SessionEnded, Sessions
from chat.state import State
from chat.store import StoreError

_log = logging.getLogger("holdfast.chat.client")

PROTOCOL = "holdfast-chat"
"""The subprotocol that is chosen when a client offers one."""
HEARTBEAT = 20.0
"""Seconds between pings; a peer that does not answer within half of that is gone."""
SEND_TIMEOUT = 30.0
"""Seconds a client may take none of what is written to it."""
CLOSE_TIMEOUT = 3.0
"""Seconds to flush before a Close, and to wait for the peer's."""
QUIET = 0.05
"""A client that has sent nothing for so many seconds has nothing under way that we could wait for."""
FINISH_ROUNDS = 20
"""How often silence is waited for; a client that never stops must not hold up the others."""


@dataclass(frozen=True, slots=True)
class Services:
    """What every connection of a server works with."""

    instance: str
    sessions: Sessions
    hub: Hub
    responder: Responder
    limit: RateLimit
    metrics: Metrics


class Client:
    """A connected user or agent."""

    def __init__(self, services: Services, role: Role, position: Position | None) -> None:
        """`position`: the session to enter and the last message seen; an agent may begin without one."""
        self._services = services
        self._role = role
        self._position = position
        self._member = Member(services.hub, Origin.USER if role is Role.USER else Origin.AGENT)
        self._socket: web.WebSocketResponse = web.WebSocketResponse(
            heartbeat=HEARTBEAT,
            max_msg_size=wire.MAX_FRAME,
            autoclose=False,
            compress=False,
            protocols=(PROTOCOL,),
        )
        self._transport: asyncio.Transport | None = None
        self._close_code: int | None = None
        self._close_sent = False
        self._heard = 0.0
        self._checkpoints = False
        self._read_so_far = 0
        """Messages that have come from the client."""
        self._seen: Position | None = None
        """What the client has been sent of its session."""
        self._told: tuple[Position | None, int] = (None, -1)
        """What the last checkpoint said."""

    @property
    def session(self) -> str | None:
        """The session it is in."""
        return self._member.room.id if self._member.room else None

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Serves the connection until it has ended. Raises `StoreError` when its session cannot be opened."""
        if self._position is not None:
            # Before the handshake, so that a store that fails is a 503 and not a broken WebSocket.
            await self._enter(self._position)
        else:
            self._member.push(wire.welcome(None, self._services.instance))
        try:
            self._checkpoints = "Holdfast-Migrate" in request.headers
            self._seen = self._member.position
            await self._socket.prepare(request)
            self._transport = request.transport
            open_now = self._services.metrics.connections.labels(self._role)
            with open_now.track_inprogress():
                await self._serve()
        finally:
            self._services.hub.exit(self._member)
        return self._socket

    def close(self, code: int) -> None:
        """Begins the Close: everything that is due is written first."""
        if self._close_code is None:
            self._close_code = code
            self._member.leave(Leaving.FLUSH)

    async def finish(self) -> None:
        """Waits until what the client has sent so far is stored, acknowledged and answered."""
        for _ in range(FINISH_ROUNDS):
            silent = time.monotonic() - self._heard
            if silent >= QUIET:
                break
            await asyncio.sleep(QUIET - silent)
        if self.session is not None:
            await self._services.responder.settled(self.session)

    async def _serve(self) -> None:
        writer = asyncio.create_task(self._write())
        reason = "lost"
        try:
            reason = await self._read()
        finally:
            self._member.leave(Leaving.FLUSH)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await writer
            except TimeoutError:
                reason = "slow"
            self._services.metrics.closed.labels(reason).inc()
            await self._end()

    async def _end(self) -> None:
        if not self._close_sent and not self._socket.closed:
            code = self._socket.close_code
            reply = code if code in (WSCloseCode.OK, WSCloseCode.GOING_AWAY) else WSCloseCode.OK
            await self._socket.close(code=reply, message=self._token())
        elif self._transport is not None:
            # Both Closes are done; aiohttp would send a second one on an open transport.
            self._transport.close()

    async def _write(self) -> None:
        try:
            # Before anything else: who counts must say so before it answers a ping.
            await self._checkpoint(self._seen, 0)
            while frames := await self._member.next():
                for due in frames:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await self._send(due)
            if self._member.leaving is Leaving.SLOW:
                raise TimeoutError
            if self._close_code is not None:
                self._close_sent = True
                payload = struct.pack("!H", self._close_code) + self._token()
                await self._socket.send_frame(payload, WSMsgType.CLOSE)
                # The reader ends by the peer's Close, or by this.
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._abort)
        except TimeoutError:
            _log.info("a client of session %s reads too slowly", self.session)
            self._abort()
        except StoreError as error:
            _log.warning("session %s cannot be read: %s", self.session, error)
            self._abort()
        except ConnectionError:
            # The reader sees the same end.
            return

    async def _send(self, due: Due) -> None:
        await self._checkpoint(due.position, due.taken, ahead=bool(due.frame))
        # From here to the write nothing is awaited: a Close that cuts this off says where it really ended.
        self._seen = due.position
        if due.frame:
            await self._socket.send_str(due.frame)

    async def _checkpoint(self, position: Position | None, taken: int, *, ahead: bool = False) -> None:
        """Tell a proxy that can move this WebSocket where another instance would have to go on.

        By a ping: a proxy may read those, and a client answers them unseen. `ahead`: it holds with the next
        frame.
        """
        if self._checkpoints and (position, taken) != self._told:
            self._told = position, taken
            await self._socket.ping(wire.checkpoint(position, taken, ahead=ahead))

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _token(self) -> bytes:
        return b"" if self._seen is None else self._seen.token().encode()

    async def _read(self) -> str:
        while True:
            await self._member.space()
            received = await self._socket.receive()
            self._heard = time.monotonic()
            if received.type is WSMsgType.TEXT:
                self._read_so_far += 1
                await self._take(received.data)
                self._member.note(self._read_so_far)
            elif received.type is WSMsgType.BINARY:
                self._read_so_far += 1
                self._refuse(Invalid(ErrorCode.BAD_FRAME, "frames are text"))
            elif received.type is WSMsgType.CLOSE:
                return "restart" if self._close_code == WSCloseCode.SERVICE_RESTART else "closed"
            elif received.type is WSMsgType.ERROR:
                return "protocol"
            else:
                return "lost"

    async def _take(self, data: str) -> None:
        id: str | None = None
        try:
            frame = wire.parse(data)
            self._services.metrics.frames.labels(type(frame).__name__.lower()).inc()
            id = frame.id if isinstance(frame, Say) else None
            await self._act(frame)
        except Invalid as error:
            self._refuse(error)
        except SessionEnded:
            self._refuse(Invalid(ErrorCode.ENDED, "the session has ended; open a new one", id))
        except StoreError as error:
            _log.warning("session %s: the store failed: %s", self.session, error)
            self._refuse(Invalid(ErrorCode.UNAVAILABLE, "not stored; send it again with the same id", id))
        # Answered frames count as heard of when they are done, not when they came.
        self._heard = time.monotonic()

    def _refuse(self, error: Invalid) -> None:
        self._services.metrics.errors.labels(error.code).inc()
        self._member.push(wire.error(error.code, error.detail, error.id), taken=self._read_so_far)

    async def _act(self, frame: Frame) -> None:
        if isinstance(frame, Join):
            self._only(Role.AGENT)
            await self._join(frame)
            return
        if isinstance(frame, CallAgent):
            self._only(Role.USER)
        session = self.session
        if session is None:
            raise Invalid(ErrorCode.NOT_JOINED, "join a session first", getattr(frame, "id", None))
        match frame:
            case Say():
                await self._say(session, frame)
            case Typing():
                if not self._services.limit.take(f"typing:{self._role}:{session}"):
                    self._services.hub.typing(session, self._member.origin)
            case CallAgent():
                self._charge(session)
                self._publish(await self._services.sessions.call_agent(session))
            case Bye():
                await self._bye(session)

    async def _say(self, session: str, frame: Say) -> None:
        self._charge(session, frame.id)
        sessions = self._services.sessions
        store = sessions.receive if self._role is Role.USER else sessions.speak
        stored = await store(session, frame.id, frame.text)
        seq = stored.message.seq
        self._member.push(wire.ack(frame.id, seq), after=seq - 1, taken=self._read_so_far)
        if stored.change is None:
            self._services.metrics.duplicates.inc()
            return
        self._publish(stored.change)
        if stored.change.session.state is State.AWAIT_NLP:
            await self._services.responder.put(session)

    async def _join(self, frame: Join) -> None:
        self._charge(frame.session)
        change = await self._services.sessions.join(frame.session)
        self._publish(change)
        await self._enter(Position(frame.session, frame.last_seq))

    async def _bye(self, session: str) -> None:
        if self._role is Role.USER:
            self._publish(await self._services.sessions.end(session))
            self.close(WSCloseCode.OK)
            return
        change = await self._services.sessions.hand_back(session)
        self._publish(change)
        self._services.hub.exit(self._member)
        self._member.push(wire.welcome(None, self._services.instance), taken=self._read_so_far)
        if change is not None and change.session.state is State.AWAIT_NLP:
            await self._services.responder.put(session)

    async def _enter(self, position: Position) -> None:
        services = self._services
        session = await services.hub.enter(
            self._member, position.session, position.seq, services.instance, taken=self._read_so_far
        )
        if session.state is State.AWAIT_NLP:
            # Perhaps the instance that should have answered is dead; if not, its lease says so.
            await services.responder.put(position.session)

    def _publish(self, change: Change | None) -> None:
        if change is not None:
            self._services.hub.publish(change)

    def _only(self, role: Role) -> None:
        if self._role is not role:
            raise Invalid(ErrorCode.FORBIDDEN, f"only for role={role}")

    def _charge(self, session: str, id: str | None = None) -> None:
        wait = self._services.limit.take(f"{self._role}:{session}")
        if wait:
            raise Invalid(ErrorCode.RATE_LIMITED, f"too fast; send it again in {wait:.1f} s", id)
