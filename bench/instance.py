"""An instance that is restarted: `python -m bench.instance PORT`.

It answers requests after a few milliseconds of work and WebSocket messages with themselves, and on SIGTERM
does what a well-made server does: it takes nothing new, finishes the requests that it has, closes its
WebSockets with 1001, and exits. It knows nothing of any proxy.
"""

from __future__ import annotations

import argparse
import asyncio

from aiohttp import WSCloseCode, WSMsgType, web

GRACE = 0.8
"""Seconds that requests and clients' answers to a Close have on SIGTERM."""

_SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])


async def ready(request: web.Request) -> web.Response:
    return web.Response(text="ready")


async def work(request: web.Request) -> web.Response:
    """Between 5 and 30 ms, which the number of the request decides: the same for every proxy."""
    number = int(request.query.get("n", "0"))
    await asyncio.sleep(0.005 + number * 7919 % 26 / 1000)
    return web.Response(text=str(number))


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(timeout=GRACE)
    await socket.prepare(request)
    request.app[_SOCKETS].add(socket)
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
    except ConnectionError:
        pass  # the client went while it was being answered
    finally:
        request.app[_SOCKETS].discard(socket)
    return socket


async def close_sockets(app: web.Application) -> None:
    sockets = app[_SOCKETS]
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in list(sockets)))


def application() -> web.Application:
    app = web.Application()
    app[_SOCKETS] = set()
    app.router.add_get("/readyz", ready)
    app.router.add_get("/ws", echo)
    app.router.add_get("/", work)
    app.on_shutdown.append(close_sockets)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    web.run_app(
        application(),
        host="127.0.0.1",
        port=parser.parse_args().port,
        access_log=None,
        print=None,
        shutdown_timeout=GRACE,
        reuse_address=True,
    )
