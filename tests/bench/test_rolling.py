"""The rolling restart: what is counted, when what is done, and that every proxy is treated alike."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from bench import report
from bench.children import BenchError, Cores, free_ports
from bench.conversation import Books, Client, Conversation, ask, noting_reuse, summary
from bench.operators import Ground, Operator, all_operators
from bench.rolling import BEGIN, DOCUMENT, END, Fleet, Load, cell, choose, remarks, schedule, table

GROUND = Ground(8080, 9900, (9001, 9002, 9003), Path("/var/lib/bench"))


def talk(*steps: tuple[str, float]) -> Conversation:
    """`say`: due and sent; `miss`: due without a connection; a number: its echo. Each with its time."""
    conversation = Conversation()
    for what, now in steps:
        if what in ("say", "miss"):
            number = conversation.due(now)
            if what == "say":
                conversation.said(number)
        else:
            conversation.heard(int(what), now)
    return conversation


def test_a_calm_conversation_has_nothing_to_tell() -> None:
    calm = talk(("say", 0.0), ("0", 0.25), ("say", 1.0), ("1", 1.125))
    calm.end(2.0)
    assert (calm.sent, calm.lost, calm.doubled, calm.reordered, calm.longest) == (2, 0, 0, 0, 0.25)


def test_a_message_without_an_echo_is_lost_and_one_that_was_not_sent_is_not() -> None:
    conversation = talk(("say", 0.0), ("miss", 1.0), ("say", 2.0), ("2", 2.5))
    assert (conversation.sent, conversation.lost) == (2, 1)


def test_a_pause_lasts_from_when_a_message_was_due_to_the_next_echo_whatever_it_answers() -> None:
    dropped = talk(
        ("say", 0.0), ("miss", 1.0), ("miss", 2.0), ("say", 3.0), ("3", 3.5), ("say", 4.0), ("4", 4.1)
    )
    assert dropped.longest == 3.5


def test_a_pause_that_never_ends_lasts_to_the_end() -> None:
    silent = talk(("say", 0.0), ("0", 0.1), ("say", 1.0))
    silent.end(5.0)
    assert silent.longest == 4.0 and silent.lost == 1


def test_a_second_echo_is_doubled_and_a_late_one_is_out_of_order_and_not_lost() -> None:
    conversation = talk(("say", 0.0), ("say", 1.0), ("1", 1.5), ("0", 1.6), ("0", 1.7), ("1", 1.8))
    assert (conversation.lost, conversation.reordered, conversation.doubled) == (0, 1, 2)


def test_the_summary_adds_up_what_all_saw() -> None:
    books = Books()
    books.answered(200, 0.5)
    books.answered(503, 9.0)
    books.failed("reset")
    books.drops.append("closed 1001")
    one, other = talk(("say", 0.0), ("0", 0.5)), talk(("say", 0.0), ("say", 1.0), ("1", 3.0))
    found = summary(books, [one, other])
    assert (found["requests"], found["failed"], found["slowest"]) == (3, 2, 0.5)
    assert (found["dropped"], found["messages"], found["lost"], found["pause"]) == (1, 3, 1, 3.0)


def test_every_instance_is_announced_ended_started_and_back_before_the_next_and_then_one_is_killed() -> None:
    load = Load()
    steps, over = schedule(load)
    life = ["leave", "terminate", "start", "back"]
    assert [(step.what, step.instance) for step in steps] == [
        *((what, instance) for instance in range(3) for what in life),
        ("kill", 0),
        ("start", 0),
    ]
    times = [step.at for step in steps]
    assert times == sorted(times) and times[0] == load.warm and over > times[-1]
    assert times[1] - times[0] == load.lead


def test_a_cell_shows_the_range_where_rounds_differ() -> None:
    assert cell("failed", [3, 3, 3]) == "3"
    assert cell("lost", [12, 9, 1500]) == "12 (9–1,500)"
    assert cell("pause", [0.5, 0.25, 0.31]) == "0.31 (0.25–0.50)"


def test_the_table_has_a_row_per_proxy_and_the_remarks_what_it_leaves_out() -> None:
    fine = {"failed": [0], "dropped": [0], "lost": [0], "pause": [0.4], "slowest": [0.1], "doubled": [0],
            "reordered": [0], "refused": [0], "late": [0.0]}  # fmt: skip
    poor = fine | {"dropped": [120], "doubled": [7], "late": [0.9]}
    lines = table({"one": fine, "another": poor}).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["", "-------", "one", "another"]
    assert len({len(line) for line in lines}) == 1 and "120" in lines[3]
    doubled, late = remarks({"one": fine, "another": poor})
    assert doubled.startswith("another: up to 7 messages were answered twice")
    assert late.startswith("another: the load itself was up to 0.90 s late")


def test_proxies_are_chosen_by_name_and_holdfast_stands_for_both_of_its_modes() -> None:
    found, missing = choose(["holdfast"])
    assert [operator.name for operator in found] == ["holdfast migrate", "holdfast close"] and not missing
    with pytest.raises(BenchError, match="no such proxy: squid; there are"):
        choose(["squid", "nginx"])


@pytest.mark.parametrize("operator", all_operators(), ids=lambda operator: operator.name)
def test_every_proxy_has_the_same_instances_and_the_same_health_check(operator: Operator) -> None:
    text = "\n".join(operator.files(GROUND).values())
    assert all(str(port) in text for port in GROUND.instances)
    if operator.name != "nginx":  # which has none in its open-source version
        assert "/readyz" in text
        assert "500ms" in text or "interval: 0.5s" in text


@pytest.mark.parametrize("name", ["nginx", "envoy", "traefik", "caddy"])
def test_where_leaving_is_said_in_a_file_it_names_that_instance_and_no_other(name: str) -> None:
    (operator,) = (each for each in all_operators() if each.name == name)
    before, away = operator.files(GROUND), operator.files(GROUND, 1)
    assert before != away
    changed = [
        (one, other) for one, other in zip(before.values(), away.values(), strict=True) if one != other
    ]
    assert len(changed) == 1
    first, second = (set(text.split()) for text in changed[0])
    assert not any("9001" in word or "9003" in word for word in first ^ second)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    (operator,) = (each for each in all_operators() if each.name == "traefik")
    ground = Ground(8080, 9900, (9001, 9002, 9003), tmp_path)
    assert operator.write(ground) == tmp_path / "traefik.yaml"
    assert "9002" in (tmp_path / "routes.yaml").read_text()
    operator.write(ground, 1)
    assert "9002" not in (tmp_path / "routes.yaml").read_text()
    assert not list(tmp_path.glob("*.new"))


def test_the_documents_markers_are_there() -> None:
    assert "x" in report.replace_section(DOCUMENT.read_text(), "x", BEGIN, END)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_instance_closes_with_1001_and_ends_and_its_client_counts_that(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    books = Books()
    with Fleet([port], tmp_path, Cores.of_machine().load) as fleet:
        await fleet.ready(0)
        async with aiohttp.ClientSession() as session:
            client = Client(0, f"http://127.0.0.1:{port}/ws", session, books)
            living = asyncio.ensure_future(client.live())
            stop = asyncio.Event()
            talking = asyncio.ensure_future(client.talk(stop))
            await until(lambda: client.conversation.longest)
            fleet.signal(0, signal.SIGTERM)
            await fleet.ended(0)
            await until(lambda: books.refused)
            stop.set()
            await client.leave()
            living.cancel()
            await asyncio.gather(living, talking, return_exceptions=True)
    assert books.drops == ["closed 1001"]


async def test_a_killed_instance_starts_again_in_its_place(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Fleet([port], tmp_path, Cores.of_machine().load) as fleet:
        await fleet.ready(0)
        fleet.signal(0, signal.SIGKILL)
        await fleet.ended(0)
        fleet.start(0)
        await fleet.ready(0)


@pytest.mark.parametrize("when", ["kept alive", "new"])
async def test_a_request_is_asked_again_only_when_its_connection_had_been_used_before(when: str) -> None:
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await reader.readuntil(b"\r\n\r\n")
        if when == "kept alive":
            answered += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
        writer.close()

    books = Books()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, aiohttp.ClientSession(trace_configs=[noting_reuse()]) as session:
        for _ in range(3):
            await ask(session, url, books)
    if when == "new":
        assert len(books.failures) == books.requests == 3
    else:
        assert (books.failures, books.requests, answered) == ([], 3, 3)
