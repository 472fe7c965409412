"""Other ways in and out than plain TCP: unix sockets, TLS, client certificates, the PROXY protocol."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import connect as websocket

from tests.integration.stage import Gateway, Stage

ROUTES = [{"match": {"path": "/"}, "service": "web"}]
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def origin() -> web.Application:
    async def echo(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade"):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(message.data)
            return socket
        return web.json_response({"path": request.path, "headers": dict(request.headers)})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    return app


async def start(stage: Stage, *listen: dict[str, Any], name: str = "gateway") -> Gateway:
    services = {"web": {"instances": [await stage.serve(origin())]}}
    return await stage.gateway(name, listen=list(listen), services=services, routes=ROUTES)


async def get(session: aiohttp.ClientSession, url: str, **options: Any) -> Any:
    async with session.get(url, **options) as response:
        assert response.status == 200
        return await response.json()


# -- unix sockets -----------------------------------------------------------------------------------------


async def test_a_unix_socket_leads_in_and_another_one_out(stage: Stage, tmp_path: Path) -> None:
    way_in, way_out = tmp_path / "in.sock", tmp_path / "out.sock"
    await stage.serve(origin(), path=str(way_out))
    gateway = await stage.gateway(
        listen=[{"address": f"unix:{way_in}"}],
        services={"web": {"instances": [f"unix:{way_out}"], "health": {"path": "/", "interval": "200ms"}}},
        routes=ROUTES,
    )
    # Its active check goes the same way.
    await gateway.ready("web", f"unix:{way_out}")
    session = await stage.client(connector=aiohttp.UnixConnector(str(way_in)))
    answer = await get(session, "http://name/path")
    assert (answer["path"], answer["headers"]["Host"]) == ("/path", "name")
    async with websocket("ws://name/ws", unix=True, path=str(way_in)) as talk:
        await talk.send("hello")
        assert await talk.recv() == "hello"
    gateway.child.signal(signal.SIGTERM)
    assert await gateway.child.ended() == 0
    assert not way_in.exists()


async def test_the_file_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not(
    stage: Stage, tmp_path: Path
) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    gateway = await start(stage, {"address": f"unix:{path}"})
    session = await stage.client(connector=aiohttp.UnixConnector(str(path)))
    await get(session, "http://name/")
    second = await stage.holdfast("run", "-c", str(gateway.path))
    assert await second.ended() == 1
    assert second.lines[0].endswith(f"cannot listen on unix:{path}: address already in use")
    await get(session, "http://name/")


# -- TLS --------------------------------------------------------------------------------------------------


@dataclass
class Authority:
    """A certification authority of the test's own."""

    folder: Path
    name: str

    @property
    def certificate(self) -> str:
        return str(self.folder / f"{self.name}.crt")

    async def make(self) -> Authority:
        await openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={self.name}", "-keyout", self._file("key"), "-out", self.certificate,
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "2",
        )  # fmt: skip
        return self

    async def sign(self, name: str) -> tuple[str, str]:
        """Certificate and key for that name, for `localhost` and 127.0.0.1."""
        certificate, key = str(self.folder / f"{name}.crt"), str(self.folder / f"{name}.key")
        await openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", certificate, "-days", "2",
            "-CA", self.certificate, "-CAkey", self._file("key"),
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
        )  # fmt: skip
        return certificate, key

    def _file(self, kind: str) -> str:
        return str(self.folder / f"{self.name}.{kind}")

    def client(self, *pair: str) -> ssl.SSLContext:
        """What a client that trusts this authority uses; `pair` is its own certificate and key."""
        context = ssl.create_default_context(cafile=self.certificate)
        if pair:
            context.load_cert_chain(*pair)
        return context


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


