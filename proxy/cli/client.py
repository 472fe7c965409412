"""A client of the admin API on the standard library: quick to import, over TCP or a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from proxy.visible import visible_in

DEFAULT_PORT = 9900


class AdminError(Exception):
    """The proxy said no, or nobody was there. The message is one line for the operator.

    `status` is the answer's, 0 when there was none. `problems` are those of a configuration, one line each.
    """

    def __init__(self, message: str, status: int = 0, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems


class AdminClient:
    """Speaks to one admin API. A connection per call: nothing to keep, nothing to leak.

    Raises `ValueError` when `address` is none.
    """

    def __init__(
        self, address: str, token: str | None = None, timeout: float = 10.0, *, raw: bool = False
    ) -> None:
        """`raw`: texts in answers are as they are; otherwise they are fit to be shown on a terminal."""
        if token is not None and not token.isprintable():
            raise ValueError("HOLDFAST_ADMIN_TOKEN holds a line break or another character that no token has")
        self.address = address
        self._token = token
        self._timeout = timeout
        self._raw = raw
        self._path, self._host, self._port, self._secure = _parse(address)

    def get(self, path: str, /, **query: str | list[str]) -> Any:
        """What a GET answers, decoded. `None` values are not possible: leave the name out."""
        return self._call("GET", path + ("?" + urlencode(query, doseq=True) if query else ""))

    def send(self, method: str, path: str, body: object = None) -> Any:
        """Change something; the answer, decoded."""
        return self._call(method, path, body)

    def stream(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a server-sent stream, until it ends."""
        connection = self._connect(timeout=60.0)
        try:
            answer = self._ask(connection, "GET", path, None, "text/event-stream")
            if answer.status != 200:
                raise self._refusal(answer, answer.read())
            while line := self._read(answer):
                if line.startswith(b"data:"):
                    yield self._decoded(line[5:])
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.readline()
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"the event stream of {self.address} broke off: {error}") from None

    def _call(self, method: str, path: str, body: object = None) -> Any:
        connection = self._connect(self._timeout)
        try:
            answer = self._ask(connection, method, path, body, "application/json")
            try:
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise AdminError(f"the answer of {self.address} broke off: {error}") from None
            if answer.status >= 300:
                raise self._refusal(answer, content)
            try:
                return self._decoded(content)
            except ValueError:
                raise self._stranger(answer) from None
        finally:
            connection.close()

    def _decoded(self, content: bytes) -> Any:
        found = json.loads(content)
        return found if self._raw else visible_in(found)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: object, accept: str
    ) -> http.client.HTTPResponse:
        headers = {"Accept": accept}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, payload, headers)
            return connection.getresponse()
        except TimeoutError:
            raise AdminError(f"no answer from {self.address} within {self._timeout:g} s") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise AdminError(
                f"no proxy answers at {self.address}: {reason} (another address: --admin or HOLDFAST_ADMIN)"
            ) from None
        except http.client.HTTPException:
            raise AdminError(f"what answers at {self.address} does not speak HTTP") from None

    def _refusal(self, answer: http.client.HTTPResponse, content: bytes) -> AdminError:
        try:
            said = visible_in(json.loads(content))
            _, detail = said["error"], str(said["detail"])
            problems = tuple(str(problem) for problem in said.get("problems", ()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._stranger(answer)
        if answer.headers.get("Server") == "holdfast":
            return self._stranger(answer)  # a listener for clients: the admin API does not call itself that
        if answer.status == 401:
            detail += " (HOLDFAST_ADMIN_TOKEN)"
        return AdminError(detail, answer.status, problems)

    def _stranger(self, answer: http.client.HTTPResponse) -> AdminError:
        """Somebody else's answer: what there is to know of who that is."""
        server = visible_in(answer.headers.get("Server"))
        if server == "holdfast":
            found = "a holdfast listener for clients"
        else:
            kind = (
                answer.headers.get_content_type() if "Content-Type" in answer.headers else "no content type"
            )
            found = f"{server or 'a server without a name'}, with {kind}"
        return AdminError(
            f"what answers at {self.address} is not a holdfast admin API: status {answer.status} "
            f"from {found} (another address: --admin or HOLDFAST_ADMIN)"
        )

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._path:
            return _UnixConnection(self._path, timeout)
        if self._secure:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def segment(name: str) -> str:
    """A name as one path segment: ids may hold `/`, `:` and anything else."""
    return quote(name, safe="")


def _parse(address: str) -> tuple[str, str, int, bool]:
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address.removeprefix("unix:"), "", 0, False
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or port == -1 or parts.path not in ("", "/") or not parts.netloc:
        raise ValueError(
            f"{address!r} is not an admin address; write host:port, http://host:port or unix:/path"
        )
    secure = parts.scheme == "https"
    if port is None:
        port = DEFAULT_PORT if "://" not in address else (443 if secure else 80)
    return "", parts.hostname or "127.0.0.1", port, secure
