"""Who asks the admin API for something, as far as that can be known."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from aiohttp import web


def who(request: web.Request, token: bool) -> str:
    """Who is asking: how they were let in, and from where."""
    transport = request.transport
    if transport is None:
        return "nobody"
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return f"{'token' if token else 'loopback'} {peer[0]}"
    with suppress(OSError, AttributeError, struct.error):
        sock = transport.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"unix uid {uid} pid {pid}"
    return "unix"
