"""Who is let in."""

from __future__ import annotations

import pytest

from proxy.admin.guard import Refused, admit

TOKEN = "admin: {token: s3cret-ü}\n"


def code(method: str, headers: dict[str, str], **facts: object) -> str:
    usual = {"token": None, "unix": False, "public": False, "body": False, **facts}
    try:
        admit(method, headers, **usual)
    except Refused as refused:
        return refused.code
    return "admitted"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:9900", "admitted"),
        ("LOCALHOST", "admitted"),
        ("127.0.0.1:9900", "admitted"),
        ("127.1.2.3", "admitted"),
        ("[::1]:9900", "admitted"),
        ("proxy.localhost", "admitted"),
        ("evil.example:9900", "forbidden_host"),
        ("localhost.evil.example", "forbidden_host"),
        ("10.0.0.1", "forbidden_host"),
        ("[::1", "forbidden_host"),
        ("evil.example@localhost:x", "admitted"),
    ],
)
def test_without_a_token_only_loopback_names_are_answered(host, expected):
    assert code("GET", {"Host": host}) == expected


def test_a_unix_socket_answers_under_any_name():
    assert code("GET", {"Host": "evil.example"}, unix=True) == "admitted"


def test_with_a_token_the_name_does_not_matter():
    headers = {"Host": "proxy.example", "Authorization": "Bearer t"}
    assert code("GET", headers, token="t") == "admitted"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "unauthorized"),
        ("", "unauthorized"),
        ("Bearer", "unauthorized"),
        ("Bearer wrong", "unauthorized"),
        ("Bearer s3cre", "unauthorized"),
        ("Basic s3cret", "unauthorized"),
        ("s3cret", "unauthorized"),
        ("Bearer s3cret", "admitted"),
        ("bearer  s3cret", "admitted"),
    ],
)
def test_a_token_must_be_carried_whole(given, expected):
    headers = {"Host": "x"} | ({"Authorization": given} if given is not None else {})
    assert code("GET", headers, token="s3cret") == expected


def test_what_is_public_needs_no_token():
    assert code("GET", {"Host": "x"}, token="t", public=True) == "admitted"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "admitted"),
        ({"Origin": "http://localhost:9900"}, "admitted"),
        ({"Origin": "http://LOCALHOST:9900"}, "admitted"),
        ({"Origin": "http://localhost:8000"}, "foreign_origin"),
        ({"Origin": "http://evil.example"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "same-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "same-origin"}, "admitted"),
        ({"Sec-Fetch-Site": "none"}, "admitted"),
    ],
)
def test_changes_come_from_no_other_site(headers, expected):
    assert code("POST", {"Host": "localhost:9900", **headers}) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": "http://evil.example"}, "foreign_origin"),
        ({"Origin": "http://[evil"}, "foreign_origin"),
        ({"Origin": "http://localhost"}, "admitted"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "admitted"),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, "admitted"),
    ],
)
def test_pages_of_other_sites_may_link_here_and_nothing_else(headers, expected):
    assert code("GET", {"Host": "localhost", **headers}) == expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", "admitted"),
        ("Application/JSON; charset=utf-8", "admitted"),
        ("text/plain", "unsupported_media_type"),
        ("application/jsonx", "unsupported_media_type"),
        ("", "unsupported_media_type"),
    ],
)
def test_a_body_is_json_and_says_so(content_type, expected):
    assert code("PUT", {"Host": "localhost", "Content-Type": content_type}, body=True) == expected


async def test_without_the_token_the_api_is_401_with_a_challenge(start):
    control, api = await start(TOKEN)
    for path in ("/v1/status", "/metrics", "/openapi.json", "/v1/config"):
        response = await api.get(path)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await response.json())["error"] == "unauthorized"
    assert (await api.post("/v1/reload")).status == 401
    assert not [event for event in control.events.since(0) if event["kind"] == "admin_change"]


async def test_page_and_probes_are_open_with_a_token_set(start):
    _, api = await start(TOKEN)
    for path in ("/", "/dashboard/main.js", "/healthz", "/readyz"):
        assert (await api.get(path)).status == 200


async def test_a_rebound_name_gets_nothing_at_all(api):
    for path in ("/v1/status", "/", "/healthz"):
        response = await api.get(path, headers={"Host": "evil.example"})
        assert response.status == 403
        assert (await response.json())["error"] == "forbidden_host"


async def test_a_token_changed_by_a_reload_holds_at_once(start):
    control, api = await start("admin: {token: old}\n")
    control.file = "admin: {token: new}\n"
    assert (await api.post("/v1/reload", headers={"Authorization": "Bearer old"})).status == 200
    assert (await api.get("/v1/status", headers={"Authorization": "Bearer old"})).status == 401
    assert (await api.get("/v1/status", headers={"Authorization": "Bearer new"})).status == 200
