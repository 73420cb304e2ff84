"""What commands print: data on stdout, notes on stderr, everything from elsewhere made safe for a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from oubliette.safe_text import safe_json, safe_line, safe_text


def say(text: str = "") -> None:
    """A line of output. What it holds from elsewhere is made safe here."""
    print(safe_text(text), flush=True)


def note(text: str) -> None:
    """A line for the person, not for a pipe."""
    print(safe_text(text), file=sys.stderr, flush=True)


def sentences(message: str, hint: str) -> str:
    """An error and what to do about it, on one line."""
    return f"{message.rstrip('.')}. {hint}" if hint else message


def say_json(value: Any) -> None:
    """For programs: indented when a person looks, one line otherwise."""
    indent = 2 if sys.stdout.isatty() else None
    print(safe_json(json.dumps(value, indent=indent, ensure_ascii=False)), flush=True)


def say_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "none") -> None:
    """Aligned columns; the last one may be as long as it likes."""
    if not rows:
        note(empty)
        return
    cells = [[safe_line(str("-" if cell is None or cell == "" else cell)) for cell in row] for row in rows]
    lines = [list(headers), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers) - 1)]
    for line in lines:
        print(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]), flush=True
        )


def ago(moment: str | None) -> str:
    """``3 min ago`` of an RFC 3339 time."""
    if not moment:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def tokens_and_cost(usage: dict[str, Any]) -> str:
    """``1,234 tokens in, 56 out, $0.0123``."""
    read = usage.get("input_tokens", 0) + usage.get("cache_read_tokens", 0) + usage.get("cache_write_tokens", 0)
    parts = [f"{read:,} tokens in, {usage.get('output_tokens', 0):,} out"]
    cost = usage.get("cost_usd")
    if cost is not None:
        parts.append(
            f"${cost:,.4f}".rstrip("0").rstrip(".") + ("" if usage.get("cost_complete", True) else " (estimate)")
        )
    return ", ".join(parts)
