"""From a registry's section in the configuration to a running watcher. Each kind is imported when used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from config.schema import ConsulRegistry, EmbeddedRegistry, FileRegistry, Registry
from discovery.model import Watcher


def make_watcher(registry: ConsulRegistry | FileRegistry) -> Watcher:
    """The watcher of a registry that runs elsewhere."""
    match registry:
        case ConsulRegistry():
            from discovery.consul import ConsulWatcher

            return ConsulWatcher(
                registry.address,
                token=registry.token.get_secret_value() if registry.token else None,
                datacenter=registry.datacenter,
                wait=registry.wait,
            )
        case FileRegistry():
            from discovery.file import FileWatcher

            return FileWatcher(registry.path)
        case _:
            assert_never(registry)


@asynccontextmanager
async def open_watcher(registry: Registry) -> AsyncIterator[Watcher]:
    """The watcher of any registry; an embedded one runs for as long as the context is open.

    Raises `OSError` when the embedded registry's address or directory cannot be had.
    """
    if not isinstance(registry, EmbeddedRegistry):
        yield make_watcher(registry)
        return
    from discovery.embedded.server import RegistryServer

    server = RegistryServer(registry.data)
    await server.start(registry.listen)
    try:
        yield server.watcher()
    finally:
        await server.close()
