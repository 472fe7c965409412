"""The paths that a request target may be read as (RFC 3986 section 6.2.2).

Pure. Why routes go by a normal form, and what is done about the other readings, is in docs/architecture.md.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from proxy.errors import ProxyError, Reason


def normal_path(path: bytes) -> bytes:
    """`path` as routes see it: percent-decoded but for `%2F`, without dot segments, doubled slashes or NUL.

    Instances differ in whether they decode and merge before they route. Matching on the normal form means
    that `/%61dmin`, `//admin` and `/x/../admin` all meet the route of `/admin`; the target itself is passed
    on as it came. Raises `ProxyError` for bad escapes, and for a path that climbs above its root.
    """
    return _resolved(_decoded(path))


def read_path(path: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The normal form of `path`, and the other paths that an instance may take it for.

    Those are, where they differ: the path with its dot segments, as an instance has it that resolves none;
    and the path with escaped slashes, backslashes and second escapes as slashes and without what follows a
    semicolon in a segment, as servlet containers and others read it. Raises `ProxyError` for what
    `normal_path` refuses, and for dot segments that only some of these readings have.
    """
    decoded = _decoded(path)
    normal = _resolved(decoded)
    others = []
    loose = unquote_to_bytes(normal).replace(b"\\", b"/")
    if b";" in loose:
        loose = re.sub(rb";[^/]*", b"", loose)
    if loose != normal:
        if b"\0" in loose or not _DOTS.isdisjoint(loose.split(b"/")):
            raise _bad("the path hides a dot segment, or a NUL")
        others.append(_resolved(loose))
    parts = decoded.split(b"/")
    if not _DOTS.isdisjoint(parts):
        if b"%2F" in decoded or b"\\" in decoded:
            raise _bad("the path has dot segments next to escaped slashes, or to backslashes")
        others.append(b"/" + b"/".join([part for part in parts if part]))
    return normal, tuple(others)


_DOTS = frozenset((b".", b".."))


def _decoded(path: bytes) -> bytes:
    if re.search(rb"%(?![0-9A-Fa-f]{2})|%00", path):
        raise _bad("the path has a malformed escape")
    return b"%2F".join(unquote_to_bytes(part) for part in re.split(rb"%2[fF]", path))


def _resolved(decoded: bytes) -> bytes:
    segments: list[bytes] = []
    parts = decoded.split(b"/")[1:]
    for part in parts:
        if part == b"..":
            if not segments:
                raise _bad("the path leads above the root")
            segments.pop()
        elif part and part != b".":
            segments.append(part)
    trailing = b"/" if segments and parts[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(segments) + trailing


def _bad(detail: str) -> ProxyError:
    return ProxyError(Reason.BAD_REQUEST, detail)
