"""Record the transcripts again, after a change of OpenCode's version: ``python -m tests.agent.record``.

A transcript is what the real OpenCode sent about one turn, in order, and the history that it had afterwards.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from oubliette.agent.base import AgentAsk, AgentRetry, Prompt
from oubliette.agent.opencode_config import ModelEntry
from oubliette.agent.toolkit import ensure_toolkit
from oubliette.core.model import Autonomy
from oubliette.wire.sse import SseParser
from tests.agent.fake_model import open_fake_model, script
from tests.agent.rig import Rig, follow, is_tool_call, open_rig, start, toolkit_root

FOLDER = Path(__file__).with_name("transcripts")
NOISE = ("sync", "session.updated", "session.diff", "session.created", "session.deleted", "session.next", "plugin.")
BASH = ["bash", {"command": "echo hi"}]
USAGE = {"prompt_tokens": 39_000, "completion_tokens": 500, "total_tokens": 39_500}

Act = Callable[[Rig, str, str, Any], Awaitable[object]]


async def _abort_tool(rig: Rig, session: str, directory: str, stream: Any) -> None:
    await follow(stream, is_tool_call)
    await rig.agent.abort(session, directory)


async def _abort_retry(rig: Rig, session: str, directory: str, stream: Any) -> None:
    await follow(stream, lambda event: isinstance(event, AgentRetry))
    await rig.agent.abort(session, directory)


async def _reject(rig: Rig, session: str, directory: str, stream: Any) -> None:
    (ask,) = (await follow(stream, lambda event: isinstance(event, AgentAsk))).of(AgentAsk)
    await rig.agent.reply_permission(ask.agent_ref, directory, "reject", None)


async def _nothing(rig: Rig, session: str, directory: str, stream: Any) -> None:
    await trio.lowlevel.checkpoint()


SCENES: dict[str, tuple[str, Act]] = {
    "tool": (script({"think": "I must", "say": "I will", "call": [BASH]}, {"say": "It says hi."}), _nothing),
    "two_tools": (script({"call": [["bash", {"command": "sleep 0.3"}], BASH]}, {"say": "both"}), _nothing),
    "aborted_tool": (script({"say": "go", "call": [["bash", {"command": "sleep 60"}]]}), _abort_tool),
    "aborted_retry": (script({"status": 429, "body": {"error": {"message": "slow down"}}}), _abort_retry),
    "refused_by_model": (script({"status": 400, "body": {"error": {"message": "bad thing"}}}), _nothing),
    "cut_and_retried": (script({"say": "one two", "call": [BASH], "delay": 0.03, "cut": 1}, {"say": "x"}), _nothing),
    "rejected_permission": (script({"call": [["bash", {"command": "make"}]]}, {"say": "well then"}), _reject),
    "compacted": (script({"say": "step", "call": [BASH], "usage": USAGE}), _nothing),
}


async def _record(rig: Rig, name: str, text: str, act: Act) -> None:
    directory = rig.process.directory(name)
    session = await rig.session(directory, autonomy=Autonomy.LOW if name == "rejected_permission" else Autonomy.OFF)
    if name == "compacted":
        await rig.turn(session, directory, script({"say": "earlier"}))
    events: list[Any] = []
    prompt: Prompt = rig.prompt(text)
    async with trio.open_nursery() as nursery:
        await nursery.start(_listen, rig, session, directory, events)
        async with rig.agent.events(session, directory) as stream:
            await rig.agent.prompt(session, directory, prompt)
            await act(rig, session, directory, stream)
            await follow(stream)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel("recorded")
    history = await rig.agent._queries.history(session, directory, prompt.message_id)
    told = {"message_id": prompt.message_id, "events": events, "history": history}
    spelled = json.dumps(told, indent=None, ensure_ascii=False).replace(directory, "/workspaces/demo")
    spelled = spelled.replace(directory.lstrip("/"), "workspaces/demo").replace(str(rig.model.port), "4097")
    lines = ",\n".join(json.dumps(event, ensure_ascii=False) for event in json.loads(spelled)["events"])
    rest = json.dumps(json.loads(spelled)["history"], ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(
        f'{{"message_id": "{prompt.message_id}",\n"events": [\n{lines}\n],\n"history": {rest}}}\n'
    )


async def _listen(
    rig: Rig,
    session: str,
    directory: str,
    events: list[Any],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Started when the stream really is there: its first event of all is sent before that."""
    parser = SseParser()
    live = trio.Event()
    async with trio.open_nursery() as nursery, rig.agent._http.stream("/global/event") as answer:
        nursery.start_soon(_provoke, rig, directory, live)
        while piece := await answer.receive():
            for event in parser.feed(piece):
                payload = json.loads(event.data)["payload"]
                given = payload.get("properties", {})
                if payload["type"] != "server.connected" and not live.is_set():
                    live.set()
                    task_status.started()
                if not payload["type"].startswith(NOISE) and given.get("sessionID") == session:
                    events.append([payload["type"], given])


async def _provoke(rig: Rig, directory: str, live: trio.Event) -> None:
    toast = {"message": "x", "variant": "info"}
    while not live.is_set():
        await rig.agent._http.call("POST", "/tui/show-toast", query={"directory": directory}, body=toast)


async def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    toolkit = await ensure_toolkit(toolkit_root(), lambda _what, _done, _total: None)
    models = [ModelEntry("m", "openai-compatible", 40_000, 8_000, reasoning=True)]
    with tempfile.TemporaryDirectory() as root:
        async with open_fake_model() as model:
            process = start(toolkit, Path(root), model.port, models=models)
            try:
                async with open_rig(process, model, models) as rig:
                    for name, (text, act) in SCENES.items():
                        await _record(rig, name, text, act)
            finally:
                process.kill()


if __name__ == "__main__":
    trio.run(main)
