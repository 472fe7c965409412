"""A running proxy, and the command line to talk to it with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from config.load import load
from proxy.app import App
from proxy.cli.commands import cli

CONFIG = """
listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "{admin}"{token}}}
access_log: {{path: null}}
services:
  web:
    balance: round_robin
    drain: {{timeout: 5s, jitter: 100ms}}
    instances:
      - {{address: "127.0.0.1:{one}", id: one, metadata: {{version: stable}}}}
      - {{address: "127.0.0.1:{two}", id: "two/2:x", weight: 50, metadata: {{version: canary}}}}
routes:
  - {{match: {{path: /}}, service: web, split: {{stable: 90, canary: 10}}}}
"""


class Proxy:
    """A real proxy in this loop, with two instances behind it."""

    def __init__(self, app: App, file: Path, held: asyncio.Event) -> None:
        self.app = app
        self.file = file
        self.held = held
        """Requests for /slow are answered once it is set."""

    @property
    def admin(self) -> str:
        return str(self.app.admin_address)

    @property
    def url(self) -> str:
        return f"http://{self.app.addresses[0]}"

    async def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        """`holdfast ARGUMENTS` against this proxy, in a thread: it blocks."""
        runner = CliRunner()
        given = {"HOLDFAST_ADMIN": self.admin, "HOLDFAST_ADMIN_TOKEN": "", **(env or {})}
        return await asyncio.to_thread(runner.invoke, cli, list(arguments), env=given)

    async def json(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


StartProxy = Callable[..., Awaitable[Proxy]]


async def _instance(stack: AsyncExitStack, held: asyncio.Event) -> int:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await held.wait()
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return int(runner.addresses[0][1])


@pytest.fixture
async def start_proxy(tmp_path: Path) -> AsyncIterator[StartProxy]:
    """`proxy = await start_proxy(admin="unix:…", token="…")`."""
    async with AsyncExitStack() as stack:

        async def begin(admin: str = "127.0.0.1:0", token: str = "") -> Proxy:
            held = asyncio.Event()
            stack.callback(held.set)
            one, two = await _instance(stack, held), await _instance(stack, held)
            file = tmp_path / "holdfast.yaml"
            secret = f", token: {token}" if token else ""
            file.write_text(CONFIG.format(admin=admin, token=secret, one=one, two=two))
            app = App(load(file, environ={}), str(file))
            stack.push_async_callback(app.close)
            await app.start()
            return Proxy(app, file, held)

        yield begin


@pytest.fixture
async def proxy(start_proxy: StartProxy) -> Proxy:
    """A proxy on a free port, without a token."""
    return await start_proxy()
