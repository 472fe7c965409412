"""The embedded registry: a pure store, the Consul HTTP API over it, and an in-memory watcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from config.schema import Address


async def serve(
    listen: Address, data: str | None = None, *, ready: Callable[[Address], None] = lambda _: None
) -> None:
    """Runs the embedded registry until cancelled, then ends it in order.

    `ready` is called with the address, real port included, once it listens. Raises `OSError` with a message
    for the operator when `listen` or the directory `data` cannot be had.
    """
    from discovery.embedded.server import RegistryServer

    server = RegistryServer(data)
    ready(await server.start(listen))
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()
