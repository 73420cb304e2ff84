from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oubliette.core.model import EventRow, EventType, NewEvent
from oubliette.errors import RequestError
from oubliette.store import events, sessions
from oubliette.store.bodies import MAX_BODY_BYTES, head_and_tail, stored_form
from oubliette.store.database import Store, Tx
from tests.store.conftest import Published
from tests.store.rows import AT, message, place_with_session, session


def tree(tx: Tx) -> None:
    """gogol_1 with children a and b, and another root."""
    place_with_session(tx)
    for name in "ab":
        sessions.insert(tx, session(name, root_id="gogol_1", parent_id="gogol_1", depth=1))
    sessions.insert(tx, session("other"))


async def append(store: Store, session_id: str, event: NewEvent) -> EventRow:
    row = await store.write(lambda tx: events.append(tx, session_id, event))
    assert row is not None
    return row


async def test_indexes_are_contiguous_per_session_and_seq_per_tree(store: Store, published: Published) -> None:
    await store.write(tree)
    order = ["gogol_1", "a", "other", "b", "a", "gogol_1", "other", "b", "b"]
    for one in order:
        await append(store, one, message())
    by_session: dict[str, list[int]] = {}
    for event in published.events:
        by_session.setdefault(event.session_id, []).append(event.index)
    assert by_session == {"gogol_1": [0, 1], "a": [0, 1], "b": [0, 1, 2], "other": [0, 1]}
    assert [event.seq for event in published.events if event.root_id == "gogol_1"] == list(range(7))
    assert [event.seq for event in published.events if event.root_id == "other"] == [0, 1]
    root, child = await store.read(lambda tx: (sessions.get(tx, "gogol_1"), sessions.get(tx, "b")))
    assert root is not None
    assert (root.last_index, root.last_seq) == (1, 6)
    assert child is not None
    assert child.last_index == 2


async def test_what_is_read_back_is_what_was_published(store: Store, published: Published) -> None:
    await store.write(tree)
    body = {"part": "prt_1", "text": "x\u2028\n€\x00", "tool": {"input": {"a": [1, None, True, 1.5]}}}
    await append(store, "a", NewEvent(EventType.TOOL_CALL, 3, body, "src", AT))
    await append(store, "a", NewEvent(EventType.SYSTEM, None, {"code": "woken"}))
    assert await store.read(partial(events.read, session_id="a", since_index=-1, max_events=10)) == published.events


async def test_a_second_event_of_the_same_source_is_a_no_op_and_takes_no_index(
    store: Store, published: Published
) -> None:
    await store.write(tree)
    assert await append(store, "a", message(source="prt_1:completed"))
    again = await store.write(lambda tx: events.append(tx, "a", message("other text", source="prt_1:completed")))
    assert again is None
    assert await append(store, "b", message(source="prt_1:completed"))  # unique per session, not in the tree
    assert (await append(store, "a", message(source="prt_2:completed"))).index == 1
    assert [event.seq for event in published.events] == [0, 1, 2]


