"""The proxies under test, each configured as its own documentation advises for strangers at the door.

All have the same to do: `/admin` goes to one origin, everything else to another; WebSockets pass; heads,
bodies and origins that do not come to an end are given up after about a second; Via is sent where it can be.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import peers
from bench.children import child
from bench.peers import Peer, Place

_CLAIMS = (
    "forwarded",
    "x-real-ip",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-original-url",
    "x-rewrite-url",
)
"""Fields by which a stranger could say who it is and what it asked for."""


class StartError(Exception):
    """A proxy does not listen. The message has what it said."""


class Holdfast(peers.Holdfast):
    def files(self, place: Place) -> dict[str, str]:
        return {
            "holdfast.yaml": f"""\
listen:
  - address: "127.0.0.1:{place.port}"
admin: {{address: "unix:{place.folder}/admin.sock"}}
via: holdfast
timeout: {{header: 800ms, body: 800ms}}
services:
  public:
    instances: ["127.0.0.1:{place.http}"]
    timeout: {{response: 800ms, read: 300ms}}
    outlier: {{consecutive_failures: 1000000}}
  private:
    instances: ["127.0.0.1:{place.echo}"]
    timeout: {{response: 800ms, read: 300ms}}
    outlier: {{consecutive_failures: 1000000}}
  moving:
    instances: ["127.0.0.1:{place.http}"]
    outlier: {{consecutive_failures: 1000000}}
    websocket: {{on_drain: migrate}}
routes:
  - {{match: {{path: /admin}}, service: private}}
  - {{match: {{path: /moving}}, service: moving}}
  - {{match: {{path: /}}, service: public}}
"""
        }


class Nginx(peers.Nginx):
    def files(self, place: Place) -> dict[str, str]:
        return {
            "nginx.conf": f"""\
