"""Which headers pass, both ways. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from oubliette.gateway.http1 import Head
from oubliette.gateway.models import ResolvedModel, Wire

ANTHROPIC_VERSION = "2023-06-01"

_HARMLESS_BETAS = (
    "fine-grained-tool-streaming-",
    "interleaved-thinking-",
    "prompt-caching-",
    "extended-cache-ttl-",
    "token-efficient-tools-",
    "structured-outputs-",
    "effort-",
    "output-128k-",
)
"""Beginnings of ``anthropic-beta`` values that the agent may ask for. Others (hosted tools, files, long context at
another price) are the operator's to add, with the alias's extraHeaders."""

_NEVER_EXTRA = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "content-type",
        "accept-encoding",
        "authorization",
        "x-api-key",
        "x-goog-api-key",
    }
)
"""What the gateway sets itself; ``authorization`` and the like are an alias's to set only where there is no key."""
_KEY_HEADERS = frozenset({"authorization", "x-api-key", "x-goog-api-key"})

_DOWN = frozenset({"content-type", "retry-after", "retry-after-ms", "x-should-retry", "request-id", "x-request-id"})
_DOWN_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit-")


def upstream_headers(model: ResolvedModel, head: Head, *, streaming: bool, user_agent: str) -> list[tuple[str, str]]:
    """Headers of the rebuilt request: ours, the key, the alias's own; nothing of the client's but harmless betas."""
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if streaming else "application/json",
        "accept-encoding": "identity",
        "user-agent": user_agent,
    }
    unsettable = _NEVER_EXTRA if model.api_key else _NEVER_EXTRA - _KEY_HEADERS
    headers |= {name: value for name, value in model.extra_headers.items() if name not in unsettable}
    if model.wire is Wire.ANTHROPIC:
        headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
        if betas := _betas(model.extra_headers.get("anthropic-beta"), head.all("anthropic-beta"), model):
            headers["anthropic-beta"] = ",".join(betas)
    if model.api_key:
        if model.wire is Wire.ANTHROPIC:
            headers["x-api-key"] = model.api_key
        elif model.wire is Wire.GOOGLE:
            headers["x-goog-api-key"] = model.api_key
        else:
            headers["authorization"] = f"Bearer {model.api_key}"
    return list(headers.items())


def _betas(configured: str | None, asked: Iterable[str], model: ResolvedModel) -> list[str]:
    wanted = [beta.strip() for value in asked for beta in value.split(",")]
    allowed = [beta for beta in wanted if beta.startswith(_HARMLESS_BETAS) or model.hosted_tools]
    own = [beta.strip() for beta in (configured or "").split(",")]
    return list(dict.fromkeys(beta for beta in (*own, *allowed) if beta))


def downstream_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Headers of the provider's answer that the agent gets."""
    return [
        (name.lower(), value)
        for name, value in headers.items()
        if name.lower() in _DOWN or name.lower().startswith(_DOWN_PREFIXES)
    ]
