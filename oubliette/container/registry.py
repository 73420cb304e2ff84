"""All containers of the daemon: finds or makes the owner of a place, and adopts what a daemon before has left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

import structlog
import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.container import adoption, directories, view
from oubliette.container.deps import ContainerCode, Notify, OwnerDeps, Tuning
from oubliette.container.layout import Ground, Place, container_name, id_inside, is_isolated
from oubliette.container.owner import OrderKind, Owner
from oubliette.container.ready import AgentLauncher, Listen, ReadyContainer
from oubliette.core.model import ContainerRow, ContainerState, Json
from oubliette.errors import ContainerError, ContainerExited, OublietteError, RequestError
from oubliette.home import Home
from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo, Runtime
from oubliette.store import containers, projects
from oubliette.store.database import Store

log = structlog.get_logger(__name__)

_CONTAINER_LABEL = f"{LABEL_PREFIX}container"
ADOPT_SECONDS = 20.0
"""For asking the engine what there is, at start; then the daemon goes on without."""


class Containers:
    """The service. ``run`` must be running before anything is leased."""

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        home: Home,
        instance: str,
        runtime: Runtime,
        listen: Listen,
        launcher: AgentLauncher,
        toolkit: Callable[[], Awaitable[os.PathLike[str]]],
        tuning: Tuning | None = None,
        now: Callable[[], datetime] = clock.now,
        fresh_hex: Callable[[int], str] = clock.fresh_hex,
    ) -> None:
        root = os.geteuid() == 0
        uid, gid = (id_inside(one, daemon_is_root=root) for one in (os.geteuid(), os.getegid()))
        self._deps = OwnerDeps(
            store=store,
            runtime=runtime,
            listen=listen,
            launcher=launcher,
            toolkit=toolkit,
            ground=Ground(home, config, instance, uid, gid),
            notify=self._notify,
            now=now,
            fresh_hex=fresh_hex,
            tuning=tuning or Tuning(),
        )
        self._owners: dict[Place, Owner] = {}
        self._isolated: dict[str, bool] = {}
        self._observers: list[Notify] = []
        self._nursery: trio.Nursery | None = None

    # --- the service

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the owners; started once what runs already is known. Cancelled: containers are left as they are."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self.adopt()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def adopt(self) -> None:
        """Take over what a daemon before has left. One that cannot be explained stops nobody else's start."""
        rows = await self._deps.store.read(containers.all_live)
        mine = [row for row in rows if row.runtime == self._deps.runtime.name]
        try:
            with trio.fail_after(ADOPT_SECONDS):
                found = await self._deps.runtime.list({f"{LABEL_PREFIX}instance": self._deps.ground.instance})
        except (ContainerError, trio.TooSlowError) as error:
            log.warning("containers not adopted: the runtime does not answer", error=str(error))
            return
        plan = adoption.plan(self._deps.ground.instance, mine, found)
        for row in mine:
            await self._settle(row, plan.fates[row.container_id], found)
        for name in plan.unknown:
            log.warning("a container with our label belongs to no row of ours; it is kept", name=name)
        if plan.stale:
            self._running().start_soon(self._remove_stale, plan.stale)
        known = {row.container_id for row in rows} | {info.labels.get(_CONTAINER_LABEL, "") for info in found}
        await trio.to_thread.run_sync(directories.forget_others, self._deps.ground, known)

    def observe(self, callback: Notify) -> None:
        """Be told of every change, after its row is written: ``callback(row, code, data)``. It must not block."""
        self._observers.append(callback)

    # --- for everybody; whoever waits may be cancelled, the owner goes on

    @asynccontextmanager
    async def lease(self, project_id: str, workspace_id: str) -> AsyncIterator[ReadyContainer]:
        """The container of that workspace with its agent ready, started when it was not, kept awake meanwhile.

        Raises ContainerError, AgentError; RequestError when the workspace is gone.
        """
        owner = self._owner(await self._place(project_id, workspace_id))
        async with owner.lease() as ready:
            yield ready

    async def kill_session(self, project_id: str, workspace_id: str, mark: str) -> int:
        """Kill every process of that workspace's container that carries the agent session's mark, if the container
        runs; returns how many were found. Starts nothing. Raises ContainerError; RequestError when the workspace is
        gone."""
        owner = self._owners.get(await self._place(project_id, workspace_id))
        ready = await owner.running() if owner is not None else None
        return await ready.kill_session(mark) if ready is not None else 0

    async def start(self, project_id: str, workspace_id: str, *, recreate: bool = False, force: bool = False) -> None:
        """Returns when it is ready. ``recreate``: as a new one; ``force``: though the runtime that made the old one
        cannot be reached. Raises as ``lease``."""
        owner = self._owner(await self._place(project_id, workspace_id))
        if recreate:
            await owner.obey("recreate", force=force)
        async with owner.lease():
            pass

    async def warm(self, project_id: str, workspace_id: str) -> None:
        """Begin to start it and return at once; a failure shows on the container."""
        self._owner(await self._place(project_id, workspace_id)).want()

    async def stop(self, project_id: str, workspace_id: str, *, force: bool = False) -> None:
        """Returns when nothing of it runs; the next lease starts it again. ``force``: give it up when the runtime that
        made it cannot be reached. Raises ContainerError."""
        place = await self._place(project_id, workspace_id)
        if await self._row(place) is not None:
            await self._owner(place).obey("stop", force=force)

    async def remove(self, project_id: str, workspace_id: str | None) -> None:
        """Returns when the workspace's container (None: all of the project's) and its rows are gone. A container that
        several workspaces share stays until its project goes. Raises ContainerError."""
        rows = await self._deps.store.read(partial(containers.of_project, project_id=project_id))
        places = {Place(row.project_id, row.workspace_id) for row in rows}
        places |= {place for place in self._owners if place.project_id == project_id}
        for place in places:
            if workspace_id is None or place.workspace_id == workspace_id:
                await self._owner(place).obey("remove", force=True)
        if workspace_id is None:
            self._isolated.pop(project_id, None)

    def renew(self, project_id: str) -> None:
        """Containers of the project would be others by now: each goes once nobody works in it. Never blocks."""
        for place, owner in self._owners.items():
            if place.project_id == project_id:
                owner.outdate()

    async def status(self, project_id: str, workspace_id: str) -> Json:
        """SHAPES' Container. Changes nothing and starts nothing."""
        place = await self._place(project_id, workspace_id)
        row = await self._row(place)
        return self.describe(row) if row is not None else view.absent(project_id, place.workspace_id)

    def describe(self, row: ContainerRow) -> Json:
        """SHAPES' Container of that row."""
        return view.describe(row, self._owners.get(Place(row.project_id, row.workspace_id)))

    async def logs(self, project_id: str, workspace_id: str, *, tail: int = 200) -> bytes:
        """The newest lines of the container's own process; empty when there is none. Raises ContainerError."""
        row = await self._row(await self._place(project_id, workspace_id))
        if row is None or row.runtime != self._deps.runtime.name:
            return b""
        name = container_name(self._deps.ground.instance, row.container_id)
        if await self._deps.runtime.inspect(name) is None:
            return b""
        return await self._deps.runtime.logs(name, tail=tail)

    # --- inside

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise ContainerError("containers are not served: the daemon is starting or stopping")
        return self._nursery

    def _owner(self, place: Place, row: ContainerRow | None = None) -> Owner:
        owner = self._owners.get(place)
        if owner is None or owner.removed:
            nursery = self._running()
            owner = self._owners[place] = Owner(place, self._deps)
            if row is not None:
                owner.take_over(row)
            nursery.start_soon(self._host, owner, name=f"container {place.key}")
        return owner

    async def _host(self, owner: Owner) -> None:
        """Run an owner; one that crashes is logged, its waiters are told, and it goes on."""
        while not owner.removed:
            try:
                await owner.run()
            except Exception:
                log.exception("a container's owner crashed", place=owner.place.key)
                owner.crashed()
                await trio.sleep(self._deps.tuning.crash_pause)
        if self._owners.get(owner.place) is owner:
            del self._owners[owner.place]

    async def _place(self, project_id: str, workspace_id: str) -> Place:
        """``workspace_isolation`` is fixed at create, so it is looked up once."""
        isolated = self._isolated.get(project_id)
        if isolated is None:
            project = await self._deps.store.read(partial(projects.get, project_id=project_id))
            if project is None:
                raise RequestError("not_found", f"There is no project {project_id}.")
            isolated = self._isolated[project_id] = is_isolated(project)
        return Place(project_id, workspace_id if isolated else None)

    async def _row(self, place: Place) -> ContainerRow | None:
        find = partial(containers.for_place, project_id=place.project_id, workspace_id=place.workspace_id)
        return await self._deps.store.read(find)

    async def _settle(self, row: ContainerRow, fate: adoption.Fate, found: Sequence[ContainerInfo]) -> None:
        if fate == "adopt":
            self._owner(Place(row.project_id, row.workspace_id), row).want()
        elif fate == "stop":
            owner = self._owner(Place(row.project_id, row.workspace_id), row)
            kind: OrderKind = "hibernate" if row.state is ContainerState.HIBERNATED else "stop"
            self._running().start_soon(self._stop_again, owner, kind)
        elif fate == "lost":
            ended = [info for info in found if info.labels.get(_CONTAINER_LABEL) == row.container_id]
            code = ended[0].exit_code if ended else None
            how = "it is gone" if not ended else "it ended" if code is None else f"it ended with code {code}"
            error = ContainerExited(f"container {row.container_id}: {how} while the daemon was not running")
            await self._lost(row, error)

    async def _lost(self, row: ContainerRow, error: ContainerExited) -> None:
        unit = partial(
            containers.update,
            container_id=row.container_id,
            state=ContainerState.LOST,
            since=self._deps.now(),
            error=error.as_json(),
        )
        await self._deps.store.write(unit)
        self._notify(row, "container_lost", {"message": str(error)})

    async def _stop_again(self, owner: Owner, kind: OrderKind) -> None:
        try:
            await owner.obey(kind)
        except OublietteError as error:
            log.warning("a container that should not run was not stopped", place=owner.place.key, error=str(error))

    async def _remove_stale(self, names: Sequence[str]) -> None:
        for name in names:
            log.info("removing an old generation", name=name)
            try:
                await self._deps.runtime.remove(name)
            except ContainerError as error:
                log.warning("an old generation was not removed", name=name, error=str(error))

    def _notify(self, row: ContainerRow, code: ContainerCode, data: Json) -> None:
        log.info(code.replace("_", " "), container=row.container_id, workspace=row.workspace_id)
        for observer in self._observers:
            observer(row, code, data)
