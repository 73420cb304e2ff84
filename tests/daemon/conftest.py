"""What the daemon's tests need of this machine. What is missing fails; nothing is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CLIENTS = "ignore:Async generator .(httpx|httpcore|mcp)[a-z_0-9]*[.]:ResourceWarning"
"""The clients leave generators behind when a test leaves a stream; the daemon is another process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(CLIENTS))


@pytest.fixture(scope="session")
def engine_host() -> str:
    """DOCKER_HOST of a usable engine (scripts/test starts one)."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        pytest.fail("These tests need a Docker Engine. Run: export $(scripts/engine)")
    return host
