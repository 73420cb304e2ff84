"""Usage is read from answers of all four wires, however their bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oubliette.core.model import ModelUsage
from oubliette.gateway.models import Wire
from oubliette.gateway.routes import Route
from oubliette.gateway.scripted import Scripted
from oubliette.gateway.scripted_reply import reply
from oubliette.gateway.usage import MAX_EVENT_BYTES, Reported, SseData, UsageReader
from tests.gateway.world import WIRES, request_body

USAGE = ModelUsage(input_tokens=100, output_tokens=60, cache_read_tokens=30, cache_write_tokens=20, reasoning_tokens=10)
PROMPT = "@reason hm\n@say hello wörld\n@usage 100 60 30 20 10\n@tool bash {}"


def answer_bytes(wire: Wire, *, streaming: bool) -> bytes:
    """A whole answer of the scripted model."""
    body = request_body(wire, PROMPT, stream=streaming)
    made = reply(Scripted(), wire, body, streaming=streaming, model="m", session="")
    return b"".join(piece.data for piece in made.pieces)


def reader(wire: Wire, *, streaming: bool = True) -> UsageReader:
    return Route(wire).usage(streaming=streaming)


def read(wire: Wire, *pieces: bytes, streaming: bool = True) -> Reported:
    made = reader(wire, streaming=streaming)
    for piece in pieces:
        made.feed(piece)
    return made.finish()


def events(*listed: Any, end: str = "\n\n") -> bytes:
    return "".join(f"data: {json.dumps(one)}{end}" for one in listed).encode()


def expected(wire: Wire) -> tuple[int, ...]:
    """Google has no cache writes to report, Anthropic no reasoning."""
    written = 0 if wire is Wire.GOOGLE else 20
    return (120 - written, 60, 30, written, 0 if wire is Wire.ANTHROPIC else 10)


def numbers(found: Reported) -> tuple[int, ...]:
    return (
        found.input_tokens,
        found.output_tokens,
        found.cache_read_tokens,
        found.cache_write_tokens,
        found.reasoning_tokens,
    )


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_is_read_at_every_split_of_its_bytes(wire: Wire) -> None:
    stream = answer_bytes(wire, streaming=True)
    for at in range(len(stream) + 1):
        found = read(wire, stream[:at], stream[at:])
        assert numbers(found) == expected(wire)
        assert found.complete


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_is_read_byte_by_byte_and_with_other_line_ends(wire: Wire) -> None:
    stream = answer_bytes(wire, streaming=True)
    for text in (stream, stream.replace(b"\n", b"\r\n")):
        found = read(wire, *(text[at : at + 1] for at in range(len(text))))
        assert numbers(found) == expected(wire)
        assert found.characters > len("hmhello wörld")


@pytest.mark.parametrize("wire", WIRES)
def test_an_answer_in_one_piece_is_read_too(wire: Wire) -> None:
    body = answer_bytes(wire, streaming=False)
    for at in range(0, len(body), 7):
        found = read(wire, body[:at], body[at:], streaming=False)
        assert numbers(found) == expected(wire)
        assert found.complete


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_that_was_cut_is_incomplete_and_says_how_much_was_seen(wire: Wire) -> None:
    stream = answer_bytes(wire, streaming=True)
    last = stream.rstrip(b"\n").rfind(b"\n\n", 0, len(stream) - 20)
    if wire is Wire.CHAT:  # the usage comes with the last event but one
        last = stream.find(b'"choices":[]')
    found = read(wire, stream[: last - 40])
    assert not found.complete
    assert found.characters > 0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"data: not json\n\n",
        b"data: []\n\n",
        b'data: {"usage": "none", "type": 7, "choices": {"a": 1}, "candidates": [1, {"content": []}]}\n\n',
        b'data: {"type": "message_start", "message": {"usage": {"input_tokens": -5, "output_tokens": true}}}\n\n',
        b'data: {"type": "response.completed", "response": []}\n\n',
        b'data: {"usage": {"prompt_tokens": 1e300, "completion_tokens": "x"}}\n\n',
        b'data: {"usageMetadata": {"promptTokenCount": null}}\n\n',
        b": comment\n\nevent: x\nid: 1\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_nonsense_in_a_stream_is_skipped(wire: Wire, noise: bytes) -> None:
    assert numbers(read(wire, noise)) == (0, 0, 0, 0, 0)
    assert numbers(read(wire, noise, answer_bytes(wire, streaming=True))) == expected(wire)


def test_an_event_of_several_lines_is_one() -> None:
    assert SseData().feed(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']


def test_a_line_without_end_takes_no_more_memory_than_its_limit() -> None:
    data = SseData()
    for _ in range(40):
        data.feed(b"x" * (1 << 20))
    assert len(data._rest) <= MAX_EVENT_BYTES + (1 << 20)
    assert data.feed(b"\n\ndata: 1\n\n") == [b"1"]


def test_anthropic_counts_hour_long_cache_writes_apart() -> None:
    start = {
        "input_tokens": 4,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 1,
    }
    found = read(
        Wire.ANTHROPIC,
        events({"type": "message_start", "message": {"usage": start}}),
        events({"type": "message_delta", "usage": {"output_tokens": 9, "input_tokens": 4}}),
    )
    assert (found.cache_write_tokens, found.cache_write_hour_tokens, found.output_tokens) == (300, 200, 9)


def test_anthropic_hosted_searches_are_not_paid_by_tokens() -> None:
    found = read(
        Wire.ANTHROPIC,
        events({"type": "message_delta", "usage": {"output_tokens": 9, "server_tool_use": {"web_search_requests": 2}}}),
    )
    assert found.unpriced


def test_an_error_in_the_middle_of_a_stream_is_noted() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert read(Wire.ANTHROPIC, events(overloaded)).error == "Overloaded"
    assert read(Wire.OPENAI, events({"type": "error", "message": "gone"})).error == "gone"
    assert read(Wire.CHAT, events({"error": {"message": "gone"}})).error == "gone"
    assert read(Wire.GOOGLE, events({"error": {"message": "gone"}})).error == "gone"


def test_an_openai_response_that_ended_early_is_paid_all_the_same() -> None:
    usage = {"input_tokens": 50, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 20}}
    found = read(Wire.OPENAI, events({"type": "response.incomplete", "response": {"usage": usage, "output": []}}))
    assert numbers(found) == (30, 7, 20, 0, 0)
    assert found.complete


def test_chat_servers_that_count_reasoning_beside_the_completion_are_understood() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 35,
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    assert read(Wire.CHAT, events({"choices": [], "usage": usage})).output_tokens == 25
    assert read(Wire.CHAT, events({"choices": [], "usage": usage | {"total_tokens": 15}})).output_tokens == 5


def test_the_last_of_many_usages_counts() -> None:
    chunks = [{"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": done}} for done in (1, 2, 3)]
    assert read(Wire.CHAT, events(*chunks)).output_tokens == 3


def test_google_answers_that_were_blocked_cost_their_prompt() -> None:
    found = read(
        Wire.GOOGLE, events({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 8}})
    )
    assert found.complete
    assert found.input_tokens == 8
