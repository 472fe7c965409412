"""The live connections of this process, by session, and what each has yet to be sent.

Messages are not copied into queues: a member has a cursor (the last sequence number it was given) and takes
the next ones from the room's short tail or from the store, as fast as its client reads. So a slow client
costs nobody anything but the store a read, and what every client sees is the session in order, without gaps
or doubles, whoever stored it. Only the frames around messages (acks, states, errors) are queued, per member
and bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from chat import message as wire
from chat.bus import Bus, Kind, Notice
from chat.message import Position
from chat.record import Change, Message, Origin, Session
from chat.store import Store, StoreError

_log = logging.getLogger("holdfast.chat.hub")

TAIL = 128
"""Messages a room remembers, so that live ones need no read."""
BATCH = 200
"""Messages read from the store at once."""
OUTBOX = 256
"""Frames that may wait for one client before it is given up as too slow."""


class Leaving(Enum):
    """Whether a member goes on receiving."""

    NO = auto()
    FLUSH = auto()
    """It gets what is there now; then `Member.next` ends."""
    SLOW = auto()
    """It read too slowly; `Member.next` ends at once. It may resume from its cursor."""


@dataclass(frozen=True, slots=True)
class Due:
    """A frame for the client, and how far things are once the client has it."""

    frame: str
    """Empty: there is nothing to say, only `taken` to be noted."""
    position: Position | None
    """What the client has seen of its session; None while it is in none."""
    taken: int
    """How many of the client's own frames have been dealt with, and their answers given."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """A frame that waits for its turn."""

    frame: str
    after: int
    visit: int
    """In which it was queued: see `Member.visit`."""
    taken: int


class Member:
    """One connection as the hub sees it. Written by the hub, read by the connection's own writer task."""

    def __init__(self, hub: Hub, origin: Origin) -> None:
        self.origin = origin
        self.cursor = 0
        """Sequence number of the last message that `next` has returned. Owner: `next` and `Hub.enter`."""
        self.room: Room | None = None
        self.leaving = Leaving.NO
        self.visit = 0
        """Grows with every session that is entered or left. Owner: the hub."""
        self.taken = 0
        """The highest `taken` that is queued, or has been returned."""
        self._hub = hub
        self._outbox: deque[_Queued] = deque()
        self._position: Position | None = None
        self._taken = 0
        """Those of the frame that was returned last."""
        self._wake = asyncio.Event()
        self._space = asyncio.Event()
        self._space.set()

    @property
    def position(self) -> Position | None:
        """How far it has got in the session it is in."""
        return Position(self.room.id, self.cursor) if self.room is not None else None

    def push(self, frame: str, after: int = 0, *, taken: int = 0) -> None:
        """Queues a frame that must follow message `after`, if the session has got that far.

        With it the client's own frames up to number `taken` have been dealt with.
        """
        if self.leaving is not Leaving.NO:
            return
        if len(self._outbox) >= OUTBOX:
            self.leave(Leaving.SLOW)
            return
        self.taken = max(self.taken, taken)
        self._outbox.append(_Queued(frame, after, self.visit, self.taken))
        if len(self._outbox) >= OUTBOX // 2:
            self._space.clear()
        if self.room is not None:
            self.room.head = max(self.room.head, after)
        self.wake()

    def wake(self) -> None:
        """There is something new for it."""
        self._wake.set()

    def leave(self, how: Leaving) -> None:
        """Ends `next`, now or when everything has been returned."""
        if self.leaving is not Leaving.SLOW:
            self.leaving = how
        self._space.set()
        self._wake.set()

    async def space(self) -> None:
        """Waits until its client has taken enough for more of its frames to be worked on."""
        await self._space.wait()

    def note(self, taken: int) -> None:
        """The client's own frames up to number `taken` have been dealt with, and there is nothing to say."""
        if taken > self.taken:
            last = self._outbox[-1] if self._outbox else None
            if last is not None and not last.frame and last.visit == self.visit:
                self._outbox.pop()
            self.push("", taken=taken)

    async def next(self) -> list[Due]:
        """The next frames for the client, in order; waits for some. Empty: there will be no more.

        Raises `StoreError` when messages cannot be read.
        """
        while self.leaving is not Leaving.SLOW:
            queued = self._outbox[0] if self._outbox else None
            room, visit = self.room, self.visit
            # What was queued before the session was entered waits for nothing in it.
            if room is not None and (queued is None or queued.visit == visit):
                limit = room.head if queued is None else min(queued.after, room.head)
                if self.cursor < limit:
                    found = await self._hub.read(room, self.cursor, limit)
                    # It may have joined another session meanwhile, or this one from another place.
                    if self.visit == visit:
                        self.cursor = found[-1].seq
                        self._position = self.position
                        return [
                            Due(wire.message(message), Position(room.id, message.seq), self._taken)
                            for message in found
                        ]
                    continue
            if queued is not None:
                self._outbox.popleft()
                if len(self._outbox) < OUTBOX // 2:
                    self._space.set()
                if queued.visit == visit:
                    self._position = self.position
                self._taken = queued.taken
                return [Due(queued.frame, self._position, queued.taken)]
            if self.leaving is Leaving.FLUSH:
                break
            self._wake.clear()
            await self._wake.wait()
        return []


