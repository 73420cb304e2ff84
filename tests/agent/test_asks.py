"""Permissions and questions of the real OpenCode, and what autonomy and tool lists really do to it."""

from __future__ import annotations

from typing import Any

import pytest

from oubliette.agent.base import AgentAsk, AgentAskGone, AgentIdle, AgentSessionSpec
from oubliette.core.model import Autonomy, EventType, RequestKind
from tests.agent.fake_model import script
from tests.agent.rig import Rig, Turn, follow, read, write

pytestmark = pytest.mark.agent

QUESTION = {
    "questions": [
        {
            "question": "Which database?",
            "header": "DB",
            "options": [{"label": "PostgreSQL", "description": "big"}, {"label": "SQLite", "description": "small"}],
        }
    ]
}


def is_ask(event: Any) -> bool:
    return isinstance(event, AgentAsk)


async def asked(
    rig: Rig, directory: str, autonomy: Autonomy, step: dict[str, Any], reply: str
) -> tuple[AgentAsk, Turn]:
    """A turn in which one ask comes and is answered with ``reply``."""
    session = await rig.session(directory, autonomy=autonomy)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, rig.prompt(script(step, {"say": "went on"})))
        (ask,) = (await follow(stream, is_ask)).of(AgentAsk)
        await rig.agent.reply_permission(ask.agent_ref, directory, reply, None)
        return ask, await follow(stream)


async def test_a_permission_is_asked_and_granted_once(rig: Rig, directory: str) -> None:
    ask, turn = await asked(
        rig, directory, Autonomy.HIGH, {"call": [["bash", {"command": "git push --dry-run origin x"}]]}, "once"
    )
    assert ask.kind is RequestKind.PERMISSION
    assert ask.body["action"] == "bash"
    assert ask.body["patterns"] == ["git push --dry-run origin x"]
    assert ask.body["text"] == "git push --dry-run origin x"
    assert ask.body["options"] == ["once", "always", "reject"]
    assert ask.body["tool_id"]
    assert turn.events[0] == AgentAskGone(ask.agent_ref)
    (result,) = turn.bodies(EventType.TOOL_RESULT)
    assert result["tool"]["status"] == "completed"
    assert turn.idle.final_text == "went on"


async def test_a_refusal_is_an_answer_for_the_model_and_the_turn_goes_on(rig: Rig, directory: str) -> None:
    _, turn = await asked(
        rig, directory, Autonomy.LOW, {"call": [["write", {"filePath": "x.txt", "content": "x"}]]}, "reject"
    )
    (result,) = turn.bodies(EventType.TOOL_RESULT)
    assert result["tool"]["status"] == "error"
    assert turn.idle == AgentIdle(final_text="went on")
    assert read(directory, "x.txt") is None


async def test_an_answer_to_an_ask_that_is_gone_is_fine(rig: Rig, directory: str) -> None:
    await rig.agent.reply_permission("per_20718c505001dbBNZziGsRLi6j", directory, "once", None)
    await rig.agent.reply_question("que_20718c505001dbBNZziGsRLi6j", directory, {"q1": ["o1"]})
    await rig.agent.reply_question("que_20718c505001dbBNZziGsRLi6j", directory, None)


@pytest.mark.parametrize(
    ("answers", "seen"),
    [({"q1": ["o2"]}, "SQLite"), ({"q1": ["neither, thank you"]}, "neither, thank you"), (None, "dismissed")],
)
async def test_a_question_is_asked_and_answered(
    rig: Rig, directory: str, answers: dict[str, list[str]] | None, seen: str
) -> None:
    session = await rig.session(directory, autonomy=Autonomy.HIGH)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(
            session, directory, rig.prompt(script({"call": [["question", QUESTION]]}, {"say": "so be it"}))
        )
        (ask,) = (await follow(stream, is_ask)).of(AgentAsk)
        assert ask.kind is RequestKind.QUESTION
        (question,) = ask.body
        assert question["id"] == "q1"
        assert question["text"] == "Which database?"
        assert [(option["id"], option["label"]) for option in question["options"]] == [
            ("o1", "PostgreSQL"),
            ("o2", "SQLite"),
        ]
        assert question["free_text"] is True
        await rig.agent.reply_question(ask.agent_ref, directory, answers)
        turn = await follow(stream)
    (result,) = turn.bodies(EventType.TOOL_RESULT)
    assert seen in result["tool"]["output"]
    assert turn.idle.final_text == "so be it"


