"""What can happen to a session, each as one transaction on the store. No connection is known here.

The rules of exactly once:
- a client's message is stored once, whatever instance its duplicates reach (`receive`, `speak`);
- together with it is stored that an answer is owed; whoever holds the session's lease gives it (`claim`,
  `answer`), and giving it, no longer owing it and the state change are one transaction;
- a holder that dies loses the lease after `LEASE` seconds, and any instance may claim; a holder that was
  only slow finds at `answer` that the lease or the debt is gone, and its answer is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from chat.record import Change, Desk, Message, Origin, Session
from chat.state import Event, State, step, takes
from chat.store import Store, Unit

Clock = Callable[[], float]
"""Seconds since the epoch. Processes that share a store must agree on it to well below `LEASE`."""

LEASE = 2.0
"""Seconds a claim lasts when it is not renewed: how long an answer may be late after its instance died."""

CONTEXT_TTL = 30 * 60.0
"""Seconds without a word after which a session's context is forgotten and the session times out."""

HISTORY = 12
"""How many earlier messages the engine sees."""

CALLED = "已为您呼叫人工客服，请稍候。\nA human agent has been called. Please stay with us."
JOINED = "人工客服已接入。\nA human agent has joined the conversation."
HANDED_BACK = "人工客服已离开，智能助手继续为您服务。\nThe agent has left; the assistant is back."


