"""The mapper over what the real OpenCode sent (transcripts): whole, cut anywhere, and as nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oubliette.agent import opencode_parts as shapes
from oubliette.agent.base import AgentAsk, AgentAskGone, AgentDelta, AgentDurable, AgentEvent, AgentIdle, AgentRetry
from oubliette.agent.opencode_events import EventMapper
from oubliette.agent.opencode_history import turn_messages
from oubliette.agent.opencode_turn import MAX_MESSAGE_PARTS, MAX_PARTS
from oubliette.core.model import EventType
from tests.agent.rig import Turn

FOLDER = Path(__file__).with_name("transcripts")
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
OVER = (EventType.TOOL_CALL, EventType.TOOL_RESULT)


def transcript(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def mapper_for(told: Any) -> EventMapper:
    mapper = EventMapper()
    mapper.begin(told["message_id"])
    return mapper


def feed(mapper: EventMapper, events: list[Any]) -> list[AgentEvent]:
    return [event for kind, given in events for event in mapper.feed(kind, given)]


def played(name: str) -> Turn:
    told = transcript(name)
    return Turn(feed(mapper_for(told), told["events"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_ends_once_with_everything_before_it(name: str) -> None:
    turn = played(name)
    assert isinstance(turn.events[-1], AgentIdle)
    assert len(turn.of(AgentIdle)) == 1
    assert len(turn.sources) == len(set(turn.sources))
    calls = [body["part"] for body in turn.bodies(EventType.TOOL_CALL)]
    results = [body["part"] for body in turn.bodies(EventType.TOOL_RESULT)]
    assert sorted(calls) == sorted(results)
    for part in calls:
        at = turn.sources
        assert at.index(f"{part}:call") < at.index(f"{part}:result")


@pytest.mark.parametrize("name", NAMES)
def test_the_history_tells_the_same_as_the_events(name: str) -> None:
    told = transcript(name)
    live = Turn(feed(mapper_for(told), told["events"]))
    again = Turn(mapper_for(told).settle(told["history"], running=False))
    assert {one.source: one.body for one in again.durables} == {one.source: one.body for one in live.durables}
    if not live.idle.aborted:
        assert again.idle == live.idle


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_cut_anywhere_is_filled_up_from_the_history_without_doubles(name: str) -> None:
    told = transcript(name)
    whole = Turn(feed(mapper_for(told), told["events"]))
    for cut in range(len(told["events"])):
        mapper = mapper_for(told)
        events = feed(mapper, told["events"][:cut])
        events += mapper.settle(told["history"], running=False)
        turn = Turn(events)
        assert sorted(turn.sources) == sorted(whole.sources), cut
        assert len(turn.of(AgentIdle)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_history_read_in_the_middle_changes_nothing(name: str) -> None:
    told = transcript(name)
    whole = Turn(feed(mapper_for(told), told["events"]))
    half = len(told["events"]) // 2
    mapper = mapper_for(told)
    events = feed(mapper, told["events"][:half]) + mapper.absorb(told["history"])
    events += feed(mapper, told["events"][half:])
    turn = Turn(events)
    assert sorted(turn.sources) == sorted(whole.sources)
    assert turn.idle.final_text == whole.idle.final_text


@pytest.mark.parametrize("name", NAMES)
def test_events_that_are_heard_late_lose_nothing_of_what_follows(name: str) -> None:
    """Whoever takes a turn up misses its beginning, the prompt's own message too."""
    told = transcript(name)
    first = next(at for at, (kind, given) in enumerate(told["events"]) if _is_answer(kind, given))
    whole = Turn(feed(mapper_for(told), told["events"]))
    late = Turn(feed(mapper_for(told), told["events"][first:]))
    assert late.sources == whole.sources


def test_a_text_is_told_before_the_call_that_follows_it_whatever_came_first() -> None:
    told = transcript("tool")
    kinds = [kind for kind, given in told["events"] if kind == "message.part.updated" and _is_running(given)]
    assert kinds, "the transcript has a tool that runs before its text ends"
    assert played("tool").types() == [
        EventType.REASONING,
        EventType.MESSAGE,
        EventType.TOOL_CALL,
        EventType.TOOL_RESULT,
        EventType.MESSAGE,
    ]


def _is_running(given: Any) -> bool:
    return bool(given["part"].get("state", {}).get("status") == "running")


def test_the_prompt_is_not_told_as_a_message() -> None:
    for name in NAMES:
        assert not any("turns" in body["text"] for body in played(name).bodies(EventType.MESSAGE))


def test_the_first_idle_of_an_abort_does_not_end_the_turn() -> None:
    told = transcript("aborted_tool")
    first = next(at for at, (kind, _) in enumerate(told["events"]) if kind == "session.idle")
    mapper = mapper_for(told)
    assert not any(isinstance(event, AgentIdle) for event in feed(mapper, told["events"][: first + 1]))
    assert mapper.needs_settling
    rest = Turn(feed(mapper, told["events"][first + 1 :]))
    assert rest.bodies(EventType.TOOL_RESULT)
    assert rest.idle.aborted
    assert not mapper.needs_settling


def test_an_abort_without_a_word_of_the_agent_is_still_an_abort() -> None:
    told = transcript("aborted_retry")
    mapper = mapper_for(told)
    mapper.aborting()
    turn = Turn(feed(mapper, told["events"]))
    assert turn.of(AgentRetry)
    assert turn.idle == AgentIdle(aborted=True)


def test_a_refusal_of_the_provider_is_a_model_error() -> None:
    error = played("refused_by_model").idle.error
    assert error == {"code": "model_error", "message": "The model provider answered 400: bad thing", "retryable": False}


