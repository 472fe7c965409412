"""The Consul HTTP API over a `Store`: requests in, Consul's answers out.

Every change is made synchronously and then settled (timers, checks, disk) by the server before it is
answered. Errors are plain text, as Consul's are: 400 for what cannot be understood, 403 for changes from
another site, 404 for unknown ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from aiohttp import web

from discovery.embedded import shapes
from discovery.embedded.definition import CheckStatus, check_definition, service_definition
from discovery.embedded.http import (
    answer,
    body,
    cut,
    flag,
    index_headers,
    integer,
    json_body,
    own_site_only,
    plain_errors,
    protect,
    refuse_filter,
    wait_time,
)
from discovery.embedded.store import Store
from discovery.embedded.topics import CHECKS, SERVICES, Kind, Topic

BODY_LIMIT = 512 * 1024
"""Bytes of a request body; more is 413 (Consul's limit for a value)."""


class Api:
    """Routes and handlers. `settle` is awaited after each change; `release` ends all blocking queries."""

    def __init__(
        self,
        store: Store,
        settle: Callable[[], Awaitable[None]],
        *,
        node_address: Callable[[], str],
        leader: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settle = settle
        self._node_address = node_address
        self._leader = leader
        self._clock = clock
        self._waiting: set[asyncio.Event] = set()
        self._released = False

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[plain_errors, own_site_only], client_max_size=BODY_LIMIT)
        app.on_response_prepare.append(protect)
        one = "{id:.+}"
        app.add_routes(
            [
                web.put("/v1/agent/service/register", self._register),
                web.put(f"/v1/agent/service/deregister/{one}", self._deregister),
                web.put(f"/v1/agent/service/maintenance/{one}", self._maintenance),
                web.put("/v1/agent/check/register", self._register_check),
                web.put(f"/v1/agent/check/deregister/{one}", self._deregister_check),
                web.put(f"/v1/agent/check/{{verdict:pass|warn|fail}}/{one}", self._ttl),
                web.put(f"/v1/agent/check/update/{one}", self._ttl_update),
                web.get("/v1/agent/services", self._agent_services),
                web.get(f"/v1/agent/service/{one}", self._agent_service),
                web.get("/v1/agent/checks", self._agent_checks),
                web.get("/v1/agent/self", self._agent_self),
                web.get("/v1/status/leader", self._status_leader),
                web.get("/v1/status/peers", self._status_peers),
                web.get("/v1/catalog/datacenters", self._datacenters),
                web.get("/v1/catalog/services", self._catalog_services),
                web.get(f"/v1/catalog/service/{one}", self._catalog_service),
                web.get(f"/v1/health/service/{one}", self._health_service),
                web.get(f"/v1/health/checks/{one}", self._health_checks),
                web.get("/v1/health/state/{state}", self._health_state),
                web.get("/v1/kv/{key:.*}", self._kv_get),
                web.put("/v1/kv/{key:.*}", self._kv_put),
                web.delete("/v1/kv/{key:.*}", self._kv_delete),
            ]
        )
        return app

    def release(self) -> None:
        """Answers every blocking query now, and further ones at once: the server is ending."""
        self._released = True
        for event in self._waiting:
            event.set()

    # -- agent ------------------------------------------------------------------------------------------

    async def _register(self, request: web.Request) -> web.Response:
        definition = service_definition(await json_body(request))
        replace = flag(request, "replace-existing-checks")
        self._store.register(definition, self._clock(), replace_checks=replace)
        return await self._done()

    async def _deregister(self, request: web.Request) -> web.Response:
        self._store.deregister(request.match_info["id"])
        return await self._done()

    async def _maintenance(self, request: web.Request) -> web.Response:
        if "enable" not in request.query:
            raise ValueError("Missing value for enable")
        enable, reason = flag(request, "enable"), request.query.get("reason", "")
        self._store.set_maintenance(request.match_info["id"], enable, reason, self._clock())
        return await self._done()

    async def _register_check(self, request: web.Request) -> web.Response:
        service_id, definition = check_definition(await json_body(request))
        self._store.add_check(service_id, definition, self._clock())
        return await self._done()

    async def _deregister_check(self, request: web.Request) -> web.Response:
        self._store.remove_check(request.match_info["id"])
        return await self._done()

    async def _ttl(self, request: web.Request) -> web.Response:
        verdicts = {"pass": CheckStatus.PASSING, "warn": CheckStatus.WARNING, "fail": CheckStatus.CRITICAL}
        status = verdicts[request.match_info["verdict"]]
        return await self._told(request, status, request.query.get("note", ""))

    async def _ttl_update(self, request: web.Request) -> web.Response:
        update = await json_body(request)
        if not isinstance(update, dict):
            raise ValueError("the body must be a JSON object")
        fields = {str(key).lower(): value for key, value in update.items()}
        status, output = fields.get("status", ""), fields.get("output", "")
        if status not in set(CheckStatus) or not isinstance(output, str):
            raise ValueError(f"Invalid check status: {status!r}; use passing, warning or critical")
        return await self._told(request, CheckStatus(status), output)

    async def _told(self, request: web.Request, status: CheckStatus, output: str) -> web.Response:
        check_id = request.match_info["id"]
        if self._store.check(check_id).definition.ttl is None:
            raise ValueError(f'CheckID "{check_id}" does not have associated TTL')
        self._store.update_check(check_id, status, output, self._clock())
        return await self._done()

    async def _agent_services(self, request: web.Request) -> web.Response:
        refuse_filter(request)
        return answer({s.definition.id: shapes.agent_service(s) for s in self._store.services})

    async def _agent_service(self, request: web.Request) -> web.Response:
        return answer(shapes.agent_service(self._store.service(request.match_info["id"])))

    async def _agent_checks(self, request: web.Request) -> web.Response:
        refuse_filter(request)
        return answer(
            {
                check.definition.id: shapes.health_check(service, check)
                for service in self._store.services
                for check in service.checks.values()
            }
        )

    async def _agent_self(self, _: web.Request) -> web.Response:
        return answer(shapes.agent_self(self._node_address(), version("holdfast")))

    async def _status_leader(self, _: web.Request) -> web.Response:
        return answer(self._leader())

    async def _status_peers(self, _: web.Request) -> web.Response:
        return answer([self._leader()])

    # -- catalog and health -----------------------------------------------------------------------------

    async def _datacenters(self, _: web.Request) -> web.Response:
        return answer([shapes.DATACENTER])

    async def _catalog_services(self, request: web.Request) -> web.Response:
        return await self._blocking(request, SERVICES, lambda: shapes.catalog(self._store.services))

    async def _catalog_service(self, request: web.Request) -> web.Response:
        name, tags = request.match_info["id"], set(request.query.getall("tag", []))

        def read() -> object:
            return [
                shapes.catalog_service(service, self._node_address())
                for service in self._store.instances(name)
                if tags <= set(service.definition.tags)
            ]

        return await self._blocking(request, Topic(Kind.SERVICE, name), read)

    async def _health_service(self, request: web.Request) -> web.Response:
        name, tags = request.match_info["id"], set(request.query.getall("tag", []))
        only_passing = flag(request, "passing")

        def read() -> object:
            return [
                shapes.health_entry(service, self._node_address())
                for service in self._store.instances(name)
                if tags <= set(service.definition.tags) and (not only_passing or shapes.passing(service))
            ]

        return await self._blocking(request, Topic(Kind.SERVICE, name), read)

    async def _health_checks(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]

        def read() -> object:
            return [
                shapes.health_check(service, check)
                for service in self._store.instances(name)
                for check in service.checks.values()
            ]

        return await self._blocking(request, Topic(Kind.SERVICE, name), read)

    async def _health_state(self, request: web.Request) -> web.Response:
        state = request.match_info["state"]
        if state not in {"any", "unknown", *CheckStatus}:
            raise ValueError(f"there is no state {state!r}; use any, passing, warning or critical")

        def read() -> object:
            return [
                shapes.health_check(service, check)
                for service in self._store.services
                for check in service.checks.values()
                if state in ("any", check.status)
            ]

        return await self._blocking(request, CHECKS, read)

    # -- key/value --------------------------------------------------------------------------------------

    async def _kv_get(self, request: web.Request) -> web.Response:
        key, kv = request.match_info["key"], self._store.kv
        keys, recurse, raw = (flag(request, name) for name in ("keys", "recurse", "raw"))
        if not key and not (keys or recurse):
            raise ValueError("Missing key name")
        separator = request.query.get("separator", "")
        topic = Topic(Kind.PREFIX if keys or recurse else Kind.KEY, key)
        index = await self._changed(request, topic)
        pairs = kv.under(key)[1] if keys or recurse else [pair for pair in [kv.get(key)[1]] if pair]
        if not pairs:
            return answer(None, index=index, status=404)
        if keys:
            return answer(list(dict.fromkeys(cut(pair.key, key, separator) for pair in pairs)), index=index)
        if raw and not recurse:
            return web.Response(body=pairs[0].value, headers=index_headers(index))
        return answer([shapes.key_value(pair) for pair in pairs], index=index)

    async def _kv_put(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if not key:
            raise ValueError("Missing key name")
        for name in ("acquire", "release"):
            if name in request.query:
                raise ValueError(f"{name}: this registry has no sessions")
        flags = integer(request, "flags") or 0
        cas = integer(request, "cas")
        done = self._store.kv.put(key, await body(request), flags=flags, cas=cas)
        await self._settle()
        return answer(done)

    async def _kv_delete(self, request: web.Request) -> web.Response:
        key, cas = request.match_info["key"], integer(request, "cas")
        done = True
        if flag(request, "recurse"):
            if cas is not None:
                raise ValueError("cas and recurse cannot be used together")
            self._store.kv.delete_under(key)
        elif not key:
            raise ValueError("Missing key name")
        else:
            done = self._store.kv.delete(key, cas=cas)
        await self._settle()
        return answer(done)

    # -- inside -----------------------------------------------------------------------------------------

    async def _done(self) -> web.Response:
        await self._settle()
        return web.Response()

    async def _blocking(self, request: web.Request, topic: Topic, read: Callable[[], object]) -> web.Response:
        refuse_filter(request)
        index = await self._changed(request, topic)
        return answer(read(), index=index)

    async def _changed(self, request: web.Request, topic: Topic) -> int:
        """Waits as the query asks to, and returns the topic's index.

        An index from the future belongs to another life of this registry: it is answered at once.
        """
        asked = integer(request, "index") or 0
        wait = wait_time(request)
        current = self._store.index(topic)
        if not asked or asked > self._store.topics.index or current > asked:
            return current
        changed = asyncio.Event()
        unsubscribe = self._store.topics.subscribe(topic, changed.set)
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(wait):
                while (current := self._store.index(topic)) <= asked and not self._released:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(changed)
            unsubscribe()
        return current
