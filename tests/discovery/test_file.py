"""Instances from a file, and from the configuration itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from config.schema import ConsulRegistry, FileRegistry, Service
from discovery.build import make_watcher
from discovery.consul import ConsulWatcher
from discovery.file import FileWatcher, parse
from discovery.model import Instance, RegistryError, Status, Update
from discovery.static import static_updates
from discovery.watch import SourceState, Supervisor
from tests.discovery.conftest import until

CHAT = frozenset({"chat"})


def write(path: Path, *addresses: str) -> None:
    """Replaces the file as editors and deployments do."""
    new = path.with_name("new")
    new.write_text(json.dumps({"services": {"chat": list(addresses)}}))
    new.replace(path)


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 5)


def ids(update: Update) -> list[str] | None:
    return None if update.instances is None else [i.id for i in update.instances]


def test_strings_and_objects_are_instances() -> None:
    text = """
    services:
      chat:
        - "127.0.0.1:9001"
        - {address: "10.0.0.7:80", id: b, weight: 50, metadata: {version: v2}}
        - {address: "unix:/run/c.sock", id: c, metadata: {draining: true}}
      empty: []
    """
    assert parse(text.encode()) == {
        "chat": (
            Instance("chat", "127.0.0.1:9001", "127.0.0.1", 9001),
            Instance("chat", "b", "10.0.0.7", 80, weight=50, metadata={"version": "v2"}),
            Instance("chat", "c", path="/run/c.sock", status=Status.DRAINING),
        ),
        "empty": (),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [", "f:1:12: not valid YAML"),
        ("", "f:1:1: services: is required"),
        ("services: {chat: nobody}", "f:1:18: services.chat: must be a list, not 'nobody'"),
        ("services: {chat: [nowhere]}", r"f:1:19: services.chat\[0\].*is not an address"),
        (
            "services: {chat: [{address: 'a:1', wieght: 5}]}",
            r"f:1:36: services.chat\[0\].wieght: is not a known key \(did you mean 'weight'",
        ),
        ("services: {chat: ['a:1', 'a:1']}", "several instances have the id 'a:1'"),
        ("servces: {}", r"f:1:1: servces: is not a known key \(did you mean 'services'\?\)"),
        ("services: {}\nservices: {}", "f:2:1: services: is given twice"),
        ("!!python/object/apply:os.system ['true']", "must be sections|tags"),
        ("services: {a: {? {b: 1} : 2}}", "a key must be plain text"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        parse(text.encode(), "f")


async def test_the_file_is_read_at_once_and_after_each_replacement(tmp_path: Path) -> None:
    path = tmp_path / "instances.yaml"
    write(path, "a:1")
    async with aclosing(FileWatcher(path).watch(frozenset({"chat", "other"}))) as stream:
        assert {u.service: ids(u) for u in [await following(stream), await following(stream)]} == {
            "chat": ["a:1"],
            "other": None,
        }
        for addresses in (["a:1", "b:1"], ["b:1"], []):
            write(path, *addresses)
            assert ids(await following(stream)) == addresses
            await following(stream)


async def test_a_change_in_place_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "instances.yaml"
    write(path, "a:1")
    async with aclosing(FileWatcher(path).watch(CHAT)) as stream:
        await following(stream)
        path.write_text("services: {chat: ['b:22']}")
        assert ids(await following(stream)) == ["b:22"]


async def test_another_file_in_the_directory_is_none_of_its_business(tmp_path: Path) -> None:
    path = tmp_path / "instances.yaml"
    write(path, "a:1")
    async with aclosing(FileWatcher(path).watch(CHAT)) as stream:
        await following(stream)
        (tmp_path / "other").write_text("x")
        write(path, "b:1")
        assert ids(await following(stream)) == ["b:1"]


async def test_a_configmap_swap_of_symlinks_is_seen(tmp_path: Path) -> None:
    for name, address in [("one", "a:1"), ("two", "b:1")]:
        (tmp_path / name).mkdir()
        write(tmp_path / name / "instances.yaml", address)
    (tmp_path / "..data").symlink_to("one")
    path = tmp_path / "instances.yaml"
    path.symlink_to("..data/instances.yaml")
    async with aclosing(FileWatcher(path).watch(CHAT)) as stream:
        assert ids(await following(stream)) == ["a:1"]
        (tmp_path / "..new").symlink_to("two")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert ids(await following(stream)) == ["b:1"]
        write(tmp_path / "two" / "instances.yaml", "c:1")
        assert ids(await following(stream)) == ["c:1"]


async def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    async with aclosing(FileWatcher(tmp_path / "none.yaml").watch(CHAT)) as stream:
        with pytest.raises(FileNotFoundError):
            await following(stream)


async def test_binary_garbage_is_a_registry_error(tmp_path: Path) -> None:
    path = tmp_path / "instances.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    async with aclosing(FileWatcher(path).watch(CHAT)) as stream:
        with pytest.raises(RegistryError, match="not UTF-8"):
            await following(stream)


async def test_while_the_file_is_garbage_the_last_good_set_stays(tmp_path: Path) -> None:
    path = tmp_path / "instances.yaml"
    write(path, "a:1")
    updates: list[Update] = []
    supervisor = Supervisor([FileWatcher(path)], updates.append, CHAT)
    task = asyncio.create_task(supervisor.run())
    (source,) = supervisor.sources
    await until(lambda: source.state is SourceState.LIVE)
    path.write_text("services: [")
    await until(lambda: source.failures > 0)
    assert "not valid YAML" in (source.last_error or "")
    write(path, "a:1", "b:1")
    await until(lambda: len(updates) > 1)
    assert [ids(u) for u in updates] == [["a:1"], ["a:1", "b:1"]]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_static_instances_are_updates_and_services_without_them_are_not() -> None:
    services = {
        "chat": Service.model_validate({"instances": [":9001", {"address": "b:2", "weight": 0}]}),
        "nobody": Service.model_validate({"instances": []}),
        "elsewhere": Service(),
    }
    assert static_updates(services, 5.0) == [
        Update(
            "chat",
            (Instance("chat", ":9001", "127.0.0.1", 9001), Instance("chat", "b:2", "b", 2, weight=0)),
            5.0,
            "static",
        ),
        Update("nobody", (), 5.0, "static"),
    ]


def test_each_kind_of_registry_has_its_watcher() -> None:
    assert isinstance(make_watcher(FileRegistry(kind="file", path="x")), FileWatcher)
    assert isinstance(make_watcher(ConsulRegistry(kind="consul")), ConsulWatcher)


def test_json_is_read_as_the_yaml_that_it_is() -> None:
    text = '{"services": {"chat": ["10.0.0.1:80", {"address": "10.0.0.2:80", "id": "b", "weight": 7}]}}'
    assert parse(text.encode()) == parse(f"# as YAML\n{text}".encode())
    assert [(i.id, i.weight) for i in parse(text.encode())["chat"]] == [("10.0.0.1:80", 100), ("b", 7)]


def test_a_service_that_is_there_twice_is_no_service_of_either() -> None:
    with pytest.raises(RegistryError, match=r"1:40: services\.chat: is given twice"):
        parse(b'{"services": {"chat": ["10.0.0.1:80"], "chat": ["10.0.0.2:80"]}}')


async def test_a_large_file_leaves_the_loop_to_others_while_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "instances.json"
    path.write_text('{"services": {"chat": ["10.0.0.1:80"]}}')
    monkeypatch.setattr("discovery.file.LARGE", 1)
    parsed, loop = asyncio.Event(), asyncio.get_running_loop()

    def slow(text: str, name: str) -> dict[str, tuple[Instance, ...]]:
        # Ends only if the loop goes on meanwhile.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
        loop.call_soon_threadsafe(parsed.set)
        return parse(text, name)

    monkeypatch.setattr("discovery.file.parse", slow)
    async with aclosing(FileWatcher(path).watch(frozenset({"chat"}))) as stream:
        update = await asyncio.wait_for(anext(stream), 10)
    assert [i.address for i in update.instances or ()] == ["10.0.0.1:80"]
    assert parsed.is_set()
