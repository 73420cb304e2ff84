"""Looking for processes on this host by what is on their command line, sandboxes included."""

from __future__ import annotations

from pathlib import Path

import trio


def running(words: str) -> list[int]:
    """Process ids whose command line contains the words; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(int(entry.name))
    return found


async def appear(words: str, count: int = 1, *, timeout_seconds: float = 60) -> list[int]:
    """Wait until that many run."""
    with trio.fail_after(timeout_seconds):
        while len(found := running(words)) < count:
            await trio.sleep(0.02)
    return found


async def vanish(words: str, *, timeout_seconds: float) -> None:
    """Wait until none runs; fails naming what still does."""
    with trio.move_on_after(timeout_seconds):
        while running(words):
            await trio.sleep(0.02)
        return
    left = running(words)
    assert not left, f"still running after {timeout_seconds} s: {left}"
