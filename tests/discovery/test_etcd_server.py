"""The etcd watcher and registrar against real servers, with etcd's own client as witness."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from config.registries import EtcdRegistry, RegistryTLS
from discovery.etcd import EtcdWatcher
from discovery.etcd_client import decode
from discovery.etcd_registrar import EtcdRegistrar
from discovery.model import Instance, RegistryError, Status, Update
from discovery.transport import ssl_context
from tests.contract.backend import Missing
from tests.contract.etcd import Member, cluster
from tests.contract.server import find

Make = Callable[..., EtcdRegistrar]
_number = count(1)


@asynccontextmanager
async def running(members: list[Member], **session: object) -> AsyncIterator[list[Member]]:
    """Started together; ended, whatever happens."""
    try:
        await asyncio.gather(*(member.start(**session) for member in members))
        yield members
    finally:
        for member in members:
            member.thaw()
            await member.kill()


def made(folder: Path, *arguments: str | int, scheme: str = "http") -> list[Member]:
    """Members, or a skip where there is no etcd."""
    size = next((a for a in arguments if isinstance(a, int)), 1)
    try:
        return cluster(folder, size, *(a for a in arguments if isinstance(a, str)), scheme=scheme)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """One for most tests; each has a service of its own."""
    (member,) = made(tmp_path_factory.mktemp("etcd"))
    try:
        asyncio.run(member.start())
        yield member
    finally:
        asyncio.run(member.kill())


@pytest.fixture
def member(shared: Member) -> Iterator[Member]:
    yield shared
    shared.thaw()


@pytest.fixture
def service() -> str:
    return f"s{next(_number)}"


def registry(*members: Member, **facts: object) -> EtcdRegistry:
    return EtcdRegistry.model_validate({"kind": "etcd", "address": [m.url for m in members], **facts})


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes registrars, which are closed in the end."""
    registrars: list[EtcdRegistrar] = []

    def make(where: EtcdRegistry, *, ttl: float = 30.0) -> EtcdRegistrar:
        registrars.append(EtcdRegistrar(where, ttl=ttl))
        return registrars[-1]

    yield make
    for registrar in registrars:
        await registrar.close()


async def following(stream: AsyncIterator[Update]) -> Update:
    return await asyncio.wait_for(anext(stream), 15)


def ids(update: Update) -> list[str] | None:
    return None if update.instances is None else [i.id for i in update.instances]


async def until_ids(stream: AsyncIterator[Update], wanted: list[str]) -> Update:
    async with asyncio.timeout(15):
        while ids(update := await anext(stream)) != wanted:
            pass
    return update


