"""A migrating WebSocket under everything that can happen to it, judged by an independent implementation.

The model is a client, instances that come and go, and a network that delivers any number of bytes at a time.
All ends of it are wsproto, which shares no code with the relay. Time moves only when a rule says so.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong

from proxy.phases import Phase, Rules
from proxy.relay import PING, Relay
from proxy.replay import Keeping

MESSAGES = 5
KEPT = 2000
WHOLE = 64
RESUME = b"holdfast-resume"
HOLD = 1.0
QUIET = 0.2
LAG = 0.15
"""An instance's application reads what has arrived within this time: less than the quiet, and the hold."""
SIZES = st.one_of(st.integers(8, 40), st.integers(8, 300), st.sampled_from([KEPT - 20, KEPT, KEPT + 200]))
CHUNK_MOST = 4000
CHUNK = st.one_of(st.integers(1, 12), st.integers(1, 500), st.just(CHUNK_MOST))
RARELY = st.integers(0, 9).map(lambda chance: chance == 9)
"""For what ends a tunnel: most are to live long enough to meet everything else."""
CUTS = st.lists(st.integers(0, 300), max_size=3)


def text(number: int, size: int) -> bytes:
    """Message number so and so, filled up to a size."""
    return (b"%07d:" % number).ljust(size, b"x")


def number_of(message: bytes) -> int:
    return int(message[:7])


class Ear:
    """Hears one direction of a WebSocket: whole messages, control frames, a Close with nothing behind it."""

    def __init__(self, kind: ConnectionType) -> None:
        self.ws = Connection(kind)
        self.messages: list[bytes] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.close: CloseConnection | None = None
        self._part = b""
        self.within_message = False

    def hear(self, data: bytes) -> None:
        assert self.close is None, f"said after Close: {data!r}"
        self.ws.receive_data(data)
        for event in self.ws.events():
            assert self.close is None, f"said after Close: {event}"
            if isinstance(event, BytesMessage):
                self._part += event.data
                self.within_message = not event.message_finished
                if event.message_finished:
                    self.messages.append(self._part)
                    self._part = b""
            elif isinstance(event, Ping):
                self.pings.append(bytes(event.payload))
            elif isinstance(event, Pong):
                self.pongs.append(bytes(event.payload))
            else:
                assert isinstance(event, CloseConnection), event
                assert event.code != 1002, event.reason
                self.close = event

    @property
    def between_frames(self) -> bool:
        """Whether it could be sent another frame: nothing of one is waiting in its parser."""
        decoder = self.ws._proto._frame_decoder
        return not decoder.buffer.buffer and decoder.header is None


class Instance:
    """One instance's end of one connection: its library answers at once, its application when it reads."""

    def __init__(self) -> None:
        self.ear = Ear(ConnectionType.SERVER)
        self.witness = Ear(ConnectionType.CLIENT)
        """Hears exactly the bytes that the relay was given."""
        self.incoming = b""
        """On its way from the proxy."""
        self.outgoing = b""
        """On its way to the proxy."""
        self.arrived: list[float] = []
        """When each message arrived."""
        self.read = 0
        """Messages that the application has read."""
        self.said_close = False
        self.half_said = False

    def say(self, event: Event) -> None:
        if not self.said_close:
            self.outgoing += self.ear.ws.send(event)

    def close(self, code: int, reason: str) -> None:
        self.read = len(self.arrived)
        self.say(CloseConnection(code, reason))
        self.said_close = True

    def deliver(self, size: int, now: float) -> None:
        data, self.incoming = self.incoming[:size], self.incoming[size:]
        if not data:
            return
        before = len(self.ear.pings)
        self.ear.hear(data)
        if self.ear.close is None:
            for payload in self.ear.pings[before:]:
                self.say(Pong(payload))
        self.arrived += [now] * (len(self.ear.messages) - len(self.arrived))
        if self.ear.close is not None:
            self.close(int(self.ear.close.code), "after-close")

    def read_until(self, now: float) -> None:
        while self.read < len(self.arrived) and self.arrived[self.read] <= now:
            self.read += 1

    @property
    def received(self) -> list[int]:
        return [number_of(message) for message in self.ear.messages]

    @property
    def consumed(self) -> list[int]:
        return self.received[: self.read]