async def openssl(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "openssl", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.fixture
async def authority(tmp_path: Path) -> Authority:
    return await Authority(tmp_path, "authority").make()


@needs_openssl
async def test_tls_ends_at_the_gateway(stage: Stage, authority: Authority) -> None:
    certificate, key = await authority.sign("gateway")
    tls = {"certificate": certificate, "key": key}
    gateway = await start(stage, {"address": "127.0.0.1:0", "tls": tls}, {"address": "127.0.0.1:0"})
    secure, plain = gateway.addresses
    session = await stage.client()
    context = authority.client()
    answer = await get(session, f"https://{secure}/", ssl=context)
    assert answer["headers"]["X-Forwarded-Proto"] == "https"
    assert (await get(session, f"http://{plain}/"))["headers"]["X-Forwarded-Proto"] == "http"
    async with websocket(f"wss://{secure}/ws", ssl=context) as talk:
        await talk.send("hello")
        assert await talk.recv() == "hello"
    # Who does not speak TLS, or not with whom it knows, disturbs nobody.
    with pytest.raises(aiohttp.ClientError):
        await session.get(f"http://{secure}/")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await session.get(f"https://{secure}/")
    old = authority.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    await get(session, f"https://{secure}/", ssl=old)


@needs_openssl
async def test_client_ca_lets_only_certified_clients_in(
    stage: Stage, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = await authority.sign("gateway")
    ours = await authority.sign("client")
    stranger = await Authority(tmp_path, "stranger").make()
    theirs = await stranger.sign("somebody")
    tls = {"certificate": certificate, "key": key, "client_ca": authority.certificate}
    gateway = await start(stage, {"address": "127.0.0.1:0", "tls": tls})
    url = f"https://{gateway.addresses[0]}/"
    session = await stage.client()
    await get(session, url, ssl=authority.client(*ours))
    for context in (authority.client(), authority.client(*theirs)):
        with pytest.raises(aiohttp.ClientError):
            await session.get(url, ssl=context)
    await get(await stage.client(), url, ssl=authority.client(*ours))


@needs_openssl
async def test_a_reload_takes_renewed_certificates_for_new_connections(
    stage: Stage, authority: Authority
) -> None:
    certificate, key = await authority.sign("gateway")
    gateway = await start(stage, {"address": "127.0.0.1:0", "tls": {"certificate": certificate, "key": key}})
    host, port = gateway.addresses[0].split(":")

    async def serial() -> str:
        _, writer = await asyncio.open_connection(host, int(port), ssl=authority.client())
        number = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return str(number)

    session = await stage.client()
    await get(session, f"https://{gateway.addresses[0]}/", ssl=(context := authority.client()))
    before = await serial()
    assert await serial() == before
    await authority.sign("gateway")
    assert (await gateway.ask("POST", "/v1/reload"))[0] == 200
    assert await serial() != before
    await get(session, f"https://{gateway.addresses[0]}/", ssl=context)
    write(certificate, "not a certificate")
    status, answer = await gateway.ask("POST", "/v1/reload")
    assert status == 409
    assert certificate in str(answer)
    # What was there goes on.
    await serial()


@needs_openssl
async def test_a_certificate_that_cannot_be_read_is_one_clear_line(stage: Stage, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.crt")
    with pytest.raises(AssertionError, match=f"cannot use the certificate {missing}"):
        await start(stage, {"address": "127.0.0.1:0", "tls": {"certificate": missing, "key": missing}})


# -- PROXY protocol ---------------------------------------------------------------------------------------


def version_2(command: int, address: str, port: int) -> bytes:
    family, packed = (0x21, socket.inet_pton(socket.AF_INET6, address)) if ":" in address else (
        0x11, socket.inet_aton(address)
    )  # fmt: skip
    body = packed * 2 + struct.pack("!HH", port, 80)
    return b"\r\n\r\n\x00\r\nQUIT\n" + bytes([0x20 | command, family]) + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 5555 80\r\n", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 80\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (version_2(1, "203.0.113.8", 5555), "203.0.113.8"),
        (version_2(1, "2001:db8::8", 5555), "2001:db8::8"),
        (version_2(0, "203.0.113.9", 5555), "127.0.0.1"),
    ],
    ids=["v1 IPv4", "v1 IPv6", "v1 unknown", "v2 IPv4", "v2 IPv6", "v2 local"],
)
@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "byte by byte"])
async def test_the_header_tells_whose_connection_it_is(
    proxied: Gateway, header: bytes, client: str, pieces: bool
) -> None:
    reader, writer = await asyncio.open_connection(*proxied.addresses[0].split(":"))
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for piece in [bytes([byte]) for byte in header] + [request] if pieces else [header + request]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert f'"X-Forwarded-For": "{client}"'.encode() in answer


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PROXY TCP4 nonsense\r\n", b"PROXY " + b"x" * 200]
)
async def test_a_connection_without_a_valid_header_is_cut(proxied: Gateway, said: bytes) -> None:
    reader, writer = await asyncio.open_connection(*proxied.addresses[0].split(":"))
    writer.write(said)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


@pytest.fixture
async def proxied(stage: Stage) -> Gateway:
    return await start(stage, {"address": "127.0.0.1:0", "proxy_protocol": True})


@needs_openssl
async def test_the_header_comes_before_tls(stage: Stage, authority: Authority) -> None:
    """A load balancer that does not end TLS puts the header before the handshake."""
    certificate, key = await authority.sign("gateway")
    gateway = await start(
        stage,
        {"address": "127.0.0.1:0", "proxy_protocol": True, "tls": {"certificate": certificate, "key": key}},
    )
    reader, writer = await asyncio.open_connection(*gateway.addresses[0].split(":"))
    writer.write(b"PROXY TCP4 203.0.113.7 192.0.2.1 5555 443\r\n")
    await asyncio.wait_for(writer.start_tls(authority.client(), server_hostname="localhost"), 10)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert b'"X-Forwarded-For": "203.0.113.7"' in answer
    assert b'"X-Forwarded-Proto": "https"' in answer
