"""The section that enters an application in a registry: what a sidecar does for the one beside it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config import checks
from config.forms import ONE_OR_MANY, OR_NONE, Model, Name, Positive, Secret, Target, Upstream, Url, sound
from config.units import Duration

_WEBHOOK = re.compile(r"https?://[^\s/@?#]+[^\s#]*")


def _webhook(value: SecretStr) -> SecretStr:
    if not _WEBHOOK.fullmatch(value.get_secret_value()):
        raise ValueError("is not a URL such as https://hooks.example.com/T0/B0/x")
    return value


RegisterIn = Literal["embedded", "consul", "etcd", "nacos"]
"""The kinds of registries in which an instance can enter itself."""


class Ready(Model):
    """When the application counts as ready, and when no more."""

    path: Annotated[Target | None, OR_NONE] = "/readyz"
    """Request target; 2xx and 3xx are ready. `none`: it is ready when it accepts connections."""
    interval: Positive = 1.0
    """Between questions; after a first failure four times as often."""
    timeout: Positive = 1.0
    """Longer than this counts as failed."""
    healthy: Annotated[int, Field(ge=1)] = 1
    """Passes in a row until it is entered."""
    unhealthy: Annotated[int, Field(ge=1)] = 3
    """Failures in a row until it is taken out."""


class Unready(StrEnum):
    """What becomes of the entry of an application that is not ready any more."""

    DEREGISTER = "deregister"
    DRAIN = "drain"


class NotifyForm(StrEnum):
    """What a webhook is sent."""

    JSON = "json"
    DINGTALK = "dingtalk"
    SLACK = "slack"


class NotifyOn(StrEnum):
    """When a webhook is sent."""

    UP = "up"
    DOWN = "down"


class Notify(Model):
    """A webhook that is told when the application is up, and when it is down."""

    url: Annotated[SecretStr, AfterValidator(_webhook)]
    """Where to POST to. It counts as a secret, since it often holds a token."""
    form: NotifyForm = NotifyForm.JSON
    """`json`: all the facts; `dingtalk`, `slack`: a sentence, as their incoming webhooks take it."""
    secret: Secret | None = None
    """Signs what is sent to a DingTalk robot that wants signatures."""
    on: Annotated[tuple[NotifyOn, ...], ONE_OR_MANY, Field(min_length=1)] = (NotifyOn.UP, NotifyOn.DOWN)
    """`up`: its registries show it; `down`: it was taken out."""

    @model_validator(mode="after")
    def _signed(self) -> Self:
        return sound(self, checks.notify(self))


class Register(Model):
    """Enters an application beside this process in the registries, once and for as long as it is ready. In
    Kubernetes, which makes entries itself, it answers readiness for it."""

    service: Name
    """Name of the service that it is an instance of."""
    app: Upstream
    """Where it listens: `127.0.0.1:9001`, `:9001` on this machine, or `unix:/path`."""
    address: Upstream | None = None
    """What others are told to reach it by; `app` when that is beyond loopback, else this machine's address
    with its port. With a listener of this process in front: that listener's."""
    id: str = ""
    """Its name among the instances; made of service, machine and port when absent."""
    weight: Annotated[int, Field(ge=0, le=65535)] = 100
    """Share of traffic relative to the others; 0: none."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """`version` and `zone` have a meaning; others are labels."""
    registry: Annotated[tuple[RegisterIn, ...], ONE_OR_MANY] = ()
    """Kinds of the registries to enter it in; all that can when empty."""
    ready: Ready = Ready()
    """When it is ready."""
    unready: Unready = Unready.DEREGISTER
    """When it is not ready any more: `deregister`, or `drain`: the entry stays, marked as leaving."""
    ttl: Annotated[Duration, Field(ge=1)] = 10.0
    """When nothing is heard of this process for so long, registries count it as crashed."""
    check: Url | None = None
    """URL that Consul asks by itself instead of waiting for this process to be heard of."""
    settle: Duration = 2.0
    """After the entry was taken out, everything goes on for so long, until everybody has heard."""
    outlive: Duration = 0.0
    """On SIGTERM everything goes on until the application has ended, for at most so long after `settle`, so
    that its last calls get through. For when both are told to end at once."""
    notify: Annotated[tuple[Notify, ...], ONE_OR_MANY] = ()
    """Webhooks."""