class Room:
    """One session's members here, and what is known of the session. Changed by the hub alone."""

    def __init__(self, session: str) -> None:
        self.id = session
        self.session = Session(session)
        self.head = 0
        """The highest sequence number known to exist."""
        self.members: set[Member] = set()
        self.tail: deque[Message] = deque(maxlen=TAIL)
        self.pins = 0
        """Entries under way: the room must not be forgotten although nobody is in it yet."""

    def saw(self, session: Session) -> None:
        """Takes over a newer copy of the session and tells the members of a new state."""
        if session.rev <= self.session.rev:
            return
        changed = (session.state, session.desk) != (self.session.state, self.session.desk)
        self.session = session
        self.head = max(self.head, session.seq)
        for member in list(self.members):
            if changed:
                member.push(wire.state(session), after=session.seq)
            member.wake()

    def add(self, messages: Iterable[Message]) -> None:
        """Remembers new messages; a gap before them empties the tail, and readers go to the store."""
        for message in messages:
            if self.tail and message.seq <= self.tail[-1].seq:
                continue
            if self.tail and message.seq != self.tail[-1].seq + 1:
                self.tail.clear()
            self.tail.append(message)
            self.head = max(self.head, message.seq)


class Hub:
    """Every room of this process; the only place that knows who is connected."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._rooms: dict[str, Room] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    @property
    def sessions(self) -> int:
        """How many sessions are open here."""
        return len(self._rooms)

    async def enter(
        self, member: Member, session: str, after: int, instance: str, *, taken: int = 0
    ) -> Session:
        """Puts a member into a session's room: a welcome, every message above `after`, then what comes.

        An `after` beyond the session's end (another store?) counts as its end. `taken`: see `Member.push`.
        Raises `StoreError`.
        """
        room = self._rooms.setdefault(session, Room(session))
        room.pins += 1
        try:
            # The room exists before the read, so that no notice that comes meanwhile is missed.
            room.saw(await self._store.session(session))
        finally:
            room.pins -= 1
            self._forget(room)
        self.exit(member)
        self._rooms[session] = room
        room.members.add(member)
        member.cursor = min(after, room.session.seq)
        member.room = room
        member.visit += 1
        member.push(wire.welcome(room.session, instance), taken=taken)
        return room.session

    def exit(self, member: Member) -> None:
        """Takes a member out of its room; the last one closes it."""
        room, member.room = member.room, None
        if room is not None:
            member.visit += 1
            room.members.discard(member)
            self._forget(room)

    def publish(self, change: Change) -> None:
        """A change made by this process: for the members here at once, for other processes a notice."""
        room = self._rooms.get(change.session.id)
        if room is not None:
            room.add(change.messages)
            room.saw(change.session)
        self._bus.publish(Notice(change.session.id, Kind.CHANGED))

    def typing(self, session: str, origin: Origin) -> None:
        """Somebody in the session is writing: told to everybody of the other side, here and elsewhere."""
        notice = Notice(session, Kind.TYPING, origin)
        self._show_typing(notice)
        self._bus.publish(notice)

    def notice(self, notice: Notice) -> None:
        """Called by the bus: another process has done something."""
        if notice.session not in self._rooms:
            return
        if notice.kind is Kind.TYPING:
            self._show_typing(notice)
        elif notice.session in self._refreshing:
            self._again.add(notice.session)
        else:
            task = asyncio.create_task(self._refresh(notice.session))
            self._refreshing[notice.session] = task
            task.add_done_callback(lambda _: self._refreshing.pop(notice.session, None))

    async def catch_up(self) -> None:
        """Looks into the store for what no notice told. Raises `StoreError`."""
        if not self._rooms:
            return
        for session, rev in (await self._store.revisions(list(self._rooms))).items():
            room = self._rooms.get(session)
            if room is not None and rev > room.session.rev:
                self.notice(Notice(session, Kind.CHANGED))

    async def read(self, room: Room, after: int, limit: int) -> list[Message]:
        """Messages of a room above `after`, not above `limit`, at most `BATCH`. Raises `StoreError`."""
        if room.tail and room.tail[0].seq <= after + 1 <= room.tail[-1].seq:
            return [message for message in room.tail if after < message.seq <= limit]
        found = await self._store.messages(room.id, after, min(BATCH, limit - after))
        if not found:
            raise StoreError(f"message {after + 1} of session {room.id} is known but cannot be read")
        return found

    async def close(self) -> None:
        """Ends its tasks."""
        tasks = list(self._refreshing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self, session: str) -> None:
        while True:
            self._again.discard(session)
            room = self._rooms.get(session)
            if room is None:
                return
            try:
                fresh = await self._store.session(session)
                # Read once for all members; one that is further behind reads for itself.
                if room.head < fresh.seq <= room.head + TAIL:
                    room.add(await self._store.messages(session, room.head, TAIL))
                room.saw(fresh)
            except StoreError as error:
                _log.warning("cannot refresh session %s: %s", session, error)
                return
            if session not in self._again:
                return

    def _show_typing(self, notice: Notice) -> None:
        room = self._rooms.get(notice.session)
        for member in list(room.members) if room else ():
            if member.origin is not notice.origin:
                member.push(wire.typing(notice.origin))

    def _forget(self, room: Room) -> None:
        if not room.members and not room.pins and self._rooms.get(room.id) is room:
            del self._rooms[room.id]
