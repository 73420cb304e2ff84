"""OpenCode as an Agent: its HTTP calls, and one reader of its events for all sessions of a container."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from oubliette.agent.attachments import attachment_part
from oubliette.agent.base import (
    AGENT_PORT,
    AgentDurable,
    AgentEvent,
    AgentIdle,
    AgentLost,
    AgentRetry,
    AgentSessionSpec,
    Prompt,
)
from oubliette.agent.message_id import new_message_id
from oubliette.agent.opencode_config import WARM_MODEL, ModelEntry, mcp_server, provider_id, variant_for
from oubliette.agent.opencode_events import EventMapper
from oubliette.agent.opencode_feed import Feeds
from oubliette.agent.opencode_history import turn_messages
from oubliette.agent.opencode_http import AgentHttp, AgentRefused, Dial
from oubliette.agent.opencode_parts import answers_of, list_at, object_at, text_at
from oubliette.agent.opencode_queries import AgentQueries, is_over
from oubliette.agent.opencode_reader import EventReader
from oubliette.agent.opencode_rules import SessionRules
from oubliette.agent.permissions import granting_rules, hiding_rules, is_granted, session_rules
from oubliette.core.model import Json
from oubliette.errors import AgentError, AgentProtocolError, AgentUnreachable

log = structlog.get_logger(__name__)

BOOT_SECONDS = 60.0
"""Measured: 1.3 to 3.7 s; a loaded machine may take much longer."""
HEALTH_SECONDS = 0.3
"""A request sent while it boots can hang for 20 s: ask often, wait briefly."""
HEALTH_PAUSE_SECONDS = 0.05
PROMPT_SECONDS = 60.0
"""It answers when the message is stored; large images are scaled before that."""
ABORT_SECONDS = 5.0
ABORT_TRIES = 3
ABORTED_SECONDS = 1.0
"""How long ``abort`` waits for the last words of the turn each time."""
WARM_SECONDS = 15.0
MCP_SECONDS = 40.0
COMPLETE_SECONDS = (0.0, 0.1, 0.2, 0.4)
_SESSION_ID = re.compile(r"ses_[A-Za-z0-9]{1,60}")


class OpenCode:
    """One running OpenCode process. ``run`` must be running for events to come; calls work without."""

    def __init__(self, dial: Dial, password: str, models: Sequence[ModelEntry], *, port: int = AGENT_PORT) -> None:
        self._http = AgentHttp(dial, port, password)
        self._models = {entry.alias: provider_id(entry.kind) for entry in models}
        self._queries = AgentQueries(self._http)
        self._feeds = Feeds()
        self._reader: EventReader | None = None
        self._lost: str | None = None
        self._gone = trio.Event()
        self._rules = SessionRules(self._call)
        self._variants: dict[str, list[str]] | None = None

    # --- the process

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait until it answers, report started, read its events; returns when it is lost. Raises AgentUnreachable when
        it does not come up."""
        await self._boot()
        started = trio.Event()
        async with trio.open_nursery() as nursery:
            self._reader = EventReader(self._http, self._feeds, nursery)
            nursery.start_soon(self._until_gone, nursery)
            nursery.start_soon(self._read, self._reader, started)
            nursery.start_soon(self._reader.watch)
            await started.wait()
            task_status.started()
        if not started.is_set():
            raise AgentUnreachable(f"start the agent: {self._lost}")

    async def _until_gone(self, nursery: trio.Nursery) -> None:
        await self._gone.wait()
        nursery.cancel_scope.cancel("agent lost")

    async def _read(self, reader: EventReader, started: trio.Event) -> None:
        self.mark_lost(await reader.run(started))

    async def _boot(self) -> None:
        with trio.move_on_after(BOOT_SECONDS):
            while self._lost is None:
                try:
                    health = await self._http.call("GET", "/global/health", seconds=HEALTH_SECONDS)
                except AgentError:
                    await trio.sleep(HEALTH_PAUSE_SECONDS)
                    continue
                if object_at(health).get("healthy") is True:
                    return
                await trio.sleep(HEALTH_PAUSE_SECONDS)
        raise AgentUnreachable(f"start the agent: {self._lost or f'no answer in {BOOT_SECONDS:g} s'}")

    def mark_lost(self, detail: str) -> None:
        """The process is gone: everybody who listens is told, calls fail at once, ``run`` returns."""
        if self._lost is None:
            self._lost = detail
            self._gone.set()
            for feed in self._feeds.all():
                feed.lose(detail)
                self._feeds.drop_unused(feed)

    async def _call(self, method: str, path: str, directory: str, body: Any = None, seconds: float = 15.0) -> Any:
        if self._lost is not None:
            raise AgentUnreachable(f"{method} {path}: the agent is gone: {self._lost}")
        return await self._http.call(method, path, query={"directory": directory}, body=body, seconds=seconds)

    # --- sessions

    async def create_session(self, spec: AgentSessionSpec) -> str:
        """A new agent session; returns its id. RequestError: the spec's permissions make no sense."""
        rules = session_rules(spec)
        # With a title of ours no model is asked for one.
        made = await self._call("POST", "/session", spec.directory, {"title": spec.title or "-", "permission": rules})
        session_id = text_at(made, "id")
        if not _SESSION_ID.fullmatch(session_id):
            raise AgentProtocolError("create a session of the agent: the answer has no session id")
        self._rules.made(session_id, rules)
        return session_id

    async def configure(self, agent_session_id: str, spec: AgentSessionSpec, hidden_tools: Sequence[str] = ()) -> None:
        """Make the session follow this spec from its next turn on (autonomy, tools, protected paths)."""
        await self._rules.replace(agent_session_id, spec.directory, session_rules(spec) + hiding_rules(hidden_tools))

    @asynccontextmanager
    async def events(
        self, agent_session_id: str, directory: str
    ) -> AsyncIterator[trio.MemoryReceiveChannel[AgentEvent]]:
        """See Agent. Only what belongs to a turn that was begun (``prompt``) or taken up (``backfill``) is told."""
        feed = self._feeds.open(agent_session_id, directory)
        send, receive = feed.listen()
        if self._lost is not None:
            feed.lose(self._lost)
        try:
            with receive:
                yield receive
        finally:
            feed.leave(send)
            self._feeds.drop_unused(feed)

    # --- turns

    async def prompt(self, agent_session_id: str, directory: str, prompt: Prompt) -> None:
        """Start a turn. AgentUnreachable leaves open whether it has begun: ask ``has_message``."""
        provider = self._models.get(prompt.model)
        if provider is None:
            raise AgentProtocolError(f"prompt the agent: it was not told of a model {prompt.model!r}", code="not_found")
        if prompt.spec is None:
            await self._rules.hide(agent_session_id, directory, prompt.hidden_tools)
        else:
            await self.configure(agent_session_id, prompt.spec, prompt.hidden_tools)
        body: Json = {
            "messageID": prompt.message_id,
            "model": {"providerID": provider, "modelID": prompt.model},
            "parts": [{"type": "text", "text": prompt.text}, *map(attachment_part, prompt.attachments)],
        }
        if prompt.system:
            body["system"] = prompt.system
        variants = await self._variants_of(directory)
        variant = variant_for(prompt.reasoning, variants.get(prompt.model, ()))
        if variant is not None:
            body["variant"] = variant
        await self._send(agent_session_id, directory, prompt.message_id, body)

    async def _send(self, session_id: str, directory: str, message_id: str, body: Json) -> None:
        feed = self._feeds.open(session_id, directory)
        feed.begin(message_id)
        try:
            await self._call("POST", f"/session/{session_id}/prompt_async", directory, body, PROMPT_SECONDS)
        except AgentRefused:
            feed.forget(message_id)
            self._feeds.drop_unused(feed)
            raise

    async def _variants_of(self, directory: str) -> dict[str, list[str]]:
        """The reasoning variants of each alias; OpenCode derives them from the model's name."""
        if self._variants is None:
            listed = await self._call("GET", "/config/providers", directory)
            self._variants = {
                alias: list(object_at(model, "variants"))
                for provider in list_at(listed, "providers")
                for alias, model in object_at(provider, "models").items()
                if self._models.get(alias) == text_at(provider, "id")
            }
        return self._variants

    async def has_message(self, agent_session_id: str, directory: str, message_id: str) -> bool:
        """Whether a prompt with that id has arrived."""
        try:
            await self._call("GET", f"/session/{agent_session_id}/message/{message_id}", directory)
        except AgentRefused as error:
            if error.status == 404:
                return False
            raise
        return True

    async def backfill(
        self, agent_session_id: str, directory: str, message_id: str
    ) -> tuple[Sequence[AgentDurable], AgentIdle | None]:
        """See Agent. A turn that still runs is followed from here on: what comes later, pending asks too, comes through
        ``events``. Raises AgentProtocolError when the agent does not know the message."""
        queries = self._queries
        feed = self._feeds.get(agent_session_id)
        follow = feed if feed is not None and feed.mapper.turn != message_id else None
        if follow is not None:
            follow.begin(message_id)
            follow.hold()
        running = False
        try:
            for pause in COMPLETE_SECONDS:
                await trio.sleep(pause)
                running = await queries.is_running(agent_session_id, directory)
                history = await queries.history(agent_session_id, directory, message_id)
                if running or is_over(history, message_id, failed=False):
                    break
            if not turn_messages(history, message_id):
                raise AgentProtocolError(f"read the agent's history: it has no message {message_id}")
            mapper = EventMapper()
            mapper.begin(message_id)
            found = mapper.absorb(history)
            if not running:
                found += mapper.settle(history, running=False)
            elif follow is not None:
                follow.mapper.absorb(history)
                follow.tell(follow.mapper.absorb_asks(*await queries.asks(agent_session_id, directory)))
        finally:
            if follow is not None:
                if not running:
                    follow.forget(message_id)
                follow.resume()
                if self._reader is not None:
                    self._reader.look(follow)
        durables = [event for event in found if isinstance(event, AgentDurable)]
        return durables, next((event for event in found if isinstance(event, AgentIdle)), None)

    async def abort(self, agent_session_id: str, directory: str) -> None:
        """Stop the running turn; returns when its last words were told, or after a while without them."""
        feed = self._feeds.get(agent_session_id)
        if feed is not None:
            feed.mapper.aborting()
        for _ in range(ABORT_TRIES):
            # Again, because a prompt that was just sent may begin its turn after the first abort found nothing.
            await self._call("POST", f"/session/{agent_session_id}/abort", directory, seconds=ABORT_SECONDS)
            if feed is None:
                return
            with trio.move_on_after(ABORTED_SECONDS):
                await feed.over.wait()
                return

    # --- asks

    async def reply_permission(self, agent_ref: str, directory: str, reply: str, message: str | None) -> None:
        """``once``, ``always`` or ``reject`` (``message`` is told to the model). Fine when it was settled meanwhile.

        ``always`` is for this session, until its settings change or the daemon restarts. OpenCode's own would be for
        every session of the directory, and stronger than a denial.
        """
        references = [agent_ref]
        if reply == "always":
            references = await self._grant(agent_ref, directory)
        body = {"reply": "reject" if reply == "reject" else "once", **({"message": message} if message else {})}
        for reference in references:
            await self._reply(f"/permission/{reference}/reply", directory, body)

    async def _grant(self, agent_ref: str, directory: str) -> list[str]:
        """Remember what ``always`` means here; returns all pending asks of the session that it answers."""
        listed = await self._call("GET", "/permission", directory)
        pending = [object_at(one) for one in list_at({"all": listed}, "all")]
        asked = next((one for one in pending if text_at(one, "id") == agent_ref), None)
        if asked is None:
            return [agent_ref]
        session_id, granted = text_at(asked, "sessionID"), granting_rules(asked)
        feed = self._feeds.get(session_id)
        if feed is not None:
            feed.mapper.granted += granted
        await self._rules.grant(session_id, directory, asked)
        own = [one for one in pending if text_at(one, "sessionID") == session_id and is_granted(one, granted)]
        return list(dict.fromkeys([agent_ref, *(text_at(one, "id") for one in own)]))

    async def reply_question(self, agent_ref: str, directory: str, answers: Mapping[str, Sequence[str]] | None) -> None:
        """Question id to ids of options or free text; None rejects. Fine when it was settled meanwhile."""
        if answers is None:
            await self._reply(f"/question/{agent_ref}/reject", directory, {})
            return
        pending = await self._call("GET", "/question", directory)
        asked = next((one for one in list_at({"all": pending}, "all") if text_at(one, "id") == agent_ref), None)
        if asked is not None:
            await self._reply(f"/question/{agent_ref}/reply", directory, {"answers": answers_of(asked, answers)})

    async def _reply(self, path: str, directory: str, body: Json) -> None:
        try:
            await self._call("POST", path, directory, body)
        except AgentRefused as error:
            if error.status != 404:
                raise

    # --- the directory

    async def warm(self, directory: str) -> None:
        """A prompt to a model that refuses every connection loads all that a first turn would (0.5 s of work)."""
        spec = AgentSessionSpec(title="warm", directory=directory)
        session_id = await self.create_session(spec)
        try:
            async with self.events(session_id, directory) as stream:
                body: Json = {
                    "parts": [{"type": "text", "text": "warm"}],
                    "model": {"providerID": WARM_MODEL[0], "modelID": WARM_MODEL[1]},
                }
                message_id = new_message_id()
                await self._send(session_id, directory, message_id, {**body, "messageID": message_id})
                with trio.move_on_after(WARM_SECONDS):
                    async for event in stream:
                        if isinstance(event, AgentRetry | AgentIdle | AgentLost):
                            break
                await self.abort(session_id, directory)
            await self._variants_of(directory)
        finally:
            self._rules.gone(session_id)
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await self._forget_session(session_id, directory)

    async def _forget_session(self, session_id: str, directory: str) -> None:
        try:
            await self._call("DELETE", f"/session/{session_id}", directory)
        except AgentError as error:
            log.debug("agent session not removed", agent_session=session_id, error=str(error))

    async def add_mcp_server(self, directory: str, name: str, config: Mapping[str, Any]) -> None:
        """Add an MCP server for that directory and wait until it is connected. AgentProtocolError: it could not be."""
        added = await self._call("POST", "/mcp", directory, {"name": name, "config": mcp_server(config)}, MCP_SECONDS)
        status = object_at(added, name)
        if text_at(status, "status") not in ("connected", "disabled"):
            reason = text_at(status, "error") or text_at(status, "status") or "no answer"
            raise AgentProtocolError(f"add the MCP server {name!r} to the agent: {reason}")

    async def reconnect_mcp_server(self, directory: str, name: str) -> bool:
        """True when it was not connected and is now; False when there was nothing to do. OpenCode does not start a
        local server again whose program has ended. AgentProtocolError: it does not come up."""
        status = object_at(await self._call("GET", "/mcp", directory), name)
        if text_at(status, "status") in ("connected", "disabled", ""):
            return False
        done = await self._call("POST", f"/mcp/{name}/connect", directory, {}, MCP_SECONDS)
        if done is not True:
            raise AgentProtocolError(f"connect the MCP server {name!r} of the agent again: {done!r}")
        return True

    async def remove_mcp_server(self, directory: str, name: str) -> None:
        """Stop that server and its program. Fine when there is none."""
        try:
            await self._call("POST", f"/mcp/{name}/disconnect", directory, {}, MCP_SECONDS)
        except AgentRefused as error:
            if error.status != 404:
                raise

    async def mcp_servers(self, directory: str) -> Mapping[str, bool]:
        """The MCP servers of that directory, and whether each is connected; one whose program has ended is not."""
        listed = object_at(await self._call("GET", "/mcp", directory, seconds=MCP_SECONDS))
        return {name: text_at(listed, name, "status") == "connected" for name in listed}
