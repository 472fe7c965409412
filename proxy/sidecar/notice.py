"""What webhooks are told, in the words of whoever receives it. Pure: time is an argument.

Sources: Slack, "Sending messages using incoming webhooks"; DingTalk open platform, "Custom robots" (message
types, and the signature in the query).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from config.schema import NotifyForm, NotifyOn
from discovery.model import Instance


@dataclass(frozen=True, slots=True)
class Notice:
    """An application has come up or gone down. `at`: when, in ISO 8601; `reason` is for people."""

    event: NotifyOn
    instance: Instance
    registries: tuple[str, ...]
    reason: str
    at: str


def body(notice: Notice, form: NotifyForm) -> bytes:
    """What to POST, as JSON."""
    match form:
        case NotifyForm.JSON:
            made: Mapping[str, object] = facts(notice)
        case NotifyForm.DINGTALK:
            made = {"msgtype": "text", "text": {"content": sentence(notice)}}
        case NotifyForm.SLACK:
            # Slack takes these three for its own markup.
            text = sentence(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            made = {"text": text}
    return json.dumps(made, ensure_ascii=False).encode()


def facts(notice: Notice) -> dict[str, object]:
    """Everything, for programs."""
    instance = notice.instance
    return {
        "event": notice.event.value,
        "service": instance.service,
        "instance": instance.id,
        "address": instance.address,
        "version": instance.version,
        "metadata": dict(instance.metadata),
        "registries": list(notice.registries),
        "reason": notice.reason,
        "at": notice.at,
    }


def sentence(notice: Notice) -> str:
    """One line, for people."""
    instance = notice.instance
    version = f", version {instance.version}" if instance.version else ""
    what = f"{instance.service} {instance.id} ({instance.address}{version})"
    where = f" in {', '.join(notice.registries)}" if notice.registries else ""
    if notice.event is NotifyOn.UP:
        return f"holdfast: {what} is up{where}"
    return f"holdfast: {what} is down: {notice.reason}"


def signed(url: str, secret: str, at: float) -> str:
    """The URL with the signature that a DingTalk robot wants; it holds for an hour."""
    stamp = str(round(at * 1000))
    digest = hmac.new(secret.encode(), f"{stamp}\n{secret}".encode(), hashlib.sha256).digest()
    sign = quote(base64.b64encode(digest), safe="")
    return f"{url}{'&' if '?' in url else '?'}timestamp={stamp}&sign={sign}"


def refusal(status: int, answer: bytes, form: NotifyForm) -> str:
    """Why a webhook has not taken it; empty when it has. DingTalk says no with status 200."""
    if not 200 <= status < 300:
        return f"status {status}"
    if form is not NotifyForm.DINGTALK:
        return ""
    try:
        code = json.loads(answer)["errcode"]
    except (ValueError, KeyError, TypeError):
        return "the answer is not DingTalk's"
    return "" if code == 0 else f"errcode {code}"
