"""What only shows when several keys or sections are seen together.

Everything here reads the raw data (dicts, lists, text) as well as validated models, and pass over whatever is
malformed: its own error is reported by validation. So these problems are found together with all others, also
in a file of which no `Config` can be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from config.units import Address, parse_duration

Path = tuple[str | int, ...]
Problem = tuple[Path, str]
Check = Callable[[object], Iterable[Problem]]
"""Looks at one section; the paths of its problems start there."""

_REGISTRABLE = ("embedded", "consul", "etcd", "nacos")


def closest(name: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest candidate, or nothing."""
    # Imported here because it is needed only when something is wrong.
    from difflib import get_close_matches

    names = list(candidates)
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in reversed(names)}
    found = get_close_matches(name.casefold().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""


def integrity(config: object) -> list[Problem]:
    """What no configuration may have, wherever it comes from: dangling references, names given twice."""
    return [*_routes(config), *_instance_ids(config)]


def sections(config: object) -> list[Problem]:
    """What one section contradicts itself in, all over the configuration."""
    services = [(("services", name), service) for name, service in _services(config).items()]
    routes = [(("routes", number), route) for number, route in enumerate(_list(config, "routes"))]
    found: list[tuple[Path, object, Check]] = [(("admin",), _get(config, "admin"), admin)]
    found += [(("registry", n), section, registry) for n, section in enumerate(_registries(config))]
    found += [((*path, "sticky"), _get(service, "sticky"), sticky) for path, service in services]
    found += [((*path, "health"), _get(service, "health"), health) for path, service in services]
    found += [((*path, "websocket"), _get(service, "websocket"), websocket) for path, service in services]
    found += [((*path, "match"), _get(route, "match"), match) for path, route in routes]
    found += [(path, route, split) for path, route in routes]
    found += [(path, route, lambda it: buckets(it, "route")) for path, route in routes]
    found += [(path, service, lambda it: buckets(it, "service")) for path, service in services]
    found += [(path, service, hedge) for path, service in services]
    found += [
        ((*path, "capacity", "adaptive"), _get(_get(service, "capacity"), "adaptive"), adaptive)
        for path, service in services
    ]
    for number, entry in enumerate(_one_or_many(config, "register")):
        given = enumerate(_one_or_many(entry, "notify"))
        found += [(("register", number, "notify", n), section, notify) for n, section in given]
    return [((*path, *below), text) for path, section, check in found for below, text in check(section)]


def admin(section: object) -> Iterator[Problem]:
    """Of `admin`."""
    address = _address(section, "address", "127.0.0.1:9900")
    if address is not None and not address.is_loopback and _get(section, "token") is None:
        yield ("address",), "an admin address beyond loopback needs a token"


def sticky(section: object) -> Iterator[Problem]:
    """Of `services.*.sticky`."""
    by = _get(section, "by")
    if by in ("cookie", "header", "query") and _get(section, "name") is None:
        yield ("name",), f"sticky by {by} needs a name"


def health(section: object) -> Iterator[Problem]:
    """Of `services.*.health`."""
    dead, unhealthy = _get(section, "dead"), _get(section, "unhealthy") or 2
    if isinstance(dead, int) and isinstance(unhealthy, int) and 0 < dead < unhealthy:
        yield ("dead",), f"must be 0 or at least unhealthy ({unhealthy})"
    kind = _get(section, "kind") or "http"
    for key in ("status", "body"):
        if kind in ("tcp", "websocket") and _get(section, key) not in (None, ("200-399",)):
            yield (key,), f"says nothing to a check of the kind {kind}"


def websocket(section: object) -> Iterator[Problem]:
    """Of `services.*.websocket`."""
    replay = _get(section, "replay")
    off = (
        replay is None or replay is False or (isinstance(replay, str) and replay.lower() in ("false", "none"))
    )
    if not off and _get(section, "on_drain") != "migrate":
        yield ("replay",), "replay needs on_drain: migrate"


def registry_tls(section: object) -> Iterator[Problem]:
    """Of `registry[].tls`."""
    for given, missing in (("certificate", "key"), ("key", "certificate")):
        if _get(section, given) is not None and _get(section, missing) is None:
            yield (missing,), f"is needed with {given}"


def credentials(section: object) -> Iterator[Problem]:
    """Of a registry with a user name and a password."""
    for given, missing in (("user", "password"), ("password", "user")):
        if _get(section, given) is not None and _get(section, missing) is None:
            yield (missing,), f"is needed with {given}"


def dns(section: object) -> Iterator[Problem]:
    """Of a registry of the kind `dns`."""
    if _get(section, "record") == "address" and _get(section, "port") is None:
        yield ("port",), "is needed for record: address; only SRV records tell a port"
    floor, ceiling = _get(section, "ttl_min"), _get(section, "ttl_max")
    if isinstance(floor, float) and isinstance(ceiling, float) and floor > ceiling:
        yield ("ttl_max",), "is less than ttl_min"


def kubernetes(section: object) -> Iterator[Problem]:
    """Of a registry of the kind `kubernetes`."""
    if _get(section, "token") is not None and _get(section, "token_file") is not None:
        yield ("token_file",), "cannot be given together with token"


def registry(section: object) -> Iterator[Problem]:
    """Of one registry."""
    yield from ((("tls", *path), text) for path, text in registry_tls(_get(section, "tls")))
    match _get(section, "kind"):
        case "etcd" | "nacos":
            yield from credentials(section)
        case "dns":
            yield from dns(section)
        case "kubernetes":
            yield from kubernetes(section)
        case _:
            pass


def match(section: object) -> Iterator[Problem]:
    """Of `routes.*.match`."""
    given = [key for key in ("path", "path_exact", "path_regex") if _get(section, key) is not None]
    yield from (((key,), f"cannot be given together with {given[0]}") for key in given[1:])


def buckets(section: object, place: str) -> Iterator[Problem]:
    """Of `limit` in a `route` or a `service`, which is `place`."""
    limits = _get(section, "limit")
    many = isinstance(limits, (list, tuple))
    for number, limit in enumerate(_list(section, "limit") if many else (limits,)):
        per = _get(limit, "per")
        if per in ("route", "service") and per != place:
            path: Path = ("limit", number, "per") if many else ("limit", "per")
            yield path, f"a {place} has no bucket per {per}; write {place}"


def hedge(section: object) -> Iterator[Problem]:
    """Of `retry.hedge` in a service."""
    if _get(_get(section, "retry"), "hedge") not in (None, 0, 0.0, "0") and _get(section, "sticky") not in (
        None,
        "none",
    ):
        yield ("retry", "hedge"), "a sticky service cannot have it: only the client's own instance knows it"


def adaptive(section: object) -> Iterator[Problem]:
    """Of `services.*.capacity.adaptive`."""
    least, most = _get(section, "min"), _get(section, "max")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield ("max",), "is less than min"


def split(section: object) -> Iterator[Problem]:
    """Of `routes.*.split`."""
    shares = _get(section, "split")
    if isinstance(shares, Mapping) and all(share in (0, "0") for share in shares.values()):
        yield ("split",), "a split needs at least one share above 0"


def notify(section: object) -> Iterator[Problem]:
    """Of `register[].notify[]`."""
    if _get(section, "secret") is not None and _get(section, "form") != "dingtalk":
        yield ("secret",), "only form: dingtalk is signed"


def workable(config: object) -> list[Problem]:
    """What would keep a process from doing its work with what the operator wrote."""
    return [*_addresses(config), *_sources(config), *_versions(config), *_entries(config)]


def _get(section: object, key: str) -> object:
    if isinstance(section, Mapping):
        return section.get(key)
    return getattr(section, key, None) if hasattr(type(section), "model_fields") else None


def _list(section: object, key: str) -> Sequence[object]:
    value = _get(section, key)
    return value if isinstance(value, (list, tuple)) else ()


def _services(config: object) -> Mapping[str, object]:
    value = _get(config, "services")
    return value if isinstance(value, Mapping) else {}


def _registries(config: object) -> Sequence[object]:
    return _one_or_many(config, "registry")


def _one_or_many(section: object, key: str) -> Sequence[object]:
    value = _get(section, key)
    if isinstance(value, (Mapping, str)):
        return () if value == "none" else (value,)
    return value if isinstance(value, (list, tuple)) else ()


def _routes(config: object) -> Iterator[Problem]:
    services, names = _services(config), dict[str, int]()
    for number, route in enumerate(_list(config, "routes")):
        service, name = _get(route, "service"), _get(route, "name")
        if isinstance(service, str) and service not in services:
            hint = closest(service, services)
            yield ("routes", number, "service"), f"there is no service {service!r}{hint}"
        if isinstance(name, str) and name:
            first = names.setdefault(name, number)
            if first != number:
                yield ("routes", number, "name"), f"routes[{first}] is called {name!r} as well"


def _instance_id(instance: object) -> str | None:
    if isinstance(instance, str):
        return instance
    given = _get(instance, "id") or _get(instance, "address")
    return str(given) if isinstance(given, (str, Address)) else None


def _instance_ids(config: object) -> Iterator[Problem]:
    for service_name, service in _services(config).items():
        seen = dict[str, int]()
        for number, instance in enumerate(_list(service, "instances")):
            identity = _instance_id(instance)
            if identity is not None and (first := seen.setdefault(identity, number)) != number:
                path: Path = ("services", service_name, "instances", number)
                if _get(instance, "id"):
                    path = (*path, "id")
                yield path, f"instances[{first}] has the id {identity!r} as well"


def _address(section: object, key: str, default: str = "") -> Address | None:
    try:
        return Address.parse(_get(section, key) or default)
    except ValueError:
        return None


def _duration(section: object, key: str, default: float) -> float | None:
    try:
        return parse_duration(default if (value := _get(section, key)) is None else value)
    except ValueError:
        return None


def _addresses(config: object) -> Iterator[Problem]:
    listeners = [(("listen", n, "address"), item) for n, item in enumerate(_list(config, "listen"))]
    found: list[tuple[Path, Address | None]] = [(path, _address(item, "address")) for path, item in listeners]
    if _get(config, "listen") is None:
        found.append((("listen", 0, "address"), Address("", 8080)))
    elif _get(config, "listen") in ([], ()):
        yield ("listen",), "needs at least one listener"
    found.append((("admin", "address"), _address(_get(config, "admin"), "address", "127.0.0.1:9900")))
    for number, registry in enumerate(_registries(config)):
        if _get(registry, "kind") == "embedded":
            address = _address(registry, "listen", "127.0.0.1:8500")
            found.append((("registry", number, "listen"), address))
    for (first_path, first), (path, address) in combinations(found, 2):
        if first is not None and address is not None and first.overlaps(address):
            yield path, f"'{address}' is taken by {written(first_path)} ('{first}')"


def _sources(config: object) -> Iterator[Problem]:
    if _registries(config):
        return
    for name, service in _services(config).items():
        if not _list(service, "instances"):
            yield ("services", name), "has no instances, and there is no registry to ask for them"


def _entries(config: object) -> Iterator[Problem]:
    """Of `register`: whether each can be entered somewhere, and is not entered twice."""
    kinds = {_get(registry, "kind") for registry in _registries(config)}
    able = kinds & set(_REGISTRABLE)
    shutdown = _duration(config, "shutdown", 30.0)
    seen = dict[tuple[object, str], int]()
    for number, entry in enumerate(_one_or_many(config, "register")):
        wanted = [str(kind) for kind in _one_or_many(entry, "registry")]
        for kind in wanted:
            if kind in _REGISTRABLE and kind not in able:
                yield ("register", number, "registry"), f"there is no registry of the kind {kind}"
        # Kubernetes makes the entries itself, out of the readiness that this process answers.
        if not wanted and not able and "kubernetes" not in kinds:
            kinds_that_can = ", ".join(_REGISTRABLE)
            yield ("register", number), f"there is no registry that takes entries ({kinds_that_can})"
        settle = _duration(entry, "settle", 2.0)
        if settle is not None and shutdown is not None and settle >= shutdown:
            yield ("register", number, "settle"), "must be less than shutdown, which it is a part of"
        identity = _get(entry, "id") or str(_get(entry, "address") or _get(entry, "app"))
        key = (_get(entry, "service"), str(identity))
        if (first := seen.setdefault(key, number)) != number:
            yield ("register", number), f"register[{first}] enters the same instance"


def _versions(config: object) -> Iterator[Problem]:
    services = _services(config)
    for number, route in enumerate(_list(config, "routes")):
        service = _get(route, "service")
        instances = _list(services.get(service), "instances") if isinstance(service, str) else ()
        if not instances:
            continue
        found = {_get(_get(instance, "metadata"), "version") for instance in instances}
        versions = sorted(version for version in found if isinstance(version, str))
        for path, label in _wanted_versions(route):
            if label not in versions:
                hint = closest(label, versions)
                yield ("routes", number, *path), f"no instance of {service!r} has version {label!r}{hint}"


def _wanted_versions(route: object) -> Iterator[tuple[Path, str]]:
    split, mirrored = _get(route, "split"), _get(_get(route, "mirror"), "to")
    if isinstance(split, Mapping):
        yield from ((("split", label), label) for label, share in split.items() if share not in (0, "0"))
    if isinstance(mirrored, str):
        yield ("mirror", "to"), mirrored


def written(path: Path) -> str:
    """`services.chat.instances[0].weight`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
