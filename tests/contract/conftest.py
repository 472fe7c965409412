"""One backend of each kind for the whole file, in one loop; each test has a service of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from discovery.model import Instance
from tests.contract.backend import Ability, Backend, Missing, backends


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*abilities): what a registry must be able to do for this test")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=backends(), ids=lambda kind: kind.name)
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    kind: type[Backend] = request.param
    found = kind(tmp_path_factory.mktemp(kind.name))
    try:
        try:
            await found.start()
        except Missing as missing:
            pytest.skip(f"{kind.name}: {missing}")
        yield found
    finally:
        await found.stop()


@pytest.fixture(autouse=True)
def _able(request: pytest.FixtureRequest) -> None:
    """Skips what a registry cannot, with its reason: `@pytest.mark.needs(Ability.CRASH)`."""
    for mark in request.node.iter_markers("needs"):
        kind: type[Backend] = request.node.callspec.params["backend"]
        for ability in mark.args:
            assert isinstance(ability, Ability)
            if ability in kind.lacks:
                pytest.skip(f"{kind.name} has no {ability.name}: {kind.lacks[ability]}")


_number = itertools.count(1)


@pytest.fixture
def service() -> str:
    """A name that no other test has."""
    return f"chat{next(_number)}"


@pytest.fixture
def make(service: str) -> Callable[..., Instance]:
    """`make(3)`: an instance of this test's service with an id and an address of its own."""

    def make(number: int, id: str | None = None, **facts: object) -> Instance:
        # Nobody is sent anything there (RFC 2544); Kubernetes takes no loopback addresses.
        host = f"198.18.{number // 250}.{1 + number % 250}"
        return Instance(service, id or f"{service}-{number}", host, 7000, **facts)  # type: ignore[arg-type]

    return make