def etcdctl(member: Member, *arguments: str) -> str:
    program = Path(find("etcd")).resolve().with_name("etcdctl")
    if not program.exists():
        pytest.skip("there is no etcdctl beside this etcd")
    done = subprocess.run(
        [program, f"--endpoints={member.url}", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


async def test_what_is_written_by_etcds_own_client_is_read(member: Member, service: str) -> None:
    key = f"/holdfast/services/{service}/"
    value = '{"address": "10.0.0.7:80", "weight": 7, "metadata": {"version": "v2"}}'
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert ids(await following(stream)) is None
        etcdctl(member, "put", f"{key}a", value)
        assert (await following(stream)).instances == (
            Instance(service, "a", "10.0.0.7", 80, weight=7, metadata={"version": "v2"}),
        )
        etcdctl(member, "put", f"{key}a", value.replace("}}", '}, "draining": true}'))
        assert [i.status for i in (await following(stream)).instances or ()] == [Status.DRAINING]
        etcdctl(member, "del", f"{key}a")
        assert ids(await following(stream)) == []


async def test_what_is_registered_is_read_by_etcds_own_client(
    make: Make, member: Member, service: str
) -> None:
    registrar = make(registry(member), ttl=20)
    await registrar.register(Instance(service, "a/b", "::1", 80, status=Status.DRAINING))
    found = etcdctl(member, "get", f"/holdfast/services/{service}/", "--prefix").splitlines()
    assert found[0] == f"/holdfast/services/{service}/a%2Fb"
    assert json.loads(found[1]) == {"address": "[::1]:80", "weight": 100, "metadata": {}, "draining": True}
    lease = json.loads(etcdctl(member, "lease", "list", "-w", "json"))["leases"][0]["id"]
    told = json.loads(etcdctl(member, "lease", "timetolive", f"{lease:x}", "-w", "json"))
    assert told["granted-ttl"] == 20
    await registrar.deregister(Instance(service, "a/b"))
    assert etcdctl(member, "get", f"/holdfast/services/{service}/", "--prefix") == ""
    assert json.loads(etcdctl(member, "lease", "list", "-w", "json")).get("leases") in ([], None)


async def test_any_id_is_safe_and_services_do_not_mix(make: Make, member: Member, service: str) -> None:
    names = ["a/b", "..", "%2F", "日本", "a b?c#d", "10.0.0.1:80", "x" * 300, '"']
    registrar = make(registry(member))
    for number, name in enumerate(names):
        await registrar.register(Instance(service, name, "10.0.0.1", 80 + number))
    await registrar.register(Instance(f"{service}2", "other", "10.0.0.1", 80))
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert ids(await following(stream)) == sorted(names)
        await registrar.register(Instance(f"{service}2", "more", "10.0.0.1", 80))
        await registrar.deregister(Instance(service, "a/b"))
        assert ids(await following(stream)) == sorted(names[1:])


# -- the watch --------------------------------------------------------------------------------------------


async def test_nothing_is_lost_between_the_read_and_the_watch(member: Member, service: str) -> None:
    key = f"/holdfast/services/{service}/"
    await member.put(f"{key}a", '{"address": "a:1"}')
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert ids(await following(stream)) == ["a"]  # the watch is opened when the next one is asked for
        await member.put(f"{key}b", '{"address": "b:1"}')
        await member.delete(f"{key}a")
        assert ids(await until_ids(stream, ["b"])) == ["b"]


async def test_after_a_compaction_everything_is_read_anew(member: Member, service: str) -> None:
    key = f"/holdfast/services/{service}/"
    await member.put(f"{key}a", '{"address": "a:1"}')
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert ids(await following(stream)) == ["a"]
        await member.delete(f"{key}a")
        await member.put(f"{key}b", '{"address": "b:1"}')
        (kv,) = [kv for kv in await member.keys() if etcd_key(kv) == f"{key}b"]
        await member.call("/v3/kv/compaction", {"revision": kv["mod_revision"]})
        # One step: what was deleted meanwhile is in no event any more.
        assert ids(await following(stream)) == ["b"]
        await member.delete(f"{key}b")
        assert ids(await following(stream)) == []


def etcd_key(kv: dict[str, str]) -> str:
    return decode(kv["key"]).decode()


async def test_many_keys_come_in_pages_and_many_services_in_batches(
    member: Member, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.etcd.PAGE", 3)
    monkeypatch.setattr("discovery.etcd.BATCH", 2)
    names = [f"{service}-{number}" for number in range(5)]
    for name in names:
        for number in range(8):
            await member.put(f"/holdfast/services/{name}/i{number}", f'{{"address": "a:{number + 1}"}}')
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset(names))) as stream:
        first = {u.service: ids(u) for u in [await following(stream) for _ in names]}
        assert first == {name: [f"i{number}" for number in range(8)] for name in names}
        for name in names:
            await member.delete(f"/holdfast/services/{name}/i0")
        seen = {u.service: ids(u) for u in [await following(stream) for _ in names]}
        assert seen == {name: [f"i{number}" for number in range(1, 8)] for name in names}


async def test_a_message_longer_than_a_line_buffer_is_read(member: Member, service: str) -> None:
    text = "x" * 700_000
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        await following(stream)
        value = json.dumps({"address": "a:1", "metadata": {"text": text}})
        await member.put(f"/holdfast/services/{service}/a", value)
        update = await following(stream)
        assert [i.metadata["text"] for i in update.instances or ()] == [text]


async def test_a_value_that_is_garbage_hurts_its_key_only(member: Member, service: str) -> None:
    key = f"/holdfast/services/{service}/"
    await member.put(f"{key}a", '{"address": "a:1"}')
    await member.put(f"{key}b", "{")
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        update = await following(stream)
        # Whoever is known from before may be the one that cannot be read now.
        assert (ids(update), update.partial) == (["a"], True)
        assert update.refused == (f"{key}b: not JSON: unexpected end of data: line 1 column 2 (char 1)",)
        # What is there is alive: a slip of the pen does not end an instance.
        await member.put(f"{key}a", '{"address": "nowhere"}')
        update = await following(stream)
        assert (ids(update), len(update.refused), update.partial) == (["a"], 2, False)
        await member.put(f"{key}b", '{"address": "b:1"}')
        assert ids(await following(stream)) == ["a", "b"]
        await member.delete(f"{key}a")
        update = await following(stream)
        assert (ids(update), update.refused) == (["b"], ())


async def test_a_service_of_which_nothing_can_be_read_is_not_empty(member: Member, service: str) -> None:
    await member.put(f"/holdfast/services/{service}/a", "{")
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        update = await following(stream)
        assert (ids(update), len(update.refused)) == (None, 1)
        await member.delete(f"/holdfast/services/{service}/a")
        update = await following(stream)
        assert (ids(update), update.refused) == ([], ())


# -- servers that fail ------------------------------------------------------------------------------------


async def test_a_frozen_server_is_an_error_soon(member: Member, service: str) -> None:
    watcher = EtcdWatcher(registry(member), answer=0.5, pulse=0.2)
    async with aclosing(watcher.watch(frozenset({service}))) as stream:
        await following(stream)
        quiet = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait({quiet}, timeout=0.6)
        assert not done  # silence alone is none
        member.freeze()
        began = time.monotonic()
        with pytest.raises(RegistryError, match=r"no answer in 0\.5 s"):
            await asyncio.wait_for(quiet, 15)
        assert time.monotonic() - began >= 0.4


async def test_the_next_member_is_asked_and_one_without_a_majority_is_noticed(
    make: Make, tmp_path: Path, service: str
) -> None:
    async with running(made(tmp_path, 3)) as (first, second, third):
        where = registry(first, second, third)
        registrar = make(where, ttl=30)
        entry = Instance(service, "a", "10.0.0.1", 80)
        await registrar.register(entry)
        watcher = EtcdWatcher(where, answer=1.0, pulse=0.2)
        async with aclosing(watcher.watch(frozenset({service}))) as stream:
            assert ids(await following(stream)) == ["a"]
            await first.kill()
            with pytest.raises(RegistryError):
                await following(stream)
        with pytest.raises(RegistryError):
            await registrar.beat(entry)
        async with asyncio.timeout(15):
            while not await beats(registrar, entry):  # a leader may have to be found  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with aclosing(watcher.watch(frozenset({service}))) as stream:
            assert ids(await following(stream)) == ["a"]
            assert await registrar.beat(entry)
            # The last one has everything and answers the watch, but nobody knows what the others would say.
            await (third if watcher._members.current == second.url else second).kill()
            with pytest.raises(RegistryError):
                await following(stream)


async def beats(registrar: EtcdRegistrar, entry: Instance) -> bool:
    try:
        return await registrar.beat(entry)
    except RegistryError:
        return False


async def test_a_frozen_member_does_not_keep_an_entry_from_being_removed(
    make: Make, tmp_path: Path, service: str
) -> None:
    async with running(made(tmp_path, 3)) as members:
        registrar = make(registry(*members), ttl=30)
        entry = Instance(service, "a", "10.0.0.1", 80)
        await registrar.register(entry)
        members[0].freeze()
        failures = 0
        async with asyncio.timeout(15):
            while True:
                try:
                    await registrar.deregister(entry)
                    break
                except RegistryError:
                    failures += 1
        assert failures >= 1
        assert await members[1].keys() == []


# -- who asks ---------------------------------------------------------------------------------------------


async def test_tokens_are_renewed_and_wrong_passwords_and_missing_rights_are_said(
    make: Make, tmp_path: Path, service: str
) -> None:
    async with running(made(tmp_path, "--auth-token-ttl=1", "--bcrypt-cost=4")) as (member,):
        entry = Instance(service, "a", "10.0.0.1", 80)
        where = registry(member, user="root", password="secret")
        registrar = make(where, ttl=30)
        await registrar.register(entry)  # before authentication is on
        watcher = EtcdWatcher(where, pulse=0.2)
        async with aclosing(watcher.watch(frozenset({service}))) as stream:
            assert ids(await following(stream)) == ["a"]
            quiet = asyncio.ensure_future(anext(stream))
            await asyncio.wait({quiet}, timeout=0.5)
            for name, password in (("root", "secret"), ("nobody", "secret")):
                await member.call("/v3/auth/user/add", {"name": name, "password": password})
            await member.call("/v3/auth/user/grant", {"user": "root", "role": "root"})
            await member.call("/v3/auth/enable", {})
            assert await registrar.beat(entry)
            done, _ = await asyncio.wait({quiet}, timeout=1.8)  # longer than a token lives
            assert not done
            await registrar.register(replace(entry, weight=3))
            assert [i.weight for i in (await asyncio.wait_for(quiet, 15)).instances or ()] == [3]
        for facts, message in [
            ({"user": "root", "password": "wrong"}, "authentication failed"),
            ({"user": "nobody", "password": "secret"}, "permission denied"),
            ({}, "user name is empty"),
        ]:
            async with aclosing(EtcdWatcher(registry(member, **facts)).watch(frozenset({service}))) as stream:
                with pytest.raises(RegistryError, match=message):
                    await following(stream)
        await registrar.deregister(entry)


async def test_certificates_of_both_sides_are_shown_and_verified(
    make: Make, tmp_path: Path, service: str
) -> None:
    ca, server, client = certificates(tmp_path)
    flags = (f"--cert-file={server}.pem", f"--key-file={server}.key", f"--trusted-ca-file={ca}.pem")
    tls = {
        "ca": f"{ca}.pem",
        "certificate": f"{client}.pem",
        "key": f"{client}.key",
        "server_name": "registry.test",
    }
    context = ssl_context(RegistryTLS.model_validate(tls))
    session = {"ssl": context, "server_hostname": "registry.test"}
    members = made(tmp_path, *flags, "--client-cert-auth", scheme="https")
    async with running(members, **session) as (member,):
        registrar = make(registry(member, tls=tls))
        await registrar.register(Instance(service, "a", "10.0.0.1", 80))
        async with aclosing(EtcdWatcher(registry(member, tls=tls)).watch(frozenset({service}))) as stream:
            assert ids(await following(stream)) == ["a"]
        for missing, message in [
            ("certificate", "certificate required|bad certificate|Connection|disconnected"),
            ("server_name", "not valid for|doesn't match|certificate verify failed"),
            ("ca", "certificate verify failed"),
        ]:
            less = {
                k: v for k, v in tls.items() if k not in (missing, "key" if missing == "certificate" else "")
            }
            async with aclosing(
                EtcdWatcher(registry(member, tls=less)).watch(frozenset({service}))
            ) as stream:
                with pytest.raises(RegistryError, match=message):
                    await following(stream)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A CA, a server's certificate for the name `registry.test` alone, and a client's."""

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)

    ca, server, client = folder / "ca", folder / "server", folder / "client"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *new, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", "/CN=ca", "-days", "2"
    )
    for name, subject in ((server, "registry.test"), (client, "somebody")):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        names = folder / "names"
        names.write_text(f"subjectAltName=DNS:{subject}\n")
        authority = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.pem", "-extfile", names)
    return ca, server, client


# -- entries ----------------------------------------------------------------------------------------------


async def test_an_entry_that_is_not_ours_any_more_is_made_again(
    make: Make, member: Member, service: str
) -> None:
    registrar = make(registry(member), ttl=30)
    entry = Instance(service, "a", "10.0.0.1", 80)
    key = f"/holdfast/services/{service}/a"
    assert not await registrar.beat(entry)

    async def lease() -> str:
        (kv,) = [kv for kv in await member.keys() if etcd_key(kv) == key]
        return kv.get("lease", "")

    await registrar.register(entry)
    assert await registrar.beat(entry)
    first = await lease()
    await member.call("/v3/lease/revoke", {"ID": first})
    assert not await registrar.beat(entry)  # the lease is lost
    await registrar.register(entry)
    assert await registrar.beat(entry)
    second = await lease()
    assert second != first
    await member.delete(key)
    assert not await registrar.beat(entry)  # the key is
    await registrar.register(entry)
    assert await registrar.beat(entry)
    await member.put(key, '{"address": "10.0.0.1:80"}')
    assert not await registrar.beat(entry)  # bound to nothing, it would never go
    await registrar.register(entry)
    assert await lease() == second
    await member.call("/v3/lease/revoke", {"ID": second})
    await registrar.register(replace(entry, weight=5))  # before a beat could notice
    assert await registrar.beat(entry)
    await registrar.deregister(entry)
    await registrar.deregister(entry)
    assert not await registrar.beat(entry)


async def test_without_beats_an_entry_ends(make: Make, member: Member, service: str) -> None:
    registrar = make(registry(member), ttl=1)
    kept, left = Instance(service, "kept", "10.0.0.1", 80), Instance(service, "left", "10.0.0.2", 80)
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        await following(stream)
        await registrar.register(kept)
        await registrar.register(left)
        await until_ids(stream, ["kept", "left"])
        gone = asyncio.ensure_future(following(stream))
        while not gone.done():
            assert await registrar.beat(kept)
            await asyncio.wait({gone}, timeout=0.1)
        assert ids(gone.result()) == ["kept"]


async def test_a_write_that_comes_late_makes_no_entry_again(make: Make, member: Member, service: str) -> None:
    entry = Instance(service, "a", "10.0.0.1", 80)
    for _ in range(5):
        registrar = make(registry(member), ttl=30)
        await registrar.register(entry)
        member.freeze()
        # The write lies in the server's socket when we give it up and deregister.
        late = asyncio.ensure_future(registrar.register(replace(entry, weight=1)))
        await asyncio.wait({late}, timeout=0.05)
        late.cancel()
        end = asyncio.ensure_future(registrar.deregister(entry))
        await asyncio.wait({end}, timeout=0.05)
        member.thaw()
        await asyncio.wait_for(end, 15)
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert not ids(await following(stream))


async def test_a_write_bound_to_a_revoked_lease_is_refused(make: Make, member: Member, service: str) -> None:
    registrar = make(registry(member), ttl=30)
    entry = Instance(service, "a", "10.0.0.1", 80)
    await registrar.register(entry)
    leases = dict(registrar._leases)
    await registrar.deregister(entry)
    registrar._leases.update(leases)
    with pytest.raises(RegistryError, match="lease not found"):
        await registrar._put(next(iter(leases)), entry)


async def test_who_leaves_does_not_take_a_successor_along(make: Make, member: Member, service: str) -> None:
    entry = Instance(service, "a", "10.0.0.1", 80)
    old, new = make(registry(member), ttl=30), make(registry(member), ttl=30)
    await old.register(entry)
    await new.register(replace(entry, port=81))
    assert not await old.beat(entry)
    await old.deregister(entry)
    assert await new.beat(entry)
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert [i.port for i in (await following(stream)).instances or ()] == [81]
    # An edit by hand has taken the lease away; it goes with us all the same.
    await member.put(f"/holdfast/services/{service}/a", '{"address": "10.0.0.1:82"}')
    await new.deregister(entry)
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        assert ids(await following(stream)) is None


async def test_an_idle_watch_is_probed_by_the_kernel(member: Member, service: str) -> None:
    port = int(member.url.rpartition(":")[2])
    async with aclosing(EtcdWatcher(registry(member)).watch(frozenset({service}))) as stream:
        await following(stream)
        quiet = asyncio.ensure_future(anext(stream))
        async with asyncio.timeout(10):
            while not (timers := keepalive_timers(port)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        quiet.cancel()
        await asyncio.gather(quiet, return_exceptions=True)
    assert all(seconds <= 10.5 for seconds in timers)


def keepalive_timers(port: int) -> list[float]:
    """Seconds until the kernel probes each of our connections to a port (proc(5), `/proc/net/tcp`)."""
    links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        remote, state, timer, inode = (line.split()[column] for column in (2, 3, 5, 9))
        ours = remote.endswith(f":{port:04X}") and f"socket:[{inode}]" in links
        if ours and state == "01" and timer.startswith("02:"):
            found.append(int(timer[3:], 16) / 100)
    return found


async def test_the_default_resolver_of_the_http_client_is_none_of_its_business(
    make: Make, member: Member
) -> None:
    registrar = make(registry(member))
    resolver = registrar._client._session.connector._resolver  # type: ignore[union-attr]
    assert isinstance(resolver, aiohttp.ThreadedResolver)
