"""The real OpenCode, with the real SDK of each provider, through the gateway to a provider that speaks its wire."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.agent.base import AgentRetry, Attachment
from oubliette.agent.opencode_config import ModelEntry
from oubliette.agent.toolkit import Toolkit, ensure_toolkit
from oubliette.core.model import EventType
from oubliette.gateway.models import ResolvedModel, Wire, all_models
from oubliette.store import budgets, sessions
from tests.agent.fake_model import FakeModel
from tests.agent.rig import Rig, Turn, open_rig, start
from tests.gateway.world import ALIASES, KEY, MODELS, WIRES, World, open_world

pytestmark = pytest.mark.agent

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCRIPTED = {
    Wire.ANTHROPIC: "scripted-anthropic",
    Wire.OPENAI: "scripted-openai",
    Wire.GOOGLE: "scripted-google",
    Wire.CHAT: "scripted",
}


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return trio.run(ensure_toolkit, cache / "oubliette-test-toolkit", lambda _what, _done, _total: None)


@dataclass
class Talk:
    """A session of the real agent whose model requests go through the gateway."""

    world: World
    rig: Rig
    session_id: str
    directory: str

    async def turn(self, text: str, alias: str, **more: Any) -> Turn:
        with trio.fail_after(60):
            return await self.rig.turn(self.session_id, self.directory, text, model=alias, **more)

    async def rows(self) -> list[dict[str, Any]]:
        """What was metered, once nothing is at work."""
        with trio.fail_after(10):
            await self.world.gateway.settled("gogol_1")
        return await self.world.rows()


@asynccontextmanager
async def open_talk(toolkit: Toolkit, root: Path) -> AsyncIterator[Talk]:
    (root / "daemon").mkdir()
    async with open_world(root / "daemon", capability="capability") as world:
        entries = [entry(model) for model in all_models(world.config).values()]
        process = start(toolkit, root / "agent", world.port, models=entries)
        try:
            async with open_rig(process, FakeModel(), entries) as rig:
                directory = process.directory("w")
                session_id = await rig.session(directory)
                await world.store.write(lambda tx: sessions.update(tx, "gogol_1", agent_session_id=session_id))
                yield Talk(world, rig, session_id, directory)
        finally:
            process.kill()


def entry(model: ResolvedModel) -> ModelEntry:
    return ModelEntry(
        model.alias,
        model.wire.value,
        model.context_tokens,
        model.max_output_tokens,
        images=model.images,
        pdf=model.pdf,
        reasoning=model.reasoning,
        model=model.model,
    )


def said(turn: Turn) -> str:
    return "\n".join(body["text"] for body in turn.bodies(EventType.MESSAGE) if body["role"] == "assistant")


def bad_rows(rows: list[dict[str, Any]]) -> list[str]:
    return [row["error"] for row in rows if row["error"] is not None]


@pytest.mark.parametrize("wire", WIRES)
async def test_the_real_agent_works_with_a_provider_of_each_kind(wire: Wire, toolkit: Toolkit, tmp_path: Path) -> None:
    alias = ALIASES[wire]
    async with open_talk(toolkit, tmp_path) as talk:
        script = (
            "@reason let me see\n@say looking\n@usage 800 50 200\n"
            '@tool bash {"command": "echo from the shell", "description": "say"}\n'
            "@usage 900 60\n@echo-last-tool\n@images"
        )
        turn = await talk.turn(script, alias, attachments=[Attachment("dot.png", "image/png", PNG)])
        assert turn.idle.error is None, turn.idle
        assert "from the shell" in said(turn)
        assert f"image/png {len(PNG)} bytes sha256 {hashlib.sha256(PNG).hexdigest()}" in said(turn)
        assert [body["text"] for body in turn.bodies(EventType.REASONING)] == ["let me see"]
        [call] = turn.bodies(EventType.TOOL_CALL)
        assert call["tool"]["name"] == "bash"

        asked = talk.world.provider.asked
        assert {one.wire for one in asked} == {wire}
        assert {one.key for one in asked} == {KEY}
        assert all(MODELS[wire] in str(one.path) + str(one.body.get("model")) for one in asked)
        rows = await talk.rows()
        assert [(row["input_tokens"], row["output_tokens"], row["cache_read_tokens"]) for row in rows] == [
            (800, 50, 200),
            (900, 60, 0),
        ]
        assert all(row["cost_microusd"] > 0 and row["cost_complete"] for row in rows)

        second = await talk.turn("And now?\n@recall 1", alias)
        assert "user message 1 was: @reason let me see" in said(second)

        refused = await talk.turn("@fail 400 the provider's own sentence", alias)
        assert refused.idle.error is not None
        assert "the provider's own sentence" in str(refused.idle.error)

        retried = await talk.turn("@fail 429 x1 slow down\n@say after the wait", alias)
        assert retried.idle.error is None
        assert said(retried) == "after the wait"
        assert retried.of(AgentRetry)

        cut = await talk.turn("@say half an\n@cut x1\n@say answer", alias)
        assert cut.idle.error is None
        assert "answer" in said(cut)

        talk.world.provider.key = "sk-somebody-elses-0123456789"
        denied = await talk.turn("@say never", alias)
        assert "Incorrect API key provided" in str(denied.idle.error)
        assert KEY not in str(denied)
        failures = bad_rows(await talk.rows())
        assert failures[:2] == ["HTTP 400", "HTTP 429"]
        assert "broke off" in failures[2]
        assert failures[3:] == ["HTTP 401"]


async def test_the_scripted_model_drives_the_real_agent_on_every_wire(toolkit: Toolkit, tmp_path: Path) -> None:
    async with open_talk(toolkit, tmp_path) as talk:
        for wire, alias in SCRIPTED.items():
            script = (
                "@stream 3 10\n@say one two three\n"
                '@tools [{"name": "bash", "arguments": {"command": "echo A", "description": "a"}},'
                ' {"name": "bash", "arguments": {"command": "echo B", "description": "b"}}]\n'
                f"@echo-last-tool\n@say done on {wire}"
            )
            turn = await talk.turn(script, alias)
            assert turn.idle.error is None, turn.idle
            assert "one two three" in said(turn)
            assert f"done on {wire}" in said(turn)
            outputs = [body["tool"]["output"].strip() for body in turn.bodies(EventType.TOOL_RESULT)]
            assert sorted(outputs) == ["A", "B"]
        assert not talk.world.provider.asked
        assert not bad_rows(await talk.rows())


async def test_the_agent_is_told_why_its_model_was_refused(toolkit: Toolkit, tmp_path: Path) -> None:
    async with open_talk(toolkit, tmp_path) as talk:
        await talk.world.store.write(lambda tx: sessions.update(tx, "gogol_1", ending="cancelled"))
        for alias in SCRIPTED.values():
            turn = await talk.turn("@say x", alias)
            assert "The session has ended" in str(turn.idle.error)


async def test_a_cut_session_stops_its_real_agent_at_once(toolkit: Toolkit, tmp_path: Path) -> None:
    async with open_talk(toolkit, tmp_path) as talk:
        async with talk.rig.agent.events(talk.session_id, talk.directory) as stream:
            prompt = talk.rig.prompt("@say a\n@delay 60\n@say b", model="scripted")
            await talk.rig.agent.prompt(talk.session_id, talk.directory, prompt)
            with trio.fail_after(20):
                while await talk.world.store.read(partial(budgets.tree_reserved, root_id="gogol_1")) == (0, 0):
                    await trio.sleep(0.01)  # the agent tells nobody
            await talk.world.store.write(lambda tx: sessions.update(tx, "gogol_1", ending="cancelled"))
            began = trio.current_time()
            talk.world.gateway.cancel_session("gogol_1", "the session was cancelled")
            with trio.fail_after(5):
                await talk.world.gateway.settled("gogol_1")
            assert trio.current_time() - began < 1
            stream.close()
        assert bad_rows(await talk.rows())[0] == "the session was cancelled"
