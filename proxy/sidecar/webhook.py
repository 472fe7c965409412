"""Sending notices to webhooks: in order for each, a few attempts, and nobody waits for them.

URLs hold tokens, so that nothing here logs more of one than its host.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from config.schema import Notify
from proxy.sidecar.notice import Notice, body, refusal, signed

_TIMEOUT = 5.0
"""Seconds for one attempt."""
_ATTEMPTS = 5
_BACKOFF_MIN, _BACKOFF_MAX = 0.5, 8.0
"""Seconds between attempts; doubled each time, up to half left to chance."""
_WAITING = 16
"""Notices that wait for one webhook; the oldest goes when there are more."""

_log = logging.getLogger("holdfast.notify")


class Webhook:
    """One receiver. `post` returns at once; `close` gives what is under way a last moment."""

    def __init__(
        self,
        section: Notify,
        *,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.sent = 0
        """Notices that were taken."""
        self.lost = 0
        """Notices that were given up."""
        self._section = section
        self._sleep = sleep
        self._wall = wall
        self._random = rng or random.Random()
        self._host = urlsplit(section.url.get_secret_value()).hostname or "?"
        self._queue: deque[Notice] = deque(maxlen=_WAITING)
        self._task: asyncio.Task[None] | None = None

    @property
    def form(self) -> str:
        """How it is spoken to."""
        return self._section.form.value

    def post(self, notice: Notice) -> None:
        """Send a notice as soon as those before it are sent, if it is one that the receiver wants."""
        if notice.event not in self._section.on:
            return
        if len(self._queue) == _WAITING:
            self.lost += 1
        self._queue.append(notice)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(), name="webhook")

    async def close(self, patience: float) -> None:
        """Let what is under way end within so many seconds, and give up the rest."""
        task = self._task
        if task is None:
            return
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            self.lost += len(self._queue)
            _log.warning("%s was not told in time", self._host)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _send_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        while self._queue:  # once more, when something has come while the session was being closed
            connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                while self._queue:
                    if await self._send(session, self._queue[0]):
                        self.sent += 1
                    else:
                        self.lost += 1
                    self._queue.popleft()

    async def _send(self, session: aiohttp.ClientSession, notice: Notice) -> bool:
        wrong = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                delay = min(_BACKOFF_MAX, _BACKOFF_MIN * 2.0 ** (attempt - 1))
                await self._sleep(delay * self._random.uniform(0.5, 1.0))
            wrong = await self._try(session, notice)
            if not wrong:
                return True
        _log.warning(
            "%s could not be told that %s is %s: %s",
            self._host,
            notice.instance.id,
            notice.event.value,
            wrong,
        )
        return False

    async def _try(self, session: aiohttp.ClientSession, notice: Notice) -> str:
        section = self._section
        url = section.url.get_secret_value()
        if section.secret is not None:
            url = signed(url, section.secret.get_secret_value(), self._wall())
        data = body(notice, section.form)
        headers = {"Content-Type": "application/json; charset=utf-8"}
        try:
            # A redirect would carry the token of the URL to somebody else.
            async with session.post(
                URL(url, encoded=True), data=data, headers=headers, allow_redirects=False
            ) as answer:
                return refusal(answer.status, await answer.content.read(64 << 10), section.form)
        except TimeoutError:
            return f"no answer within {_TIMEOUT:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__  # its text may hold the URL
