"""What `/metrics` shows. One registry per server, so that several fit in one process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one chat server. Each is changed where the thing happens."""

    def __init__(self, instance: str, version: str) -> None:
        self.registry = CollectorRegistry()
        info = Gauge("holdfast_chat_info", "Who this is.", ["instance", "version"], registry=self.registry)
        info.labels(instance, version).set(1)
        self.connections = self._gauge("connections", "Open WebSockets.", "role")
        self.frames = self._counter("frames", "Frames received from clients, by type.", "type")
        self.duplicates = self._counter("duplicates", "Messages that were stored before; acked again.")
        self.errors = self._counter("errors", "Error frames sent, by code.", "code")
        self.closed = self._counter("closed", "WebSockets that ended, by reason.", "reason")
        self.handshakes_refused = self._counter("handshakes_refused", "Handshakes refused.", "reason")
        self._answers = self._counter("answers", "Answers by the engine, by result.", "result")
        self._seconds = Histogram(
            "holdfast_chat_answer_seconds", "From claim to stored answer.", registry=self.registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge whose value is asked for when it is scraped."""
        Gauge(f"holdfast_chat_{name}", text, registry=self.registry).set_function(read)

    def answered(self, seconds: float, *, fitting: bool, kept: bool) -> None:
        """An answer was made, which took so many seconds; `kept` if it was stored."""
        result = "dropped" if not kept else "fitting" if fitting else "default"
        self._answers.labels(result).inc()
        self._seconds.observe(seconds)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"holdfast_chat_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"holdfast_chat_{name}", text, labels, registry=self.registry)
