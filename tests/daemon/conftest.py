"""What the daemon's tests need of this machine. What is missing fails; nothing is skipped."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def engine_host() -> str:
    """DOCKER_HOST of a usable engine (scripts/test starts one)."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        pytest.fail("These tests need a Docker Engine. Run: export $(scripts/engine)")
    return host
