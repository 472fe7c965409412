"""How each proxy is configured and operated when the instances behind it are restarted one after another.

Every operator does the same two steps around each restart: `leave`, some time before the instance gets
SIGTERM, and `back`, when the new one answers. How, is what the proxy's own manual offers for it; the class
says which part of it. What all have in common is equal: a health check on /readyz every 500 ms with a timeout
of 1 s and two failures, an instance that refuses connections passed over before that, 1 s to connect, at most
three tries of a request, the least busy instance first. What is not written here is the proxy's default.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.children import BenchError
from bench.peers import Caddy, Envoy, Haproxy, Holdfast, Nginx, Peer, Traefik

_STEP = 5.0
"""Seconds in which a proxy must have taken a step of its operator."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a proxy runs, and its instances: ports on loopback."""

    port: int
    admin: int
    instances: tuple[int, ...]
    folder: Path


class Operator(ABC):
    """One proxy and whoever operates it."""

    name: str
    peer: Peer
    how: str
    """The two steps, for the report."""

    @abstractmethod
    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        """Configuration files by name, the first being the one that the command is given.

        `away`: the instance that is leaving, where that is said in a file.
        """

    @abstractmethod
    async def leave(self, ground: Ground, instance: int) -> None:
        """An instance, by its index, is about to be restarted."""

    @abstractmethod
    async def back(self, ground: Ground, instance: int) -> None:
        """It has been, and is ready."""

    def write(self, ground: Ground, away: int | None = None) -> Path:
        """Writes the files, each replaced in one step; returns the first."""
        for name, text in self.files(ground, away).items():
            beside = ground.folder / f"{name}.new"
            beside.write_text(text)
            beside.replace(ground.folder / name)
        return ground.folder / next(iter(self.files(ground)))


async def _run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_STEP):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BenchError(f"{command[0]} did not come to an end") from None
    if process.returncode:
        raise BenchError(f"{command[0]} failed: {output.decode(errors='replace').strip()[-400:]}")


async def _post(url: str, body: str, kind: str) -> None:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_STEP)) as session,
        session.post(url, data=body, headers={"Content-Type": kind}) as answer,
    ):
        if answer.status >= 300:
            raise BenchError(f"{url} answered {answer.status}: {(await answer.text())[-400:]}")


class ByHoldfast(Operator):
    """`holdfast drain` and `holdfast undrain`, through the admin API (docs/runbooks.md)."""

    how = "POST …/instances/ID/drain and undrain"

    def __init__(self, mode: str) -> None:
        self.name, self.mode = f"holdfast {mode}", mode
        self.peer = Holdfast()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        websocket = "{on_drain: migrate, replay: true}" if self.mode == "migrate" else "{on_drain: close}"
        instances = ", ".join(
            f'{{id: i{n}, address: "127.0.0.1:{port}"}}' for n, port in enumerate(ground.instances)
        )
        return {
            "holdfast.yaml": f"""\
listen:
  - address: "127.0.0.1:{ground.port}"
admin: {{address: "127.0.0.1:{ground.admin}"}}
access_log: {{path: "{ground.folder}/access.log"}}
services:
  app:
    instances: [{instances}]
    balance: least_conn
    websocket: {websocket}
    drain: {{timeout: 10s, jitter: 1s}}
    health: {{path: /readyz, interval: 500ms, timeout: 1s, healthy: 1, unhealthy: 2}}
    retry: {{attempts: 2}}
    timeout: {{connect: 1s}}
routes:
  - {{match: {{path: /}}, service: app}}
"""
        }

    async def leave(self, ground: Ground, instance: int) -> None:
        await self._say(ground, instance, "drain")

    async def back(self, ground: Ground, instance: int) -> None:
        await self._say(ground, instance, "undrain")

    async def _say(self, ground: Ground, instance: int, verb: str) -> None:
        url = f"http://127.0.0.1:{ground.admin}/v1/services/app/instances/i{instance}/{verb}"
        await _post(url, "{}", "application/json")


