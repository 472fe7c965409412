"""A client that breaks the protocol: what came before is answered, then it is told 1002, whatever happens."""

from __future__ import annotations

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from proxy.frames import Opcode, encode_close, encode_frame
from proxy.phases import Phase, Rules
from proxy.relay import Relay
from proxy.replay import NEVER, Keeping

MASK = b"mask"
BROKEN = b"\x81\x00"
"""A frame that is not masked."""
NOW = 100.0


class Case:
    """A relay, the bytes that it wrote to either side, and what else it asked for."""

    def __init__(self) -> None:
        self.client = b""
        self.server = b""
        self.dialing = False
        self.alarm_at = NEVER
        self.ended: tuple[int, str] | None = None
        keeping = Keeping(True, hold=1.0, messages=5, bytes=2000, pace=0.25)
        self.relay = Relay(Rules(quiet=0.2, patience=2.0, whole=64, keeping=keeping), self, lambda: MASK)

    def to_client(self, data: bytes) -> None:
        self.client += data

    def to_server(self, data: bytes) -> None:
        self.server += data

    def read_client(self, wanted: bool) -> None:
        """See `Port`."""

    def dial(self, token: bytes) -> None:
        self.server, self.dialing = b"", True

    def may_barrier(self, urgent: bool = False) -> bool:
        return False

    def alarm(self, at: float) -> None:
        self.alarm_at = at

    def end(self, code: int, side: str) -> None:
        self.ended = (code, side)

    def says(self, *messages: bytes, then: bytes = b"") -> None:
        said = b"".join(encode_frame(Opcode.BINARY, message, MASK) for message in messages)
        self.relay.client_data(said + then, NOW)

    @property
    def told(self) -> int:
        """The code of the Close that the client has been sent; 0 for none."""
        return heard(ConnectionType.CLIENT, self.client)[1]


def heard(side: ConnectionType, data: bytes) -> tuple[list[bytes], int]:
    """The messages in it, and the code of the Close behind them."""
    parser = Connection(side)
    parser.receive_data(data)
    events = list(parser.events())
    codes = [int(event.code) for event in events if isinstance(event, CloseConnection)]
    messages = [bytes(event.data) for event in events if isinstance(event, BytesMessage)]
    return messages, codes[0] if codes else 0


def test_the_instance_gets_a_close_in_place_of_the_breach() -> None:
    case = Case()
    case.says(b"fine", then=BROKEN)
    assert heard(ConnectionType.SERVER, case.server) == ([b"fine"], 1002)
    assert case.told == 0
    case.relay.server_data(encode_close(1000), NOW)
    assert case.told == 1002 and case.ended == (1002, "proxy")


def test_an_instance_that_never_answers_is_waited_for_a_moment_only() -> None:
    case = Case()
    case.says(b"fine", then=BROKEN)
    assert case.alarm_at - NOW < 5
    case.relay.on_alarm(case.alarm_at)
    assert case.told == 1002 and case.ended == (1002, "proxy")
    assert case.relay.phase is Phase.OVER


def test_an_instance_that_dies_meanwhile_leaves_nothing_to_wait_for() -> None:
    case = Case()
    case.says(b"fine", then=BROKEN)
    case.relay.server_lost(NOW)
    assert case.told == 1002 and case.ended == (1002, "proxy")


def test_what_came_before_reaches_the_next_instance_when_there_is_none() -> None:
    case = Case()
    case.relay.server_data(encode_close(1001), NOW)
    case.says(b"one", b"two", then=BROKEN)
    assert case.dialing and case.told == 0
    case.relay.connected(NOW)
    assert heard(ConnectionType.SERVER, case.server) == ([b"one", b"two"], 1002)
    case.relay.server_data(encode_frame(Opcode.BINARY, b"answer") + encode_close(1000), NOW)
    assert heard(ConnectionType.CLIENT, case.client) == ([b"answer"], 1002)


def test_nothing_is_read_behind_a_breach_or_a_close() -> None:
    case = Case()
    case.says(b"fine", then=BROKEN)
    case.says(b"late", then=BROKEN)
    assert heard(ConnectionType.SERVER, case.server)[0] == [b"fine"]
    case = Case()
    case.says(b"fine", then=encode_close(1000, "", MASK) + BROKEN)
    case.relay.server_data(encode_close(1000), NOW)
    assert case.told == 1000 and case.ended == (1000, "client")
