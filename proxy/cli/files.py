"""Whether the files that a configuration names can be used, for `holdfast check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from config.checks import Path as Keys
from config.checks import Problem
from config.registries import RegistryTLS
from config.schema import TLS, Config
from discovery.model import RegistryError

_FILES = ("certificate", "key", "client_ca", "ca", "token_file")


def unusable(config: Config) -> list[Problem]:
    """Certificates, keys and tokens that cannot be read, or do not fit."""
    found: list[Problem] = []
    for number, listen in enumerate(config.listen):
        if listen.tls is not None:
            keys: Keys = ("listen", number, "tls")
            found += list(_unreadable(listen.tls, keys)) or list(_unfit(listen.tls, keys))
    for number, registry in enumerate(config.registry):
        keys = ("registry", number)
        found += _unreadable(registry, keys)
        if (tls := getattr(registry, "tls", None)) is not None:
            found += list(_unreadable(tls, (*keys, "tls"))) or list(_unfit(tls, (*keys, "tls")))
    return found


def _unreadable(section: object, keys: Keys) -> Iterator[Problem]:
    for key in _FILES:
        name = getattr(section, key, None)
        if name is None:
            continue
        try:
            with Path(name).open("rb"):
                pass
        except OSError as error:
            yield (*keys, key), f"{name} cannot be read: {error.strerror}"


def _unfit(section: TLS | RegistryTLS, keys: Keys) -> Iterator[Problem]:
    try:
        if isinstance(section, TLS):
            from proxy.listener import make_context

            make_context(section)
        elif section.ca is not None or section.certificate is not None:
            from discovery.transport import ssl_context

            ssl_context(section)
    except (OSError, RegistryError) as error:
        yield keys, getattr(error, "strerror", None) or str(error)
