"""A session tree over a real store in a temporary directory, with fake agents."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.core.model import EventRow, EventType, Json, PlaceState, ProjectRow, SessionRow, TurnRow, WorkspaceRow
from oubliette.core.principals import Principal, Scope, TokenRow
from oubliette.session.caller_entries import CallerEntries
from oubliette.session.callers import Callers
from oubliette.session.deps import Deps
from oubliette.session.feed import Feed
from oubliette.session.requests import MessageArgs, SpawnArgs, TurnArgs
from oubliette.session.tree import SessionTree
from oubliette.store import events, projects, sessions, tokens, turns, workspaces
from oubliette.store.database import Store, Tx, open_store
from tests.session.fakes import FakeAgent, FakeContainer

PROJECT = "7b1c0000-0000-4000-8000-000000000001"
WORKSPACE = "91aa0000-0000-4000-8000-000000000001"
ADMIN = Principal("token", "tok_admin", "laptop", Scope("admin"))
_message_ids = itertools.count(1)


@dataclass
class World:
    store: Store
    feed: Feed
    tree: SessionTree
    agent: FakeAgent
    container: FakeContainer
    deps: Deps
    begun: list[str]
    """Workspaces that were to be prepared."""
    left: dict[str, list[Json]]
    """What sessions leave for their parents, by title."""

    async def spawn(
        self, text: str, *, parent: str | None = None, principal: Principal = ADMIN, **more: object
    ) -> Json:
        args = SpawnArgs(TurnArgs(text, model="scripted"), PROJECT, parent_id=parent, **more)  # type: ignore[arg-type]
        return await self.tree.spawn(principal, args)

    async def new(self, text: str, **more: object) -> str:
        return str((await self.spawn(text, new_session=True, **more))["session_id"])  # type: ignore[arg-type]

    async def message(self, session_id: str, text: str, **more: object) -> Json:
        return await self.tree.message(ADMIN, MessageArgs(TurnArgs(text), session_id, **more))  # type: ignore[arg-type]

    async def settle(self, *ids: str, timeout_seconds: float = 5) -> list[Json]:
        with trio.fail_after(timeout_seconds + 5):
            result = await self.tree.wait(ADMIN, ids, False, timeout_seconds)
        assert not result["timed_out"], result
        return list(result["sessions"])

    async def until(self, session_id: str, status: str) -> SessionRow:
        """Wait for a state, by watching the feed."""
        with trio.fail_after(10), self.feed.subscribe_session(session_id) as subscription:
            while True:
                row = await self.row(session_id)
                if row.status == status:
                    return row
                await subscription.next_batch()

    async def row(self, session_id: str) -> SessionRow:
        row = await self.store.read(partial(sessions.get, session_id=session_id))
        assert row is not None
        return row

    async def turn(self, session_id: str, number: int) -> TurnRow:
        turn = await self.store.read(partial(turns.get, session_id=session_id, turn=number))
        assert turn is not None
        return turn

    async def log(self, session_id: str) -> list[EventRow]:
        return await self.store.read(
            partial(events.read, session_id=session_id, since_index=-1, max_events=10_000, types=None)
        )

    async def types(self, session_id: str) -> list[EventType]:
        return [event.type for event in await self.log(session_id)]


def _place(tx: Tx) -> None:
    if projects.get(tx, PROJECT) is not None:
        return
    at = clock.now()
    projects.insert(
        tx, ProjectRow(PROJECT, "shop", PlaceState.READY, at, at, ADMIN.as_json(), default_workspace_id=WORKSPACE)
    )
    tokens.create(tx, TokenRow(ADMIN.id, ADMIN.name, "admin", "client", at, ADMIN.as_json()), b"hash")
    workspaces.insert(tx, WorkspaceRow(WORKSPACE, PROJECT, True, PlaceState.READY, at))


@asynccontextmanager
async def open_world(
    path: Path,
    *,
    agent: FakeAgent | None = None,
    defaults: Json | None = None,
    models: Json | None = None,
    adjust: Callable[[Deps], Deps] = lambda deps: deps,
) -> AsyncIterator[World]:
    """``agent`` from a world that was left before: as a container survives its daemon."""
    feed = Feed()
    async with open_store(path / "oubliette.db", publish=feed.publish) as store, trio.open_nursery() as nursery:
        await store.write(_place)
        agent = agent or FakeAgent(nursery)
        agent._nursery = nursery
        container = FakeContainer(agent)

        async def nothing(*_: object) -> None:
            await trio.lowlevel.checkpoint()

        left: dict[str, list[Json]] = {}

        async def results_of(row: SessionRow) -> list[Json]:
            await trio.lowlevel.checkpoint()
            return left.get(row.title, [])

        async def no_workspace(principal: Principal, project_id: str) -> str:
            raise AssertionError("not asked for here")

        config = Config.model_validate({"defaults": defaults or {}, "models": {"models": models or {}}})
        callers = Callers(store, feed, config, now=clock.now, fresh_hex=clock.fresh_hex)
        deps = Deps(
            store=store,
            feed=feed,
            config=config,
            callers=callers,
            caller_entries=CallerEntries(store, config, callers),
            lease=container.lease,
            place_ready=nothing,
            results=results_of,
            kill_marked=lambda _project_id, _workspace_id, mark: container.kill_session(mark),
            cut_model=lambda _session_id: None,
            model_settled=nothing,
            now=clock.now,
            fresh_hex=clock.fresh_hex,
            message_id=lambda: f"msg_{next(_message_ids):026d}",
        )
        deps = adjust(deps)
        begun: list[str] = []
        tree = SessionTree(deps, create_workspace=no_workspace, begin_workspace=begun.append, room_on_disk=lambda: None)
        await nursery.start(tree.run)
        try:
            yield World(store, feed, tree, agent, container, deps, begun, left)
        finally:
            nursery.cancel_scope.cancel("world closed")