class World:
    """The `Port`: what the relay does in the model."""

    def __init__(self, instance: Callable[[bytes], Instance] = lambda token: Instance()) -> None:
        """`instance` makes one that is to resume by a token."""
        self._instance = instance
        self.client = Ear(ConnectionType.CLIENT)
        self.reading = True
        self.live: Instance | None = instance(b"")
        self.all: list[Instance] = [self.live]
        self.dialing: bytes | None = None
        self.alarm_at = math.inf
        self.ended: tuple[int, str] | None = None
        self.barriers = True

    def to_client(self, data: bytes) -> None:
        assert self.ended is None
        self.client.hear(data)
        assert self.client.between_frames

    def to_server(self, data: bytes) -> None:
        if self.live is not None:
            self.live.incoming += data

    def read_client(self, wanted: bool) -> None:
        assert wanted is not self.reading
        self.reading = wanted

    def dial(self, token: bytes) -> None:
        assert self.dialing is None and self.ended is None
        self._drop()
        self.dialing = token

    def may_barrier(self, urgent: bool) -> bool:
        return self.barriers

    def alarm(self, at: float) -> None:
        self.alarm_at = at

    def end(self, code: int, side: str) -> None:
        assert self.ended is None
        self._drop()
        self.dialing = None
        self.ended = (code, side)

    def connect(self) -> None:
        assert self.dialing is not None
        self.live = self._instance(self.dialing)
        self.all.append(self.live)
        self.dialing = None

    def _drop(self) -> None:
        """Closed after flushing: what was written arrives, and is read."""
        live, self.live = self.live, None
        if live is not None:
            live.deliver(len(live.incoming), math.inf)
            live.read_until(math.inf)


def has_live(machine: Tunnel) -> bool:
    live = machine.world.live
    return live is not None and not live.said_close


