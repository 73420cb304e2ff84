"""The host's disk: below a floor nothing new is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

from oubliette.errors import RequestError

FLOOR_BYTES = 2 << 30
FLOOR_SHARE = 0.05


def missing_room(path: Path) -> int:
    """Bytes that are missing to the floor, max(2 GiB, 5 % of the disk); 0 when there is room."""
    usage = shutil.disk_usage(path)
    floor = max(FLOOR_BYTES, int(usage.total * FLOOR_SHARE))
    return max(0, floor - usage.free)


def require_room(path: Path) -> None:
    """Raises RequestError storage_full when the disk that holds ``path`` is too full for new work."""
    missing = missing_room(path)
    if missing:
        raise RequestError(
            "storage_full",
            f"The disk that holds {path.name} is nearly full.",
            hint=f"Free at least {missing / (1 << 20):.0f} MiB; nothing new starts before.",
            retryable=True,
        )
