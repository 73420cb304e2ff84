"""One life of a container: from whatever there is to ready, and watched until it ends.

``run`` returns when the container should hibernate, raises ContainerExited when it is lost and another OublietteError
when it cannot be brought up, and is cancelled for an order or for the daemon's shutdown. It never stops a container.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from oubliette.container import directories
from oubliette.container.agent_keeper import AgentKeeper
from oubliette.container.deps import OwnerDeps
from oubliette.container.failures import first_of
from oubliette.container.layout import (
    build_spec,
    fingerprint,
    hibernate_seconds,
    is_of,
    spec_record,
)
from oubliette.container.link import RelayLink
from oubliette.container.ready import ReadyContainer
from oubliette.core.model import ContainerRow, ContainerState, PlaceState, ProjectRow
from oubliette.core.principals import AGENT_GRANT
from oubliette.errors import ContainerError, ContainerExited, OublietteError, RequestError
from oubliette.runtime.base import ContainerInfo, ContainerSpec, Progress
from oubliette.store import containers, projects, workspaces
from oubliette.store.database import Tx

if TYPE_CHECKING:
    from oubliette.container.owner import Owner

log = structlog.get_logger(__name__)

_OVER = frozenset({ContainerState.LOST, ContainerState.FAILED, ContainerState.ABSENT})
"""States of a container that is never started again: the next start makes a new generation."""

_BEING_MADE = frozenset({PlaceState.PREPARING, PlaceState.CLONING})


class Life:
    """Made for each start; ``over`` ends it for everybody who still holds on to it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._deps: OwnerDeps = owner.deps
        self._ready: ReadyContainer | None = None
        self._keeper: AgentKeeper | None = None

    async def run(self) -> None:
        self._owner.outdated = False
        project, workspace_ids = await self._look_up()
        woken = self._owner.row is not None and self._owner.row.state is ContainerState.HIBERNATED
        spec = await self._settle(project, workspace_ids)
        runtime, row = self._deps.runtime, self._row
        self._deps.notify(row, "container_starting", {"generation": row.generation, "adopted": spec is None})
        if spec is not None:
            image = await runtime.ensure_image(spec.image, self._report)
            self._owner.progress = None
            row = await self._owner.save(image=image, spec=spec_record(spec))
        if project.agent_grant not in (None, row.spec.get(AGENT_GRANT)):
            self._owner.outdated = True
        directory = await trio.to_thread.run_sync(directories.prepare, self._deps.ground, row)
        async with self._deps.listen(row.container_id, directory, uid=self._deps.ground.uid) as link:
            keeper = self._keeper = AgentKeeper(self._owner, project, link, directory)
            if spec is None:
                info = await self._first_dial(link)
            else:
                async with self._deps.starting:
                    await trio.to_thread.run_sync(directories.check_sources, spec.mounts)
                    await keeper.put_files()
                    await runtime.create(spec)
                    await self._owner.save(state=ContainerState.STARTING)
                    await runtime.start(spec.name)
                    info = await self._first_dial(link)
            row = await self._owner.save(
                state=ContainerState.STARTING, spec={**self._row.spec, "enforced": list(info.enforced)}
            )
            ready = self._ready = ReadyContainer(row, link, directory)
            await self._watched(keeper, ready, project, woken=woken)

    def over(self) -> None:
        """Called when ``run`` has ended, however."""
        if self._ready is not None:
            self._ready.set_agent(None)
            self._ready.lost.set()

    async def agent_lives(self) -> bool:
        """Ask the relay whether the agent still runs; when not, it is being replaced from now on."""
        return self._keeper is None or await self._keeper.lives()

    # --- what there is and what there should be

    async def _look_up(self) -> tuple[ProjectRow, Sequence[str]]:
        place = self._owner.place

        def find(tx: Tx) -> tuple[ProjectRow | None, dict[str, PlaceState]]:
            kept = [one for one in workspaces.of_project(tx, place.project_id) if one.state is not PlaceState.DELETING]
            return projects.get(tx, place.project_id), {one.workspace_id: one.state for one in kept}

        project, states = await self._deps.store.read(find)
        gone = project is None or project.state is PlaceState.DELETING
        if project is None or gone or (place.workspace_id is not None and place.workspace_id not in states):
            raise RequestError("not_found", "The workspace of this container is gone.")
        if any(one in _BEING_MADE for one in (project.state, states.get(place.workspace_id or ""))):
            # The host still works in that directory, with git too: nobody else may write there.
            raise RequestError(
                "not_ready", "The workspace is still being prepared.", hint="Try again in a moment.", retryable=True
            )
        workspace_ids = list(states)
        return project, workspace_ids if place.workspace_id is None else [place.workspace_id]

    async def _settle(self, project: ProjectRow, workspace_ids: Sequence[str]) -> ContainerSpec | None:
        """Settle on a row, and on what has to be made and started for it. None: its container runs, and is taken as it
        is. One that does not run is made anew when it would be another by now."""
        owner, ground = self._owner, self._deps.ground
        row = owner.row
        if row is not None and row.state not in _OVER and row.spec and not owner.renew:
            info = await owner.runtime_of(row).inspect(owner.name_of(row))
            if info is not None and not is_of(info, ground.instance, row):
                raise ContainerError(f"container {info.name} is there and is not ours", retryable=False)
            if info is not None and info.state == "running":
                return None
            spec = build_spec(ground, project, row, Path(await self._deps.toolkit()), workspace_ids)
            if row.spec.get("fingerprint") == fingerprint(spec):
                await owner.save(state=ContainerState.CREATING, error=None)
                return spec
        toolkit = Path(await self._deps.toolkit())
        return build_spec(ground, project, await self._new_generation(row), toolkit, workspace_ids)

    async def _new_generation(self, old: ContainerRow | None) -> ContainerRow:
        """Only when nothing of the old one can run: nothing writable is ever mounted in two containers."""
        if old is not None and old.spec:
            await self._owner.runtime_of(old).remove(self._owner.name_of(old))
        row = ContainerRow(
            container_id=self._deps.fresh_hex(32),
            project_id=self._owner.place.project_id,
            workspace_id=self._owner.place.workspace_id,
            runtime=self._deps.runtime.name,
            generation=1 if old is None else old.generation + 1,
            capability=self._deps.fresh_hex(64),
            state=ContainerState.CREATING,
            since=self._deps.now(),
        )

        def replace_row(tx: Tx) -> None:
            containers.insert(tx, row)
            if old is not None:
                containers.delete(tx, old.container_id)

        await self._deps.store.write(replace_row)
        self._owner.take_over(row)
        self._owner.renew = False
        if old is not None:
            await trio.to_thread.run_sync(directories.forget, self._deps.ground, old.container_id)
        return row

    def _report(self, progress: Progress) -> None:
        self._owner.progress = progress

    @property
    def _row(self) -> ContainerRow:
        if self._owner.row is None:
            raise AssertionError("a life has a row")
        return self._owner.row

    # --- watching

    async def _look(self) -> ContainerInfo | None:
        return await self._deps.runtime.inspect(self._owner.name_of(self._row))

    async def _first_dial(self, link: RelayLink) -> ContainerInfo:
        """Wait for the relay, as long as its container runs."""
        what = f"start container {self._owner.name_of(self._row)}"
        deadline = trio.current_time() + self._deps.tuning.relay_start
        while trio.current_time() < deadline:
            with trio.move_on_after(self._deps.tuning.look):
                await link.wait_connected()
            info = await self._look()
            if info is None or info.state != "running":
                code = "" if info is None or info.exit_code is None else f" with code {info.exit_code}"
                raise ContainerExited(f"{what}: it ended{code}", hint=await self._last_words())
            if link.connected:
                return info
        raise ContainerError(f"{what}: its relay did not dial", hint=await self._last_words())

    async def _last_words(self) -> str:
        with suppress(ContainerError):
            words = await self._deps.runtime.logs(self._owner.name_of(self._row), tail=10, max_bytes=4096)
            text = words.decode("utf-8", "replace").strip()
            return f"It said: {text[-1000:]}" if text else ""
        return ""

    async def _watched(self, keeper: AgentKeeper, ready: ReadyContainer, project: ProjectRow, *, woken: bool) -> None:
        failure: OublietteError | None = None
        idle = self._deps.tuning.hibernate
        if idle is None:
            idle = hibernate_seconds(self._deps.ground.config, project)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.hear_exits)
                nursery.start_soon(keeper.watch_memory)
                nursery.start_soon(keeper.keep_tools, ready)
                nursery.start_soon(self._watch_relay, ready.link)
                nursery.start_soon(partial(keeper.run, ready, woken=woken))
                await self._until_idle(idle)
                nursery.cancel_scope.cancel("hibernate")
        except* OublietteError as group:
            failure = first_of(group)
        if failure is not None:
            raise failure

    async def _watch_relay(self, link: RelayLink) -> None:
        """A relay that is away may be dialling anew; one whose container has ended is lost at once."""
        name = self._owner.name_of(self._row)
        while True:
            await link.wait_disconnected()
            deadline = trio.current_time() + self._deps.tuning.relay_gone
            while not link.connected:
                info = await self._look()
                if info is None or info.state != "running":
                    raise ContainerExited(f"container {name} ended", hint=await self._last_words())
                if trio.current_time() > deadline:
                    raise ContainerExited(f"container {name} runs, but its relay is gone")
                with trio.move_on_after(self._deps.tuning.look):
                    await link.wait_connected()

    async def _until_idle(self, seconds: float) -> None:
        """Returns when it was ready and nobody has leased it for so long."""
        owner = self._owner
        while True:
            used = owner.leases > 0 or owner.ready is None
            left = math.inf if used else owner.idle_since + seconds - trio.current_time()
            if left <= 0 or (owner.outdated and not used):
                # No checkpoint since the last look: who comes from now on waits for the next life.
                owner.ready = None
                return
            with trio.move_on_after(left):
                await owner.leases_changed.wait()
