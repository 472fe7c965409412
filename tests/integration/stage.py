"""What the integration tests are played with: child processes, a gateway, chat instances, their addresses.

Nothing here waits for time to pass: a child is ready when it says so on its output, and the gateway's state
is read from its admin API.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds after which something that must come is said not to come."""

JSON = dict[str, Any]


class Child:
    """One process of ours, all of its output, and its end."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.lines: list[str] = []
        self._process = process
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def said(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first line of output (from number `after` on) in which `pattern` is found."""
        seen = after
        async with asyncio.timeout(PATIENCE), self._changed:
            while True:
                while seen < len(self.lines):
                    if found := re.search(pattern, self.lines[seen]):
                        return found
                    seen += 1
                if self._reader.done():
                    raise AssertionError(f"{self.name} ended without saying {pattern!r}:\n{self.output}")
                await self._changed.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; one that has ended already is a mistake of the test."""
        self._process.send_signal(number)

    async def ended(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended and all it said is here."""
        async with asyncio.timeout(patience):
            code = await self._process.wait()
            await self._reader
        return code

    @property
    def output(self) -> str:
        return "\n".join(f"{self.name}| {line}" for line in self.lines)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            await self._add(line.decode(errors="replace").rstrip("\n"))
        async with self._changed:
            self._changed.notify_all()

    async def _add(self, line: str) -> None:
        async with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    async def end(self) -> None:
        """Ends it whatever it is doing; its output is shown when the test has failed."""
        if self.running:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(5):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._reader
        print(f"--- {self.name}, exit code {self._process.returncode}\n{self.output}")


class Stage:
    """Starts children, and ends every one of them when the test is over."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self.folder = folder
        self._stack = stack

    async def spawn(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """A Python process: `arguments` follow the interpreter."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env={**_clean_environment(), "PYTHONUNBUFFERED": "1", **(environment or {})},
            # Ctrl-C in the terminal of the tests is for the tests.
            start_new_session=True,
        )
        child = Child(name, process)
        self._stack.push_async_callback(child.end)
        return child

    async def holdfast(self, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """The command line: `holdfast ARGUMENTS`."""
        return await self.spawn(arguments[0], "-m", "proxy.cli", *arguments, environment=environment)

    async def gateway(self, name: str = "gateway", **config: Any) -> Gateway:
        """`holdfast run` with this configuration; listeners are free loopback ports unless it says others."""
        path = self.folder / f"{name}.yaml"
        full = {
            "listen": [{"address": "127.0.0.1:0"}],
            "admin": {"address": "127.0.0.1:0"},
            "access_log": {"path": str(self.folder / f"{name}.log")},
            "shutdown": "10s",
            **config,
        }
        write_config(path, full)
        child = await self.holdfast("run", "-c", str(path))
        child.name = name
        found = await child.said(r"forwarding on (.*), admin on (\S+?)(?:, registry on (\S+))?$")
        return Gateway(child, path, full, found[1].split(", "), found[2], found[3])

    async def registry(self) -> tuple[Child, str]:
        """`holdfast registry` and its URL."""
        child = await self.holdfast("registry", "--listen", "127.0.0.1:0")
        return child, (await child.said(r"listening on (http://\S+)"))[1]

    async def chat(self, id: str, registry: str, *arguments: str) -> Child:
        """A chat instance of that name, listening. All of a test share one store."""
        store = f"sqlite:///{self.folder}/chat.db"
        child = await self.spawn(
            id, "-m", "chat", "--id", id, "--registry", registry, "--store", store, *arguments
        )
        await child.said(r"listening on http://")
        return child

    async def serve(self, app: web.Application, *, path: str | None = None, port: int = 0) -> str:
        """An aiohttp application in the test's own process, on a loopback port or a unix socket."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.UnixSite(runner, path) if path else web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return path or f"127.0.0.1:{runner.addresses[0][1]}"

    async def client(self, **options: Any) -> aiohttp.ClientSession:
        """An HTTP client that is closed with the test."""
        return await self._stack.enter_async_context(aiohttp.ClientSession(**options))


class Admin:
    """The admin API of a running proxy."""

    def __init__(self, url: str) -> None:
        self.admin = url

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One call to the admin API: status, and the JSON of the answer."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.admin + path, json=body) as response,
        ):
            return response.status, await response.json()

    async def metrics(self) -> dict[str, float]:
        """All samples, by their name with labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/metrics") as response:
            text = await response.text()
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    @asynccontextmanager
    async def events(self, note: Callable[[JSON], None] | None = None) -> AsyncIterator[Events]:
        """What happens from its start on; `note` is called with each event as it comes."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{self.admin}/v1/events", params={"since": "0"}) as response,
        ):
            assert response.status == 200
            events = Events(response, note)
            try:
                yield events
            finally:
                await events.close()

    async def emptied(self) -> None:
        """Waits until no tunnel is open any more; each look is a round trip."""
        async with asyncio.timeout(PATIENCE):
            while (await self.ask("GET", "/v1/sessions"))[1]["total"]:
                pass
        assert (await self.metrics())["holdfast_tunnels_open"] == 0

    async def ready(self, service: str, *instances: str) -> None:
        """Waits until exactly these instances of a service are ready, whichever process says so.

        By looking: the event stream ends with its process, and a new one has no event for what it was given.
        """
        now: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while now != set(instances):
                await asyncio.sleep(0.02)
                status, answer = await self.ask("GET", f"/v1/services/{service}/instances")
                if status == 200:
                    now = {one["id"] for one in answer["instances"] if one["state"] == "ready"}


class Gateway(Admin):
    """A running `holdfast run`."""

    def __init__(
        self, child: Child, path: Path, config: JSON, addresses: list[str], admin: str, registry: str
    ) -> None:
        super().__init__(f"http://{admin}")
        self.child = child
        self.path = path
        self.config = config
        self.addresses = addresses
        self.url = f"http://{addresses[0]}"
        self.registry = registry

    def write(self, **changes: Any) -> None:
        """Replaces keys of the configuration file, in one step as an editor does."""
        self.config = {**self.config, **changes}
        write_config(self.path, self.config)


class Events:
    """The event stream of a gateway."""

    def __init__(self, response: aiohttp.ClientResponse, note: Callable[[JSON], None] | None) -> None:
        self.all: list[JSON] = []
        self.states: dict[tuple[str, str], str] = {}
        """The state of each instance, by service and id."""
        self._note = note
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(response))

    async def next(self) -> None:
        """Waits for an event that this was not told of yet."""
        await self._changed.wait()
        self._changed.clear()
        assert not self._task.done(), "the event stream has ended"

    async def until(self, wanted: Callable[[JSON], bool]) -> JSON:
        """The first event, past ones included, for which `wanted` holds."""
        seen = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.all[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.all)
                await self.next()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        try:
            async for line in response.content:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    self.all.append(event)
                    if event["kind"] == "state_changed":
                        self.states[event["service"], event["instance"]] = event["after"]
                    if self._note is not None:
                        self._note(event)
                    self._changed.set()
        finally:
            self._changed.set()


def write_config(path: Path, config: JSON) -> None:
    """JSON is YAML. Replaced in one step: a reader never sees half a file."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(config, indent=1))
    beside.replace(path)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def exists(pid: int) -> bool:
    """Whether there is a process of that number, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
