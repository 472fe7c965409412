"""Following WebSocket frames (RFC 6455 section 5) without touching them: where messages begin and end.

Pure. A tunnel passes bytes on unchanged; the follower only has to know at which byte nothing is half said, so
that a Close can be put between two messages and never into one.
"""

from __future__ import annotations

import struct
from enum import IntEnum

FRAMES_AT_ONCE = 1000
"""Frames that are looked at in one turn of the loop: one read may bring 128,000 of two bytes, and those would
take a tenth of a second (following) to half a second (cutting) from everybody else."""


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """RFC 6455 section 7.4.1 and its registry: those that the proxy itself reads or writes."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    ABNORMAL = 1006
    SERVICE_RESTART = 1012


class FrameError(ValueError):
    """The bytes are not WebSocket frames, or come in an order that RFC 6455 forbids."""

    before: list[Cut]
    """Set by a `FrameCutter`: the frames that came before the error."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.before = []


class FrameFollower:
    """One direction of a WebSocket. Knows the frames' headers; payloads go by unseen, but for a Close's."""

    __slots__ = ("_carry", "_fragmented", "_left", "close_code", "messages")

    def __init__(self) -> None:
        self._left = 0
        self._carry = b""
        self._fragmented = False
        self.messages = 0
        """Messages whose last frame has begun."""
        self.close_code = 0
        """Of the Close frame that has passed whole: its status, or 1005 for none. 0 while open."""

    def save(self) -> tuple[int, bytes, bool, int, int]:
        """Everything it knows, for `load` in another process."""
        return self._left, self._carry, self._fragmented, self.messages, self.close_code

    @classmethod
    def load(cls, saved: tuple[int, bytes, bool, int, int]) -> FrameFollower:
        """The follower that `save` was called on."""
        follower = cls()
        follower._left, follower._carry, follower._fragmented = saved[:3]
        follower.messages, follower.close_code = saved[3:]
        return follower

    @property
    def boundary(self) -> bool:
        """Whether a frame of our own could be put here without breaking a frame or a message."""
        return not (self._left or self._carry or self._fragmented)

    @property
    def between_frames(self) -> bool:
        """Whether a control frame could be put here: they may come within a message, not within a frame."""
        return not (self._left or self._carry)

    def feed(self, data: bytes) -> int:
        """Follow what passes; -1, or the number of bytes that hold `FRAMES_AT_ONCE` frames.

        Raises `FrameError`. Behind that number nothing has been followed.
        """
        left = self._left
        if left > len(data):
            self._left = left - len(data)
            return -1
        return self._walk(data, False)

    def split(self, data: bytes) -> int:
        """Follow to the first boundary only: the number of bytes until there, -1 when it lies beyond `data`.

        Raises `FrameError`. Behind a boundary that is found nothing has been followed. When it lies behind
        more than `FRAMES_AT_ONCE` frames, it is the number of their bytes, and `boundary` is False.
        """
        return self._walk(data, True)

    def _walk(self, data: bytes, stop: bool) -> int:
        carried = len(self._carry)
        if carried:
            data = self._carry + data
            self._carry = b""
        size = len(data)
        position = self._left
        if position > size:
            self._left = position - size
            return -1
        if position:
            self._left = 0
            if stop and not self._fragmented:
                return position
        budget = FRAMES_AT_ONCE
        while position < size:
            if not budget:
                return position - carried
            budget -= 1
            if size - position < 2:
                break
            first, second = data[position], data[position + 1]
            length = second & 0x7F
            end = position + (6 if second & 0x80 else 2)
            if length > 125:
                wide = 2 if length == 126 else 8
                end += wide
                if end > size:
                    break
                length = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
            elif end > size:
                break
            end += length
            if first & 0x08:
                if length > 125 or not first & 0x80:
                    raise FrameError("a control frame is long or fragmented")
                if first & 0x0F == Opcode.CLOSE:
                    if end > size:
                        break
                    self.close_code = _close_code(data[position:end])
            else:
                opcode = first & 0x0F
                if opcode > 2 or (opcode == 0) is not self._fragmented:
                    raise FrameError("a frame begins or continues a message at the wrong place")
                if first & 0x80:
                    self._fragmented = False
                    self.messages += 1
                else:
                    self._fragmented = True
            if end > size:
                self._left = end - size
                return -1
            position = end
            if stop and not self._fragmented:
                return position - carried
        self._carry = data[position:]
        return -1


def _close_code(frame: bytes) -> int:
    """The status code in a whole Close frame."""
    masked = frame[1] & 0x80
    body = frame[6:] if masked else frame[2:]
    if len(body) < 2:
        return CloseCode.NO_STATUS
    high, low = (body[0] ^ frame[2], body[1] ^ frame[3]) if masked else (body[0], body[1])
    return high << 8 | low


def encode_frame(opcode: Opcode, payload: bytes = b"", mask: bytes = b"") -> bytes:
    """One whole frame. `mask` is the four-byte masking key of a frame towards a server, empty otherwise."""
    header = _header(0x80 | opcode, len(payload), 0x80 if mask else 0)
    return header + mask + apply_mask(payload, mask) if mask else header + payload