def test_an_ask_is_told_and_taken_back() -> None:
    turn = played("rejected_permission")
    (ask,) = turn.of(AgentAsk)
    assert turn.of(AgentAskGone) == [AgentAskGone(ask.agent_ref)]
    assert ask.body["tool_id"] == turn.bodies(EventType.TOOL_CALL)[0]["tool"]["id"]
    assert turn.idle.final_text == "well then"


def test_a_compaction_is_an_event_and_its_summary_is_not_a_message() -> None:
    turn = played("compacted")
    assert turn.bodies(EventType.SYSTEM) == [{"code": "compacted"}]
    assert [body["text"] for body in turn.bodies(EventType.MESSAGE)] == ["step", "no script"]
    assert turn.idle.final_text == "no script"


def test_deltas_of_a_turn_spell_its_texts() -> None:
    turn = played("tool")
    texts: dict[str, str] = {}
    for delta in turn.of(AgentDelta):
        if delta.kind in ("text", "reasoning"):
            assert delta.offset == len(texts.get(delta.part, ""))
            texts[delta.part] = texts.get(delta.part, "") + delta.text
    told = {
        body["part"]: body["text"] for kind in (EventType.MESSAGE, EventType.REASONING) for body in turn.bodies(kind)
    }
    assert texts == told


def test_nothing_is_told_without_a_turn_nor_after_it() -> None:
    told = transcript("tool")
    mapper = EventMapper()
    assert feed(mapper, told["events"]) == []
    mapper.begin(told["message_id"])
    feed(mapper, told["events"])
    assert feed(mapper, told["events"]) == []


def test_an_idle_of_an_earlier_turn_does_not_end_a_new_one() -> None:
    told = transcript("tool")
    mapper = mapper_for(told)
    stale = ("session.idle", {"sessionID": "ses_x"})
    assert mapper.feed(*stale) == []
    events = feed(mapper, told["events"][:5])
    assert mapper.feed(*stale) == []
    turn = Turn([*events, *feed(mapper, told["events"][5:])])
    assert turn.idle.final_text == "It says hi."


def test_the_history_of_one_turn_ends_where_the_next_begins() -> None:
    first, second = transcript("compacted"), transcript("tool")
    history = [*first["history"], *second["history"]]
    assert turn_messages(history, first["message_id"]) == turn_messages(first["history"], first["message_id"])
    assert turn_messages(history, second["message_id"]) == second["history"]
    assert turn_messages(history, "msg_none") == []


def test_a_turn_that_was_never_answered_ends_with_an_error() -> None:
    told = transcript("tool")
    mapper = mapper_for(told)
    turn = Turn(mapper.settle(told["history"][:1], running=False))
    assert turn.idle.error is not None
    assert turn.idle.error["code"] == "agent_error"


def test_a_tool_that_never_ended_gets_a_result_that_says_so() -> None:
    told = transcript("aborted_tool")
    ends = next(at for at, (kind, given) in enumerate(told["events"]) if kind == "session.error")
    mapper = mapper_for(told)
    events = feed(mapper, told["events"][:ends]) + mapper.settle([], running=False)
    (result,) = Turn(events).bodies(EventType.TOOL_RESULT)
    assert result["tool"]["output"] == shapes.INTERRUPTED


def test_a_large_output_keeps_head_and_tail() -> None:
    cut = shapes.capped("output", "ä" * (1 << 20) + "end")
    assert cut["output_truncated"] is True
    assert cut["output_bytes"] == (2 << 20) + 3
    assert len(cut["output"].encode()) <= (1 << 20) + 8
    assert cut["output"].startswith("ä")
    assert cut["output"].endswith("end")
    assert shapes.capped("output", "x" * (1 << 20)) == {"output": "x" * (1 << 20)}


def test_more_parts_than_anybody_reads_are_dropped() -> None:
    told = transcript("tool")
    mapper = mapper_for(told)
    info = next(given["info"] for kind, given in told["events"] if _is_answer(kind, given))
    count = 0
    for message in range(MAX_PARTS // MAX_MESSAGE_PARTS + 5):
        mapper.feed("message.updated", {"info": {**info, "id": f"msg_{message}", "time": {"created": 1}}})
        for number in range(MAX_MESSAGE_PARTS + 100):
            part = {"id": f"prt_{message}_{number}", "messageID": f"msg_{message}", "type": "text", "text": "x"}
            count += len(mapper.feed("message.part.updated", {"part": {**part, "time": {"start": 1, "end": 2}}}))
    assert MAX_PARTS - 100 < count <= MAX_PARTS


def _is_answer(kind: str, given: Any) -> bool:
    return kind == "message.updated" and given["info"]["role"] == "assistant"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nonsense_in_any_field_never_breaks_the_mapper(data: st.DataObject) -> None:
    """The server inside may be anybody: any value of any event may be anything."""
    told = transcript(data.draw(st.sampled_from(NAMES)))
    mapper = mapper_for(told)
    for kind, given_ in told["events"]:
        spoilt = json.loads(json.dumps(given_))
        if data.draw(st.booleans()):
            where = spoilt
            while isinstance(where, dict) and where:
                key = data.draw(st.sampled_from(sorted(where)))
                if not isinstance(where[key], dict) or data.draw(st.booleans()):
                    where[key] = data.draw(JSON)
                    break
                where = where[key]
        for event in mapper.feed(kind, spoilt):
            if isinstance(event, AgentDurable):
                json.dumps(event.body)
    mapper.settle(data.draw(st.lists(JSON, max_size=3)), running=False)  # type: ignore[arg-type]
