"""What ``/metrics`` tells: counted where it happens, labelled with names from our own tables only."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

CALLS: Final = Counter("oubliette_calls", "Tool calls by action and error code.", ["action", "code"], registry=REGISTRY)
CALL_SECONDS: Final = Histogram(
    "oubliette_call_seconds",
    "How long tool calls took.",
    ["action"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 45, 240),
    registry=REGISTRY,
)
REQUESTS: Final = Counter(
    "oubliette_http_requests", "HTTP answers by door and status.", ["door", "status"], registry=REGISTRY
)
REFUSED: Final = Counter("oubliette_refused", "Requests refused before any handler.", ["reason"], registry=REGISTRY)
STREAMS: Final = Gauge("oubliette_streams", "Open event streams.", registry=REGISTRY)
STREAM_EVENTS: Final = Counter("oubliette_stream_events", "Events sent to event streams.", registry=REGISTRY)
STREAMS_DROPPED: Final = Counter(
    "oubliette_streams_dropped", "Streams ended because nobody read them.", registry=REGISTRY
)
WAITING_CALLS: Final = Gauge("oubliette_waiting_calls", "Tool calls in progress.", registry=REGISTRY)

WEBHOOKS: Final = Counter(
    "oubliette_webhook_notices",
    "Notices by receiver and what became of them; failed counts attempts.",
    ["receiver", "outcome"],
    registry=REGISTRY,
)


def count_webhook(receiver: str, outcome: str, how_many: int) -> None:
    """Something became of notices for a receiver of the configuration."""
    WEBHOOKS.labels(receiver=receiver, outcome=outcome).inc(how_many)


def exposition() -> bytes:
    """All of it in Prometheus's text format."""
    return generate_latest(REGISTRY)
