"""What others can reach an application by, when nobody has said."""

from __future__ import annotations

import socket

from config.schema import Address, Register
from discovery.labels import instance_from
from discovery.model import Instance

_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that nobody has (RFC 5737, RFC 3849): only the route to them is asked for."""
_ALL_HOSTS = frozenset({"", "0.0.0.0", "::"})


def instance_of(section: Register) -> Instance:
    """The instance that a section enters, with everything that the section leaves open."""
    address = section.address or _reachable(section.app)
    host = address.host if address.path or address.host not in _ALL_HOSTS else machine_address()
    name = section.id or f"{section.service}-{socket.gethostname()}-{address.path or address.port}"
    return instance_from(
        section.service,
        name,
        host,
        address.port,
        section.metadata,
        path=address.path,
        weight=section.weight,
    )


def app_instance(section: Register) -> Instance:
    """The application as this process reaches it."""
    app = section.app
    host = app.host if app.path or app.host not in _ALL_HOSTS else "127.0.0.1"
    return Instance(section.service, section.id, host, app.port, app.path)


def machine_address() -> str:
    """The address that this machine goes out by; loopback when there is no way out. Sends nothing."""
    for family, target in _ANYWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 9))
                return str(sock.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def _reachable(app: Address) -> Address:
    return app if app.path or not app.is_loopback else Address(port=app.port)
