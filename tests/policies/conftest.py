"""Request heads for the policies, made by the parser that the data plane uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.head import Limits, RequestHead, parse_request


@pytest.fixture
def request_head() -> Callable[..., RequestHead]:
    """`request_head("/path?x=1", "Cookie: a=b", method="GET", host="example.com")`."""

    def make(target: str = "/", *fields: str, method: str = "GET", host: str = "example.com") -> RequestHead:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]
        parsed = parse_request("\r\n".join(lines).encode("latin-1"), Limits(16384, 65536, 100))
        assert parsed is not None
        return parsed[0]

    return make
