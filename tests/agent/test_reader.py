"""The adapter against a server that misbehaves: events that are lost, answers that never come or make no sense."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from oubliette.agent import opencode, opencode_feed, opencode_reader
from oubliette.agent.base import AgentDelta, AgentIdle, AgentLost, AgentSessionSpec, Prompt
from oubliette.agent.opencode import OpenCode
from oubliette.agent.opencode_config import ModelEntry
from oubliette.agent.opencode_http import AgentHttp, AgentRefused, parse_json
from oubliette.agent.opencode_queries import AgentQueries
from oubliette.errors import AgentProtocolError, AgentUnreachable
from tests.agent.fake_opencode import FakeOpenCode, open_fake_opencode
from tests.agent.rig import follow

TOLD = json.loads((Path(__file__).parent / "transcripts/tool.json").read_text())
SESSION = TOLD["events"][0][1]["sessionID"]
PROMPT = Prompt(message_id=TOLD["message_id"], text="x", model="m")
MODELS = [ModelEntry("m", "openai-compatible", 1000, 100)]
HISTORY = f"/session/{SESSION}/message"


@asynccontextmanager
async def tcp(port: int) -> AsyncIterator[trio.abc.Stream]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield stream


@asynccontextmanager
async def running(fake: FakeOpenCode) -> AsyncIterator[OpenCode]:
    agent = OpenCode(tcp, "secret", MODELS, port=fake.port)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            await nursery.start(agent.run)
        yield agent
        nursery.cancel_scope.cancel("test over")


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenCode]:
    async with open_fake_opencode() as server:
        server.answers |= {
            f"/session/{SESSION}": {"permission": []},
            f"/session/{SESSION}/prompt_async": None,
            HISTORY: TOLD["history"],
            "/session/status": {},
            "/permission": [],
            "/question": [],
        }
        yield server


async def test_events_lost_right_after_connecting_are_found_in_the_history(fake: FakeOpenCode) -> None:
    fake.deaf = True
    async with running(fake) as agent, agent.events(SESSION, "/w") as stream:
        await agent.prompt(SESSION, "/w", PROMPT)
        for kind, given in TOLD["events"]:
            fake.emit(kind, given)  # nobody hears it
        fake.cut()
        turn = await follow(stream, seconds=5)
    assert [durable.type for durable in turn.durables] == [
        "reasoning",
        "message",
        "tool_call",
        "tool_result",
        "message",
    ]
    assert turn.idle == AgentIdle(final_text="It says hi.")
    assert "POST /tui/show-toast" in fake.asked


async def test_what_happens_while_the_history_is_read_is_told_after_it(fake: FakeOpenCode) -> None:
    half = len(TOLD["events"]) // 2
    fake.answers["/session/status"] = {SESSION: {"type": "busy"}}
    fake.answers[HISTORY] = TOLD["history"][:1]
    async with running(fake) as agent, agent.events(SESSION, "/w") as stream:
        await agent.prompt(SESSION, "/w", PROMPT)
        for kind, given in TOLD["events"][:half]:
            fake.emit(kind, given)
        await follow(stream, lambda event: isinstance(event, AgentDelta), seconds=5)
        fake.cut()
        with trio.fail_after(5):
            await fake.provoked.wait()
        for kind, given in TOLD["events"][half:]:
            fake.emit(kind, given)
        turn = await follow(stream, seconds=5)
    assert turn.idle == AgentIdle(final_text="It says hi.")


async def test_a_turn_that_says_nothing_is_looked_at(fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencode_reader, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(opencode_reader, "QUIET_SECONDS", 0.1)
    async with running(fake) as agent, agent.events(SESSION, "/w") as stream:
        await agent.prompt(SESSION, "/w", PROMPT)
        turn = await follow(stream, seconds=5)
    assert turn.idle == AgentIdle(final_text="It says hi.")


async def test_a_stream_that_cannot_be_had_again_is_a_lost_agent(
    fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencode_reader, "LOST_SECONDS", 0.3)
    async with running(fake) as agent, agent.events(SESSION, "/w") as stream:
        monkeypatch.setattr(fake, "_stream", _refuse)
        fake.cut()
        with trio.fail_after(5):
            events = [event async for event in stream]
        assert [type(event) for event in events] == [AgentLost]


async def _refuse(_send: Any) -> None:
    raise trio.BrokenResourceError


async def test_an_agent_that_does_not_come_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencode, "BOOT_SECONDS", 0.3)
    agent = OpenCode(tcp, "secret", MODELS, port=9)
    with trio.fail_after(5), pytest.raises(AgentUnreachable, match="start the agent"):
        await agent.run()


async def test_a_listener_that_lags_loses_previews_first(fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencode_feed, "MAX_WAITING_DELTAS", 2)
    async with running(fake) as agent, agent.events(SESSION, "/w") as slow:
        await agent.prompt(SESSION, "/w", PROMPT)
        async with agent.events(SESSION, "/w") as quick:
            for kind, given in TOLD["events"]:
                fake.emit(kind, given)
            whole = await follow(quick, seconds=5)
        late = await follow(slow, seconds=5)
    assert late.sources == whole.sources
    assert late.idle == whole.idle
    assert len(late.of(AgentDelta)) < len(whole.of(AgentDelta))


async def test_a_listener_that_lags_for_ever_is_given_up(fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencode_feed, "MAX_WAITING", 3)
    monkeypatch.setattr(opencode_feed, "MAX_WAITING_DELTAS", 0)
    async with running(fake) as agent, agent.events(SESSION, "/w") as slow:
        await agent.prompt(SESSION, "/w", PROMPT)
        for kind, given in TOLD["events"]:
            fake.emit(kind, given)
        await trio.testing.wait_all_tasks_blocked(0.1)
        events = [event async for event in slow]
    assert len(events) == 4
    assert isinstance(events[-1], AgentLost)


async def test_a_refused_prompt_begins_no_turn(fake: FakeOpenCode) -> None:
    fake.answers[f"/session/{SESSION}/prompt_async"] = (
        404,
        {"name": "NotFoundError", "data": {"message": "no session"}},
    )
    async with running(fake) as agent:
        with pytest.raises(AgentRefused, match="no session"):
            await agent.prompt(SESSION, "/w", PROMPT)
        with trio.fail_after(1):
            await agent.abort(SESSION, "/w")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"null",
        b'{"id": "../../etc"}',
        b'{"id": 7}',
        b"<html>",
        b"[" * 100_000,
        b'{"id": "ses_' + b"x" * 99 + b'"}',
    ],
)
async def test_a_senseless_answer_is_a_protocol_error(fake: FakeOpenCode, answer: bytes) -> None:
    fake.answers["POST /session"] = answer
    async with running(fake) as agent:
        with pytest.raises(AgentProtocolError):
            await agent.create_session(AgentSessionSpec("t", "/w"))


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (r'{"a": "\ud83d"}', {"a": "\ufffd"}),
        (r'["x\uDE00y", {"\ud83d": 1}]', ["x\ufffdy", {"\ufffd": 1}]),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ('"\U0001f600 \\\\udder"', "\U0001f600 \\udder"),
    ],
)
def test_half_a_character_becomes_a_replacement(raw: str, value: Any) -> None:
    assert parse_json(raw) == value
    assert parse_json(raw.encode()) == value
    json.dumps(parse_json(raw), ensure_ascii=False).encode()


async def test_garbage_on_the_event_stream_is_passed_over(fake: FakeOpenCode) -> None:
    async with running(fake) as agent, agent.events(SESSION, "/w") as stream:
        await agent.prompt(SESSION, "/w", PROMPT)
        garbage: Any
        for garbage in (
            [],
            "x",
            None,
            7,
            {"sessionID": 3},
            {"sessionID": SESSION, "info": [], "part": "x", "status": 9},
        ):
            for kind in ("message.updated", "message.part.updated", "session.status", "session.error", "nonsense"):
                fake.emit(kind, garbage)
        for kind, given in TOLD["events"]:
            fake.emit(kind, given)
        assert (await follow(stream, seconds=5)).idle.final_text == "It says hi."


async def test_an_answer_that_does_not_come_has_a_time_limit(fake: FakeOpenCode) -> None:
    http = AgentHttp(tcp, fake.port, "secret")

    async def never(_stream: Any) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, never, listeners)
        silent = AgentHttp(tcp, listeners[0].socket.getsockname()[1], "secret")
        with trio.fail_after(3), pytest.raises(AgentUnreachable):
            await silent.call("GET", "/x", seconds=0.1)
        with trio.fail_after(3), pytest.raises(AgentUnreachable):
            async with silent.stream("/x", seconds=0.1):
                raise AssertionError("no head came")
        nursery.cancel_scope.cancel("test over")
    assert await http.call("GET", "/global/health") == {"healthy": True}


async def test_a_history_is_read_page_by_page_until_the_message_is_there(fake: FakeOpenCode) -> None:
    older = [{"info": {"id": f"msg_{number}", "role": "user"}, "parts": []} for number in range(6)]
    history = [*older, *TOLD["history"]]
    asked: list[int] = []

    def page(query: dict[str, str]) -> tuple[Any, str | None]:
        end = int(query.get("before", len(history)))
        asked.append(end)
        begin = max(0, end - 2)
        return history[begin:end], str(begin) if begin else None

    fake.answers[HISTORY] = page
    queries = AgentQueries(AgentHttp(tcp, fake.port, "secret"))
    assert await queries.history(SESSION, "/w", TOLD["message_id"]) == history[-len(asked) * 2 :]
    assert TOLD["message_id"] in str(history[asked[-1] - 2 : asked[-1]]), "and no further"
    assert await queries.history(SESSION, "/w", "msg_none") == history
