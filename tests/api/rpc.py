"""MCP by hand: JSON-RPC over httpx in either era, for everything that the SDK's own client would not send."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.api.world import LEGACY, MODERN, Doors

META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}


def messages(text: str) -> list[Any]:
    """The JSON-RPC messages of an answer, event stream or plain JSON."""
    if text.startswith("{"):
        return [json.loads(text)]
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]


@dataclass
class Rpc:
    """One client. ``session`` is set in the handshake era."""

    http: httpx.AsyncClient
    modern: bool
    session: str | None = None
    _last_id: int = 100
    extra: dict[str, str] = field(default_factory=dict)

    def headers(self, method: str, name: str | None = None) -> dict[str, str]:
        common = {"accept": "application/json, text/event-stream", "content-type": "application/json", **self.extra}
        if self.modern:
            named = {"mcp-name": name} if name is not None else {}
            return {**common, "mcp-protocol-version": MODERN, "mcp-method": method, **named}
        own = {"mcp-session-id": self.session} if self.session is not None else {}
        return {**common, "mcp-protocol-version": LEGACY, **own}

    def body(self, method: str, params: dict[str, Any], request_id: int | None = None) -> dict[str, Any]:
        self._last_id += 1
        params = {**params, "_meta": {**META, **params.get("_meta", {})}} if self.modern else params
        return {"jsonrpc": "2.0", "id": request_id or self._last_id, "method": method, "params": params}

    async def send(self, method: str, params: dict[str, Any], *, name: str | None = None) -> httpx.Response:
        return await self.http.post("/mcp", headers=self.headers(method, name), json=self.body(method, params))

    async def ask(self, method: str, **params: Any) -> Any:
        """The answer's ``result`` or ``error``, named as such."""
        answer = await self.send(method, params, name=params.get("name") or params.get("uri"))
        found = messages(answer.text)
        assert found, (answer.status_code, answer.text)
        return found[-1]

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The result object of a tool call."""
        answer = await self.ask("tools/call", name=tool, arguments=arguments)
        assert "result" in answer, answer
        return answer["result"]


@asynccontextmanager
async def open_rpc(doors: Doors, who: str = "admin", *, modern: bool = False) -> AsyncIterator[Rpc]:
    async with doors.client(who) as http:
        rpc = Rpc(http, modern)
        if not modern:
            hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
            answer = await rpc.send("initialize", hello)
            rpc.session = answer.headers["mcp-session-id"]
            body = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            await http.post("/mcp", headers=rpc.headers("notifications/initialized"), json=body)
        yield rpc
