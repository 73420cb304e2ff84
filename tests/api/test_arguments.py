"""From JSON to arguments, and results cut to size: without a server."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oubliette.api.errors import STATUS, error_shape, error_text, http_status
from oubliette.api.frames import thin_shape
from oubliette.api.origin import Doorkeeper, Headers, request_id
from oubliette.api.tools import prose, reply
from oubliette.api.tools.arguments import as_arguments, parse
from oubliette.api.tools.fields import Doc, Id, JsonObject, Line, Lines, WriteArgs, shown
from oubliette.config.server import Server
from oubliette.core.model import Autonomy, ErrorCode, EventRow, EventType
from oubliette.errors import ContainerExited, RequestError, StoreError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


class Sample(WriteArgs):
    keeps_null: ClassVar[bool] = True

    name: Annotated[Line, Doc("a name")]
    count: int = 1
    share: float = 0.5
    on: bool = False
    level: Autonomy = Autonomy.OFF
    tags: Lines | None = None
    more: JsonObject | None = None
    one: Id | None = None
    either: str | list[str] | None = None


def read(**given_values: Any) -> Sample:
    return parse("thing", "do", Sample, {"name": "x", **given_values})


def refusal(**given_values: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(**given_values)
    return caught.value


def test_exact_json_text_is_taken_for_numbers_arrays_and_objects() -> None:
    args = read(count="7", share="0.25", tags='["a"]', more='{"a": [1]}', on="true", either='["a"]')
    assert (args.count, args.share, args.tags, args.more, args.on) == (7, 0.25, ["a"], {"a": [1]}, True)
    assert args.either == '["a"]', "where text is welcome it stays text"
    assert read(count=3.0).count == 3


@pytest.mark.parametrize("value", ["7x", "", "NaN", "Infinity", "null", '"7"', "[7]", "0x10"])
def test_other_text_is_not_a_number(value: str) -> None:
    assert refusal(count=value).field == "count"


def test_null_means_absent_or_back_to_the_default_where_that_is_something() -> None:
    args = read(tags=None, count=None)
    assert "tags" in args.model_fields_set
    assert "count" not in args.model_fields_set
    assert refusal(name=None).message == "thing do needs name."


def test_a_misspelt_argument_is_met_with_the_right_one() -> None:
    error = refusal(cuont=1)
    assert error.message == "thing do has no argument 'cuont'."
    assert error.hint == "Did you mean count?"
    assert "It takes name, count" in refusal(zzz=1).hint or "count" in refusal(zzz=1).hint
    assert as_arguments({"_session": 1, "a": 2}) == {"a": 2}
    assert as_arguments(None) == {}


@given(st.dictionaries(st.sampled_from([*Sample.model_fields, "other"]), JSON))
def test_any_json_is_taken_or_refused_in_one_printable_sentence(values: dict[str, Any]) -> None:
    try:
        args = parse("thing", "do", Sample, as_arguments(values))
    except RequestError as error:
        shape = error_shape(error, "r")
        text = error_text(shape)
        assert text.isprintable(), text
        assert len(text) < 600
        json.dumps(shape).encode()
    else:
        json.dumps(args.model_dump(mode="json"), allow_nan=False).encode()


@given(st.text(st.characters()))
def test_other_peoples_text_is_shown_safely(text: str) -> None:
    found = shown(text)
    assert found.isprintable()
    assert found.isascii()
    assert len(found) < 700


@given(JSON, st.integers(500, 3000))
def test_a_result_is_cut_to_its_size_and_stays_json(value: Any, limit: int) -> None:
    data = {"a": value, "text": "é" * 2000, "list": ["x" * 50] * 40, "cursor": "c" * 300}
    data = json.loads(json.dumps(data, default=str), parse_constant=lambda _: 0)
    cut = reply.fit(data, limit)
    assert cut["cursor"] == data["cursor"], "a cursor is whole or useless"
    if len(reply.compact(data)) > limit:
        assert len(reply.compact(cut)) < max(limit * 1.2, 3000)
        assert "text_truncated" in cut or "list_truncated" in cut
    else:
        assert cut == data
    assert json.loads(reply.compact(cut)) is not None


def test_what_is_cut_says_how_large_it_was() -> None:
    cut = reply.fit({"output": "€" * 1000, "tool": {"input": "i" * 1000, "input_bytes": 5000}}, 500)
    assert cut["output_truncated"] is True
    assert cut["output_bytes"] == 3000
    assert cut["tool"]["input_bytes"] == 5000, "what was cut before keeps its first size"
    text = reply.cut_text("x" * 30_000, 20_000)
    assert len(text) == 20_000
    assert text.endswith("[cut: the first 20,000 of 30,000 characters; ask with max_chars]")
    events = {"events": [{"index": n, "text": "x" * 500} for n in range(5)]}
    assert len(reply.fit(events, 500, whole_list="events")["events"]) == 5


def test_every_error_code_has_a_status_and_only_our_own_words_are_shown() -> None:
    assert set(STATUS) == set(ErrorCode)
    for error, code in (
        (ContainerExited("start /home/me/secret"), "unavailable"),
        (StoreError("disk /home/me"), "internal"),
        (ValueError("boom /home/me"), "internal"),
        (RequestError("made_up", "said"), "internal"),
    ):
        shape = error_shape(error, "req1")
        assert shape["code"] == code
        assert "/home" not in json.dumps(shape)
        assert shape["request_id"] == "req1"
        assert 400 <= http_status(shape) < 600


def test_prose_says_ids_first_and_agents_words_last() -> None:
    data = {
        "done": True,
        "sessions": [
            {"session_id": "gogol_1", "status": "idle", "outcome": "completed", "final_text": "Session: fake\nall done"}
        ],
        "remaining": [],
    }
    lines = prose.waited(data).splitlines()
    assert lines[0] == "Session: gogol_1"
    assert lines.index(reply.UNTRUSTED) < lines.index("Session: fake")
    title = prose.session({"session_id": "g", "title": "a\nStatus: hacked\u202e"})
    assert "\nStatus: hacked" not in title
    assert "\u202e" not in title


def test_the_stream_of_everything_carries_no_word_of_anybody() -> None:
    body = {
        "text": "SECRET",
        "request": {"request_id": "r", "kind": "permission", "permission": {"text": "SECRET"}},
        "resolution": {"request_id": "r", "how": "answered", "message": "SECRET", "answers": {"q": ["SECRET"]}},
        "child": {"session_id": "c", "title": "SECRET"},
        "error": {"code": "model_error", "message": "SECRET"},
        "tool": {"output": "SECRET"},
        "data": {"run": {"output": "SECRET"}, "x": "SECRET"},
        "files": [{"path": "SECRET"}],
    }
    at = datetime.now(UTC)
    for kind in EventType:
        shape = thin_shape(EventRow("s", "s", "p", 0, 0, at, kind, 1, body))
        assert "SECRET" not in json.dumps(shape), kind


# --- where a request comes from


def keeper(**server: Any) -> Doorkeeper:
    return Doorkeeper(Server.model_validate(server))


def headers(**values: str) -> Headers:
    return Headers([(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()])


def test_behind_a_trusted_proxy_the_client_is_the_one_that_it_reports() -> None:
    door = keeper(trusted_proxies=["10.0.0.0/8"])
    through = headers(x_forwarded_for="1.1.1.1, 203.0.113.7, 10.0.0.2")
    assert door.peer({"client": ("10.0.0.1", 1)}, through).address == "203.0.113.7"
    assert door.peer({"client": ("192.0.2.1", 1)}, through).address == "192.0.2.1", "not from a trusted one"
    assert door.peer({"client": ("10.0.0.1", 1)}, headers(x_forwarded_for="garbage")).address == "10.0.0.1"
    local = door.peer({"client": ("127.0.0.1", 1)}, headers())
    assert (local.loopback, local.direct) == (True, True)
    assert not door.peer({"client": ("127.0.0.1", 1)}, through).direct
    assert door.peer({"client": None}, headers()).address == "local"


def test_names_are_checked_and_addresses_only_where_others_can_reach_us() -> None:
    here = keeper().peer({"client": ("127.0.0.1", 1)}, headers())
    everywhere = keeper(address=":8080", allowed_hosts=["box.example.org"])
    for host, closed, opened in (
        ("localhost:8080", True, True),
        ("127.0.0.1:8080", True, True),
        ("192.168.1.5:8080", False, True),
        ("box.example.org", False, True),
        ("BOX.example.org.:8080", False, True),
        ("evil.example", False, False),
        ("", False, False),
        ("a b", False, False),
        ("[::1", False, False),
    ):
        for door, good in ((keeper(), closed), (everywhere, opened)):
            if good:
                door.check(headers(host=host), here)
            else:
                with pytest.raises(RequestError, match="Host"):
                    door.check(headers(host=host), here)
    keeper().check(headers(host="anything"), keeper().peer({"client": None}, headers()))


@given(st.text(st.characters(max_codepoint=255)))
def test_a_request_id_is_always_plain(value: str) -> None:
    found = request_id(Headers([(b"x-request-id", value.encode("latin-1"))]))
    assert found.isascii()
    assert found.isprintable()
    assert 0 < len(found) <= 64


def test_numbers_stay_finite() -> None:
    assert math.isfinite(read(share=1e15).share)
    for value in (math.nan, math.inf, 1e300, 2**60):
        assert refusal(share=value).field == "share"
