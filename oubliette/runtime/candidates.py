"""The runtimes that this version knows how to drive: one list for the daemon and for ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from oubliette.runtime.base import Runtime
from oubliette.runtime.bubblewrap import Bubblewrap
from oubliette.runtime.docker import Docker


def candidates(environ: Mapping[str, str], scratch: Path) -> dict[str, Callable[[], Runtime]]:
    """Name -> how to make it. Making one tries nothing yet. ``scratch`` is a private directory: the home's run."""
    return {
        "docker": lambda: Docker(environ, scratch=scratch),
        "bubblewrap": lambda: Bubblewrap(scratch / "bubblewrap"),
    }
