"""The metrics that documents, alerts and the dashboard name are those that a proxy exports."""

from __future__ import annotations

import re

from chat.metrics import Metrics
from tests.docs.conftest import ROOT, dashboard, documents

ROW = re.compile(r"^\| (`[a-z_`, ]+`) \| *(\w*) *\| *([^|]*?) *\|", re.M)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Metrics of docs/metrics.md with kind and labels; the section on instances adds its own to each."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.M):
        common = {"service", "instance", "version"} if section.startswith("Instances") else set()
        for names, kind, labels in ROW.findall(section):
            for name in re.findall(r"\w+", names):
                found[name] = (kind, common | set(re.findall(r"\w+", labels)))
    return found


def base(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def test_the_list_of_metrics_is_complete_and_right(exported: dict[str, set[str]]) -> None:
    wanted = {
        name: labels for name, (_, labels) in documented().items() if not name.startswith("holdfast_chat")
    }
    assert wanted.keys() == {base(name) for name in exported}
    for name, labels in exported.items():
        if labels:
            assert wanted[base(name)] == labels, name


def test_the_list_of_the_chats_metrics_is_complete() -> None:
    metrics = Metrics("i", "v")
    for name in ("sessions", "queue"):
        metrics.watch(name, name, lambda: 0.0)
    text = metrics.render().decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    exists = {name for name in kinds if not name.endswith("_created")}
    assert {name for name in documented() if name.startswith("holdfast_chat")} == exists


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:holdfast|process)_\w+", expression))


def test_alerts_ask_for_metrics_that_exist(exported: dict[str, set[str]]) -> None:
    (rules,) = documents(ROOT / "deploy/prometheus/rules.yaml")
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    named = set().union(*map(names_in, expressions))
    assert named
    assert named <= exported.keys()


def test_the_dashboard_asks_for_metrics_that_exist(exported: dict[str, set[str]]) -> None:
    shown = dashboard()
    expressions = [target["expr"] for panel in shown["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in shown["templating"]["list"]]
    named = set().union(*map(names_in, expressions))
    assert len(named) > 10
    assert named <= exported.keys()


def test_expressions_use_labels_that_exist(exported: dict[str, set[str]]) -> None:
    (rules,) = documents(ROOT / "deploy/prometheus/rules.yaml")
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    known = set().union(*(labels for _, labels in documented().values())) | {
        "le",
        "job",
        "instance",
        "exported_instance",
    }
    for expression in expressions:
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= known, expression
