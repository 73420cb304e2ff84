"""The asks of one running turn: each has a row, a deadline and at most one answer that reaches the agent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import structlog
import trio

from oubliette.agent.base import Agent, AgentAsk
from oubliette.core.model import Json, RequestKind, RequestRow, TurnRow
from oubliette.errors import AgentError, RequestError
from oubliette.session import ask_units
from oubliette.session.deps import Deps

log = structlog.get_logger(__name__)


class TurnAsks:
    """Lives as long as the turn's conversation; its nursery hosts one deadline per ask."""

    def __init__(
        self,
        deps: Deps,
        turn: TurnRow,
        agent: Agent,
        directory: str,
        nursery: trio.Nursery,
        changed: Callable[[bool], None],
    ) -> None:
        """``changed(waits)`` is called whenever the turn starts or stops waiting for somebody."""
        self._deps = deps
        self._turn = turn
        self._agent = agent
        self._directory = directory
        self._nursery = nursery
        self._changed = changed
        self._open: dict[str, str] = {}

    async def open(self, ask: AgentAsk) -> None:
        """Make the ask durable and start its deadline. The same ask twice is one."""
        deps, turn = self._deps, self._turn
        at = deps.now()
        defaults = deps.config.defaults.agent
        request = RequestRow(
            request_id=f"req_{deps.fresh_hex(24)}",
            session_id=turn.session_id,
            turn=turn.turn,
            kind=ask.kind,
            created_at=at,
            expires_at=at + timedelta(minutes=defaults.ask_timeout_minutes),
            on_expiry=defaults.ask_on_expiry,
            body=ask.body,
            agent_ref=ask.agent_ref,
        )
        known = await deps.store.write(
            partial(ask_units.open_request, session_id=turn.session_id, request=request, at=at)
        )
        if known is not None:
            self._wait_for(known)

    async def take_up(self) -> None:
        """After a restart: what was asked before has its deadline also when the agent does not repeat itself."""
        find = partial(ask_units.still_pending, session_id=self._turn.session_id, turn=self._turn.turn)
        for known in await self._deps.store.write(partial(find, at=self._deps.now())):
            self._wait_for(known)

    def _wait_for(self, request: RequestRow) -> None:
        if request.agent_ref not in self._open:
            self._open[request.agent_ref] = request.request_id
            self._nursery.start_soon(self._expire, request)
        self._changed(True)

    async def gone(self, agent_ref: str) -> None:
        """The agent no longer waits for it, whoever settled it."""
        request_id = self._open.pop(agent_ref, None)
        self._changed(bool(self._open))
        if request_id is not None:
            await self._resolve(request_id, {"accepted": False, "how": "cancelled"})

    async def reply(self, request: RequestRow, resolution: Json) -> None:
        """Tell the agent how an ask was settled (the row is already written). Quiet when the agent is gone."""
        self._open.pop(request.agent_ref, None)
        self._changed(bool(self._open))
        try:
            if request.kind is RequestKind.PERMISSION:
                reply = str(resolution.get("reply", "reject"))
                await self._agent.reply_permission(request.agent_ref, self._directory, reply, resolution.get("message"))
            elif request.kind is RequestKind.QUESTION:
                await self._agent.reply_question(request.agent_ref, self._directory, resolution.get("answers"))
        except AgentError as error:
            log.warning("the agent did not take an answer", session=request.session_id, error=str(error))

    async def _expire(self, request: RequestRow) -> None:
        await trio.sleep(max(0.0, (request.expires_at - self._deps.now()).total_seconds()))
        if request.agent_ref not in self._open:
            return
        if request.on_expiry == "pause":
            await self._deps.store.write(
                partial(ask_units.pause_for_ask, session_id=request.session_id, kind=request.kind, at=self._deps.now())
            )
        elif await self._resolve(request.request_id, {"accepted": True, "how": "expired", "reply": "reject"}):
            await self.reply(request, {"reply": "reject", "message": "Nobody answered in time."})

    async def _resolve(self, request_id: str, resolution: Json) -> bool:
        """Write a resolution; False when somebody else had settled it."""
        try:
            won, _ = await self._deps.store.write(
                partial(ask_units.resolve_request, request_id=request_id, resolution=resolution, at=self._deps.now())
            )
        except RequestError:
            return False
        return won
