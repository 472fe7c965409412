"""`holdfast demo`: registry and gateway in this process, chat instances as processes of their own.

An instance that ends is started again, on another port, as a platform would do: that is what there is to try.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from config.schema import Config
from proxy.app import App
from proxy.process import run_app, until_signalled

_AGAIN = 0.3
"""Seconds before an instance that has ended is started again."""
_LEAVE = 15.0
"""Seconds that an instance has to drain when the demo ends."""
_SERVICE = "chat"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says. Ports may be 0 for free ones."""

    instances: int = 3
    port: int = 8080
    admin_port: int = 9900
    registry_port: int = 8500
    data: str | None = None


def demo_config(options: DemoOptions) -> Config:
    """The gateway's configuration: the one that the README shows."""
    return Config.model_validate(
        {
            "listen": [{"address": f"127.0.0.1:{options.port}"}],
            "admin": {"address": f"127.0.0.1:{options.admin_port}"},
            "registry": {"kind": "embedded", "listen": f"127.0.0.1:{options.registry_port}"},
            "services": {
                _SERVICE: {
                    "balance": "least_conn",
                    "sticky": {"by": "cookie", "name": "hf_chat"},
                    "websocket": {"on_drain": "migrate", "replay": True, "ping": "20s"},
                    "drain": {"timeout": "10s", "jitter": "1s"},
                    "health": {"path": "/readyz", "interval": "1s"},
                    "outlier": {},
                    "retry": {"on": ["connect", "reset", 502, 503]},
                }
            },
            "routes": [{"match": {"path": "/"}, "service": _SERVICE}],
            "access_log": {"path": None},
            "shutdown": "10s",
        }
    )


class Instance:
    """One chat instance: its process, for as long as the demo runs."""

    def __init__(self, number: int, registry: str, store: str) -> None:
        self.name = f"chat-{number}"
        self._registry = registry
        self._store = store
        self._process: asyncio.subprocess.Process | None = None
        self._leaving = False

    async def run(self) -> None:
        """Start it, and start it again whenever it ends."""
        while not self._leaving:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chat", "--port", "0", "--id", self.name, "--version", "v1",
                "--registry", self._registry, "--store", self._store,
                stdout=asyncio.subprocess.PIPE,
                # A session of its own: Ctrl-C is for the demo, which ends its instances in order.
                start_new_session=True,
            )  # fmt: skip
            assert process.stdout is not None
            async for line in process.stdout:
                print(f"  {self.name}  pid {process.pid:<7} {line.decode().strip()}", flush=True)
            code = await process.wait()
            if not self._leaving:
                print(f"  {self.name}  ended ({_how(code)}); starting it again", flush=True)
                await asyncio.sleep(_AGAIN)

    def stay_down(self) -> None:
        """When it ends, leave it at that."""
        self._leaving = True

    async def leave(self) -> None:
        """Let it drain, and end it when that takes too long."""
        self.stay_down()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_LEAVE):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def run_demo(options: DemoOptions) -> int:
    """Run until Ctrl-C or SIGTERM. Exit codes: 0 done, 1 when an address cannot be had."""
    return run_app(lambda: _demo(options))


async def _demo(options: DemoOptions) -> int:
    app = App(demo_config(options))
    signalled = asyncio.ensure_future(until_signalled())
    instances: list[Instance] = []
    tasks: list[asyncio.Task[None]] = []
    with contextlib.ExitStack() as stack:
        try:
            folder = options.data or stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-"))
            store = f"sqlite:///{_make_folder(folder) / 'chat.db'}"
            await app.start()
            instances = [Instance(n + 1, app.registry_url, store) for n in range(options.instances)]
            print(_welcome(app, options), flush=True)
            tasks = [asyncio.create_task(instance.run()) for instance in instances]
            await signalled
            print(
                "\nending: clients are asked to go, then the instances drain, then the registry", flush=True
            )
            for instance in instances:
                instance.stay_down()
            await app.drain()
        except OSError as error:
            print(f"holdfast: {error.strerror or error}", file=sys.stderr)
            return 1
        finally:
            signalled.cancel()
            await asyncio.gather(*(instance.leave() for instance in instances))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await app.close()
        print("all ended", flush=True)
    return 0


def _make_folder(path: str) -> Path:
    folder = Path(path).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot use the directory {folder}: {error.strerror}") from error
    return folder


def _welcome(app: App, options: DemoOptions) -> str:
    web, admin = f"http://{app.addresses[0]}", f"http://{app.admin_address}"
    return f"""holdfast demo: {options.instances} chat instances behind one gateway

  chat page       {web}/
  agent console   {web}/agent
  dashboard       {admin}/
  metrics         {admin}/metrics
  registry        {app.registry_url}/v1/catalog/services

Try it: open the chat page, say something, end an instance (kill PID, or kill -9 PID), and go on.
Ctrl-C drains and ends everything.
"""
