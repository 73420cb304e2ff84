"""A session tree with a real meter: requests to a model without the HTTP around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio

from oubliette.core.model import EventType, Json, ModelUsage
from oubliette.core.principals import Principal
from oubliette.gateway.lines import Lines
from oubliette.gateway.metering import Meter, Ticket
from oubliette.gateway.models import resolve
from oubliette.session.deps import Deps
from oubliette.session.update import UpdateArgs
from oubliette.store import budgets
from oubliette.store.budgets import TreeBudget
from tests.session.fakes import FakeAgent
from tests.session.world import ADMIN, World, open_world

MODELS: Json = {
    "priced": {"model": "scripted", "provider": "scripted", "cost": {"input": 0, "output": 1}},
    "mystery": {"model": "nobody-knows-it", "provider": "openai-compatible", "baseUrl": "http://127.0.0.1:1/v1"},
}
"""An output token of ``priced`` costs a micro-dollar."""


@dataclass
class Moment:
    """A wall clock that tests move forward."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Money:
    """The tree of ``world``, and the gateway's side of it."""

    world: World
    meter: Meter
    queue: Lines
    moment: Moment
    asking: dict[str, set[trio.CancelScope]] = field(default_factory=dict)

    async def ask(self, session_id: str, tokens: int, used: int | None = None) -> None:
        """One request of that session: may write ``tokens``, and writes ``used`` [all of them], as far as it got
        them. Cut with its turn."""
        row = await self.world.row(session_id)
        model = resolve(self.world.deps.config, "priced")
        ticket = Ticket(session_id, row.root_id, row.project_id, row.turn, model, asked_output_tokens=tokens)
        with trio.CancelScope() as scope:
            self.asking.setdefault(session_id, set()).add(scope)
            try:
                reserved = await self.queue.through(ticket)
                wrote = min(tokens if used is None else used, reserved.output_tokens)
                usage = ModelUsage(requests=1, output_tokens=wrote, cost_microusd=wrote)
                with trio.CancelScope(shield=True):
                    await self.meter.settle(reserved, usage)
                self.queue.changed(root_id=row.root_id)
            finally:
                self.asking[session_id].discard(scope)

    def cut(self, session_id: str) -> None:
        for scope in list(self.asking.get(session_id, ())):
            scope.cancel("its turn was ended")

    async def update(self, session_id: str, principal: Principal = ADMIN, **changes: Any) -> Json:
        return await self.world.tree.update(principal, UpdateArgs(session_id, **changes))

    async def waiting(self, number: int) -> None:
        with trio.fail_after(5):
            while self.queue.waiting() != number:
                await trio.sleep(0.002)  # another task gets there without telling anybody

    async def budget(self, root_id: str) -> TreeBudget:
        return await self.world.store.read(partial(budgets.get, root_id=root_id))

    async def statuses(self, session_id: str) -> list[Json]:
        """Its status events: to, reason, and what came with them."""
        return [
            {**event.body["status"], **event.body.get("data", {})}
            for event in await self.world.log(session_id)
            if event.type is EventType.STATUS
        ]


@asynccontextmanager
async def open_money(
    path: Path, *, agent: FakeAgent | None = None, moment: Moment | None = None, limits: Json | None = None
) -> AsyncIterator[Money]:
    """``limits`` are the config's defaults."""
    moment = moment or Moment()
    made: list[Money] = []

    def adjust(deps: Deps) -> Deps:
        return replace(
            deps,
            now=moment.now,
            cut_model=lambda session_id: made[0].cut(session_id) if made else None,
            budget_changed=lambda root_id: made[0].queue.changed(root_id=root_id),
        )

    defaults = {"limits": limits} if limits else {}
    async with open_world(path, agent=agent, defaults=defaults, models=MODELS, adjust=adjust) as world:
        meter = Meter(world.store, world.deps.config, now=moment.now)
        meter.tell(world.tree.pauses.hold, world.tree.pauses.release)
        queue = Lines(meter.reserve, meter.release_tree)
        made.append(Money(world, meter, queue, moment))
        async with trio.open_nursery() as nursery:
            await nursery.start(queue.run)
            await nursery.start(meter.run)
            with suppress(GeneratorExit):
                yield made[0]
            nursery.cancel_scope.cancel("the world is closed")
