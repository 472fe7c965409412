"""The documents, and what a running proxy exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from config.load import read
from proxy.app import App

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    return list(YAML(typ="safe").load_all(path.read_text(encoding="utf-8")))


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
async def exported() -> dict[str, set[str]]:
    """Names of samples that a real process exports, with their labels; histograms by their three names.

    Families that have no samples yet are there by the names that their samples will have.
    """
    text = """
listen: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
registry: {kind: embedded, listen: "127.0.0.1:0"}
access_log: none
services: {web: {instances: [{address: "127.0.0.1:1", id: a}, {address: "127.0.0.1:1", id: b}]}}
routes: [{service: web}]
shutdown: 1s
"""
    app = App(read(text.encode(), source="docs.yaml", environ={}))
    try:
        await app.start()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{app.addresses[0]}/"):
                pass
            async with session.get(f"http://{app.admin_address}/metrics") as answer:
                scrape = await answer.text()
        await app.drain()
    finally:
        await app.close()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(set(sample.labels) - {"le"})
        for name in _sample_names(family.name, family.type):
            found.setdefault(name, set())
    return found


def _sample_names(name: str, kind: str) -> list[str]:
    if kind == "counter":
        return [f"{name}_total"]
    return [f"{name}_bucket", f"{name}_count", f"{name}_sum"] if kind == "histogram" else [name]
