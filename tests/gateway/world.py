"""A gateway on a loopback port, with a real store behind it and a provider before it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from oubliette import clock
from oubliette.config import Config, load_config
from oubliette.core.model import (
    Autonomy,
    ContainerRow,
    ContainerState,
    EventRow,
    PlaceState,
    ProjectRow,
    Reasoning,
    SessionRow,
    SessionStatus,
    TurnRow,
    TurnStatus,
    WorkspaceRow,
)
from oubliette.gateway.gateway import Gateway
from oubliette.gateway.metering import Meter
from oubliette.gateway.models import Wire
from oubliette.store import containers, projects, sessions, turns, workspaces
from oubliette.store.database import Store, Tx, open_store
from tests.gateway.upstream import Provider, open_provider

AT = datetime(2026, 11, 22, 8, 15, 30, tzinfo=UTC)
CAPABILITY = "cap-0123456789abcdef0123456789abcdef"
KEY = "sk-planted-7f3a9c21d4e8b605"
ALIASES = {Wire.ANTHROPIC: "opus", Wire.OPENAI: "five", Wire.GOOGLE: "flash", Wire.CHAT: "local"}
MODELS = {
    Wire.ANTHROPIC: "claude-opus-4-6",
    Wire.OPENAI: "gpt-5.4",
    Wire.GOOGLE: "gemini-3.8-flash",
    Wire.CHAT: "qwen-coder",
}
WIRES = list(Wire)
Models = Mapping[str, Mapping[str, Any]]
PATHS = {
    Wire.ANTHROPIC: "/anthropic/v1/messages",
    Wire.OPENAI: "/openai/v1/responses",
    Wire.CHAT: "/openai-compatible/v1/chat/completions",
}


def config_for(provider: Provider, directory: Path, models: Models) -> Config:
    """One alias for each wire, all served by ``provider``; ``models`` adds to them or changes them."""
    credentials = {
        wire.value: {"provider": wire.value, "api_key": KEY, "base_url": provider.base_url(wire)} for wire in Wire
    }
    aliases: dict[str, Any] = {
        ALIASES[wire]: {"model": MODELS[wire], "provider": wire.value, **models.get(ALIASES[wire], {})} for wire in Wire
    }
    more = {alias: entry for alias, entry in models.items() if alias not in aliases}
    aliases[ALIASES[Wire.CHAT]].setdefault("cost", {"input": 1, "output": 4, "cache_read": 0.1})
    file = directory / "oubliette.jsonc"
    file.write_text(
        json.dumps(
            {"credentials": {"providers": {"credentials": credentials}}, "models": {"models": {**aliases, **more}}}
        )
    )
    config, _ = load_config(file, {})
    return config


@dataclass
class World:
    """A running gateway and what is around it."""

    config: Config
    gateway: Gateway
    meter: Meter
    store: Store
    provider: Provider
    port: int
    events: list[EventRow] = field(default_factory=list)

    def url(self, wire: Wire, *, stream: bool = True, alias: str | None = None) -> str:
        path = PATHS.get(wire) or (
            f"/google/v1beta/models/{alias or ALIASES[wire]}:"
            + ("streamGenerateContent?alt=sse" if stream else "generateContent")
        )
        return f"http://127.0.0.1:{self.port}{path}"

    async def ask(
        self,
        wire: Wire,
        prompt: str = "@say hello",
        *,
        stream: bool = True,
        alias: str | None = None,
        body: Mapping[str, Any] | None = None,
        session: str | None = "ses_1",
        capability: str = CAPABILITY,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request as an SDK of that provider makes it."""
        made = body if body is not None else request_body(wire, prompt, stream=stream, alias=alias)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            return await client.post(
                self.url(wire, stream=stream, alias=alias),
                json=made,
                headers={**sdk_headers(wire, capability, session), **(headers or {})},
            )

    async def rows(self) -> list[dict[str, Any]]:
        return await self.store.read(lambda tx: tx.all("SELECT * FROM model_requests ORDER BY request_key"))


