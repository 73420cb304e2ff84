"""Event streams: what the standard's examples mean, every split of the bytes, and back again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oubliette.errors import LocalWireError, RemoteWireError
from oubliette.wire.sse import SseEvent, SseParser, encode

STREAM = (
    "\ufeff: hello\n"
    "retry: 2000\r\n"
    "data: YHOO\ndata: +2\rdata: 10\r\n\r\n"
    ": a comment\n\n"
    "event: add\nid: 7\ndata:first\ndata\n\n"
    "event: lost\n\n"
    "id\ndata:  two spaces\r\r"
    "nonsense: x\nid: a\0b\nretry: soon\ndata: größe\n\n"
    "data: cut short"
).encode()
EVENTS = [
    SseEvent("YHOO\n+2\n10"),
    SseEvent("first\n", "add", "7"),
    SseEvent(" two spaces"),
    SseEvent("größe"),
]


def test_a_stream_is_read_as_the_standard_says() -> None:
    parser = SseParser()
    assert parser.feed(STREAM) == EVENTS
    assert parser.retry_ms == 2000


def test_every_split_in_two_gives_the_same_events() -> None:
    for cut in range(len(STREAM) + 1):
        parser = SseParser()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == EVENTS, cut


def test_byte_by_byte_gives_the_same_events() -> None:
    parser = SseParser()
    assert [event for at in range(len(STREAM)) for event in parser.feed(STREAM[at : at + 1])] == EVENTS


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = SseParser()
    found = [event for start, end in pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert found == EVENTS


def test_an_event_is_given_as_soon_as_its_blank_line_is_there() -> None:
    parser = SseParser()
    assert parser.feed(b"data: x\r\n\r") == [SseEvent("x")]
    assert parser.feed(b"\ndata: y\n\n") == [SseEvent("y")]


def test_an_event_over_the_limit_is_refused_before_it_is_collected() -> None:
    in_one_line = SseParser(max_event_bytes=100)
    with pytest.raises(RemoteWireError):
        in_one_line.feed(b"data: " + b"x" * 200)
    in_many_lines = SseParser(max_event_bytes=100)
    with pytest.raises(RemoteWireError):
        in_many_lines.feed(b"data: xxxxxxxx\n" * 20)
    fine = SseParser(max_event_bytes=100)
    assert len(fine.feed(b"data: xxxxxxxx\n\n" * 200)) == 200


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NAME = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=20)


@settings(deadline=None)
@given(NAME, TEXT, NAME)
def test_what_is_encoded_is_read_back(event: str, data: str, id_: str) -> None:
    parser = SseParser()
    (found,) = parser.feed(encode(event=event, data=data, id=id_))
    assert found == SseEvent(data.replace("\r\n", "\n").replace("\r", "\n"), event, id_)


def test_comments_and_retry_are_no_events() -> None:
    parser = SseParser()
    assert encode(comment="keep\nalive") == b": keep\n: alive\n\n"
    assert parser.feed(encode(comment="") + encode(retry=2000)) == []
    assert parser.retry_ms == 2000


def test_a_line_break_in_a_name_is_our_bug() -> None:
    with pytest.raises(LocalWireError):
        encode(event="a\nb", data="x")
    with pytest.raises(LocalWireError):
        encode(id="a\r", data="x")
