"""One strict JSON object comes in, one goes out."""

from __future__ import annotations

import json

import pytest

from oubliette.errors import RequestError
from oubliette.gateway.rebuild import MAX_DEPTH, MAX_VALUES, MEDIA_TOKENS, Rebuilt, input_estimate, parse_object


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "\\u0061": 2}}',
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"a": 1} {"b": 2}',
        b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"a": "' + b"x" * 100,
    ],
)
def test_anything_but_one_strict_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_object(body)
    assert caught.value.code == "invalid_argument"


def test_more_values_than_any_agent_sends_are_refused_before_they_are_made() -> None:
    with pytest.raises(RequestError) as caught:
        parse_object(b'{"a": [' + b"[]," * MAX_VALUES + b"[]]}")
    assert caught.value.code == "too_large"


def test_structure_inside_strings_does_not_count() -> None:
    text = '[{,\\"' * (MAX_VALUES // 2)
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


def test_images_count_as_images_and_text_as_text() -> None:
    assert input_estimate({"messages": "ab " * 1000}) == 1003
    assert input_estimate({"url": "data:image/png;base64," + "A" * 100_000}) == MEDIA_TOKENS + 1
    assert input_estimate({"data": "A" * 1_000_000}) == 10_000 + 2


def test_what_json_can_spell_goes_out_as_it_came_in() -> None:
    odd = {"contents": [], "a": "\ud800 ü \u2028"}
    body = Rebuilt(odd, streaming=False).encode()
    assert json.loads(body)["a"] == "? ü \u2028"
