"""Every case of the conformance table, against the proxy as it is started in production."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.case import Case
from tests.conformance.driver import Driver
from tests.conformance.proxies import Holdfast, running
from tests.conformance.table import CASES


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(quiet=0.006, patience=15.0)
    folder: Path = tmp_path_factory.mktemp("proxy")
    try:
        with running(Holdfast(), driver.public_port, driver.private_port, folder) as port:
            driver.port = port
            driver.wait_until_open()
            yield driver
    finally:
        driver.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_requirement_holds(driver: Driver, case: Case) -> None:
    seen, wrong = driver.play(case)
    assert not wrong, f"{case.requirement}; the client got {bytes(seen.clients[0].data)!r:.300}"


def test_every_case_has_a_name_of_its_own_and_there_are_enough() -> None:
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []
    assert len(CASES) >= 150