def sdk_headers(wire: Wire, capability: str = CAPABILITY, session: str | None = "ses_1") -> dict[str, str]:
    """The headers that the provider's SDK sends, with the capability for a key."""
    name = {Wire.ANTHROPIC: "x-api-key", Wire.GOOGLE: "x-goog-api-key"}.get(wire, "authorization")
    value = capability if name != "authorization" else f"Bearer {capability}"
    return {name: value, **({"X-Session-Id": session} if session else {})}


def request_body(
    wire: Wire,
    prompt: str,
    *,
    stream: bool = True,
    alias: str | None = None,
    more: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A small request; ``more`` are parts of the user's message besides the text."""
    alias = alias or ALIASES[wire]
    if wire is Wire.ANTHROPIC:
        content = [{"type": "text", "text": prompt}, *more]
        return {"model": alias, "max_tokens": 500, "stream": stream, "messages": [{"role": "user", "content": content}]}
    if wire is Wire.OPENAI:
        content = [{"type": "input_text", "text": prompt}, *more]
        return {"model": alias, "stream": stream, "input": [{"role": "user", "content": content}]}
    if wire is Wire.GOOGLE:
        return {"contents": [{"role": "user", "parts": [{"text": prompt}, *more]}]}
    content = [{"type": "text", "text": prompt}, *more]
    return {"model": alias, "stream": stream, "messages": [{"role": "user", "content": content}]}


def lay_out(tx: Tx, settings: Mapping[str, Any] | None = None, capability: str = CAPABILITY) -> None:
    """A project with a container ``c1`` and a session in it that is in its first turn."""
    by = {"kind": "token", "id": "tok_1", "name": "laptop"}
    projects.insert(tx, ProjectRow("p1", "shop", PlaceState.READY, AT, AT, by, "w1", settings=dict(settings or {})))
    workspaces.insert(tx, WorkspaceRow("w1", "p1", True, PlaceState.READY, AT))
    containers.insert(tx, ContainerRow("c1", "p1", "w1", "fake", 1, capability, ContainerState.READY, AT))
    add_session(tx, "gogol_1", "ses_1")


def add_session(tx: Tx, session_id: str, agent_session_id: str, **fields: Any) -> None:
    """A running session with one running turn."""
    by = {"kind": "token", "id": "tok_1", "name": "laptop"}
    row = {
        "session_id": session_id,
        "project_id": "p1",
        "workspace_id": "w1",
        "root_id": session_id,
        "depth": 0,
        "title": "t",
        "created_by": by,
        "status": SessionStatus.RUNNING,
        "since": AT,
        "model": "opus",
        "autonomy": Autonomy.OFF,
        "reasoning": Reasoning.MEDIUM,
        "created_at": AT,
        "updated_at": AT,
        "turn": 1,
        "agent_session_id": agent_session_id,
    }
    sessions.insert(tx, SessionRow(**{**row, **fields}))
    turns.insert(tx, TurnRow(session_id, 1, TurnStatus.RUNNING, by, "do it", AT, started_at=AT))


@asynccontextmanager
async def open_world(
    directory: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    capability: str = CAPABILITY,
    models: Models | None = None,
    now: Callable[[], datetime] = clock.now,
) -> AsyncIterator[World]:
    """Everything up; ``models`` adds aliases to the config or changes them."""
    events: list[EventRow] = []
    async with (
        open_provider(key=KEY) as provider,
        open_store(directory / "oubliette.db", publish=events.extend, synchronous="OFF") as store,
        trio.open_nursery() as nursery,
    ):
        await store.write(partial(lay_out, settings=settings, capability=capability))
        config = config_for(provider, directory, models or {})
        meter = Meter(store, config, now=now)
        await nursery.start(meter.run)
        gateway = Gateway(config, meter)
        await nursery.start(gateway.run)
        serve = partial(gateway.serve_model, container_id="c1")
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield World(config, gateway, meter, store, provider, listener.socket.getsockname()[1], events)
        nursery.cancel_scope.cancel()
