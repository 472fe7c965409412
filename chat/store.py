"""Where sessions and messages are kept: an SQLite database that the instances share.

The store is the truth. Whatever is shown to anybody is read from here or was just written here; the bus and
the hub only say that something is new. One write transaction holds one session (`Store.change`): its
sequence numbers, its state and its messages change together or not at all, in whatever process that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Row,
    and_,
    create_engine,
    event,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from chat.record import Desk, Message, Origin, Session, Summary
from chat.state import Event, State, takes
from chat.tables import messages as _messages
from chat.tables import metadata
from chat.tables import owed as _owed
from chat.tables import sessions as _sessions

StoreError = SQLAlchemyError
"""The database could not do it. Nothing of the operation was kept."""

BUSY_TIMEOUT_MS = 5_000
"""How long SQLite waits for another process's write transaction."""

READERS = 4
"""Threads that read at the same time."""

T = TypeVar("T")


class Unit:
    """One session inside a write transaction. Rules assign `session`; it is saved when the unit is left."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection = connection
        self._before = session
        self.session = session

    def find(self, origin: Origin, client_id: str) -> Message | None:
        """The message that a client sent under this id, if it is stored already."""
        query = select(_messages).where(
            _messages.c.session == self.session.id,
            _messages.c.origin == origin,
            _messages.c.client_id == client_id,
        )
        row = (self._connection.execute(query)).first()
        return None if row is None else _message(row)

    def append(
        self,
        origin: Origin,
        text: str,
        at: float,
        *,
        client_id: str | None = None,
        reply_to: int | None = None,
        owed: bool = False,
    ) -> Message:
        """Adds a message under the session's next sequence number. `owed`: the engine has to answer it."""
        if self.session.rev == 0 and self.session.seq == 0:
            self._create()
        self.session = replace(self.session, seq=self.session.seq + 1)
        message = Message(self.session.id, self.session.seq, origin, text, at, client_id, reply_to)
        self._connection.execute(
            insert(_messages).values(
                session=message.session,
                seq=message.seq,
                origin=origin,
                text=text,
                at=at,
                client_id=client_id,
                reply_to=reply_to,
                owed=owed,
            )
        )
        return message

    def owed(self) -> Message | None:
        """The oldest message the engine has yet to answer."""
        query = select(_messages).where(_messages.c.session == self.session.id, _owed.is_(True))
        row = (self._connection.execute(query.order_by(_messages.c.seq).limit(1))).first()
        return None if row is None else _message(row)

    def settle(self, seq: int | None = None) -> bool:
        """The engine owes no answer to `seq` (or to anything) any more. False if it owed none."""
        query = update(_messages).where(_messages.c.session == self.session.id, _owed.is_(True))
        if seq is not None:
            query = query.where(_messages.c.seq == seq)
        return (self._connection.execute(query.values(owed=False))).rowcount > 0

    def owe_last(self) -> bool:
        """The engine owes an answer to the user's latest message again, unless it has given one."""
        answered = select(_messages.c.reply_to).where(
            _messages.c.session == self.session.id, _messages.c.reply_to.is_not(None)
        )
        last = select(func.max(_messages.c.seq)).where(
            _messages.c.session == self.session.id, _messages.c.origin == Origin.USER
        )
        seq = (self._connection.execute(last)).scalar()
        done = set((self._connection.execute(answered)).scalars())
        if seq is None or seq in done:
            return False
        here = and_(_messages.c.session == self.session.id, _messages.c.seq == seq)
        self._connection.execute(update(_messages).where(here).values(owed=True))
        return True

    def recent(self, before: int, since: float, limit: int) -> tuple[Message, ...]:
        """The last `limit` messages before `before` and not older than `since`, in order."""
        query = select(_messages).where(
            _messages.c.session == self.session.id, _messages.c.seq < before, _messages.c.at >= since
        )
        rows = (self._connection.execute(query.order_by(_messages.c.seq.desc()).limit(limit))).all()
        return tuple(_message(row) for row in reversed(rows))

    def _create(self) -> None:
        values = {name: getattr(self.session, name) for name in Session.__slots__} | {"rev": 1}
        self._connection.execute(insert(_sessions).values(values))
        self.session = replace(self.session, rev=1)

    def save(self) -> None:
        """Stores the session if it was changed. Called once, when the rule is done."""
        if self.session == self._before:
            return
        if self.session.rev == 0:
            self._create()
            return
        self.session = replace(self.session, rev=self.session.rev + 1)
        values = {name: getattr(self.session, name) for name in Session.__slots__ if name != "id"}
        self._connection.execute(update(_sessions).where(_sessions.c.id == self.session.id).values(values))


