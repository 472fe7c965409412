"""Text of instances and registries, where people and programs read it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from discovery.file import parse
from discovery.model import Instance, RegistryError, Update
from proxy.app import App
from proxy.cli.commands import cli
from proxy.events import encode
from proxy.process import _Lines
from proxy.visible import visible, visible_in
from tests.security.conftest import ask, request

ESCAPE = "\x1b[2J\x1b]0;title\x07"
HOSTILE = f'a{ESCAPE}\n2026 INFO forged\u202e\x9b"[red]</script>'
METADATA = {"version": f'v"}}\n{ESCAPE}', "x\n": "\x00"}


@pytest.fixture
def hostile(app: App) -> App:
    """A proxy that a registry has told of an instance with such a name."""
    instance = Instance("web", HOSTILE, "127.0.0.1", 1, metadata=METADATA)
    app._updated(Update("web", (instance,), app.plane.clock(), "test"))
    return app


def harmless(text: str) -> bool:
    """Nothing in it that a terminal would act upon."""
    return all(character.isprintable() or character == "\n" for character in text)


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible('ab ü 中文 \\ "') == 'ab ü 中文 \\ "'
    assert visible("\x1b[2J\n\x7f\x9b\u202e\u200b") == r"\u001b[2J\n\u007f\u009b\u202e\u200b"
    assert visible("a\nb\x07", keep="\n") == "a\nb\\u0007"
    assert json.loads(visible(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE
    assert visible_in({"\n": ["\x1b", {"a": "\x1b"}, 1, None]}) == {
        r"\n": [r"\u001b", {"a": r"\u001b"}, 1, None]
    }


@pytest.mark.parametrize(
    "verb",
    [
        ["instances"],
        ["instances", "web"],
        ["events"],
        ["status"],
        ["services"],
        ["split", "web"],
        ["explain", "/"],
        ["top", "--count", "1"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "as JSON"])
async def test_no_verb_hands_an_escape_sequence_to_the_terminal(
    hostile: App, verb: list[str], as_json: bool
) -> None:
    arguments = [*verb, "--admin", f"http://{hostile.admin_address}", *(["--json"] if as_json else [])]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments, color=False)
    assert done.exit_code == 0, done.output
    assert done.output.strip()
    # `top` draws with sequences of its own; what is left must not be the instance's.
    said = done.output.replace("\x1b[?25l", "").replace("\x1b[?25h", "") if verb[0] == "top" else done.output
    assert ESCAPE[:4] not in said
    assert harmless(said)
    if verb[0] == "instances" and as_json:
        assert visible(json.dumps(HOSTILE, ensure_ascii=False)) in done.stdout


async def test_a_name_that_nobody_has_is_quoted_harmlessly(hostile: App) -> None:
    arguments = ["drain", "web", "b\x1b[2J", "--admin", f"http://{hostile.admin_address}"]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    assert done.exit_code == 1
    assert harmless(done.output)


async def test_the_process_log_has_one_line_for_each_event(
    hostile: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hostile.events.emit("instance_added", instance=HOSTILE)
    (record,) = [record for record in caplog.records if "instance_added" in record.message]
    assert "\n" not in record.message
    assert harmless(record.message)


def test_a_record_of_several_lines_cannot_pass_for_several_records() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "one\n2026 INFO two\x1b[2J\r", None, None)
    assert _Lines("%(message)s").format(record) == r"one" + "\n" + r"  2026 INFO two\u001b[2J\r"


async def test_labels_of_metrics_are_what_they_are_and_nothing_more(hostile: App) -> None:
    scrape = await ask(hostile.admin_address, request("GET /metrics"))
    families = {family.name: family for family in text_string_to_metric_families(scrape.body.decode())}
    (sample,) = families["holdfast_instance_weight"].samples
    assert sample.labels == {"service": "web", "instance": HOSTILE, "version": METADATA["version"]}
    assert not [name for name in families if not name.startswith(("holdfast_", "process_"))]


async def test_event_streams_cannot_be_broken_by_what_is_in_an_event(hostile: App) -> None:
    answer = await ask(hostile.admin_address, request("GET /v1/events?follow=false"))
    events: list[dict[str, Any]] = json.loads(answer.body)["events"]
    assert HOSTILE in [event.get("instance") for event in events]
    assert not [event for event in events if b"\n" in encode(event)]


@pytest.mark.parametrize(
    "text",
    [
        '{"services": {"web": [{"address": "127.0.0.1:1", "id": "a\\ud800"}]}}',
        'services: {web: ["\\ud800:1"]}',
    ],
)
def test_half_a_character_is_no_name(text: str) -> None:
    """It could be written nowhere: no JSON, no log, no header."""
    try:
        found = parse(text.encode(), "instances")
    except RegistryError:
        return
    json.dumps([instance.id for instance in found["web"]], ensure_ascii=False).encode()
