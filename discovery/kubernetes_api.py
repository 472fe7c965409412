"""Reads of the Kubernetes API: who and where we are, one list in pages, one watch as a stream of events.

Source: Kubernetes API concepts, "Retrieving large results sets in chunks", "Efficient detection of changes";
"Accessing the Kubernetes API from a Pod".
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from config.registries import KubernetesRegistry, RegistryTLS
from discovery.model import RegistryError
from discovery.transport import ssl_context

LISTING = 60.0
"""Seconds for all pages of one list."""
PAGE = 100
"""Slices in one page: 3 MB of slices with 100 endpoints each."""
LONGEST_LINE = 16 << 20
"""Bytes of one event. etcd holds no object above 1.5 MB."""

Events = list[tuple[str, dict[str, Any]]]
"""`ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`, each with its object, which has metadata."""


class Expired(Exception):
    """The server no longer has the version that was asked for (410 Gone)."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and who we are there."""

    base: str
    tls: RegistryTLS
    namespace: str
    family: str
    """Address type to prefer: that of the cluster's own address, which is its first family."""
    given: str
    file: Path | None

    def token(self) -> str:
        """The bearer token as it is now; empty when there is none."""
        if self.file is None:
            return self.given
        try:
            return self.file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(f"token: {self.file}: {error}") from error

    @property
    def identity(self) -> str:
        """For messages."""
        if self.file is not None:
            return f"the token in {self.file}"
        return "the token" if self.given else "nobody (no token is set)"


def access_of(registry: KubernetesRegistry, environ: Mapping[str, str], account: Path) -> Access:
    """What the section says, else what a pod is given. An address in the section takes nothing from the pod:
    the service account's token is for no other server."""
    given = registry.token.get_secret_value().strip() if registry.token else ""
    file = Path(registry.token_file) if registry.token_file else None
    if registry.address is not None:
        base, namespace = registry.address.rstrip("/"), registry.namespace or "default"
        return Access(base, registry.tls, namespace, "IPv4", given, file)
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT") or "443"
    if not host:
        raise RegistryError("not in a Kubernetes cluster (no KUBERNETES_SERVICE_HOST): set `address`")
    try:
        namespace = registry.namespace or (account / "namespace").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RegistryError(f"{account}: {error.strerror}; is automountServiceAccountToken off?") from error
    tls = registry.tls
    if tls.ca is None:
        tls = tls.model_copy(update={"ca": str(account / "ca.crt")})
    if not given and file is None:
        file = account / "token"
    ipv6 = _is_ipv6(host)
    base = f"https://[{host}]:{port}" if ipv6 else f"https://{host}:{port}"
    return Access(base, tls, namespace, "IPv6" if ipv6 else "IPv4", given, file)


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