class Store:
    """Sessions and messages in a database that several processes share.

    Statements run in threads, a whole transaction at a time: one change of threads for each, and the rules
    inside are plain synchronous code. A coroutine that is cancelled leaves its transaction to be finished.
    """

    def __init__(self, url: str) -> None:
        """`sqlite:///relative.db`, `sqlite:////absolute.db` or `sqlite://` (in memory).

        Raises `ValueError` for anything else.
        """
        self.url = _parse(url)
        # One writer: SQLite has one anyway, and a queue is fair while SQLite's busy wait is not.
        self._writes = ThreadPoolExecutor(1, "chat-store-write")
        self._writer = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            # Closed by another thread than the one that opened it, which is idle then.
            connect_args={"check_same_thread": False},
        )
        if self.file is None:
            # A database in memory is its one connection; everything takes its turn on it.
            self._reads, self._reader = self._writes, self._writer
        else:
            self._reads = ThreadPoolExecutor(READERS, "chat-store-read")
            self._reader = create_engine(
                self.url,
                poolclass=QueuePool,
                pool_size=READERS,
                max_overflow=0,
                isolation_level="AUTOCOMMIT",
                pool_reset_on_return=None,
            )
            event.listen(self._reader, "connect", _prepare)
        event.listen(self._writer, "connect", _prepare_writer)
        event.listen(self._writer, "begin", _begin_immediate)

    @property
    def file(self) -> Path | None:
        """The SQLite file, when there is one."""
        name = self.url.database
        return Path(name).absolute() if name and name != ":memory:" else None

    async def open(self) -> None:
        """Makes the tables that are missing. Raises `StoreError`."""
        if self.file is not None:
            await self._use_wal()
        await self._write(metadata.create_all)

    async def close(self) -> None:
        """Waits for what is being written and closes every connection."""
        await asyncio.to_thread(self._writes.shutdown)
        await asyncio.to_thread(self._reads.shutdown)
        self._writer.dispose()
        self._reader.dispose()

    async def ping(self) -> None:
        """Raises `StoreError` when the database does not answer."""
        await self._read(lambda connection: connection.execute(select(1)))

    async def change(self, session: str, rule: Callable[[Unit], T]) -> tuple[Session, T]:
        """Runs `rule` in a write transaction on one session, which exists from its first change on.

        `rule` sees the latest state, whichever process made it; what it does is kept as a whole, or not at
        all when it raises. It runs in the writing thread and must be quick. Returns the session as it is
        stored now, and what `rule` returned. Raises `StoreError` and whatever `rule` raises.
        """

        def transaction(connection: Connection) -> tuple[Session, T]:
            row = connection.execute(select(_sessions).where(_sessions.c.id == session)).first()
            unit = Unit(connection, Session(session) if row is None else _session(row))
            result = rule(unit)
            unit.save()
            return unit.session, result

        return await self._write(transaction)

    async def session(self, id: str) -> Session:
        """The session as stored; a fresh one (rev 0) when nothing was ever said in it."""
        query = select(_sessions).where(_sessions.c.id == id)
        row = await self._read(lambda connection: connection.execute(query).first())
        return Session(id) if row is None else _session(row)

    async def messages(self, session: str, after: int, limit: int) -> list[Message]:
        """Up to `limit` messages with a sequence number above `after`, in order."""
        query = select(_messages).where(_messages.c.session == session, _messages.c.seq > after)
        query = query.order_by(_messages.c.seq).limit(limit)
        return [_message(row) for row in await self._read(lambda c: c.execute(query).all())]

    async def sessions(self, limit: int) -> list[Summary]:
        """The sessions: who waits for a human longest first, then the most recently active."""
        last = and_(_messages.c.session == _sessions.c.id, _messages.c.seq == _sessions.c.seq)
        query = (
            select(_sessions, _messages)
            .select_from(_sessions.outerjoin(_messages, last))
            .order_by(_sessions.c.waiting_since.is_(None), _sessions.c.waiting_since)
            .order_by(_sessions.c.active.desc())
            .limit(limit)
        )
        rows = await self._read(lambda connection: connection.execute(query).all())
        width = len(_sessions.c)
        return [Summary(_session(row), _message(row[width:]) if row[width] else None) for row in rows]

    async def owed(self, now: float, limit: int) -> list[str]:
        """Sessions with an answer owed that nobody is at: their lease is free, or its owner has died."""
        free = or_(_sessions.c.lease_owner.is_(None), _sessions.c.lease_until <= now)
        joined = select(_messages.c.session).join(_sessions, _sessions.c.id == _messages.c.session)
        query = joined.where(_owed.is_(True), free).distinct().limit(limit)
        return list(await self._read(lambda connection: connection.execute(query).scalars().all()))

    async def idle(self, before: float, limit: int) -> list[str]:
        """Sessions that can time out, idle since `before`; none in which an answer is owed."""
        states = [state for state in State if takes(state, Event.TIME_OUT)]
        pending = select(true()).where(_messages.c.session == _sessions.c.id, _owed.is_(True)).exists()
        query = select(_sessions.c.id).where(
            _sessions.c.active < before, _sessions.c.state.in_(states), ~pending
        )
        return list(await self._read(lambda c: c.execute(query.limit(limit)).scalars().all()))

    async def revisions(self, ids: Iterable[str]) -> dict[str, int]:
        """The current `rev` of those of `ids` that exist."""
        names = list(ids)

        def read(connection: Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for start in range(0, len(names), 500):
                some = names[start : start + 500]
                query = select(_sessions.c.id, _sessions.c.rev).where(_sessions.c.id.in_(some))
                found.update((id, rev) for id, rev in connection.execute(query))
            return found

        return await self._read(read)

    async def renew(self, owner: str, sessions: Iterable[str], until: float) -> None:
        """Sets the end of the leases that `owner` still holds on `sessions`."""
        held = and_(_sessions.c.id.in_(list(sessions)), _sessions.c.lease_owner == owner)
        query = update(_sessions).where(held).values(lease_until=until)
        await self._write(lambda connection: connection.execute(query))

    async def _write(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._writer.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._writes, run)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._reader.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._reads, run)

    async def _use_wal(self) -> None:
        # Changing the mode needs the file for itself for a moment and does not honour the busy timeout, so
        # instances that start together on a new file would fail here.
        for attempt in range(100):
            try:
                await self._read(lambda connection: connection.exec_driver_sql("PRAGMA journal_mode=WAL"))
                return
            except OperationalError as error:
                if attempt == 99 or "locked" not in str(error):
                    raise
                await asyncio.sleep(0.05)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError(f"{url!r} is not a store; write it as sqlite:///chat.db") from None
    if parsed.drivername != "sqlite":
        raise ValueError(f"store {parsed.drivername!r} is not known; write it as sqlite:///chat.db")
    return parsed


def _prepare(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    # In WAL mode this survives the death of the process, however sudden; only a power cut can take the last
    # moments, and never the file's consistency.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _prepare_writer(connection: Any, record: object) -> None:
    _prepare(connection, record)
    # The driver's own transaction handling is off: it would begin too late and not IMMEDIATE.
    connection.isolation_level = None


def _begin_immediate(connection: Any) -> None:
    # A transaction that reads first and writes later would fail instead of wait when another has written.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _session(row: Row[Any] | Sequence[Any]) -> Session:
    id, state, desk, *rest = row[: len(_sessions.c)]
    return Session(id, State(state), Desk(desk), *rest)


def _message(row: Row[Any] | Sequence[Any]) -> Message:
    session, seq, origin, text, at, client_id, reply_to = row[:7]
    return Message(session, seq, Origin(origin), text, at, client_id, reply_to)
