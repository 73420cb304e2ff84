from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from oubliette.gateway.redaction import MASK, SecretFilter, without_keys

KEY = "sk-ant-api03-Zm9v/YmFy+x9"


@pytest.mark.parametrize(
    "quoted",
    [
        "Incorrect API key provided: sk-proj-abcd************wxyz.",
        "API key not valid: AIzaSyD-1234567890abcdefghijk",
        "bad header Authorization: Bearer abcdef0123456789",
        "key gsk_0123456789abcdef is blocked",
        "xai-0123456789abcdef0123",
        "token ghp_0123456789abcdef0123",
        f"you sent {KEY}",
        "you sent ****9abc",
    ],
)
def test_nothing_that_looks_like_a_key_is_left_in_an_error(quoted: str) -> None:
    clean = without_keys(json.dumps({"error": {"message": quoted}}).encode(), [KEY])
    assert MASK in clean
    assert not any(part in clean for part in (b"wxyz", b"SyD", b"cdef", b"9abc", b"Zm9v", b"YmFy"))
    json.loads(clean)


def test_ordinary_words_stay() -> None:
    text = b"sk-learn and key-value keys, a bearer of news; model gpt-5.4 not found, 3 * 4 ** 2, max_tokens 128000"
    assert without_keys(text, []) == text


def test_a_secret_is_found_in_the_spellings_of_json_and_urls() -> None:
    secret = 'p"q/r s\\t-secret'
    in_json = json.dumps(secret)[1:-1]
    for spelling in (secret, in_json, in_json.replace("/", "\\/"), quote(secret, safe="")):
        assert without_keys(f"<{spelling}>".encode(), [secret]) == b"<" + MASK + b">"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_secret_is_taken_out_of_a_stream_however_it_is_cut(size: int) -> None:
    text = f"data: x{KEY}y sk-ant-api0 sk-sk-{KEY}{KEY[:5]}\n\n".encode()
    made = SecretFilter(KEY)
    out = b"".join(made.feed(text[at : at + size]) for at in range(0, len(text), size)) + made.finish()
    assert out == text.replace(KEY.encode(), MASK)
    assert made.found


def test_a_stream_without_a_secrets_beginning_is_never_held_back() -> None:
    made = SecretFilter(KEY)
    for piece in (b"data: a\n\n", b"data: {}\n\n", b"x"):
        assert made.feed(piece) == piece
    assert made.finish() == b""


def test_without_a_key_everything_passes() -> None:
    assert SecretFilter(None).feed(b"abc") == b"abc"
    assert SecretFilter("short").feed(b"short") == b"short"
