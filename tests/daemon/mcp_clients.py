"""The MCP SDK's own client, in either era, on a running daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.daemon.harness import Daemon

MODERN = "2026-07-28"
LEGACY = "2025-11-25"


@asynccontextmanager
async def open_client(daemon: Daemon, era: str) -> AsyncIterator[Client]:
    """Connected as the CLI's own token."""
    async with httpx2.AsyncClient(headers=daemon.headers(), timeout=120, trust_env=False, verify=False) as http:
        transport = streamable_http_client(f"{daemon.url}/mcp", http_client=http)
        async with Client(transport, mode=MODERN if era == MODERN else "legacy", cache=None) as client:
            yield client