def _header(first: int, size: int, mask_bit: int) -> bytes:
    """A frame up to its masking key: its first byte, and the length of its payload."""
    if size < 126:
        return bytes((first, mask_bit | size))
    if size < 1 << 16:
        return struct.pack("!BBH", first, mask_bit | 126, size)
    return struct.pack("!BBQ", first, mask_bit | 127, size)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Mask or unmask a payload (RFC 6455 5.3), by one wide XOR instead of a loop over bytes."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def encode_close(code: int, reason: str = "", mask: bytes = b"") -> bytes:
    """A Close frame; the reason is cut to the 123 bytes that fit, at a character's border."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return encode_frame(Opcode.CLOSE, struct.pack("!H", code) + text, mask)


Cut = tuple[int, bytes, bool]
"""First byte of a frame, the whole frame, and whether a message ends with it (never a control frame)."""


class FrameCutter:
    """Cuts one direction of a WebSocket into whole frames, so that none is ever half passed on.

    A frame larger than `most` bytes would have to be stored to be kept whole: it comes as several frames of
    one fragmented message instead (RFC 6455 section 5.4 allows that where no extension is in use), so that a
    control frame can be put behind whatever has come out. `masked` says whether the sender must mask, as
    clients must and servers must not (section 5.1).
    """

    __slots__ = ("_buffer", "_fragmented", "_key", "_last", "_left", "_masked", "_most", "_opcode", "more")

    def __init__(self, masked: bool, most: int) -> None:
        self._masked = 0x80 if masked else 0
        self._most = most
        self._buffer = b""
        self._fragmented = False
        self._left = 0
        """Payload bytes of a large frame that have not come out yet."""
        self._opcode = 0
        """Of the next part of that frame."""
        self._last = 0
        """The FIN bit of that frame."""
        self._key = b""
        """The masking key of its next part."""
        self.more = False
        """There may be more frames in what was fed: to be fed nothing, in another turn of the loop."""

    def save(self) -> tuple[bytes, bool, int, int, int, bytes]:
        """Everything it knows, for `load` in another process."""
        return self._buffer, self._fragmented, self._left, self._opcode, self._last, self._key

    def load(self, saved: tuple[bytes, bool, int, int, int, bytes]) -> None:
        """Go on from where `save` was called."""
        self._buffer, self._fragmented, self._left, self._opcode, self._last, self._key = saved

    def feed(self, data: bytes) -> list[Cut]:
        """What arrived, as frames; not many more than `FRAMES_AT_ONCE`, see `more`.

        Raises `FrameError` for what RFC 6455 forbids without extensions; its `before` are the frames that
        came first. Nothing can be fed after that.
        """
        if not (self._buffer or self._left or self._fragmented) and len(data) > 1:
            # Most of what passes is one short message in one piece.
            length = data[1] - self._masked
            if data[0] in _WHOLE and 0 <= length < 126 and len(data) == length + (6 if self._masked else 2):
                return [(data[0], data, True)]
        cuts: list[Cut] = []
        try:
            self._cut(self._buffer + data if self._buffer else data, cuts)
        except FrameError as error:
            error.before = cuts
            raise
        return cuts

    def _cut(self, data: bytes, cuts: list[Cut]) -> None:
        position, size = 0, len(data)
        self.more = False
        while True:
            if len(cuts) >= FRAMES_AT_ONCE:
                self.more = True
                break
            if self._left:
                take = min(self._left, size - position)
                if take < self._left and take < self._most:
                    break
                cuts.append(self._part(data[position : position + take]))
                position += take
                continue
            if size - position < 2:
                break
            first, second = data[position], data[position + 1]
            if second & 0x80 != self._masked:
                raise FrameError("a frame is masked, or not masked, against its direction")
            length = second & 0x7F
            start = position + (6 if self._masked else 2)
            if length > 125 and not first & 0x08:
                wide = 2 if length == 126 else 8
                start += wide
                if start > size:
                    self._check(first, 0)
                    break
                length = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
            self._check(first, length)
            end = start + length
            if end > size and (first & 0x08 or start > size or end - position <= self._most):
                break
            if not first & 0x08:
                self._fragmented = not first & 0x80
            if end > size:
                # Only a data frame is as large as this.
                self._left, self._opcode, self._last = length, first & 0x0F, first & 0x80
                self._key = data[start - 4 : start] if self._masked else b""
                position = start
                continue
            cuts.append((first, data[position:end], not (first & 0x08 or self._fragmented)))
            position = end
        self._buffer = data[position:]

    def _part(self, payload: bytes) -> Cut:
        """The next part of a large frame, as a frame of its own."""
        size = len(payload)
        self._left -= size
        last = self._last if not self._left else 0
        frame = _header(last | self._opcode, size, self._masked) + self._key + payload
        cut = (last | self._opcode, frame, last != 0)
        self._opcode = 0
        self._key = self._key[size % 4 :] + self._key[: size % 4]
        return cut

    def _check(self, first: int, length: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise FrameError("a reserved bit is set although no extension was agreed on")
        if opcode & 0x08:
            if opcode > Opcode.PONG or length > 125 or not first & 0x80:
                raise FrameError("a control frame is unknown, long or fragmented")
            if opcode == Opcode.CLOSE and length == 1:
                raise FrameError("a Close has half a status code")
        elif opcode > Opcode.BINARY or (opcode == Opcode.CONTINUATION) is not self._fragmented:
            raise FrameError("a frame begins or continues a message at the wrong place")
        if length >> 63:
            raise FrameError("a length has its highest bit set")


_WHOLE = (0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY)


def payload_of(frame: bytes) -> bytes:
    """The unmasked payload of a whole frame."""
    length = frame[1] & 0x7F
    start = 2 if length < 126 else 4 if length == 126 else 10
    if frame[1] & 0x80:
        return apply_mask(frame[start + 4 :], frame[start : start + 4])
    return frame[start:]