class ByNginx(Operator):
    """The server is marked `down` in its upstream and the configuration reloaded, and the same backwards.

    "Controlling nginx" (nginx.org/en/docs/control.html) has the reload, ngx_http_upstream_module `down`,
    `least_conn`, `keepalive` and `max_fails`, ngx_http_proxy_module `proxy_next_upstream`, and "WebSocket
    proxying" (docs/http/websocket.html) the two headers. Active health checks are not in the open-source
    version. `worker_shutdown_timeout` stays unset, so that no reload cuts a WebSocket.
    """

    name = "nginx"
    how = "`down` in the upstream, `nginx -s reload`"
    peer = Nginx()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        servers = "\n".join(
            f"        server 127.0.0.1:{port}{' down' if n == away else ' max_fails=2 fail_timeout=1s'};"
            for n, port in enumerate(ground.instances)
        )
        folder = ground.folder
        return {
            "nginx.conf": f"""\
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream app {{
        least_conn;
{servers}
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{ground.port} backlog=4096;
        proxy_http_version 1.1;
        proxy_connect_timeout 1s;
        proxy_next_upstream error timeout http_502 http_503;
        proxy_next_upstream_tries 3;
        location / {{
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
        }}
        location /ws {{
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
        }}
    }}
    server {{
        listen 127.0.0.1:{ground.admin};
        location / {{ stub_status; }}
    }}
}}
"""
        }

    async def leave(self, ground: Ground, instance: int) -> None:
        await self._reload(ground, instance)

    async def back(self, ground: Ground, instance: int) -> None:
        await self._reload(ground, None)

    async def _reload(self, ground: Ground, away: int | None) -> None:
        config = self.write(ground, away)
        program = self.peer.find()
        assert program is not None
        await _run(*self.peer.command(program, config), "-s", "reload")


class ByHaproxy(Operator):
    """The server is set to `drain` through the runtime API, and to `ready` again.

    Management Guide section 9.3, `set server … state`: `drain` takes the server out of load balancing while
    it is still checked. Configuration Manual: `option httpchk`, `option redispatch`, `retries`, `observe`,
    and `retry-on` with its advice to keep it from requests that must not be repeated.
    """

    name = "haproxy"
    how = "`set server app/ID state drain` and `ready` on the runtime API"
    peer = Haproxy()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        servers = "\n".join(f"    server i{n} 127.0.0.1:{port}" for n, port in enumerate(ground.instances))
        return {
            "haproxy.cfg": f"""\
global
    nbthread 1
    maxconn 8000
    log stdout format raw local0 notice
    stats socket {ground.folder}/admin.sock mode 600 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout server 60s
    timeout tunnel 1h
    timeout http-request 10s
frontend web
    bind 127.0.0.1:{ground.port} backlog 4096
    log global
    option forwardfor
    default_backend app
frontend metrics
    bind 127.0.0.1:{ground.admin}
    stats enable
    stats uri /
backend app
    balance leastconn
    option httpchk GET /readyz
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless METH_GET
    timeout check 1s
    default-server check inter 500ms fall 2 rise 1 observe layer4 error-limit 3 on-error mark-down
{servers}
"""
        }

    async def leave(self, ground: Ground, instance: int) -> None:
        await self._say(ground, f"set server app/i{instance} state drain")

    async def back(self, ground: Ground, instance: int) -> None:
        await self._say(ground, f"set server app/i{instance} state ready")

    async def _say(self, ground: Ground, words: str) -> None:
        async with asyncio.timeout(_STEP):
            reader, writer = await asyncio.open_unix_connection(ground.folder / "admin.sock")
            writer.write(f"{words}\n".encode())
            answer = (await reader.read()).strip()
            writer.close()
        if answer:
            raise BenchError(f"the runtime API answered {answer.decode(errors='replace')[:200]}")


