"""Listening sockets, and what stands before HTTP on a new connection: TLS, or a PROXY protocol header."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import cast

from config.schema import TLS, Address, Listen
from proxy.downstream import Downstream
from proxy.plane import Plane
from proxy.proxy_protocol import HeaderError, missing, parse_header
from proxy.upstream import keep_alive

_BACKLOG = 4096
_HEADER_TIME = 5.0
"""Seconds in which a PROXY header must come, unless `timeout.header` is shorter; a TLS handshake has that."""
_NO_DESCRIPTORS = 0.1
"""Seconds to wait before accepting again when the process has no descriptors left."""


def open_sockets(address: Address, *, private: bool = False) -> list[socket.socket]:
    """Bound, listening sockets for an address: two (IPv4 and IPv6) when it names no host.

    `private`: a unix socket is for this user alone. Raises `OSError` with a message for the operator.
    """
    if address.path:
        return [_open_unix(address, private=private)]
    families = _families(address)
    opened: list[socket.socket] = []
    try:
        for family, host in families:
            port = opened[0].getsockname()[1] if opened and not address.port else address.port
            sock = socket.socket(family, socket.SOCK_STREAM)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keep_alive(sock)  # accepted connections inherit it
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
    except OSError as error:
        for sock in opened:
            sock.close()
        raise _explained(error, address) from error
    return opened


def _families(address: Address) -> list[tuple[socket.AddressFamily, str]]:
    if not address.host:
        both = [(socket.AF_INET, "0.0.0.0")]
        return [*both, (socket.AF_INET6, "::")] if _has_ipv6() else both
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {address}: {error.strerror}") from error
    family, _, _, _, where = found[0]
    return [(family, str(where[0]))]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _open_unix(address: Address, *, private: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(address.path)
        sock.bind(address.path)
        if private:
            Path(address.path).chmod(0o600)  # before it listens nobody can have connected
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _explained(error, address) from error
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Take away a socket file that a dead process left; one that somebody answers on stays."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def remove_socket(address: Address) -> None:
    """Take away the file of a unix socket on which nobody listens any more."""
    if address.path:
        with contextlib.suppress(FileNotFoundError):
            Path(address.path).unlink()


def _explained(error: OSError, address: Address) -> OSError:
    return OSError(error.errno, f"cannot listen on {address}: {os.strerror(error.errno or 0).lower()}")


def make_context(tls: TLS) -> ssl.SSLContext:
    """The server side of TLS 1.2 and 1.3 for one listener. Raises `OSError` (`ssl.SSLError` is one)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificates(context, tls)
    return context


def load_certificates(context: ssl.SSLContext, tls: TLS) -> None:
    """Read the files of a listener's TLS again; handshakes from now on use them. Raises `OSError`."""
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise OSError(error.errno, f"cannot use the certificate {tls.certificate}: {error}") from error


class Listener:
    """One entry of `listen`, open."""

    def __init__(self, plane: Plane, config: Listen, sockets: list[socket.socket] | None = None) -> None:
        """`sockets` listen already, as those that another process hands over. Raises `OSError`."""
        self._plane = plane
        self.config = config
        self._context = make_context(config.tls) if config.tls is not None else None
        self.sockets = sockets or open_sockets(config.address)
        self._servers: list[asyncio.Server] = []
        self._accepting: list[asyncio.Task[None]] = []

    @property
    def address(self) -> Address:
        """Where it listens, with the real port."""
        if self.config.address.path:
            return self.config.address
        return Address(self.config.address.host, self.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Begin to accept."""
        for sock in self.sockets:
            if self._context is not None:
                accepting = self._accept_secure(sock, self._context)
                self._accepting.append(self._plane.loop.create_task(accepting))
                continue
            self._servers.append(
                await self._plane.loop.create_server(self._make_protocol, sock=sock.dup(), backlog=_BACKLOG)
                if sock.family != socket.AF_UNIX
                else await self._plane.loop.create_unix_server(
                    self._make_protocol, sock=sock.dup(), backlog=_BACKLOG
                )
            )

    def renew(self, config: Listen) -> None:
        """Read the certificates again. Raises `OSError`; the old ones stay in use then."""
        if self._context is not None and config.tls is not None:
            load_certificates(self._context, config.tls)

    def _make_protocol(self) -> asyncio.Protocol:
        if self.config.proxy_protocol:
            return ProxyHeader(self._plane)
        return Downstream(self._plane, "http")

    async def _accept_secure(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Accept connections that begin with a TLS handshake, a PROXY header in the clear before it."""
        plane = self._plane
        while True:
            try:
                connection, _ = await plane.loop.sock_accept(sock)
            except OSError:
                await asyncio.sleep(_NO_DESCRIPTORS)
                continue
            if plane.begin_opening():
                plane.spawn(plane.loop.create_task(self._admit(connection, context)))
            else:
                connection.close()

    async def _admit(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        plane, client = self._plane, None
        try:
            connection.setblocking(False)
            address = await self._read_header(connection) if self.config.proxy_protocol else None
            client = _Secure(plane, "https", address)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await plane.loop.connect_accepted_socket(
                lambda: client, connection, ssl=context, ssl_handshake_timeout=plane.header_timeout
            )
        except (OSError, HeaderError):
            connection.close()
        finally:
            if client is None or not client.arrived:
                plane.opening -= 1

    async def _read_header(self, connection: socket.socket) -> str | None:
        """The client's address in the PROXY header. Raises `HeaderError`, and `TimeoutError`."""
        buffer = b""
        async with asyncio.timeout(min(_HEADER_TIME, self._plane.header_timeout)):
            while (parsed := parse_header(buffer)) is None:
                data = await self._plane.loop.sock_recv(connection, missing(buffer))
                if not data:
                    raise HeaderError("the connection ended within the PROXY header")
                buffer += data
        return parsed[0]

    def stop(self, *, for_good: bool = True) -> None:
        """Accept nothing more; connections that are open stay. `for_good`: no other process listens here."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in self._accepting:
            task.cancel()
        self._accepting.clear()
        for sock in self.sockets:
            sock.close()
        if for_good:
            remove_socket(self.config.address)


class _Secure(Downstream):
    """A client behind TLS: until its handshake is done it counts as opening."""

    __slots__ = ("arrived",)

    def __init__(self, plane: Plane, scheme: str, address: str | None) -> None:
        super().__init__(plane, scheme, address)
        self.arrived = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.arrived = True
        self.plane.opening -= 1
        super().connection_made(transport)


class ProxyHeader(asyncio.Protocol):
    """Reads the PROXY header of a plain connection, then makes it a `Downstream`'s."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._buffer = b""
        self._opening = False
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._opening = self._plane.begin_opening()
        if self._opening:
            patience = min(_HEADER_TIME, self._plane.header_timeout)
            self._timeout = self._plane.loop.call_later(patience, self._transport.abort)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer += data
        try:
            parsed = parse_header(self._buffer)
        except HeaderError:
            self._transport.abort()
            return
        if parsed is None:
            return
        address, end = parsed
        self._opened()
        downstream = Downstream(self._plane, "http", address)
        self._transport.set_protocol(downstream)
        downstream.connection_made(self._transport)
        if len(self._buffer) > end:
            downstream.data_received(self._buffer[end:])

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._opened()

    def _opened(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if self._opening:
            self._opening = False
            self._plane.opening -= 1