class SessionEnded(Exception):
    """The session is in END and takes nothing new."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A client's message as it is stored. `change` is None for a duplicate: nothing happened."""

    message: Message
    change: Change | None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer one message, and what the engine needs for it."""

    message: Message
    history: tuple[Message, ...]


class Sessions:
    """The operations on sessions, for one process, which is called `owner` in leases.

    Every method raises `StoreError` when the database fails; then nothing has happened.
    """

    def __init__(
        self, store: Store, owner: str, clock: Clock, *, lease: float = LEASE, ttl: float = CONTEXT_TTL
    ) -> None:
        self.store = store
        self.owner = owner
        self.clock = clock
        self.lease = lease
        self.ttl = ttl

    async def receive(self, session: str, client_id: str, text: str) -> Stored:
        """A user's message. Raises `SessionEnded`, but not for a duplicate: its answer must stay the same."""

        def rule(unit: Unit) -> tuple[Message, list[Message]]:
            if known := unit.find(Origin.USER, client_id):
                return known, []
            now = self._touch(unit, Event.USER_MSG)
            if unit.session.desk is not Desk.BOT and unit.session.waiting_since is None:
                unit.session = replace(unit.session, waiting_since=now)
            owed = unit.session.desk is not Desk.AGENT
            message = unit.append(Origin.USER, text, now, client_id=client_id, owed=owed)
            return message, [message]

        return _stored(*await self.store.change(session, rule))

    async def speak(self, session: str, client_id: str, text: str) -> Stored:
        """An agent's message; joins the session if nobody has. Raises `SessionEnded`."""

        def rule(unit: Unit) -> tuple[Message, list[Message]]:
            if known := unit.find(Origin.AGENT, client_id):
                return known, []
            added = [] if unit.session.desk is Desk.AGENT else [self._take_over(unit)]
            now = self._touch(unit, Event.NLP_OK)
            unit.session = replace(unit.session, waiting_since=None)
            message = unit.append(Origin.AGENT, text, now, client_id=client_id)
            return message, [*added, message]

        return _stored(*await self.store.change(session, rule))

    async def call_agent(self, session: str) -> Change | None:
        """The user asks for a human. None when that was done already. Raises `SessionEnded`."""

        def rule(unit: Unit) -> list[Message] | None:
            if unit.session.state is State.END:
                raise SessionEnded
            if unit.session.desk is not Desk.BOT:
                return None
            now = self._touch(unit, None)
            unit.session = replace(unit.session, desk=Desk.WAITING, waiting_since=now)
            return [unit.append(Origin.BOT, CALLED, now)]

        return _change(*await self.store.change(session, rule))

    async def join(self, session: str) -> Change | None:
        """A human takes the session over from the engine. None when one has. Raises `SessionEnded`."""

        def rule(unit: Unit) -> list[Message] | None:
            if unit.session.state is State.END:
                raise SessionEnded
            return None if unit.session.desk is Desk.AGENT else [self._take_over(unit)]

        return _change(*await self.store.change(session, rule))

    async def hand_back(self, session: str) -> Change | None:
        """The agent leaves; the engine serves again, beginning with what the agent left unanswered."""

        def rule(unit: Unit) -> list[Message] | None:
            if unit.session.desk is not Desk.AGENT or unit.session.state is State.END:
                return None
            now = self._touch(unit, None)
            unit.session = replace(unit.session, desk=Desk.BOT, waiting_since=None)
            if unit.session.state is State.AWAIT_NLP:
                unit.owe_last()
            return [unit.append(Origin.BOT, HANDED_BACK, now)]

        return _change(*await self.store.change(session, rule))

    async def end(self, session: str) -> Change | None:
        """The user says goodbye. What was asked before is still answered. None when it had ended."""

        def rule(unit: Unit) -> list[Message] | None:
            if unit.session.state is State.END:
                return None
            self._touch(unit, Event.BYE)
            unit.session = replace(unit.session, desk=Desk.BOT, waiting_since=None)
            return []

        return _change(*await self.store.change(session, rule))

    async def time_out(self, session: str) -> Change | None:
        """Ends the context of a session that was idle for the time to live. None when it was not."""

        def rule(unit: Unit) -> list[Message] | None:
            before = unit.session
            idle = self.clock() - before.active >= self.ttl
            if before.rev == 0 or not idle or not takes(before.state, Event.TIME_OUT):
                return None
            state = step(before.state, Event.TIME_OUT)
            unit.session = replace(before, state=state, desk=Desk.BOT, waiting_since=None)
            return []

        return _change(*await self.store.change(session, rule))

    async def claim(self, session: str) -> Claim | None:
        """Takes the session's lease if an answer is owed and nobody else holds it."""

        def rule(unit: Unit) -> Claim | None:
            now = self.clock()
            held = unit.session.lease_owner not in (None, self.owner) and unit.session.lease_until > now
            if held or (message := unit.owed()) is None:
                return None
            unit.session = replace(unit.session, lease_owner=self.owner, lease_until=now + self.lease)
            return Claim(message, unit.recent(message.seq, message.at - self.ttl, HISTORY))

        return (await self.store.change(session, rule))[1]

    async def answer(self, claim: Claim, text: str, *, fitting: bool) -> Change | None:
        """Stores the answer to a claimed message and gives the lease back.

        None when it is not wanted any more: an agent has joined, or another instance has answered. `fitting`:
        the engine knew an answer; otherwise `text` asks the user to say it differently.
        """
        seq = claim.message.seq

        def rule(unit: Unit) -> list[Message] | None:
            if unit.session.lease_owner != self.owner:
                return None
            unit.session = replace(unit.session, lease_owner=None, lease_until=0.0)
            if not unit.settle(seq):
                return None
            # Two messages in a row: the session awaits replies until the last one is given.
            event = None if unit.owed() else Event.NLP_OK if fitting else Event.NLP_FAIL
            now = self._touch(unit, event)
            return [unit.append(Origin.BOT, text, now, reply_to=seq)]

        return _change(*await self.store.change(claim.message.session, rule))

    async def renew(self, sessions: Iterable[str]) -> None:
        """Keeps the leases of answers in the making."""
        await self.store.renew(self.owner, sessions, self.clock() + self.lease)

    async def release(self, sessions: Iterable[str]) -> None:
        """Gives leases back without an answer; others need not wait until they run out."""
        await self.store.renew(self.owner, sessions, 0.0)

    def _take_over(self, unit: Unit) -> Message:
        now = self._touch(unit, Event.AGENT_JOIN)
        unit.settle()
        unit.session = replace(unit.session, desk=Desk.AGENT)
        return unit.append(Origin.BOT, JOINED, now)

    def _touch(self, unit: Unit, event: Event | None) -> float:
        now = self.clock()
        session = unit.session
        if event is not None:
            if not takes(session.state, event):
                raise SessionEnded
            session = replace(session, state=step(session.state, event))
        unit.session = replace(session, active=now, created=session.created or now)
        return now


def _stored(session: Session, result: tuple[Message, list[Message]]) -> Stored:
    message, added = result
    return Stored(message, _change(session, added or None))


def _change(session: Session, added: list[Message] | None) -> Change | None:
    return None if added is None else Change(session, tuple(added))
