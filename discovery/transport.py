"""How registries are reached: their certificates."""

from __future__ import annotations

import ssl

from config.registries import RegistryTLS
from discovery.model import RegistryError


def ssl_context(tls: RegistryTLS) -> ssl.SSLContext:
    """What to verify a registry with, and to show it.

    Raises `RegistryError` that names the file when one cannot be read: it may be there the next time.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except (OSError, ssl.SSLError) as error:
        raise RegistryError(f"tls.ca: {tls.ca}: {_reason(error)}") from error
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"tls.certificate: {tls.certificate}, {tls.key}: {_reason(error)}") from error
    return context


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