class Api:
    """The API server as far as it is needed: reads of EndpointSlices."""

    def __init__(self, session: aiohttp.ClientSession, access: Access, grace: float) -> None:
        self.base = access.base
        self._session = session
        self._access = access
        self._grace = grace
        secure = access.base.startswith("https://")
        self._ssl = ssl_context(access.tls) if secure else True

    async def listing(self, namespace: str, selector: str) -> tuple[str, list[Any]]:
        """All slices, page by page, and the version to watch from."""
        items: list[Any] = []
        query = {"labelSelector": selector, "limit": str(PAGE)}
        try:
            async with asyncio.timeout(LISTING):
                while True:
                    async with self._get(namespace, query) as response:
                        page = self._parsed(await response.read())
                    try:
                        items += page["items"] or []
                        version, more = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
                    except (KeyError, TypeError) as error:
                        raise RegistryError(f"{self.base}: not a list of EndpointSlices") from error
                    if not more:
                        return str(version), items
                    query["continue"] = str(more)
        except TimeoutError:
            raise RegistryError(f"{self.base}: no whole list in {LISTING:g} s") from None

    async def watch(
        self, namespace: str, selector: str, version: str, seconds: int
    ) -> AsyncGenerator[Events, None]:
        """What happens after `version`, as it comes: the events of each read, until the server ends it, which
        it is asked to do after `seconds`."""
        query = {
            "labelSelector": selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        due = asyncio.get_running_loop().time() + seconds + self._grace
        async with self._get(namespace, query) as response:
            lines = Lines()
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        data = await response.content.readany()
                except TimeoutError:
                    late = f"a watch of {seconds} s did not end in time"
                    raise RegistryError(f"{self.base}: {late}; is the server frozen?") from None
                if not data:
                    return
                try:
                    events = [self._event(line) for line in lines.feed(data)]
                except ValueError as error:
                    raise RegistryError(f"{self.base}: {error}") from None
                if events:
                    yield events

    def _event(self, line: bytes) -> tuple[str, dict[str, Any]]:
        event = self._parsed(line)
        kind, item = event.get("type"), event.get("object")
        if not isinstance(item, dict):
            raise RegistryError(f"{self.base}: not an event of a watch: {_excerpt(line)}")
        if kind == "ERROR":
            if item.get("code") == 410:
                raise Expired
            raise RegistryError(f"{self.base}: the watch failed: {_excerpt(line)}")
        if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not isinstance(
            item.get("metadata"), dict
        ):
            raise RegistryError(f"{self.base}: not an event of a watch: {_excerpt(line)}")
        return kind, item

    @asynccontextmanager
    async def _get(self, namespace: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer when it is 200. Its head must come within the grace; the caller bounds the rest."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        url = URL(self.base + path, encoded=True).extend_query(query)
        headers = {"Accept": "application/json"}
        # Read each time: it is replaced long before it expires.
        if token := self._access.token():
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with asyncio.timeout(self._grace):
                response = await self._session.get(
                    url,
                    headers=headers,
                    ssl=self._ssl,
                    server_hostname=self._access.tls.server_name,
                    timeout=aiohttp.ClientTimeout(total=None),
                    allow_redirects=False,
                )
        except TimeoutError:
            raise RegistryError(f"{self.base}: no answer in {self._grace:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(f"{self.base}: {str(error) or type(error).__name__}") from error
        try:
            if response.status != 200:
                await self._refused(response, namespace)
            yield response
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise RegistryError(f"{self.base}: {str(error) or type(error).__name__}") from error
        finally:
            response.close()

    async def _refused(self, response: aiohttp.ClientResponse, namespace: str) -> None:
        said = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                said = await response.content.read(4096)
        match response.status:
            case 410:
                raise Expired
            case 401:
                raise RegistryError(f"{self.base}: {self._access.identity} is not accepted (status 401)")
            case 403:
                raise RegistryError(
                    f"{self.base}: {self._access.identity} may not `list` and `watch` `endpointslices` "
                    f"of `discovery.k8s.io` in the namespace {namespace} (status 403): {_excerpt(said)}"
                )
            case status:
                raise RegistryError(f"{self.base}: status {status}: {_excerpt(said)}")

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise RegistryError(f"{self.base}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise RegistryError(f"{self.base}: not an object of the Kubernetes API: {_excerpt(text)}")
        return data


class Lines:
    """Cuts a stream into lines, however it was cut into reads. Raises `ValueError` for one without an end."""

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without empty ones."""
        *ended, rest = data.split(b"\n")
        if ended:
            ended[0] = b"".join((*self._begun, ended[0]))
            self._begun, self._size = [], 0
        self._begun.append(rest)
        self._size += len(rest)
        if self._size > self._longest:
            raise ValueError(f"an event of more than {self._longest} bytes")
        return [line for line in ended if line.strip()]


def _excerpt(text: bytes) -> str:
    try:
        status = orjson.loads(text)
        message = status.get("message") or status["object"]["message"]
        return str(message)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return " ".join(text[:200].decode(errors="replace").split())
