"""Limits that are changed while the process runs."""

from __future__ import annotations

from proxy.endpoint import State

ROUTE = "/v1/routes/api/limits"
SERVICE = "/v1/services/web/limits"
CAPACITY = "/v1/services/web/capacity"
FILE = {"rate": 5.0, "burst": None, "per": "client", "wait": 0.0, "warm_up": 0.0}


def changes(control) -> list[dict[str, object]]:
    return [event for event in control.events.since(0) if event["kind"] == "admin_change"]


async def test_a_routes_limits_are_replaced_and_given_back(control, api):
    assert await (await api.get(ROUTE)).json() == {"limits": [FILE], "configured": [FILE]}
    order = {
        "limits": [{"rate": "50/s", "per": "header:X-Key", "wait": "200ms"}, {"rate": 9, "per": "route"}]
    }
    answer = await (await api.put(ROUTE, json=order)).json()
    assert [(limit["rate"], limit["per"], limit["wait"]) for limit in answer["limits"]] == [
        (50.0, "header:X-Key", 0.2),
        (9.0, "route", 0.0),
    ]
    assert answer["configured"] == [FILE]
    assert len(control.plane.table.find_route("api").limiters) == 2
    assert (await (await api.put(ROUTE, json={"limits": []})).json())["limits"] == []
    assert (await (await api.put(ROUTE, json={"limits": None})).json())["limits"] == [FILE]
    assert [change["action"] for change in changes(control)] == ["limits"] * 3


async def test_a_services_limits_count_for_all_its_routes(control, api):
    service = control.plane.table.services["web"]
    assert not service.limited
    answer = await (await api.put(SERVICE, json={"limits": [{"rate": "1/s", "per": "service"}]})).json()
    assert (answer["limits"][0]["per"], answer["configured"]) == ("service", [])
    assert service.limited


async def test_a_capacity_is_replaced_and_says_how_it_is_used(control, api):
    answer = await (await api.put(CAPACITY, json={"capacity": {"requests": 7, "wait": "2s"}})).json()
    assert (answer["capacity"]["requests"], answer["capacity"]["wait"], answer["places"]) == (7, 2.0, 7)
    assert (answer["configured"]["requests"], answer["admitted"], answer["waiting"]) == (0, 0, 0)
    assert (await (await api.get(CAPACITY)).json()) == answer
    assert (await (await api.put(CAPACITY, json={"capacity": None})).json())["places"] == 0
    assert [change["after"] for change in changes(control)][1] is None


async def test_what_does_not_fit_is_refused_and_changes_nothing(control, api):
    for path, order in (
        (ROUTE, {"limits": [{"rate": "0/s"}]}),
        (ROUTE, {"limits": [{"rate": "1/s", "per": "service"}]}),
        (SERVICE, {"limits": [{"rate": "1/s", "per": "route"}]}),
        (ROUTE, {"limits": [{"rate": "1/s", "burts": 1}]}),
        (ROUTE, {}),
        (CAPACITY, {"capacity": {"requests": -1}}),
        (CAPACITY, {"capacity": {"adaptive": {"min": 9, "max": 3}}}),
    ):
        response = await api.put(path, json=order)
        assert response.status == 400, order
        assert (await response.json())["error"] == "invalid_request"
    assert changes(control) == []
    for path in ("/v1/routes/none/limits", "/v1/services/none/limits", "/v1/services/none/capacity"):
        assert (await api.get(path)).status == 404


async def test_what_was_set_goes_over_to_the_next_process_and_a_changed_file_wins(control, api):
    await api.put(ROUTE, json={"limits": [{"rate": "50/s"}]})
    await api.put(CAPACITY, json={"capacity": {"requests": 7}})
    table = control.plane.table
    saved = table.save()
    assert list(saved["limits"]["routes"]) == ["api"]
    other = type(table)(lambda kind, **facts: None)
    other.load(saved, control.config, 0.0)
    assert other.find_route("api").limiters[0].limit.rate == 50.0
    assert other.find_service("web").capacity.config.requests == 7
    assert other.find("web", "a").state is State.READY
