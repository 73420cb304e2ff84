from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.world import Doors, open_doors

CLIENTS = "ignore:Async generator .(httpx|httpcore|mcp)[a-z_0-9]*[.]:ResourceWarning"
"""The clients leave generators behind when a test cancels them; the server must not, and is still watched."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(CLIENTS))


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path) as opened:
        yield opened