async def test_reading_is_exclusive_bounded_and_filtered(store: Store) -> None:
    await store.write(tree)
    for number in range(6):
        kind = EventType.MESSAGE if number % 2 else EventType.REASONING
        await append(store, "a", NewEvent(kind, 1 + number // 3, {"text": str(number)}))

    def read(**more: Any) -> Any:
        given = {"session_id": "a", "since_index": -1, "max_events": 100, **more}
        return partial(events.read, **given)

    assert [event.index for event in await store.read(read(since_index=1))] == [2, 3, 4, 5]
    assert [event.index for event in await store.read(read(max_events=2))] == [0, 1]
    assert [event.index for event in await store.read(read(types=[EventType.MESSAGE]))] == [1, 3, 5]
    assert await store.read(read(types=[])) == []
    assert await store.read(read(session_id="nobody")) == []
    turn = await store.read(partial(events.read_turn, session_id="a", turn=2))
    assert [event.index for event in turn] == [3, 4, 5]
    newest = await store.read(partial(events.latest, session_id="a", event_type=EventType.REASONING))
    assert newest is not None
    assert newest.index == 4
    assert await store.read(partial(events.latest, session_id="a", event_type=EventType.MESSAGE, turn=9)) is None
    assert await store.read(partial(events.bounds, session_id="a")) == (0, 5)
    assert await store.read(partial(events.bounds, session_id="b")) == (0, -1)
    with pytest.raises(RequestError, match="gone"):
        await store.read(partial(events.bounds, session_id="nobody"))


async def test_a_tree_is_read_merged_or_in_part(store: Store) -> None:
    await store.write(tree)
    for one in ["gogol_1", "a", "other", "b", "a"]:
        await append(store, one, message())

    async def read(ids: list[str] | None, since: int = -1, most: int = 100) -> list[tuple[str, int]]:
        query = partial(events.read_tree, root_id="gogol_1", session_ids=ids, since_seq=since, max_events=most)
        return [(event.session_id, event.seq) for event in await store.read(query)]

    assert await read(None) == [("gogol_1", 0), ("a", 1), ("b", 2), ("a", 3)]
    assert await read(["a", "other"]) == [("a", 1), ("a", 3)]
    assert await read(None, since=1, most=1) == [("b", 2)]
    assert await read([]) == []


async def test_appending_to_a_session_that_is_gone_is_not_found(store: Store) -> None:
    with pytest.raises(RequestError) as caught:
        await store.write(lambda tx: events.append(tx, "nobody", message()))
    assert caught.value.code == "not_found"


async def test_a_rolled_back_append_leaves_no_gap(store: Store) -> None:
    await store.write(tree)

    def failing(tx: Tx) -> None:
        events.append(tx, "a", message())
        raise RequestError("busy", "no")

    with pytest.raises(RequestError):
        await store.write(failing)
    assert (await append(store, "a", message())).index == 0


async def test_stored_bytes_are_counted_per_session_and_project(store: Store) -> None:
    await store.write(tree)
    await append(store, "a", message("x" * 1000))
    await append(store, "b", message("x" * 500))
    assert await store.read(partial(events.stored_bytes, session_id="a")) > 1000
    total = await store.read(lambda tx: events.project_bytes(tx, session().project_id))
    assert 1500 < total < 1700
    assert await store.read(partial(events.stored_bytes, session_id="nobody")) == 0


async def test_a_large_event_keeps_head_and_tail_and_says_so(store: Store, published: Published) -> None:
    await store.write(tree)
    text = "head" + "€" * 600_000 + "tail"
    row = await append(store, "a", NewEvent(EventType.MESSAGE, 1, {"part": "p", "text": text}))
    body = row.body
    assert body["text"].startswith("head€")
    assert body["text"].endswith("€tail")
    assert body["text_truncated"] is True
    assert body["text_bytes"] == len(text.encode())
    assert MAX_BODY_BYTES * 0.9 < len(body["text"].encode()) <= MAX_BODY_BYTES
    assert published.events == [row]
    assert await store.read(partial(events.read, session_id="a", since_index=-1, max_events=1)) == [row]


def test_a_tools_output_and_input_are_cut_and_the_rest_stays() -> None:
    body = {
        "part": "p",
        "tool": {
            "id": "call_1",
            "name": "write",
            "input": {"path": "a.txt", "content": "c" * 3_000_000},
            "output": "o" * 3_000_000,
        },
    }
    kept, text = stored_form(body)
    tool = kept["tool"]
    assert len(text.encode()) <= MAX_BODY_BYTES
    assert json.loads(text) == kept
    assert tool["input"]["path"] == "a.txt"
    assert tool["input"]["content"].startswith("ccc")
    assert (tool["input_truncated"], tool["output_truncated"]) == (True, True)
    assert tool["output_bytes"] == 3_000_000
    assert tool["input_bytes"] > 3_000_000
    assert body["tool"]["output"] == "o" * 3_000_000  # type: ignore[index]  # the caller's own is left alone


def test_a_size_that_was_said_before_is_kept() -> None:
    kept, _ = stored_form({"text": "x" * 2_000_000, "text_bytes": 9_000_000, "text_truncated": True})
    assert kept["text_bytes"] == 9_000_000


def test_an_unpaired_surrogate_is_stored_as_a_replacement() -> None:
    _, text = stored_form({"text": "a\ud800b\U0001f600"})
    assert json.loads(text) == {"text": "a\ufffdb\U0001f600"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(body=st.dictionaries(st.text(), _json, max_size=6), factor=st.sampled_from([1, 1, 200_000]))
@settings(max_examples=60, deadline=None)
def test_every_body_is_stored_within_its_limit_and_reads_back(body: dict[str, Any], factor: int) -> None:
    grown = {key: value * factor if isinstance(value, str) else value for key, value in body.items()}
    kept, text = stored_form(grown)
    assert len(text.encode()) <= MAX_BODY_BYTES
    if factor == 1:
        assert json.loads(text) == json.loads(json.dumps(kept).encode("utf-8", "replace"))


def test_bodies_that_no_field_explains_still_fit() -> None:
    nested: Any = "x"
    for _ in range(500):
        nested = [nested, "y" * 3000]
    for hostile in (
        {"data": {"items": ["z" * 100] * 50_000}},
        {"data": {str(number): number for number in range(300_000)}},
        {"files": [{"path": "p" * 4000}] * 1000},
        {"data": nested},
        {"text": "\x00" * 1_000_000},
    ):
        kept, text = stored_form(hostile)
        assert len(text.encode()) <= MAX_BODY_BYTES
        assert json.loads(text) == kept


@given(text=st.text(min_size=0, max_size=3000), limit=st.integers(64, 2000))
@settings(deadline=None)
def test_head_and_tail_never_exceed_the_limit(text: str, limit: int) -> None:
    cut = head_and_tail(text, limit)
    if len(text.encode("utf-8", "replace")) <= limit:
        assert cut == text
    else:
        assert len(cut.encode()) <= limit
        assert "bytes cut" in cut
