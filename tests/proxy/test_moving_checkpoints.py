"""What an instance says of itself, and what the proxy makes of it when the instance is gone."""

from __future__ import annotations

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Ping, Pong

from proxy.checkpoint import Checkpoint, checkpoint_in
from proxy.moves import Moves
from proxy.phases import Phase, Rules
from proxy.relay import Relay
from proxy.replay import NEVER, Keeping, Outbox
from tests.properties.test_relay import HOLD, KEPT, QUIET, WHOLE, Ear, World, number_of, text

KEEPING = Keeping(True, HOLD, messages=5, bytes=KEPT, pace=0.25)


class Pair:
    """A relay between a client and an instance that speak by wsproto."""

    def __init__(self, keeping: Keeping = KEEPING) -> None:
        self.world = World()
        self.relay = Relay(Rules(QUIET, 2.0, WHOLE, keeping), self.world, lambda: b"abcd")
        self.client = Connection(ConnectionType.CLIENT)

    def ask(self, *numbers: int, size: int = 10) -> None:
        for number in numbers:
            self.relay.client_data(self.client.send(BytesMessage(text(number, size))), 100.0)

    @property
    def live(self) -> Connection:
        assert self.world.live is not None
        return self.world.live.ear.ws

    def ping(self, payload: bytes) -> None:
        self.relay.server_data(self.live.send(Ping(payload)), 100.0)

    def message(self, data: bytes) -> None:
        self.relay.server_data(self.live.send(BytesMessage(data)), 100.0)

    def dies(self) -> None:
        self.relay.server_lost(100.0)

    def next_gets(self) -> list[int]:
        """Connect another instance; what it is sent again."""
        self.world.connect()
        self.relay.connected(100.0)
        assert self.world.live is not None
        ear = Ear(ConnectionType.SERVER)
        ear.hear(self.world.live.incoming)
        return [number_of(message) for message in ear.messages]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"holdfast-resume:at-5", Checkpoint(b"at-5", None, ahead=False)),
        (b"holdfast-resume:", Checkpoint(b"", None, ahead=False)),
        (b"holdfast-resume+1:S.7", Checkpoint(b"S.7", None, ahead=True)),
        (b"holdfast-resume@12:a:b\n", Checkpoint(b"a:b\n", 12, ahead=False)),
        (b"holdfast-resume+1@0:", Checkpoint(b"", 0, ahead=True)),
        (b"holdfast-resume", None),
        (b"holdfast-resume+2:x", None),
        (b"holdfast-resume@:x", None),
        (b"holdfast-resume@-1:x", None),
        (b"holdfast-resume@1234567890123456:x", None),
        (b"holdfast-resumed:x", None),
    ],
)
def test_a_ping_is_a_checkpoint_or_somebody_elses(payload: bytes, said: Checkpoint | None) -> None:
    assert checkpoint_in(payload) == said


def test_a_death_at_any_byte_resumes_from_what_the_client_has() -> None:
    """Three messages, each announced, with the client's questions counted: the stream is cut everywhere."""
    ws = Connection(ConnectionType.SERVER)
    stream = ws.send(Ping(b"holdfast-resume@0:0"))
    for number in range(3):
        stream += ws.send(Ping(b"holdfast-resume+1@%d:%d" % (number + 1, number + 1)))
        half = 50 * number
        stream += ws.send(BytesMessage(text(number, 60)[:half], message_finished=False))
        stream += ws.send(BytesMessage(text(number, 60)[half:]))
    for cut in range(len(stream) + 1):
        pair = Pair()
        pair.ask(0, 1, 2)
        pair.relay.server_data(stream[:cut], 100.0)
        whole = [number_of(message) for message in pair.world.client.messages]
        pair.dies()
        if pair.relay.phase is Phase.ENDING:
            assert pair.world.client.within_message and pair.world.client.close is not None
            continue
        assert whole == list(range(len(whole)))
        assert int(pair.world.dialing or b"0") == len(whole)
        assert pair.next_gets() == list(range(len(whole), 3))
    assert cut > 100


def test_an_announcement_does_not_hold_without_its_message() -> None:
    pair = Pair()
    pair.ping(b"holdfast-resume@0:before")
    pair.ping(b"holdfast-resume+1@1:after")
    pair.ask(0)
    pair.dies()
    assert pair.world.dialing == b"before"
    assert pair.next_gets() == [0]
    # What the dead one announced is nothing that the next one's message makes true.
    pair.message(b"hello")
    assert pair.relay.token == b"before"


def test_a_later_checkpoint_takes_the_place_of_one_that_does_not_hold_yet() -> None:
    pair = Pair()
    pair.ping(b"holdfast-resume+1:one")
    pair.ping(b"holdfast-resume:two")
    pair.message(b"hello")
    assert pair.relay.token == b"two"


