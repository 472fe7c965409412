"""What a page on the internet can do to the faces of a proxy when an operator visits it: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.schema import Address
from proxy.app import App
from tests.security.conftest import Answer, ask, request

EVIL = "Origin: http://evil.example"
CROSS = "Sec-Fetch-Site: cross-site"
BROWSER = "Accept-Language: en"
JSON = "Content-Type: application/json"
WEB = Path(__file__).parents[2]


def registry(app: App) -> Address:
    return Address("127.0.0.1", int(app.registry_url.rpartition(":")[2]))


def refused(answer: Answer) -> bool:
    """A refusal that no page can read or show."""
    allowed = any(name.startswith("access-control-") for name in answer.fields)
    return answer.status in (403, 405, 415) and not allowed


@pytest.mark.parametrize(
    "raw",
    [
        request("POST /v1/reload", EVIL),
        request("POST /v1/reload", CROSS),
        request("POST /v1/reload", "Origin: null"),
        request("POST /v1/reload", EVIL, "Content-Type: text/plain", body=b"{}"),
        request("POST /v1/plan", EVIL, "Content-Type: text/plain", body=b'{"config": "a: b"}'),
        request("POST /v1/plan", "Content-Type: text/plain", body=b'{"config": "a: b"}'),
        request("POST /v1/plan", "Content-Type: multipart/form-data; boundary=x", body=b"--x--"),
        request("POST /v1/plan", "Content-Type: application/x-www-form-urlencoded", body=b"a=b"),
        request("POST /v1/leave", EVIL, JSON, body=b"{}"),
        request("GET /v1/reload", "X-HTTP-Method-Override: POST"),
        request("GET /v1/reload?_method=POST"),
        request("OPTIONS /v1/reload", EVIL, "Access-Control-Request-Method: POST"),
        request("GET /v1/prestop", BROWSER),
        request("GET /v1/prestop", "Sec-Fetch-Site: none"),
    ],
    ids=lambda raw: raw.decode().partition(" HTTP")[0],
)
async def test_a_page_changes_nothing_through_the_admin_api(app: App, raw: bytes) -> None:
    assert refused(await ask(app.admin_address, raw))
    kinds = [event["kind"] for event in app.events.since(0)]
    assert "admin_change" not in kinds
    assert app.unready() == []


@pytest.mark.parametrize("path", ["/v1/events", "/v1/config", "/metrics", "/", "/healthz"])
@pytest.mark.parametrize("mark", [EVIL, f"{CROSS}\r\nSec-Fetch-Mode: no-cors"], ids=["cors", "no-cors"])
async def test_a_page_cannot_even_ask_the_admin_api(app: App, path: str, mark: str) -> None:
    assert refused(await ask(app.admin_address, request(f"GET {path}", mark)))


@pytest.mark.parametrize("path", ["/v1/config", "/v1/events", "/metrics", "/", "/healthz"])
async def test_a_name_that_was_made_to_point_here_gets_nothing_from_the_admin_api(
    app: App, path: str
) -> None:
    raw = request(f"GET {path}", BROWSER, host="evil.example:9900")
    assert refused(await ask(app.admin_address, raw))


async def test_a_link_to_the_dashboard_can_be_followed(app: App) -> None:
    raw = request("GET /", CROSS, "Sec-Fetch-Mode: navigate", BROWSER)
    assert (await ask(app.admin_address, raw)).status == 200


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js", "/v1/status", "/nothing", "/metrics"])
async def test_no_answer_of_the_admin_api_is_framed_sniffed_or_embedded(app: App, path: str) -> None:
    fields = (await ask(app.admin_address, request(f"GET {path}"))).fields
    assert "frame-ancestors 'none'" in fields["content-security-policy"]
    assert fields["x-frame-options"] == "DENY"
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cross-origin-resource-policy"] == "same-origin"
    assert fields["server"] == "holdfast-admin"
    assert "unsafe" not in fields["content-security-policy"]


@pytest.mark.parametrize(
    "raw",
    [
        request("PUT /v1/kv/x", EVIL, body=b"1"),
        request("PUT /v1/kv/x", CROSS, body=b"1"),
        request("PUT /v1/kv/x", "Origin: null", body=b"1"),
        request("PUT /v1/kv/x", "Origin: http://evil.example:8500", host="evil.example:8500", body=b"1"),
        request("PUT /v1/agent/service/register", BROWSER, host="evil.example", body=b'{"Name": "x"}'),
        request("POST /v1/kv/x", "Content-Type: text/plain", body=b"1"),
        request("GET /v1/kv/x?recurse", EVIL),
        request("GET /v1/kv/?recurse", CROSS, "Sec-Fetch-Mode: no-cors"),
        request("GET /v1/kv/?recurse", BROWSER, host="evil.example:8500"),
        request("GET /v1/kv/?recurse", "Sec-Fetch-Site: same-origin", host="evil.example:8500"),
        request("GET /v1/agent/services", BROWSER, host="[::1"),
        request("OPTIONS /v1/kv/x", EVIL, "Access-Control-Request-Method: PUT"),
    ],
    ids=lambda raw: raw.decode().partition(" HTTP")[0],
)
async def test_a_page_neither_reads_nor_changes_the_registry(app: App, raw: bytes) -> None:
    await ask(registry(app), request("PUT /v1/kv/secret", body=b"CANARY"))
    answer = await ask(registry(app), raw)
    assert refused(answer)
    assert b"CANARY" not in answer.raw
    found = await ask(registry(app), request("GET /v1/kv/?recurse&keys"))
    assert found.body == b'["secret"]'


async def test_registrars_may_use_any_name_of_the_registry(app: App) -> None:
    assert (await ask(registry(app), request("GET /v1/agent/services", host="gateway:8500"))).status == 200


@pytest.mark.parametrize("path", ["/v1/health/state/<script>", "/<script>", "/v1/kv/page?raw"])
async def test_what_the_registry_answers_is_never_a_page(app: App, path: str) -> None:
    await ask(registry(app), request("PUT /v1/kv/page", body=b"<script>alert(1)</script>"))
    fields = (await ask(registry(app), request(f"GET {path}"))).fields
    assert not fields["content-type"].startswith("text/html")
    assert fields["x-content-type-options"] == "nosniff"
    assert "sandbox" in fields["content-security-policy"]


@pytest.mark.parametrize("folder", ["proxy/admin/web", "chat/web"])
def test_the_pages_make_no_markup_out_of_data(folder: str) -> None:
    """Ids, versions and messages come from others; and the policy of the pages forbids scripts in them."""
    sources = [*(WEB / folder).glob("*.js"), *(WEB / folder).glob("*.html")]
    assert len(sources) > 3
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert way not in text, source
        assert "javascript:" not in text
        assert " onclick=" not in text
