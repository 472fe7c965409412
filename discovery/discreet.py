"""A registry whose errors keep what it was told in confidence: servers and libraries quote what they got.

An error's text goes to the log, to the events and to the admin API. So what is secret is taken out of it
where it leaves the registry's own files, whoever has put it in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

from config.forms import Model
from discovery.model import Instance, Update, Watcher
from discovery.registrar import Registrar

_MASK = "**********"
_PART = 4
"""Characters of a secret's beginning that are no accident."""


def secrets_of(section: Model) -> tuple[str, ...]:
    """What a section has of secrets, in all the ways in which an error may quote it; the longest first."""
    values = [value.get_secret_value() for _, value in section if isinstance(value, SecretStr)]
    forms = {form for value in values for form in (value, quote(value, safe=""), quote_plus(value))}
    return tuple(sorted(forms, key=len, reverse=True))


class Discreet:
    """A watcher whose errors show none of `secrets`."""

    def __init__(self, watcher: Watcher, secrets: tuple[str, ...]) -> None:
        self.kind = watcher.kind
        self._watcher = watcher
        self._secrets = secrets

    async def watch(self, services: frozenset[str]) -> AsyncIterator[Update]:
        """As the watcher itself."""
        stream = self._watcher.watch(services)
        try:
            with _kept(self._secrets):
                async for update in stream:
                    yield update
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()


class DiscreetRegistrar:
    """A registrar whose errors show none of `secrets`."""

    def __init__(self, registrar: Registrar, secrets: tuple[str, ...]) -> None:
        self.kind = registrar.kind
        self.interval = registrar.interval
        self._registrar = registrar
        self._secrets = secrets

    async def register(self, instance: Instance) -> None:
        """As the registrar itself."""
        with _kept(self._secrets):
            await self._registrar.register(instance)

    async def beat(self, instance: Instance) -> bool:
        """As the registrar itself."""
        with _kept(self._secrets):
            return await self._registrar.beat(instance)

    async def deregister(self, instance: Instance) -> None:
        """As the registrar itself."""
        with _kept(self._secrets):
            await self._registrar.deregister(instance)

    async def close(self) -> None:
        """As the registrar itself."""
        await self._registrar.close()


@contextmanager
def _kept(secrets: tuple[str, ...]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            link.args = tuple(_masked(argument, secrets) for argument in link.args)
            link = link.__cause__ or link.__context__
        raise


def _masked(argument: object, secrets: tuple[str, ...]) -> object:
    if isinstance(argument, str):
        for secret in secrets:
            argument = argument.replace(secret, _MASK)
            # Answers are cut off after some 200 bytes, maybe within it.
            for size in range(len(secret) - 1, _PART - 1, -1):
                if argument.endswith(secret[:size]):
                    argument = argument[:-size] + _MASK
                    break
    return argument
