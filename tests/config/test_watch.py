"""Noticing that the file has other content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from config.watch import fingerprint, watch

PATIENCE = 10.0
"""Seconds after which a change that was not noticed fails the test."""
SILENT = 600.0
"""A time between looks that no test waits for: what is noticed was announced."""


def content(path: Path) -> str:
    return path.read_text()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class Watched:
    """A watch of `path` that runs for the length of a test."""

    def __init__(self, path: Path, known: str | None, look: float) -> None:
        self._seen: asyncio.Queue[str] = asyncio.Queue()
        self._path = path
        self._running = asyncio.create_task(watch(path, self._changed, known=known, look=look))

    async def _changed(self) -> None:
        self._seen.put_nowait(content(self._path))

    async def next(self) -> str:
        return await asyncio.wait_for(self._seen.get(), PATIENCE)

    async def notices(self, publish: Callable[[str], object], label: str) -> None:
        """Publishes new content until it is seen: the first may come before the kernel's watch is set."""
        for number in range(int(PATIENCE)):
            publish(f"{label}{number}")
            with suppress(TimeoutError):
                while await asyncio.wait_for(self._seen.get(), 1.0) != f"{label}{number}":
                    pass
                return
        pytest.fail(f"{label} was not noticed")

    @property
    def is_quiet(self) -> bool:
        return self._seen.empty()

    async def end(self) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running


@asynccontextmanager
async def watching(path: Path, *, known: str | None = None, look: float = SILENT) -> AsyncIterator[Watched]:
    watched = Watched(path, known, look)
    # In its first step the watch takes the fingerprint that it compares with.
    await asyncio.sleep(0)
    try:
        yield watched
    finally:
        await watched.end()


async def test_a_file_written_in_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")
    async with watching(path) as watched:
        await watched.notices(lambda text: write(path, text), "first")
        await watched.notices(lambda text: write(path, text), "second")


async def test_a_file_replaced_by_another_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")

    def replace(text: str) -> None:
        write(tmp_path / ".c.yaml.swp", text).rename(path)

    async with watching(path) as watched:
        await watched.notices(replace, "first")
        await watched.notices(replace, "second")


async def test_the_swap_of_a_config_map_is_noticed_again_and_again(tmp_path: Path) -> None:
    def publish(version: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        write(folder / "c.yaml", version)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("zero")
    path = tmp_path / "c.yaml"
    path.symlink_to("..data/c.yaml")
    async with watching(path) as watched:
        for version in ("one", "two", "three"):
            await watched.notices(publish, version)


async def test_a_file_behind_a_link_to_another_folder_is_noticed_when_written_in_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "files").mkdir()
    target, path = tmp_path / "files" / "x.yaml", tmp_path / "links" / "c.yaml"
    target.write_text("")
    path.symlink_to(target)
    async with watching(path) as watched:
        await watched.notices(lambda text: write(target, text), "first")


async def test_a_link_that_is_turned_to_another_folder_is_followed_there(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for name in ("blue", "green"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x.yaml", name)
    path.symlink_to("blue/x.yaml")

    def turn(text: str) -> None:
        write(tmp_path / "green" / "x.yaml", text)
        (tmp_path / "tmp").symlink_to("green/x.yaml")
        (tmp_path / "tmp").rename(path)

    async with watching(path) as watched:
        await watched.notices(turn, "turned")
        await watched.notices(lambda text: write(tmp_path / "green" / "x.yaml", text), "written")


async def test_a_file_that_is_gone_for_a_while_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "c.yaml"
    path.parent.mkdir()
    path.write_text("one")
    async with watching(path, look=0.1) as watched:
        path.unlink()
        path.parent.rmdir()
        path.parent.mkdir()
        path.write_text("two")
        assert await watched.next() == "two"


async def test_a_folder_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later" / "c.yaml"
    async with watching(path, look=0.1) as watched:
        path.parent.mkdir()
        path.write_text("one")
        assert await watched.next() == "one"


async def test_the_same_content_and_other_files_are_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    looks = asyncio.Semaphore(0)

    def counted(path: Path) -> str | None:
        looks.release()
        return fingerprint(path)

    monkeypatch.setattr("config.watch.fingerprint", counted)
    async with watching(path, look=0.05) as watched:
        for number in range(4):
            await asyncio.wait_for(looks.acquire(), PATIENCE)
            path.write_text("one")
            (tmp_path / "other").write_text(str(number))
        assert watched.is_quiet
        path.write_text("two")
        assert await watched.next() == "two"


async def test_what_changed_between_loading_and_watching_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    known = fingerprint(path)
    path.write_text("two")
    async with watching(path, known=known, look=0.1) as watched:
        assert await watched.next() == "two"


async def test_what_the_callback_raises_ends_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")

    async def changed() -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await asyncio.wait_for(watch(path, changed, known="other", look=0.05), PATIENCE)


def test_there_is_no_fingerprint_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert fingerprint(tmp_path) is None
    assert fingerprint(tmp_path / "gone") is None