class ByEnvoy(Operator):
    """The endpoint's `health_status` becomes DRAINING in the file that EDS watches, and HEALTHY again.

    envoyproxy.io/docs, "Configuration: Dynamic from filesystem": files take effect when they are moved into
    place; "Service discovery" and "Health checking": EDS and active checks go together; "Outlier detection";
    "HTTP routing", retry semantics and the host selection that avoids `previous_hosts`. Two of its defaults
    are for larger clusters: at most 10 % of the hosts are ejected, none of three, and at most three retries
    are under way at once ("Circuit breaking"). Both are raised.
    """

    name = "envoy"
    how = "`health_status: DRAINING` in the EDS file, moved into place"
    peer = Envoy()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        retry = """{
                retry_on: "connect-failure,refused-stream,reset,gateway-error", num_retries: 2,
                host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: previous, typed_config: {
                "@type": type.googleapis.com/PREVIOUS}}]}""".replace(
            "PREVIOUS", "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        )
        return {
            "envoy.yaml": f"""\
node: {{id: bench, cluster: bench}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ground.admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {ground.port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/{manager}
          stat_prefix: web
          use_remote_address: true
          upgrade_configs: [{{upgrade_type: websocket}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              retry_policy: {retry}
              routes:
              - {{match: {{prefix: /ws}}, route: {{cluster: app, timeout: 0s}}}}
              - {{match: {{prefix: /}}, route: {{cluster: app, timeout: 30s}}}}
  clusters:
  - name: app
    type: EDS
    eds_cluster_config: {{eds_config: {{path_config_source: {{path: {ground.folder}/eds.json}}}}}}
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    outlier_detection: {{consecutive_5xx: 3, base_ejection_time: 5s, max_ejection_percent: 50}}
    circuit_breakers: {{thresholds: [{{max_connections: 8192, max_requests: 8192, max_retries: 1024}}]}}
    health_checks:
    - timeout: 1s
      interval: 0.5s
      unhealthy_threshold: 2
      healthy_threshold: 1
      http_health_check: {{path: /readyz}}
""",
            "eds.json": self._endpoints(ground, away),
        }

    @staticmethod
    def _endpoints(ground: Ground, away: int | None) -> str:
        endpoints = [
            {
                "health_status": "DRAINING" if n == away else "HEALTHY",
                "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
            }
            for n, port in enumerate(ground.instances)
        ]
        kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
        resource = {"@type": kind, "cluster_name": "app", "endpoints": [{"lb_endpoints": endpoints}]}
        return json.dumps({"version_info": str(away), "resources": [resource]}, indent=1)

    async def leave(self, ground: Ground, instance: int) -> None:
        self.write(ground, instance)

    async def back(self, ground: Ground, instance: int) -> None:
        self.write(ground)


class ByTraefik(Operator):
    """The server leaves the list in the file that the file provider watches, and comes back into it.

    doc.traefik.io: the "File" provider with `watch`; "Service Load Balancer", `healthCheck`,
    `passiveHealthCheck`, and `strategy: p2c`, the nearest to the least busy; the "Retry" middleware, with its
    example's backoff of 100 ms.
    """

    name = "traefik"
    how = "taken out of and put back into the file provider's list"
    peer = Traefik()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        servers = ", ".join(
            f'{{url: "http://127.0.0.1:{port}"}}' for n, port in enumerate(ground.instances) if n != away
        )
        return {
            "traefik.yaml": f"""\
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
entryPoints:
  web: {{address: "127.0.0.1:{ground.port}"}}
  metrics: {{address: "127.0.0.1:{ground.admin}"}}
providers: {{file: {{filename: "{ground.folder}/routes.yaml", watch: true}}}}
metrics: {{prometheus: {{entryPoint: metrics}}}}
""",
            "routes.yaml": f"""\
http:
  routers:
    app: {{rule: "PathPrefix(`/`)", service: app, entryPoints: [web], middlewares: [again]}}
  middlewares:
    again: {{retry: {{attempts: 3, initialInterval: 100ms}}}}
  serversTransports:
    quick: {{forwardingTimeouts: {{dialTimeout: 1s}}}}
  services:
    app:
      loadBalancer:
        strategy: p2c
        serversTransport: quick
        healthCheck: {{path: /readyz, interval: 500ms, timeout: 1s}}
        passiveHealthCheck: {{failureWindow: 1s, maxFailedAttempts: 2}}
        servers: [{servers}]
""",
        }

    async def leave(self, ground: Ground, instance: int) -> None:
        self.write(ground, instance)

    async def back(self, ground: Ground, instance: int) -> None:
        self.write(ground)


class ByCaddy(Operator):
    """A configuration without the instance is loaded through the admin API, and one with it again.

    caddyserver.com/docs: "API", `POST /load` ("graceful"); reverse_proxy: `lb_policy least_conn`,
    `lb_try_duration`, without which nothing is tried again, active health checks, passive ones with
    `fail_duration`, and `stream_close_delay`, without which each load closes every WebSocket.
    """

    name = "caddy"
    how = "`POST /load` of a configuration without and with it"
    peer = Caddy()

    def files(self, ground: Ground, away: int | None = None) -> dict[str, str]:
        upstreams = " ".join(f"127.0.0.1:{port}" for n, port in enumerate(ground.instances) if n != away)
        return {
            "Caddyfile": f"""\
{{
    admin 127.0.0.1:{ground.admin}
    auto_https off
    persist_config off
    storage file_system {ground.folder}
    metrics
    log {{
        level ERROR
    }}
}}
http://:{ground.port} {{
    bind 127.0.0.1
    reverse_proxy {upstreams} {{
        lb_policy least_conn
        lb_retries 2
        lb_try_duration 5s
        health_uri /readyz
        health_interval 500ms
        health_timeout 1s
        health_fails 2
        fail_duration 1s
        stream_close_delay 1h
        transport http {{
            dial_timeout 1s
            keepalive_idle_conns_per_host 64
        }}
    }}
}}
"""
        }

    async def leave(self, ground: Ground, instance: int) -> None:
        await self._load(ground, instance)

    async def back(self, ground: Ground, instance: int) -> None:
        await self._load(ground, None)

    async def _load(self, ground: Ground, away: int | None) -> None:
        text = self.files(ground, away)["Caddyfile"]
        await _post(f"http://127.0.0.1:{ground.admin}/load", text, "text/caddyfile")


def all_operators() -> Sequence[Operator]:
    """Every contender, in the order of the table."""
    return (
        ByHoldfast("migrate"), ByHoldfast("close"), ByNginx(), ByHaproxy(), ByEnvoy(), ByTraefik(), ByCaddy()
    )  # fmt: skip
