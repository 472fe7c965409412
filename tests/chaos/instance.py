"""One instance: `python -m tests.chaos.instance NAME PORT`. Answers, echoes bodies and WebSocket messages."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from aiohttp import WSCloseCode, WSMsgType, web


class Instance:
    def __init__(self, name: str) -> None:
        self._name = name
        self._sockets: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/ws", self._echo)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_shutdown.append(self._leave)
        return app

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(text="ready")

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(0.3)
        body = await request.read()
        return web.Response(body=body or self._name.encode(), headers={"X-Instance": self._name})

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await socket.send_str(message.data)
        finally:
            self._sockets.discard(socket)
        return socket

    async def _leave(self, app: web.Application) -> None:
        for socket in tuple(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)


async def main() -> None:
    logging.disable()  # that connections break is the point
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    runner = web.AppRunner(Instance(sys.argv[1]).application(), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2]), reuse_address=True).start()
    print("listening", flush=True)
    await ending.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
