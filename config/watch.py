"""Tells when the configuration file has other content than before."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

# Editors save in several steps; 100 ms of silence end a save, 400 ms at the latest.
_STEP_MS = 100
_DEBOUNCE_MS = 400
# Looks without being told, for file systems that announce nothing (NFS, some bind mounts).
_LOOK_SECONDS = 10.0


def fingerprint(path: str | os.PathLike[str]) -> str | None:
    """A digest of the file's content; None while there is no file to read."""
    try:
        return hashlib.blake2b(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


async def watch(
    path: str | os.PathLike[str],
    changed: Callable[[], Awaitable[object]],
    *,
    known: str | None = None,
    look: float = _LOOK_SECONDS,
) -> None:
    """Awaits `changed` each time the file at `path` has new content, until it is cancelled.

    `known` is the `fingerprint` of what was loaded; without it, what is there when the watch begins. A file
    that is written in place, replaced by another, or reached through links that move (a ConfigMap) is
    followed; one that is gone is waited for. `look` is the longest time in seconds between two looks, however
    silent the file system is. What `changed` raises ends the watch.
    """
    # Imported here: a process that does not watch does not pay for it.
    from watchfiles import awatch

    seen = known if known is not None else fingerprint(path)

    async def compare() -> None:
        nonlocal seen
        now = fingerprint(path)
        if now is not None and now != seen:
            seen = now
            await changed()

    while True:
        folders = _folders(path)
        try:
            async for _ in awatch(
                *folders,
                watch_filter=None,
                recursive=False,
                step=_STEP_MS,
                debounce=_DEBOUNCE_MS,
                rust_timeout=int(look * 1000),
                yield_on_timeout=True,
            ):
                await compare()
                if _folders(path) != folders:
                    break
        except OSError:
            # No folder, or no inotify watch to be had: what is left is to look.
            await asyncio.sleep(look)
            await compare()


def _folders(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The real folders in which a change can mean another content: of the path, and of each link's target."""
    found: list[str] = []
    at = Path(path).absolute()
    for _ in range(40):  # As many links as Linux follows: path_resolution(7).
        found.append(os.path.realpath(at.parent))
        if not at.is_symlink():
            break
        at = at.parent / at.readlink()
    return tuple(dict.fromkeys(folder for folder in found if Path(folder).is_dir()))