async def test_an_abort_while_asked_withdraws_the_ask(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, rig.prompt(script({"call": [["bash", {"command": "make"}]]})))
        (ask,) = (await follow(stream, is_ask)).of(AgentAsk)
        await rig.agent.abort(session, directory)
        turn = await follow(stream)
    assert turn.of(AgentAskGone) == [AgentAskGone(ask.agent_ref)]
    assert turn.idle.aborted
    assert len(turn.bodies(EventType.TOOL_RESULT)) == 1


async def test_off_asks_nothing_and_has_no_question_tool(rig: Rig, directory: str) -> None:
    session = await rig.session(directory)
    turn = await rig.turn(
        session,
        directory,
        script(
            {
                "call": [
                    ["bash", {"command": "git push || rm -rf nothing || sudo true"}],
                    ["read", {"filePath": "/etc/hostname"}],
                ]
            },
            {"call": [["write", {"filePath": "/tmp/../" + directory + "/.env", "content": "A=1"}]]},
            {"say": "done"},
        ),
    )
    assert not turn.of(AgentAsk)
    assert turn.idle.final_text == "done"
    tools = rig.model.of(session)[0].tools
    assert "question" not in tools
    assert "task" not in tools
    assert {"bash", "read", "write", "edit", "glob", "grep"} <= tools


@pytest.mark.parametrize(
    ("autonomy", "step", "asks"),
    [
        (Autonomy.HIGH, ["bash", {"command": "make"}], False),
        (Autonomy.HIGH, ["bash", {"command": "cd . && git push origin main"}], True),
        (Autonomy.HIGH, ["write", {"filePath": "a.txt", "content": "a"}], False),
        (Autonomy.MEDIUM, ["bash", {"command": "ls -la | head -3"}], False),
        (Autonomy.MEDIUM, ["bash", {"command": "make"}], True),
        (Autonomy.MEDIUM, ["write", {"filePath": "a.txt", "content": "a"}], False),
        (Autonomy.MEDIUM, ["read", {"filePath": "/etc/hostname"}], True),
        (Autonomy.LOW, ["bash", {"command": "git status"}], False),
        (Autonomy.LOW, ["bash", {"command": "cat a > b"}], True),
        (Autonomy.LOW, ["glob", {"pattern": "*"}], False),
        (Autonomy.LOW, ["write", {"filePath": "a.txt", "content": "a"}], True),
        (Autonomy.LOW, ["webfetch", {"url": "http://127.0.0.1:9/", "format": "text"}], True),
    ],
)
async def test_what_is_asked_at_each_level(
    rig: Rig, directory: str, autonomy: Autonomy, step: list[Any], asks: bool
) -> None:
    session = await rig.session(directory, autonomy=autonomy)
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(session, directory, rig.prompt(script({"call": [step]}, {"say": "done"})))
        turn = await follow(stream, lambda event: isinstance(event, AgentAsk | AgentIdle))
        assert bool(turn.of(AgentAsk)) is asks
        if asks:
            await rig.agent.abort(session, directory)
            await follow(stream)


async def test_denied_tools_vanish_from_the_models_list(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, tools_disallowed=["bash", "web*", "write"])
    await rig.turn(session, directory, script({"say": "x"}))
    tools = rig.model.of(session)[-1].tools
    assert not tools & {"bash", "webfetch", "write", "edit", "task"}
    assert {"read", "grep"} <= tools


async def test_only_allowed_tools_are_left(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, tools_allowed=["read", "gl*"], autonomy=Autonomy.LOW)
    turn = await rig.turn(
        session, directory, script({"call": [["glob", {"pattern": "*"}], ["bash", {"command": "ls"}]]}, {"say": "x"})
    )
    assert rig.model.of(session)[-1].tools == {"read", "glob"}
    assert not turn.of(AgentAsk)
    statuses = {body["tool"]["name"]: body["tool"] for body in turn.bodies(EventType.TOOL_RESULT)}
    assert statuses["glob"]["status"] == "completed"
    assert "unavailable" in statuses["bash"]["output"]


async def test_hidden_tools_vanish_without_touching_what_is_asked(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW)
    await rig.turn(session, directory, script({"say": "x"}), hidden_tools=["webfetch"])
    assert "webfetch" not in rig.model.of(session)[-1].tools
    async with rig.agent.events(session, directory) as stream:
        text = script({"call": [["bash", {"command": "make"}]]})
        await rig.agent.prompt(session, directory, rig.prompt(text, hidden_tools=["webfetch"]))
        await follow(stream, is_ask)
        await rig.agent.abort(session, directory)
        await follow(stream)
    assert "webfetch" not in rig.model.of(session)[-1].tools