class Tunnel(RuleBasedStateMachine):
    """Without replay: planned leaving loses nothing and says nothing twice."""

    replay = False
    instance: Callable[[bytes], Instance] = staticmethod(lambda token: Instance())

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.world = World(self.instance)
        rules = Rules(QUIET, 2.0, WHOLE, Keeping(self.replay, HOLD, MESSAGES, KEPT, 0.25))
        self.relay = Relay(rules, self.world, lambda: b"\x01\x02\x03\x04")
        self.client = Connection(ConnectionType.CLIENT)
        self.outgoing = b""
        """On its way from the client."""
        self.written = self.passed = 0
        self.sent = 0
        self.ends: deque[int] = deque()
        """Where in what the client wrote each message ends that has not reached the relay."""
        self.given = 0
        """Client messages that the relay has been given whole, while the client had not been told Close."""
        self.unfinished: bytes | None = None
        self.pings = 0
        self.answered = 0
        self.client_closed = self.client_gone = False
        self.said = 0
        self.heard: list[bytes] = []
        """Whole messages that instances have said to the relay."""
        self.deaths = 0
        self.refused = False
        self.lost: set[int] = set()
        """Messages that an instance had not read when it died or closed by itself."""
        self.doubled = False
        """Something may have been sent again."""
        self.judged = False

    # -- the client ----------------------------------------------------------------------------------------

    def write(self, event: Event) -> None:
        data = self.client.send(event)
        self.outgoing += data
        self.written += len(data)

    def may_write(self) -> bool:
        return not (self.client_closed or self.client_gone or self.world.client.close)

    @precondition(lambda self: self.may_write() and self.unfinished is None)
    @rule(size=SIZES, cuts=CUTS, held=st.booleans())
    def client_says(self, size: int, cuts: list[int], held: bool) -> None:
        """A message in one fragment more than there are cuts; the last may be kept back."""
        data = text(self.sent, size)
        places = sorted({min(cut, size) for cut in cuts})
        parts = [data[a:b] for a, b in zip([0, *places], [*places, size], strict=True)]
        for part in parts[:-1]:
            self.write(BytesMessage(part, message_finished=False))
        self.unfinished = parts[-1]
        if not held or len(parts) == 1:
            self.client_finishes()

    @precondition(lambda self: self.may_write() and self.unfinished is not None)
    @rule()
    def client_finishes(self) -> None:
        self.write(BytesMessage(self.unfinished))
        self.ends.append(self.written)
        self.sent += 1
        self.unfinished = None

    @precondition(lambda self: self.may_write())
    @rule()
    def client_pings(self) -> None:
        self.write(Ping(b"client-%d" % self.pings))
        self.pings += 1

    @precondition(lambda self: self.may_write())
    @rule(now=RARELY)
    def client_closes(self, now: bool) -> None:
        if not now:
            return
        self.write(CloseConnection(1000, "bye"))
        self.client_closed = True

    @precondition(lambda self: self.world.client.close and not self.client_closed and not self.client_gone)
    @rule()
    def client_answers_close(self) -> None:
        self.write(self.world.client.close.response())
        self.client_closed = True

    @precondition(lambda self: not self.client_gone)
    @rule(now=RARELY)
    def client_is_gone(self, now: bool) -> None:
        if not now:
            return
        self.client_gone = True
        self.outgoing = b""
        self.relay.client_lost(self.now)
        assert self.world.ended is not None

    @precondition(lambda self: self.outgoing and self.world.reading and not self.world.ended)
    @rule(size=CHUNK)
    def bytes_from_client(self, size: int) -> None:
        data, self.outgoing = self.outgoing[:size], self.outgoing[size:]
        self.passed += len(data)
        self.relay.client_data(data, self.now)
        while self.ends and self.ends[0] <= self.passed:
            self.ends.popleft()
            if self.world.client.close is None:
                self.given += 1

    # -- instances -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.live and self.world.live.incoming)
    @rule(size=CHUNK)
    def bytes_to_instance(self, size: int) -> None:
        self.world.live.deliver(size, self.now)

    @precondition(lambda self: self.world.live and self.world.live.outgoing)
    @rule(size=CHUNK)
    def bytes_from_instance(self, size: int) -> None:
        live = self.world.live
        data, live.outgoing = live.outgoing[:size], live.outgoing[size:]
        listening = self.relay.phase not in (Phase.ENDING, Phase.OVER)
        known = len(live.witness.messages)
        live.witness.hear(data)
        if live.witness.close is not None and self.relay.phase is not Phase.CLOSING:
            self._loses(live)
        if listening:
            self.heard += live.witness.messages[known:]
        self.relay.server_data(data, self.now)

    @precondition(has_live)
    @rule(size=SIZES, cuts=CUTS, held=st.booleans())
    def instance_says(self, size: int, cuts: list[int], held: bool) -> None:
        live = self.world.live
        if live.half_said:
            live.say(BytesMessage(b"the rest"))
            live.half_said = False
            return
        data = text(self.said, size)
        self.said += 1
        places = sorted({min(cut, size) for cut in cuts})
        parts = [data[a:b] for a, b in zip([0, *places], [*places, size], strict=True)]
        for part in parts[:-1]:
            live.say(BytesMessage(part, message_finished=False))
        live.half_said = held
        live.say(BytesMessage(parts[-1], message_finished=not held))

    @precondition(has_live)
    @rule(payload=st.sampled_from([b"instance", RESUME + b":7", RESUME + b"+1:8", RESUME + b":"]))
    def instance_pings(self, payload: bytes) -> None:
        self.world.live.say(Ping(payload))

    @precondition(has_live)
    @rule(code=st.sampled_from([1001, 1012]))
    def instance_leaves(self, code: int) -> None:
        self.world.live.close(code, f"token-{code}")

    @precondition(has_live)
    @rule(code=st.sampled_from([1000, 4000]), now=RARELY)
    def instance_closes(self, code: int, now: bool) -> None:
        if now:
            self.world.live.close(code, f"token-{code}")

    @precondition(lambda self: self.world.live)
    @rule(now=RARELY)
    def instance_dies(self, now: bool) -> None:
        if not (now or self.replay):
            return
        live, self.world.live = self.world.live, None
        self._loses(live)
        self.deaths += 1
        self.relay.server_lost(self.now)

    def _loses(self, live: Instance) -> None:
        """What it has not read by now is not its duty any more."""
        self.lost |= set(range(self.given + 1)) - {n for i in self.world.all for n in i.consumed}
        self.doubled = True

    @precondition(lambda self: self.world.dialing is not None)
    @rule()
    def dial_succeeds(self) -> None:
        self.world.connect()
        self.relay.connected(self.now)

    @precondition(lambda self: self.world.dialing is not None)
    @rule(now=RARELY)
    def dial_fails(self, now: bool) -> None:
        if not now:
            return
        self.refused = True
        self.world.dialing = None
        self.relay.gave_up("nobody", self.now)

    @rule()
    def everything_arrives(self) -> None:
        """All that is under way, there and back; no time passes."""
        if self.outgoing and self.world.reading and not self.world.ended:
            self.bytes_from_client(CHUNK_MOST)
        live = self.world.live
        if live is not None:
            live.deliver(CHUNK_MOST, self.now)
            if live.outgoing:
                self.bytes_from_instance(CHUNK_MOST)

    # -- the proxy -----------------------------------------------------------------------------------------

    @rule()
    def proxy_wants_to_leave(self) -> None:
        self.relay.leave(self.now)

    @rule()
    def a_move_goes_as_planned(self) -> None:
        self.everything_arrives()
        self.relay.leave(self.now)
        for _ in range(2):
            self.time_passes(0.25)
            self.everything_arrives()
        if self.world.dialing is not None:
            self.dial_succeeds()
            self.everything_arrives()

    @rule()
    def the_time_to_leave_is_over(self) -> None:
        self.relay.hurry(self.now)

    @rule(side=st.integers(0, 1))
    def proxy_pings(self, side: int) -> None:
        self.relay.ping(side)

    @rule(there_are=st.booleans())
    def barriers_are_rationed(self, there_are: bool) -> None:
        self.world.barriers = there_are

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.1, 0.25, 0.25, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            self.now = max(self.now, min(until, self.world.alarm_at))
            if self.world.live is not None:
                self.world.live.read_until(self.now - LAG)
            if self.world.alarm_at > self.now:
                return
            self.world.alarm_at = math.inf
            closing = self.relay.phase is Phase.CLOSING
            self.relay.on_alarm(self.now)
            self.doubled |= closing and self.relay.phase is Phase.DIALING
            assert self.world.alarm_at > self.now or self.relay.phase is not Phase.RELAYING, "a busy alarm"

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def the_client_hears_each_message_once_and_in_order(self) -> None:
        assert self.world.client.messages == self.heard

    @invariant()
    def only_control_frames_of_others_are_passed_on(self) -> None:
        ear = self.world.client
        assert set(ear.pings) <= {PING, b"instance"}
        assert len(set(ear.pongs)) == len(ear.pongs)
        assert set(ear.pongs) <= {b"client-%d" % n for n in range(self.pings)}
        for instance in self.world.all:
            assert all(pong == b"instance" or pong.startswith(RESUME) for pong in instance.ear.pongs)
        if self.may_write():
            for payload in ear.pings[self.answered :]:
                self.write(Pong(payload))
            self.answered = len(ear.pings)

    @invariant()
    def each_instance_gets_messages_in_order(self) -> None:
        for instance in self.world.all:
            assert instance.received == sorted(set(instance.received))
        if not self.doubled:
            everything = [n for instance in self.world.all for n in instance.received]
            assert everything == sorted(set(everything))

    @invariant()
    def memory_is_bounded(self) -> None:
        outbox = self.relay._outbox
        kept = sum(len(m) for _, m in (*outbox.sent, *outbox._read)) + len(outbox._message)
        assert outbox.kept == kept <= 2 * KEPT + CHUNK_MOST
        if not self.replay:
            assert not outbox.sent and not outbox._read
        assert sum(len(cut[1]) for cut in outbox._held) == outbox._held_bytes <= KEPT + CHUNK_MOST

    @invariant()
    def a_client_is_told_close_only_for_a_reason(self) -> None:
        close = self.world.client.close
        if close is None or close.code != 1012 or self.judged:
            return
        self.judged = True
        reason = close.reason or ""
        if reason == "nobody":
            assert self.refused
        elif reason == "the instance died":
            assert self.deaths and not self.replay
        elif reason == "the instance left within a message":
            assert any(instance.witness.within_message for instance in self.world.all)
        elif "too large" in reason:
            assert self.written > KEPT
        elif reason.startswith("token") or reason.isdigit():
            assert self.client_closed  # by itself, and the instance's Close crossed its own
        else:
            assert "one instance after the other" in reason and self.deaths >= 5

    # -- the end -------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Left to itself, with instances to be had, a tunnel goes on or has ended: it never sticks."""
        if not hasattr(self, "relay"):
            return
        self.world.barriers = True
        if self.may_write() and self.unfinished is not None:
            self.client_finishes()
        for _ in range(150):
            self._everything_moves()
        assert self.relay.phase in (Phase.RELAYING, Phase.OVER), self.relay.phase
        assert (self.world.ended is not None) is (self.relay.phase is Phase.OVER)
        assert self.world.alarm_at == math.inf
        reached = {n for instance in self.world.all for n in instance.received}
        consumed = {n for instance in self.world.all for n in instance.consumed}
        if self.relay.phase is Phase.RELAYING:
            assert self.world.reading
            assert self.given == self.sent
            assert self.relay._outbox.kept == 0 and not self.relay._outbox._held
            assert set(range(self.sent)) <= (consumed if self.replay else reached | self.lost)
            if self.pings <= 8:  # of more, the oldest need not be answered
                assert len(self.world.client.pongs) == self.pings
        elif self.client_closed and not self.client_gone:
            assert self.world.client.close is not None

    def _everything_moves(self) -> None:
        if self.world.dialing is not None:
            self.dial_succeeds()
        live = self.world.live
        if live is not None and live.half_said and not live.said_close:
            self.instance_says(8, [], False)
        self.everything_arrives()
        if self.world.client.close and not self.client_closed and not self.client_gone:
            self.client_answers_close()
        self.time_passes(0.25)


