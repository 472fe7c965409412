"""Who may ask what: decided from the method and the header fields alone.

The admin API is reached from browsers too, so it must hold against pages that the operator happens to visit:
by name tricks (DNS rebinding), and by requests in the operator's name (cross-site request forgery).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FOREIGN = frozenset({"cross-site", "same-site"})


class Refused(Exception):
    """An answer above 399: its status, code, sentence and further fields."""

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more


def admit(
    method: str, headers: Mapping[str, str], *, token: str | None, unix: bool, public: bool, body: bool
) -> None:
    """Let a request pass, or raise `Refused`.

    `token` is the one it must carry, None when none is set; `unix`: it came over a unix socket; `public`: it
    is for something that everybody may see; `body`: it has one.
    """
    host = headers.get("Host", "")
    if _is_foreign(method, headers, host):
        raise Refused(403, "foreign_origin", "pages of other sites are not answered")
    if token is None and not unix and host and not _is_loopback(host):
        raise Refused(403, "forbidden_host", f"without a token only loopback names are answered, not {host}")
    if token is not None and not public and not _carries(headers.get("Authorization", ""), token):
        challenge = {"WWW-Authenticate": 'Bearer realm="holdfast"'}
        given = "a wrong one was given" if "Authorization" in headers else "none was given"
        raise Refused(401, "unauthorized", f"this API wants a bearer token; {given}", challenge)
    if method in _SAFE:
        return
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if body and content_type != "application/json":
        raise Refused(415, "unsupported_media_type", "a body must be application/json")


def _is_foreign(method: str, headers: Mapping[str, str], host: str) -> bool:
    """Whether a page of another site asks. A link on one that somebody follows is no question of that page.

    Answers to reading are kept from such a page by the browser, but it could still use up event streams, and
    measure. Fetch Metadata (W3C) says so on its own; `Origin` where a browser does not know that.
    """
    origin = headers.get("Origin")
    if origin is not None and _site(origin) != host.lower():
        return True
    is_link = method in _SAFE and headers.get("Sec-Fetch-Mode", "").lower() == "navigate"
    return headers.get("Sec-Fetch-Site", "").lower() in _FOREIGN and not is_link


def _site(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _carries(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # Both sides of the comparison have a length that does not depend on where they differ.
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return scheme.lower() == "bearer" and same