def test_a_control_frame_of_the_instance_is_no_message() -> None:
    pair = Pair()
    pair.ping(b"holdfast-resume+1:next")
    pair.ping(b"are you there")
    assert pair.relay.token == b""
    pair.message(b"hello")
    assert pair.relay.token == b"next"


def test_who_counts_is_believed_in_nothing_else() -> None:
    """Its library's pong, and its answer to our Close, forget nothing that it has not counted."""
    pair = Pair()
    pair.ask(0)
    barrier = b"holdfast-barrier:%d" % pair.relay._outbox.barrier
    pair.ping(b"holdfast-resume@0:")
    pair.relay.server_data(pair.live.send(Pong(barrier)), 100.0)
    pair.relay.on_alarm(200.0)
    pair.ask(1, 2)
    pair.ping(b"holdfast-resume@1:")
    pair.relay.leave(200.0)
    pair.relay.on_alarm(201.0)
    assert pair.relay.phase is Phase.CLOSING
    live = pair.world.live
    assert live is not None
    live.close(1001, "")
    pair.relay.server_data(live.outgoing, 201.0)
    assert pair.next_gets() == [1, 2]
    # The next one counts from its own first message, and may count nothing at all.
    pair.ping(b"holdfast-resume@1:")
    pair.dies()
    assert pair.next_gets() == [2]
    assert pair.relay._outbox.barrier == 1


def test_who_counts_is_asked_for_no_pong() -> None:
    pair = Pair()
    pair.ping(b"holdfast-resume@0:")
    pair.ask(0, 1)
    pair.relay.on_alarm(200.0)
    assert pair.world.live is not None
    pair.world.live.deliver(KEPT, 200.0)
    assert pair.world.live.received == [0, 1]
    assert pair.world.live.ear.pings == []


def test_a_client_that_waits_for_room_goes_on_when_its_messages_are_counted() -> None:
    pair = Pair()
    pair.ping(b"holdfast-resume@0:")
    pair.ask(*range(6))
    assert not pair.world.reading
    pair.ping(b"holdfast-resume@2:")
    assert pair.world.reading
    pair.ping(b"holdfast-resume@99:")
    assert pair.relay._outbox.kept == 0
    pair.ask(6)
    pair.dies()
    assert pair.next_gets() == [6]


def test_a_message_that_cannot_be_kept_may_be_given_up_once_it_is_counted() -> None:
    for counted in (0, 1):
        pair = Pair()
        pair.ping(b"holdfast-resume@0:")
        pair.ask(0, size=KEPT + 1)
        pair.ping(b"holdfast-resume@%d:" % counted)
        pair.dies()
        assert pair.relay.phase is (Phase.DIALING if counted else Phase.ENDING)


def test_what_was_announced_goes_over_to_another_process() -> None:
    pair, other = Pair(), Pair()
    pair.ping(b"holdfast-resume@0:before")
    pair.ask(0, 1)
    pair.ping(b"holdfast-resume+1@1:after")
    saved = pair.relay.save()
    assert saved is not None
    other.relay.load(saved, 100.0)
    other.message(b"hello")
    other.dies()
    assert other.world.dialing == b"after"
    assert other.next_gets() == [1]


def test_what_a_process_of_an_earlier_version_hands_over_is_enough() -> None:
    pair, other = Pair(), Pair()
    pair.ask(0)
    saved = pair.relay.save()
    assert saved is not None
    del saved["ahead"], saved["outbox"]["counting"]
    other.relay.load(saved, 100.0)
    other.dies()
    assert other.next_gets() == [0]


# -- barriers of those who do not count ---------------------------------------------------------------------


def test_who_waits_for_a_barrier_is_served_first_and_within_the_budget() -> None:
    now = 0.0
    moves = Moves(lambda: now)
    ordinary = sum(moves.may_barrier(False) for _ in range(1000))
    urgent = sum(moves.may_barrier(True) for _ in range(1000))
    assert (ordinary, urgent) == (250, 250)
    now = 0.1
    assert not moves.may_barrier(False)
    assert sum(moves.may_barrier(True) for _ in range(1000)) == 50


def test_a_client_that_waits_for_room_asks_again_soon_when_there_was_no_barrier() -> None:
    outbox = Outbox(KEEPING)
    outbox.add(b"x" * KEPT, True)
    payload, due = outbox.next_barrier(10.0, True, lambda urgent: not urgent)
    assert payload == b"" and due == pytest.approx(10.025)
    payload, due = outbox.next_barrier(due, True, lambda urgent: urgent)
    assert payload and due == NEVER
