"""Listening sockets, and what comes before HTTP on a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess

import pytest

from config.schema import Address
from proxy.listener import open_sockets

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 5555 80\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes((203, 0, 113, 7, 127, 0, 0, 1, 0, 99, 0, 80))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a certificate for localhost and its key."""
    where = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run(command, cwd=where, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return str(where / "cert.pem"), str(where / "key.pem")


def tls(certificate, **more):
    return {"certificate": certificate[0], "key": certificate[1], **more}


def trusting(certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


async def answered(stage, client) -> str | None:
    """Send a request; whom the instance takes for the client."""
    origin = stage.origins[0] if stage.origins else await stage.origin()
    client.send(GET)
    wire = await origin.accept()
    head = await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.message())[1] == b"ok"
    return head.get("x-forwarded-for"), head.get("x-forwarded-proto")


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_a_proxy_header_tells_the_client(stage, header, step):
    listener = await stage.listen(proxy_protocol=True)
    client = await stage.client(listener)
    for start in range(0, len(header), step):
        client.send(header[start : start + step])
        await asyncio.sleep(0)
    assert await answered(stage, client) == ("203.0.113.7", "http")
    assert stage.log.lines[0][3] == "203.0.113.7"


@pytest.mark.parametrize("header", [V1, V2])
async def test_a_proxy_header_and_the_request_may_come_together(stage, header):
    (await stage.origin()).serve(OK)
    client = await stage.client(await stage.listen(proxy_protocol=True))
    client.send(header + GET)
    assert (await client.message())[1] == b"ok"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"])
async def test_a_balancers_own_connection_has_the_sockets_address(stage, header):
    client = await stage.client(await stage.listen(proxy_protocol=True))
    client.send(header)
    assert await answered(stage, client) == ("127.0.0.1", "http")


@pytest.mark.parametrize("secure", [False, True])
async def test_without_its_proxy_header_a_connection_is_cut(stage, certificate, secure):
    more = {"tls": tls(certificate)} if secure else {}
    client = await stage.client(await stage.listen(proxy_protocol=True, **more))
    client.send(GET)
    assert await client.ended()
    assert not stage.plane.clients


async def test_trust_goes_by_the_address_in_the_proxy_header(stage):
    stage.configure(trusted_proxies=["127.0.0.1"])
    client = await stage.client(await stage.listen(proxy_protocol=True))
    client.send(V1)
    origin = await stage.origin()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
    assert (await (await origin.accept()).head()).all("x-forwarded-for") == ["203.0.113.7"]


async def test_a_connection_refused_for_the_limit_is_logged_under_its_clients_address(stage):
    stage.configure(limits={"connections": 1})
    listener = await stage.listen(proxy_protocol=True)
    first, late = await stage.client(listener), await stage.client(listener)
    first.send(V1)
    await stage.until(lambda: stage.plane.clients)
    late.send(V1)
    assert (await late.message())[0].status == 503
    assert stage.log.lines[0][3] == "203.0.113.7"


async def test_tls_is_ended_here(stage, certificate):
    listener = await stage.listen(tls=tls(certificate))
    client = await stage.client(listener, ssl=trusting(certificate), server_hostname="localhost")
    assert await answered(stage, client) == ("127.0.0.1", "https")
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None


async def test_a_large_answer_passes_tls_and_the_connection_ends_in_order(stage, certificate):
    listener = await stage.listen(tls=tls(certificate))
    client = await stage.client(listener, ssl=trusting(certificate), server_hostname="localhost")
    origin = await stage.origin()
    client.send(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
    wire = await origin.accept()
    await wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000)
    wire.close()
    await client.head()
    assert len(await client.rest()) == 3_000_000


@pytest.mark.parametrize("header", [V1, V2])
async def test_a_proxy_header_comes_before_tls_in_the_clear(stage, certificate, header):
    listener = await stage.listen(tls=tls(certificate), proxy_protocol=True)
    loop = stage.plane.loop
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, (listener.address.host, listener.address.port))
    await loop.sock_sendall(sock, header)
    client = await stage.client(sock=sock, ssl=trusting(certificate), server_hostname="localhost")
    assert await answered(stage, client) == ("203.0.113.7", "https")


async def test_a_client_without_the_asked_certificate_is_not_let_in(stage, certificate):
    listener = await stage.listen(tls=tls(certificate, client_ca=certificate[0]))
    with contextlib.suppress(OSError):
        client = await stage.client(listener, ssl=trusting(certificate), server_hostname="localhost")
        client.send(GET)
        assert await client.ended()
    assert stage.plane.counters.requests_total == 0
    context = trusting(certificate)
    context.load_cert_chain(*certificate)
    client = await stage.client(listener, ssl=context, server_hostname="localhost")
    assert await answered(stage, client) == ("127.0.0.1", "https")


async def test_certificates_are_read_again(stage, certificate, tmp_path):
    listener = await stage.listen(tls=tls(certificate))
    listener.renew(listener.config)
    broken = listener.config.model_copy(
        update={"tls": listener.config.tls.model_copy(update={"certificate": str(tmp_path / "none.pem")})}
    )
    with pytest.raises(OSError, match=r"cannot use the certificate .*none\.pem"):
        listener.renew(broken)
    client = await stage.client(listener, ssl=trusting(certificate), server_hostname="localhost")
    assert await answered(stage, client) == ("127.0.0.1", "https")


async def test_a_stopped_listener_accepts_nothing_and_leaves_open_connections_alone(stage, certificate):
    (await stage.origin()).serve(OK)
    for more in ({}, {"proxy_protocol": True, "tls": tls(certificate)}):
        listener = await stage.listen(**more)
        address = listener.address
        if not more:
            client = await stage.client(listener)
            client.send(GET)
            await client.message()
        listener.stop()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)
    client.send(GET)
    assert (await client.message())[1] == b"ok"


async def test_accepted_connections_are_probed_when_silent(stage):
    await stage.client()
    await stage.until(lambda: stage.plane.clients)
    (downstream,) = stage.plane.clients
    sock = downstream.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_an_address_without_host_listens_on_both_families_and_one_port():
    opened = open_sockets(Address("", 0))
    try:
        assert len({sock.getsockname()[1] for sock in opened}) == 1
        assert opened[0].family == socket.AF_INET
    finally:
        for sock in opened:
            sock.close()


def test_an_address_in_use_is_said_in_words():
    (taken,) = open_sockets(Address("127.0.0.1", 0))
    address = Address("127.0.0.1", taken.getsockname()[1])
    with taken, pytest.raises(OSError, match=rf"cannot listen on {address}: address already in use"):
        open_sockets(address)


def test_a_dead_unix_socket_is_replaced_a_live_one_and_a_file_are_not(tmp_path):
    address = Address(path=f"{tmp_path}/a.sock")
    (dead,) = open_sockets(address)
    dead.close()
    (live,) = open_sockets(address)
    with live, pytest.raises(OSError, match="address already in use"):
        open_sockets(address)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OSError, match="file exists"):
        open_sockets(Address(path=str(file)))
    assert file.read_text() == "precious"