daemon off;
pid {place.folder}/nginx.pid;
error_log {place.folder}/error.log warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {place.folder}/body;
    proxy_temp_path {place.folder}/proxy;
    fastcgi_temp_path {place.folder}/fastcgi;
    uwsgi_temp_path {place.folder}/uwsgi;
    scgi_temp_path {place.folder}/scgi;
    client_header_timeout 1s;
    client_body_timeout 1s;
    send_timeout 1s;
    client_max_body_size 100m;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    map $http_via $via {{ default "$http_via, 1.1 nginx"; '' "1.1 nginx"; }}
    upstream public {{ server 127.0.0.1:{place.http} max_fails=0; keepalive 16; }}
    upstream private {{ server 127.0.0.1:{place.echo} max_fails=0; keepalive 16; }}
    server {{
        listen 127.0.0.1:{place.port};
        proxy_http_version 1.1;
        proxy_read_timeout 1s;
        proxy_set_header Host $http_host;
        proxy_set_header Via $via;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header Forwarded "";
        proxy_set_header X-Forwarded-Port "";
        proxy_set_header X-Forwarded-Prefix "";
        proxy_set_header X-Original-URL "";
        proxy_set_header X-Rewrite-URL "";
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        location / {{ proxy_pass http://public; }}
        location /admin {{ return 404; }}
        location = /admin {{ proxy_pass http://private; }}
        location /admin/ {{ proxy_pass http://private; }}
        location ~ ^/admin[^/] {{ proxy_pass http://public; }}
    }}
}}
"""
        }


class Haproxy(peers.Haproxy):
    def files(self, place: Place) -> dict[str, str]:
        return {
            "haproxy.cfg": f"""\
global
    nbthread 1
    expose-experimental-directives
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
    timeout tunnel 10s
    timeout http-request 1s
    option http-restrict-req-hdr-names delete
frontend web
    bind 127.0.0.1:{place.port}
    http-request normalize-uri fragment-strip
    http-request normalize-uri percent-decode-unreserved strict
    http-request normalize-uri path-merge-slashes
    http-request normalize-uri path-strip-dot
    http-request normalize-uri path-strip-dotdot full
    http-request del-header Forwarded
    http-request del-header X-Real-IP
    http-request del-header X-Forwarded-Port
    http-request del-header X-Forwarded-Prefix
    http-request del-header X-Original-URL
    http-request del-header X-Rewrite-URL
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request add-header Via "1.1 haproxy"
    use_backend private if {{ path /admin }} or {{ path_beg /admin/ }}
    default_backend public
backend public
    server origin 127.0.0.1:{place.http}
backend private
    server origin 127.0.0.1:{place.echo}
"""
        }


class Envoy(peers.Envoy):
    def files(self, place: Place) -> dict[str, str]:
        filters = "type.googleapis.com/envoy.extensions.filters"
        return {
            "envoy.yaml": f"""\
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {place.admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {place.port}}}}}
    per_connection_buffer_limit_bytes: 32768
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          use_remote_address: true
          via: envoy
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT
          common_http_protocol_options:
            idle_timeout: 75s
            headers_with_underscores_action: REJECT_REQUEST
          http_protocol_options: {{accept_http_10: true}}
          request_headers_timeout: 1s
          stream_idle_timeout: 1s
          upgrade_configs: [{{upgrade_type: websocket}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {filters}.http.router.v3.Router}}
          route_config:
            request_headers_to_remove: [{", ".join(_CLAIMS)}]
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{path_separated_prefix: /admin}}
                route: {{cluster: private, timeout: 10s, idle_timeout: 1s}}
              - match: {{prefix: /}}
                route: {{cluster: public, timeout: 10s, idle_timeout: 1s}}
  clusters:
{self._cluster("public", place.http)}
{self._cluster("private", place.echo)}
"""
        }


class Caddy(peers.Caddy):
    def files(self, place: Place) -> dict[str, str]:
        removed = "\n".join(f"    request_header -{name}" for name in _CLAIMS)
        upstream = "{ transport http { response_header_timeout 1s read_timeout 1s } }"
        upstream = upstream.replace("{ ", "{\n").replace(" }", "\n}").replace("1s read", "1s\nread")
        return {
            "Caddyfile": f"""\
{{
    admin 127.0.0.1:{place.admin}
    auto_https off
    persist_config off
    storage file_system {place.folder}
    log {{
        level FATAL
    }}
    servers {{
        timeouts {{
            read_header 1s
            read_body 1s
        }}
    }}
}}
http://:{place.port} {{
    bind 127.0.0.1
{removed}
    @private path /admin /admin/*
    handle @private {{
        reverse_proxy 127.0.0.1:{place.echo} {upstream}
    }}
    handle {{
        reverse_proxy 127.0.0.1:{place.http} {upstream}
    }}
}}
"""
        }


class Traefik(peers.Traefik):
    def files(self, place: Place) -> dict[str, str]:
        removed = ", ".join(f'{name}: ""' for name in _CLAIMS if name != "x-real-ip")
        return {
            "traefik.yaml": f"""\
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: FATAL}}
entryPoints:
  web:
    address: "127.0.0.1:{place.port}"
    transport: {{respondingTimeouts: {{readTimeout: 1s}}}}
providers: {{file: {{filename: "{place.folder}/routes.yaml", watch: false}}}}
""",
            "routes.yaml": f"""\
http:
  middlewares: {{via: {{headers: {{customRequestHeaders: {{Via: "1.1 traefik", {removed}}}}}}}}}
  routers:
    private:
      rule: "Path(`/admin`) || PathPrefix(`/admin/`)"
      service: private
      entryPoints: [web]
      middlewares: [via]
    public: {{rule: "PathPrefix(`/`)", service: public, entryPoints: [web], middlewares: [via]}}
  services:
    private:
      loadBalancer: {{serversTransport: short, servers: [{{url: "http://127.0.0.1:{place.echo}"}}]}}
    public:
      loadBalancer: {{serversTransport: short, servers: [{{url: "http://127.0.0.1:{place.http}"}}]}}
  serversTransports:
    short: {{forwardingTimeouts: {{responseHeaderTimeout: 1s}}}}
""",
        }


def everybody() -> list[Peer]:
    """All of them, in the order of the table."""
    return [Holdfast(), Nginx(), Haproxy(), Envoy(), Caddy(), Traefik()]


_given: set[int] = set()
_giving = threading.Lock()


def free_port() -> int:
    """A port below 32768, never twice: above are those that the kernel gives to connections."""
    for port in range(18_000 + os.getpid() % 8_000, 32_768):
        with _giving, socket.socket() as probe:
            if port in _given:
                continue
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise StartError("no port is free")


@contextmanager
def running(peer: Peer, public: int, private: int, folder: Path) -> Iterator[int]:
    """Start a proxy in front of two origins, and end it. Gives its port; raises `StartError`."""
    program = peer.find()
    if program is None:
        raise StartError(f"{peer.name} is not installed")
    port = free_port()
    place = Place(port, free_port(), public, private, folder)
    files = peer.files(place)
    for name, text in files.items():
        (folder / name).write_text(text)
    said = folder / "output"
    command = peer.command(program, folder / next(iter(files)))
    cores = frozenset(os.sched_getaffinity(0))
    with child(command, cores=cores, log=said, cwd=folder, env=peer.environment()) as process:
        until = time.monotonic() + 30
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise StartError(f"{peer.name} does not listen: {said.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield port
        if process.poll() is not None:
            raise StartError(f"{peer.name} has died: {said.read_text(errors='replace')[-2000:]}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
