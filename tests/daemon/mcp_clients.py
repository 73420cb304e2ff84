"""The MCP SDK's own client, in either era, on a running daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.daemon.harness import Daemon

MODERN = "2026-07-28"
LEGACY = "2025-11-25"


@asynccontextmanager
async def open_client(daemon: Daemon, era: str, token: str | None = None, **more: Any) -> AsyncIterator[Client]:
    """Connected with that token; without one as the CLI's own."""
    headers = {"authorization": f"Bearer {token}"} if token else daemon.headers()
    async with httpx2.AsyncClient(headers=headers, timeout=120, trust_env=False, verify=False) as http:
        transport = streamable_http_client(f"{daemon.url}/mcp", http_client=http)
        async with Client(transport, mode=MODERN if era == MODERN else "legacy", cache=None, **more) as client:
            yield client