async def test_a_prompt_can_bring_another_autonomy_and_other_tools(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW, tools_disallowed=["bash"])
    await rig.turn(session, directory, script({"say": "x"}), hidden_tools=["webfetch"])
    spec = AgentSessionSpec(title="t", directory=directory, autonomy=Autonomy.OFF, tools_disallowed=["grep"])
    turn = await rig.turn(
        session, directory, script({"call": [["bash", {"command": "echo free"}]]}, {"say": "x"}), spec=spec
    )
    assert not turn.of(AgentAsk)
    assert turn.bodies(EventType.TOOL_RESULT)[0]["tool"]["output"] == "free\n"
    tools = rig.model.of(session)[-1].tools
    assert {"bash", "webfetch"} <= tools
    assert "grep" not in tools


async def test_always_is_for_this_session_and_this_kind_of_call_only(rig: Rig, directory: str) -> None:
    make, other = ["bash", {"command": "make all"}], ["bash", {"command": "npm ci"}]
    session = await rig.session(directory, autonomy=Autonomy.LOW)
    async with rig.agent.events(session, directory) as stream:
        text = script({"call": [make]}, {"call": [make]}, {"say": "made"})
        await rig.agent.prompt(session, directory, rig.prompt(text))
        (ask,) = (await follow(stream, is_ask)).of(AgentAsk)
        await rig.agent.reply_permission(ask.agent_ref, directory, "always", None)
        turn = await follow(stream)
    assert not turn.of(AgentAsk)
    assert turn.idle.final_text == "made"
    again = await rig.turn(session, directory, script({"call": [make]}, {"say": "made again"}))
    assert not again.of(AgentAsk)
    assert again.idle.final_text == "made again"
    neighbour = await rig.session(directory, autonomy=Autonomy.LOW)
    for asking, step in ((session, other), (neighbour, make)):
        async with rig.agent.events(asking, directory) as stream:
            await rig.agent.prompt(asking, directory, rig.prompt(script({"call": [step]})))
            await follow(stream, is_ask)
            await rig.agent.abort(asking, directory)
            await follow(stream)


async def test_always_lifts_no_protection(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, autonomy=Autonomy.LOW, protected_paths=["ci"])
    async with rig.agent.events(session, directory) as stream:
        await rig.agent.prompt(
            session,
            directory,
            rig.prompt(script({"call": [["write", {"filePath": "a", "content": "a"}]]}, {"say": "x"})),
        )
        (ask,) = (await follow(stream, is_ask)).of(AgentAsk)
        await rig.agent.reply_permission(ask.agent_ref, directory, "always", None)
        await follow(stream)
    steps = [["write", {"filePath": name, "content": "b"}] for name in ("b", "ci/x")]
    turn = await rig.turn(session, directory, script({"call": steps}, {"say": "x"}))
    assert not turn.of(AgentAsk)
    assert read(directory, "b") == "b"
    assert read(directory, "ci/x") is None


@pytest.mark.parametrize("repository", [False, True])
async def test_protected_paths_cannot_be_edited(rig: Rig, directory: str, repository: bool) -> None:
    if repository:
        for name, text in ((".git/HEAD", "ref: refs/heads/main\n"), (".git/objects/x", ""), (".git/refs/x", "")):
            write(directory, name, text)
    session = await rig.session(directory, protected_paths=["ci", "LICENSE"])
    turn = await rig.turn(
        session,
        directory,
        script(
            {
                "call": [
                    ["write", {"filePath": f"{directory}/ci/build.sh", "content": "x"}],
                    ["write", {"filePath": "LICENSE", "content": "x"}],
                    ["write", {"filePath": "circle.txt", "content": "x"}],
                ]
            },
            {"say": "done"},
        ),
    )
    assert not turn.of(AgentAsk)
    by_part = {body["part"]: body["tool"]["input"]["filePath"] for body in turn.bodies(EventType.TOOL_CALL)}
    statuses = {by_part[body["part"]]: body["tool"]["status"] for body in turn.bodies(EventType.TOOL_RESULT)}
    assert statuses == {f"{directory}/ci/build.sh": "error", "LICENSE": "error", "circle.txt": "completed"}
    assert read(directory, "ci/build.sh") is None
    assert read(directory, "LICENSE") is None


async def test_a_projects_own_permissions_hold(rig: Rig, directory: str) -> None:
    session = await rig.session(directory, permissions={"bash": {"curl *": "deny"}, "webfetch": "deny"})
    turn = await rig.turn(
        session, directory, script({"call": [["bash", {"command": "curl http://127.0.0.1:9/"}]]}, {"say": "x"})
    )
    (result,) = turn.bodies(EventType.TOOL_RESULT)
    assert result["tool"]["status"] == "error"
    assert "webfetch" not in rig.model.of(session)[-1].tools
