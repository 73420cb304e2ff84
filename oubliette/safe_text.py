"""Untrusted text made safe for a terminal. Every byte that came from an agent, a model or a file passes through here.

What an ordinary reader cannot see or what moves the cursor is shown as an escape: C0 and C1 controls and ESC,
bidirectional overrides, zero-width and other invisible characters, lone surrogates. Newlines and tabs may stay.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls, ESC and the C1 set that terminals obey without it
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # invisible letters and marks
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"  # surrogates; tags and variation selectors
)


def safe_text(text: str, *, lines: bool = True) -> str:
    """``text`` with everything a terminal might obey escaped. ``lines`` False escapes newlines and tabs too."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match.group())
        if lines and code in {0x09, 0x0A}:
            return match.group()
        if code < 0x100:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _UNSAFE.sub(escape, text)


def safe_json(text: str) -> str:
    """JSON text with the same characters spelled ``\\uXXXX``: the same JSON, fit for a terminal."""

    def escape(match: re.Match[str]) -> str:
        if match.group() == "\n":
            return "\n"
        units = match.group().encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))

    return _UNSAFE.sub(escape, text)


def safe_line(text: str, width: int = 0) -> str:
    """``text`` on one line: newlines become spaces, the rest is escaped; cut to ``width`` characters when given."""
    line = safe_text(" ".join(text.split()), lines=False)
    return line if not width or len(line) <= width else line[: width - 1] + "…"
