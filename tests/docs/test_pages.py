"""What the documents show can be loaded, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from chat.message import Bye, CallAgent, ErrorCode, Join, Say, Typing, parse
from chat.state import State
from config.load import load, read
from proxy.cli.commands import cli
from proxy.errors import Reason
from tests.docs.conftest import PAGES, ROOT, blocks, documents

ENVIRONMENT = {"HOLDFAST_ADMIN_TOKEN": "a-token", "STICKY_KEY": "a-key"}
SNIPPETS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_configuration_in_a_document_loads(text: str) -> None:
    config = read(text.encode(), source="snippet.yaml", environ=ENVIRONMENT)
    assert config.routes


@pytest.mark.parametrize(
    "path", ["deploy/holdfast.example.yaml", "deploy/holdfast.sidecar.yaml", "deploy/compose.holdfast.yaml"]
)
def test_a_configuration_to_deploy_loads(path: str) -> None:
    assert load(str(ROOT / path), environ=ENVIRONMENT).services


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_alerts_name_runbooks_that_exist() -> None:
    (rules,) = documents(ROOT / "deploy/prometheus/rules.yaml")
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert alerts
    for alert in alerts:
        name, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert anchor in anchors(ROOT / name), alert["alert"]


def test_every_reason_code_has_a_line_in_the_runbooks() -> None:
    text = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.M)
    assert {(code, int(status)) for code, status in rows} == {
        (reason.code, reason.status) for reason in Reason
    }


def test_the_commands_of_the_documents_exist() -> None:
    runner = CliRunner()
    found = set()
    for page in PAGES:
        found |= set(
            re.findall(r"(?<![\w/.-])holdfast ([a-z]+)(?= |`|$)", "\n".join(blocks(page, "sh")), re.M)
        )
    assert {"run", "check", "chat"} <= found
    for verb in sorted(found - {"chat"}):
        assert runner.invoke(cli, [verb, "--help"]).exit_code == 0, verb


def test_the_readme_shows_both_pictures_small_enough() -> None:
    pictures = sorted((ROOT / "docs/images").glob("*.png"))
    assert [picture.name for picture in pictures] == ["chat.png", "dashboard.png"]
    assert all(picture.stat().st_size < 200 << 10 for picture in pictures)


async def test_the_list_of_operations_is_that_of_the_admin_api(described: dict[str, list[str]]) -> None:
    text = (ROOT / "docs/admin-api.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", text, re.M))
    assert rows == {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}


def test_every_error_of_the_chat_has_a_line() -> None:
    text = (ROOT / "docs/chat.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", text, re.M)) == {str(code) for code in ErrorCode}
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.M)) == {str(state) for state in State}


def test_the_frames_shown_for_clients_are_understood() -> None:
    text = (ROOT / "docs/chat.md").read_text(encoding="utf-8")
    section = text.partition("### From the client")[2].partition("### From the server")[0]
    frames = re.findall(r"^\| `(\{.*?\})` \|", section, re.M)
    assert [type(parse(frame)) for frame in frames] == [Say, Typing, CallAgent, Join, Bye]
