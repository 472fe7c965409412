"""The proxies: how each is found, configured and started.

All do the same work: route `/ws` to one upstream and everything else to another, keep connections to both,
add X-Forwarded-For, -Proto and -Host and X-Request-Id where the proxy has them, write an access log to a
file, count metrics; one worker, one thread. What is not written here is the proxy's default.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "bench" / ".venv"
"""Where `make bench-tools` puts the proxies that come as Python packages."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a configuration has to name: ports on loopback, and a folder for the proxy's files."""

    port: int
    admin: int
    http: int
    echo: int
    folder: Path


class Peer(ABC):
    """One proxy."""

    name: str
    settings: str
    """Access log and metrics as configured, for the report."""

    def find(self) -> Path | None:
        """The program, or None if it is not on this machine."""
        path = os.pathsep.join([os.environ.get("PATH", ""), str(TOOLS / "bin"), "/usr/sbin"])
        found = shutil.which(self.name, path=path)
        return Path(found) if found else None

    @abstractmethod
    def files(self, place: Place) -> dict[str, str]:
        """Configuration files by name; the first is the one that the command is given."""

    @abstractmethod
    def command(self, program: Path, config: Path) -> list[str | Path]: ...

    def environment(self) -> dict[str, str]:
        return {}

    def version(self, program: Path) -> str:
        """What the program says of itself, cut down to the number; empty if it says none."""
        return _version([str(program), *self._version_flag])

    _version_flag: tuple[str, ...] = ("--version",)


def _version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else ""


class Holdfast(Peer):
    """This product, from a source tree: the working one, or another revision's."""

    name = "holdfast"
    settings = "JSON access log, metrics always on"

    def __init__(self, tree: Path = ROOT, name: str = "holdfast") -> None:
        self.tree, self.name = tree, name

    def find(self) -> Path | None:
        entry = (self.tree / "proxy" / "cli.py", self.tree / "proxy" / "cli" / "__init__.py")
        return Path(sys.executable) if any(file.exists() for file in entry) else None

    def files(self, place: Place) -> dict[str, str]:
        return {
            "holdfast.yaml": f"""\
listen:
  - address: "127.0.0.1:{place.port}"
admin: {{address: "127.0.0.1:{place.admin}"}}
access_log: {{path: "{place.folder}/access.log"}}
services:
  http: {{instances: ["127.0.0.1:{place.http}"]}}
  echo: {{instances: ["127.0.0.1:{place.echo}"]}}
routes:
  - {{match: {{path: /ws}}, service: echo}}
  - {{match: {{path: /}}, service: http}}
"""
        }

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "-c", "from proxy.cli import main; main()", "run", "-c", config]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.tree)}

    def version(self, program: Path) -> str:
        described = subprocess.run(
            ["git", "-C", str(self.tree), "describe", "--always", "--dirty", "--tags"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return described.stdout.strip()


class Nginx(Peer):
    name = "nginx"
    settings = "JSON access log, buffer=64k flush=1s; stub_status"
    _version_flag = ("-v",)

    def files(self, place: Place) -> dict[str, str]:
        return {
            "nginx.conf": f"""\
daemon off;
pid {place.folder}/nginx.pid;
error_log stderr warn;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    log_format json escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'
        '"uri":"$request_uri","status":$status,"bytes":$body_bytes_sent,"seconds":$request_time,'
        '"upstream":"$upstream_addr","id":"$request_id"}}';
    access_log {place.folder}/access.log json buffer=64k flush=1s;
    client_body_temp_path {place.folder}/body;
    proxy_temp_path {place.folder}/proxy;
    fastcgi_temp_path {place.folder}/fastcgi;
    uwsgi_temp_path {place.folder}/uwsgi;
    scgi_temp_path {place.folder}/scgi;
    tcp_nodelay on;
    upstream http {{ server 127.0.0.1:{place.http}; keepalive 64; }}
    upstream echo {{ server 127.0.0.1:{place.echo}; }}
    server {{
        listen 127.0.0.1:{place.port} backlog=4096;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $host;
        proxy_set_header X-Request-Id $request_id;
        proxy_set_header Connection "";
        location / {{ proxy_pass http://http; }}
        location /ws {{
            proxy_pass http://echo;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
        }}
    }}
    server {{
        listen 127.0.0.1:{place.admin};
        access_log off;
        location / {{ stub_status; }}
    }}
}}
"""
        }

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "-e", "stderr", "-p", config.parent, "-c", config]


class Haproxy(Peer):
    name = "haproxy"
    settings = "httplog to a file through stdout; statistics"
    _version_flag = ("-v",)

    def files(self, place: Place) -> dict[str, str]:
        return {
            "haproxy.cfg": f"""\
global
    nbthread 1
    maxconn 8000
    log stdout format raw local0
defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout server 60s
    timeout tunnel 1h
    timeout http-request 10s
frontend web
    bind 127.0.0.1:{place.port} backlog 4096
    log global
    option httplog
    option forwardfor
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend echo if {{ path_beg /ws }}
    default_backend http
frontend metrics
    bind 127.0.0.1:{place.admin}
    stats enable
    stats uri /
backend http
    server origin 127.0.0.1:{place.http}
backend echo
    server origin 127.0.0.1:{place.echo}
"""
        }

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "-db", "-f", config]


