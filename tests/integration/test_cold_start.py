"""A start with several registries, in this process: when it says that it is ready."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.load import read
from discovery.watch import Supervisor
from proxy.app import App
from tests.discovery.conftest import until


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that waits for a silent registry for as long as the test does."""
    original = Supervisor.__init__

    def init(self: Supervisor, *args: object, **options: object) -> None:
        original(self, *args, **options, patience=60.0)  # type: ignore[arg-type]

    monkeypatch.setattr(Supervisor, "__init__", init)


@pytest.mark.usefixtures("patient")
async def test_a_start_is_not_ready_when_only_the_first_of_two_registries_has_answered(
    tmp_path: Path,
) -> None:
    second = tmp_path / "second.yaml"
    config = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "access_log": {"path": str(tmp_path / "access.log")},
        "registry": [
            {"kind": "embedded", "listen": "127.0.0.1:0"},
            {"kind": "file", "path": str(second)},
        ],
        "services": {"web": {}},
        "routes": [{"match": {"path": "/"}, "service": "web"}],
    }
    app = App(read(json.dumps(config).encode(), source="test.yaml", environ={}))
    try:
        await app.start()
        await until(lambda: app.table.services["web"].known)
        assert app.unready() == ["not every registry has answered yet for web: 1-file"]
        second.write_text("services: {web: ['127.0.0.1:9']}")
        await until(lambda: app.unready() == [])
        assert app.table.services["web"].pool.ready
    finally:
        await app.close()