class ReplayingTunnel(Tunnel):
    """With replay: what the client said is read by somebody, whoever dies."""

    replay = True


class Counting(Instance):
    """One that numbers what it says, and what it has dealt with: its application is as slow as it likes."""

    def __init__(self, token: bytes) -> None:
        super().__init__()
        self.at = int(token or b"0")
        """How many messages the client has once all has arrived that was said whole."""
        self.checkpoint()

    def checkpoint(self, *, ahead: bool = False) -> None:
        self.say(Ping(RESUME + b"%b@%d:%d" % (b"+1" if ahead else b"", self.read, self.at + ahead)))

    def close(self, code: int, reason: str) -> None:
        """Its library answers, whatever the application has still to read."""
        self.say(CloseConnection(code, str(self.at)))
        self.said_close = True

    def read_until(self, now: float) -> None:
        """It reads when `CountingTunnel.instance_deals` says so."""


class CountingTunnel(ReplayingTunnel):
    """With checkpoints: nothing is lost or doubled in either direction, whoever dies at whatever byte."""

    instance = Counting

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.doubled = True  # what it has read and not counted is given to the next one too
        self.settled: set[int] = set()
        """Client messages of which the proxy was told that they are dealt with."""

    @precondition(has_live)
    @rule(size=SIZES, cuts=CUTS, held=st.booleans())
    def instance_says(self, size: int, cuts: list[int], held: bool) -> None:
        live = self.world.live
        assert isinstance(live, Counting)
        if not live.half_said:
            self.said = live.at
            live.checkpoint(ahead=True)
        super().instance_says(size, cuts, held)
        live.at += not live.half_said

    @precondition(has_live)
    @rule(payload=st.just(b"instance"))
    def instance_pings(self, payload: bytes) -> None:
        self.world.live.say(Ping(payload))

    @precondition(has_live)
    @rule(most=st.integers(1, 3), tells=st.booleans())
    def instance_deals(self, most: int, tells: bool) -> None:
        live = self.world.live
        assert isinstance(live, Counting)
        live.read = min(live.read + most, len(live.arrived))
        if tells and not live.half_said:
            live.checkpoint()

    @precondition(lambda self: self.world.live and self.world.live.outgoing)
    @rule(size=st.integers(1, 60))
    def instance_dies_within_what_it_says(self, size: int) -> None:
        self.bytes_from_instance(size)
        if self.world.live is not None:
            self.instance_dies(True)

    @precondition(lambda self: self.world.live and self.world.live.outgoing)
    @rule(size=CHUNK)
    def bytes_from_instance(self, size: int) -> None:
        live = self.world.live
        super().bytes_from_instance(size)
        if self.relay.phase not in (Phase.ENDING, Phase.OVER):
            told = [re.fullmatch(rb"holdfast-resume(\+1)?@(\d+):(\d+)", ping) for ping in live.witness.pings]
            counts = [int(m[2]) for m in told if m and int(m[3]) <= len(self.world.client.messages)]
            self.settled |= set(live.received[: max(counts, default=0)])

    @rule()
    def dial_succeeds(self) -> None:
        if self.world.dialing is None:
            return
        super().dial_succeeds()
        again = Ear(ConnectionType.SERVER)
        again.hear(self.world.live.incoming)
        assert not self.settled & {number_of(message) for message in again.messages}

    @invariant()
    def the_token_is_what_the_client_has(self) -> None:
        if self.relay.phase not in (Phase.ENDING, Phase.OVER):
            assert int(self.relay.token or b"0") == len(self.world.client.messages)

    @invariant()
    def the_client_has_everything_once_and_in_order(self) -> None:
        heard = [number_of(message) for message in self.world.client.messages]
        assert heard == list(range(len(heard)))

    def _everything_moves(self) -> None:
        super()._everything_moves()
        if has_live(self) and not self.world.live.half_said:
            self.instance_deals(CHUNK_MOST, True)


SETTINGS = settings(
    max_examples=250, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPlanned = Tunnel.TestCase
TestPlanned.settings = SETTINGS
TestReplay = ReplayingTunnel.TestCase
TestReplay.settings = SETTINGS
TestCounting = CountingTunnel.TestCase
TestCounting.settings = SETTINGS


def test_a_late_barrier_does_not_shorten_the_time_in_which_a_close_may_be_answered() -> None:
    world = World()
    relay = Relay(Rules(QUIET, 2.0, WHOLE, Keeping(True, 0.5, MESSAGES, KEPT, 0.25)), world, lambda: b"abcd")
    client = Connection(ConnectionType.CLIENT)
    relay.client_data(client.send(BytesMessage(text(0, 10))), 100.0)
    number = relay._outbox.barrier
    relay.client_data(client.send(CloseConnection(1000)), 100.2)
    assert relay.phase is Phase.CLIENT_CLOSING and world.live is not None
    relay.server_data(world.live.ear.ws.send(Pong(b"holdfast-barrier:%d" % number)), 100.3)
    assert number and world.alarm_at > 103.0