class Envoy(Peer):
    name = "envoy"
    settings = "JSON access log to a file; statistics on the admin listener"

    def find(self) -> Path | None:
        # The package's own command is Python that replaces itself; the start would be measured with it.
        packed = sorted(TOOLS.glob("lib/python3*/site-packages/envoy/_bin/envoy"))
        return packed[0] if packed else super().find()

    def files(self, place: Place) -> dict[str, str]:
        filters = "type.googleapis.com/envoy.extensions.filters"
        loggers = "type.googleapis.com/envoy.extensions.access_loggers"
        return {
            "envoy.yaml": f"""\
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {place.admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {place.port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          use_remote_address: true
          upgrade_configs: [{{upgrade_type: websocket}}]
          access_log:
          - name: file
            typed_config:
              "@type": {loggers}.file.v3.FileAccessLog
              path: {place.folder}/access.log
              log_format:
                json_format:
                  time: "%START_TIME%"
                  method: "%REQ(:METHOD)%"
                  path: "%REQ(:PATH)%"
                  status: "%RESPONSE_CODE%"
                  bytes: "%BYTES_SENT%"
                  duration: "%DURATION%"
                  upstream: "%UPSTREAM_HOST%"
                  id: "%REQ(X-REQUEST-ID)%"
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {filters}.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: /ws}}, route: {{cluster: echo, timeout: 0s}}}}
              - {{match: {{prefix: /}}, route: {{cluster: http, timeout: 30s}}}}
  clusters:
{self._cluster("http", place.http)}
{self._cluster("echo", place.echo)}
"""
        }

    @staticmethod
    def _cluster(name: str, port: int) -> str:
        # The default circuit breaker allows 1,024 connections, fewer than there are tunnels.
        return f"""\
  - name: {name}
    connect_timeout: 1s
    circuit_breakers: {{thresholds: [{{max_connections: 8192, max_requests: 8192}}]}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"""

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]


class Caddy(Peer):
    name = "caddy"
    settings = "JSON access log to a file; metrics on"
    _version_flag = ("version",)

    def files(self, place: Place) -> dict[str, str]:
        return {
            "Caddyfile": f"""\
{{
    admin 127.0.0.1:{place.admin}
    auto_https off
    persist_config off
    storage file_system {place.folder}
    metrics
    log {{
        level ERROR
        exclude http.log.access
    }}
}}
http://:{place.port} {{
    bind 127.0.0.1
    log {{
        output file {place.folder}/access.log
        format json
        level INFO
    }}
    request_header X-Request-Id {{http.request.uuid}}
    handle /ws* {{
        reverse_proxy 127.0.0.1:{place.echo}
    }}
    handle {{
        reverse_proxy 127.0.0.1:{place.http} {{
            transport http {{
                keepalive_idle_conns_per_host 64
            }}
        }}
    }}
}}
"""
        }

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, "run", "--config", config, "--adapter", "caddyfile"]

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}


class Traefik(Peer):
    name = "traefik"
    settings = "JSON access log to a file, bufferingSize 100; Prometheus metrics"
    _version_flag = ("version",)

    def files(self, place: Place) -> dict[str, str]:
        return {
            "traefik.yaml": f"""\
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
entryPoints:
  web: {{address: "127.0.0.1:{place.port}"}}
  metrics: {{address: "127.0.0.1:{place.admin}"}}
providers: {{file: {{filename: "{place.folder}/routes.yaml", watch: false}}}}
accessLog: {{filePath: "{place.folder}/access.log", format: json, bufferingSize: 100}}
metrics: {{prometheus: {{entryPoint: metrics}}}}
""",
            "routes.yaml": f"""\
http:
  routers:
    echo: {{rule: "PathPrefix(`/ws`)", service: echo, entryPoints: [web]}}
    http: {{rule: "PathPrefix(`/`)", service: http, entryPoints: [web]}}
  services:
    echo: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{place.echo}"}}]}}}}
    http: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{place.http}"}}]}}}}
""",
        }

    def command(self, program: Path, config: Path) -> list[str | Path]:
        return [program, f"--configfile={config}"]

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}


def all_peers() -> list[Peer]:
    """Every proxy that the benchmark knows, in the order of the table."""
    return [Holdfast(), Nginx(), Haproxy(), Envoy(), Traefik(), Caddy()]
