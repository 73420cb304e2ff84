from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oubliette.core.model import EventRow
from oubliette.store.database import Store, open_store


@dataclass
class Published:
    """What the store has published, in order."""

    events: list[EventRow] = field(default_factory=list)
    batches: int = 0

    def __call__(self, events: Sequence[EventRow]) -> None:
        self.events += events
        self.batches += 1


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
async def store(tmp_path: Path, published: Published) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "oubliette.db", publish=published) as opened:
        yield opened
