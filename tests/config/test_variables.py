"""`${NAME}` inside values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.load import ConfigError, read
from config.schema import Config
from config.variables import expand, protect, restore

ENVIRON = {"A": "1", "B": "two words", "EMPTY": "", "NESTED": "${A}"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x", "x"),
        ("${A}", "1"),
        ("-${A}-${B}-", "-1-two words-"),
        ("${GONE:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${A:-d}", "1"),
        ("${GONE:-}", ""),
        ("${GONE:-${A}}", "1"),
        ("${GONE:-a${GONE:-b${A}}c}", "ab1c"),
        ("${A:-${GONE}}", "1"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${GONE:-$${x}", "${x"),
        ("$A $ {A} a}", "$A $ {A} a}"),
        ("${NESTED}", "${A}"),
        ("${GONE:-[::1]:80}", "[::1]:80"),
    ],
)
def test_references_are_replaced(text: str, value: str) -> None:
    assert expand(text, ENVIRON) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${GONE}", "the environment variable GONE is not set; ${GONE:-…} has a default"),
        ("${EMPTY:-${GONE}}", "the environment variable GONE is not set"),
        ("${}", "must be followed by the name"),
        ("${1A}", "must be followed by the name"),
        ("${A", "does not end in }"),
        ("${A-b}", "does not end in }"),
        ("${A:-b", "has no closing brace"),
        ("${A:-" * 40, "must be followed by the name"),
    ],
)
def test_references_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        expand(text, ENVIRON)
    assert message in str(caught.value)


@given(st.text())
def test_text_without_references_stays(text: str) -> None:
    assert expand(text.replace("${", ""), {}) == text.replace("${", "")


@given(st.text(alphabet="${}AB:-'\"\\ \n,[]#x"))
def test_protection_keeps_every_character_in_its_place(text: str) -> None:
    hidden = protect(text)
    assert len(hidden) == len(text)
    assert restore(hidden) == text
    assert hidden.count("\n") == text.count("\n")


def config(text: str, **environ: str) -> Config:
    return read(text.encode(), source="f.yaml", environ=environ)


def token(text: str, **environ: str) -> str | None:
    secret = config(text, **environ).admin.token
    return None if secret is None else secret.get_secret_value()


@pytest.mark.parametrize(
    "text",
    [
        "admin:\n  token: ${T}",
        "admin: {token: ${T}}",
        "admin: {token: '${T}'}",
        'admin: {token: "${T}"}',
        'admin: {"token": "${T}"}',
    ],
)
def test_a_reference_works_wherever_a_value_may_stand(text: str) -> None:
    assert token(text, T="a: {b} #c") == "a: {b} #c"


def test_a_default_may_have_characters_that_mean_something_to_yaml() -> None:
    made = config("listen: [{address: ${ADDRESS:-[::1]:80}}, {address: ${OTHER:-:81}}]")
    assert [str(listen.address) for listen in made.listen] == ["[::1]:80", ":81"]


def test_a_plain_value_that_turns_out_empty_is_not_given_and_a_quoted_one_is_empty() -> None:
    assert token("admin: {token: ${T:-}}") is None
    assert token("admin: {token: ${T}}", T="") is None
    with pytest.raises(ConfigError, match="must not be empty"):
        token("admin: {token: '${T}'}", T="")


def test_numbers_and_durations_may_be_variables() -> None:
    made = config("limits: {connections: ${N}}\nshutdown: ${D}", N="7", D="1m")
    assert (made.limits.connections, made.shutdown) == (7, 60)


def test_keys_are_not_filled_in() -> None:
    with pytest.raises(ConfigError, match="is not a known key"):
        config("${K}: 1", K="shutdown")


def test_every_missing_variable_is_told_at_its_place_and_nothing_else_about_its_value() -> None:
    with pytest.raises(ConfigError) as caught:
        config("shutdown: ${X}\nadmin:\n  address: ${Y}\nroutes: [{service: ${Z}}]")
    assert str(caught.value).splitlines() == [
        "f.yaml:1:11: shutdown: the environment variable X is not set; ${X:-…} has a default",
        "f.yaml:3:12: admin.address: the environment variable Y is not set; ${Y:-…} has a default",
        "f.yaml:4:20: routes[0].service: the environment variable Z is not set; ${Z:-…} has a default",
    ]


@pytest.mark.parametrize("value", ["soon", "x1"])
def test_a_message_about_a_filled_in_value_shows_what_was_written(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config("shutdown: ${X}", X=value)
    assert str(caught.value) == (
        "f.yaml:1:11: shutdown: '${X}' is not a duration; write it as 250ms, 30s, 5m or 1h"
    )
