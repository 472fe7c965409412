"""The documents, and what a running proxy exports."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from config.load import read
from proxy.app import App

ROOT = Path(__file__).parent.parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    return list(YAML(typ="safe").load_all(path.read_text(encoding="utf-8")))


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))
    return loaded


CONFIG = """
listen: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
registry: {kind: embedded, listen: "127.0.0.1:0"}
access_log: none
services: {web: {instances: [{address: "127.0.0.1:1", id: a}, {address: "127.0.0.1:1", id: b}]}}
routes: [{service: web}]
shutdown: 1s
"""


@pytest.fixture
async def app() -> AsyncIterator[App]:
    """A real proxy in this loop. Nothing answers behind it, so its requests fail, which is counted too."""
    app = App(read(CONFIG.encode(), source="docs.yaml", environ={}))
    try:
        await app.start()
        yield app
        await app.drain()
    finally:
        await app.close()


@pytest.fixture
async def exported(app: App) -> dict[str, set[str]]:
    """Names of the samples that a process exports, with their labels; a histogram's by its three names.

    A family that has no samples yet is there, without labels, by the names that its samples will have.
    """
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{app.addresses[0]}/") as failed:
            assert failed.status == 502
        async with session.get(f"http://{app.admin_address}/metrics") as answer:
            scrape = await answer.text()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scrape):
        for name in _sample_names(family.name, family.type):
            found.setdefault(name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(set(sample.labels) - {"le"})
    return found


@pytest.fixture
async def described(app: App) -> dict[str, list[str]]:
    """The admin API's methods by path, as it describes itself."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{app.admin_address}/openapi.json") as answer,
    ):
        paths = (await answer.json())["paths"]
    return {path: list(methods) for path, methods in paths.items()}


def _sample_names(name: str, kind: str) -> list[str]:
    if kind == "counter":
        return [f"{name}_total"]
    return [f"{name}_bucket", f"{name}_count", f"{name}_sum"] if kind == "histogram" else [name]
