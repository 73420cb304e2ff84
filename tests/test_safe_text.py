"""Text from agents, models and files on its way to a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from oubliette.safe_text import safe_line, safe_text


def test_controls_bidi_and_invisible_characters_are_shown_escaped() -> None:
    assert safe_text("a\x1b[2Jb\x07\x9b31m") == "a\\x1b[2Jb\\x07\\x9b31m"
    assert safe_text("x\u202egpj.exe\u2066\u200b\ufeff") == "x\\u202egpj.exe\\u2066\\u200b\\ufeff"
    assert safe_text("tag\U000e0041\ud800") == "tag\\U000e0041\\ud800"
    assert safe_text("über 日本 🙂 e\u0301\r") == "über 日本 🙂 e\u0301\\x0d"


def test_newlines_and_tabs_stay_unless_one_line_is_wanted() -> None:
    assert safe_text("a\n\tb") == "a\n\tb"
    assert safe_text("a\n\tb", lines=False) == "a\\x0a\\x09b"
    assert safe_line("  a\n b\tc ") == "a b c"
    assert safe_line("abcdef", 4) == "abc…"


@given(st.text(st.characters(codec=None, categories=None)))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    for character in safe_text(text, lines=False):
        assert unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
        assert unicodedata.bidirectional(character) not in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }
    assert safe_text(safe_text(text)) == safe_text(text)
    safe_text(text).encode()
