"""The composition root: opens everything, nests the tiers, stops them from the innermost out.

    store writer · signals            last to die
    └─ containers, gateway, projects
       └─ sessions
          └─ schedules
             └─ doors                 first to die

Nobody cancels an outer scope; each tier is told to stop once the one inside it has ended. Containers are left running:
the next start finds them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import structlog
import trio

from oubliette import clock, stopping
from oubliette.agent.message_id import new_message_id
from oubliette.api.agents import AgentDoor
from oubliette.api.api import run_api
from oubliette.api.metrics import count_webhook
from oubliette.api.services import Services
from oubliette.config import Config
from oubliette.container.layout import AGENT_UID
from oubliette.container.registry import Containers
from oubliette.core import tokens as token_values
from oubliette.core.model import Json
from oubliette.core.principals import LOCAL, Principal, Scope
from oubliette.errors import RuntimeUnavailable
from oubliette.gateway.gateway import Gateway
from oubliette.gateway.metering import Meter
from oubliette.home import Home, write_private
from oubliette.host import missing_room, require_room
from oubliette.launcher import OpenCodeLauncher
from oubliette.log import redactor
from oubliette.project.projects import Neighbours, Projects
from oubliette.relay_host import RelayHost
from oubliette.runtime.absent import AbsentRuntime
from oubliette.runtime.candidates import candidates
from oubliette.runtime.choose import Choice, choose_runtime
from oubliette.schedule.owners import run_owners
from oubliette.schedule.scheduler import Scheduler
from oubliette.schedule.schedules import Schedules
from oubliette.schedule.wall import REAL, Wall
from oubliette.session.caller_entries import CallerEntries
from oubliette.session.callers import Callers
from oubliette.session.deps import Deps
from oubliette.session.feed import Feed
from oubliette.session.tree import SessionTree
from oubliette.store import meta, tokens
from oubliette.store.database import Store, Tx, open_store
from oubliette.supervision import Supervisor
from oubliette.toolbox import Toolbox
from oubliette.webhooks.webhooks import Webhooks

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """The daemon from inside, for tests and measurements that live in its process."""

    url: str
    secret: str
    services: Services
    containers: Containers
    tree: SessionTree
    gateway: Gateway


def run_daemon(home: Home, config: Config, environ: Mapping[str, str] | None = None) -> int:
    """Serve until a signal; the exit code. Raises HomeLockedError when another daemon holds the home."""
    with home.lock():
        try:
            trio.run(partial(_until_signal, home, config, os.environ if environ is None else environ))
        finally:
            home.daemon_file.unlink(missing_ok=True)
    return 0


async def _until_signal(home: Home, config: Config, environ: Mapping[str, str]) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(stopping.run_signals, stop)
        await run_tiers(home, config, environ, stop)
        nursery.cancel_scope.cancel("the daemon has stopped")


async def run_tiers(
    home: Home,
    config: Config,
    environ: Mapping[str, str],
    stop: trio.Event,
    *,
    wall: Wall = REAL,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Everything between two signals. ``started`` gets the running daemon once its doors are open.

    ``wall``: the clock that schedules go by.
    """
    home.create()
    feed = Feed()
    async with open_store(home.database, publish=feed.publish) as store:
        instance = await store.write(meta.instance_id)
        choice = await _runtime(home, config, environ)
        daemon = _Daemon(home, config, environ, feed, store, instance, choice, wall)
        await daemon.run(stop, task_status)
    log.info("stopped")


async def _runtime(home: Home, config: Config, environ: Mapping[str, str]) -> Choice:
    """The runtime in use; without one the daemon still answers, and says what is missing."""
    wanted = environ.get("CONTAINER_RUNTIME") or config.runtime
    try:
        choice = await choose_runtime(wanted, candidates(environ, home.run))
    except RuntimeUnavailable as error:
        log.error("no container runtime", error=str(error), hint=error.hint)
        return Choice(AbsentRuntime(error), ())
    for report in choice.reports:
        log.info("runtime tried", runtime=report.name, works=report.ok, version=report.version, why=report.reason)
    return choice


class _Daemon:
    """All rooms, wired. Nothing runs before ``run``."""

    def __init__(
        self,
        home: Home,
        config: Config,
        environ: Mapping[str, str],
        feed: Feed,
        store: Store,
        instance: str,
        choice: Choice,
        wall: Wall,
    ) -> None:
        self._home, self._config, self._store = home, config, store
        self._choice = choice
        self._wall = wall
        self._stopping = False
        self.supervisor = Supervisor()
        self.toolbox = Toolbox(home)
        self.meter = Meter(store, config)
        self.gateway = Gateway(config, self.meter)
        self.webhooks = Webhooks(store, config, version=version("oubliette"), count=count_webhook)
        self.agents = AgentDoor(version("oubliette"))
        self.relays = RelayHost(serve_model=self.gateway.serve_model, serve_mcp=self.agents.serve)
        self.containers = Containers(
            store=store,
            config=config,
            home=home,
            instance=instance,
            runtime=choice.runtime,
            listen=self.relays.listen,
            launcher=OpenCodeLauncher(config),
            toolkit=self._toolkit,
        )
        self.projects = Projects(
            store,
            config,
            home,
            Neighbours(
                end_sessions=self._end_sessions,
                remove_containers=self.containers.remove,
                warm=self.containers.warm,
                hide=redactor.add,
                renew_containers=self.containers.renew,
                describe_container=self.containers.describe,
            ),
            owner=AGENT_UID if os.geteuid() == 0 else None,
            host_env=environ,
        )
        callers = Callers(store, feed, config, now=clock.now, fresh_hex=clock.fresh_hex)
        deps = Deps(
            store=store,
            feed=feed,
            config=config,
            lease=self.containers.lease,
            place_ready=self.projects.place_ready,
            results=self.projects.workspaces.results_of,
            kill_marked=self.containers.kill_session,
            cut_model=self.gateway.cancel_session,
            model_settled=self._model_settled,
            callers=callers,
            caller_entries=CallerEntries(store, config, callers),
            now=clock.now,
            fresh_hex=clock.fresh_hex,
            message_id=new_message_id,
            budget_changed=lambda root_id: self.gateway.budget_changed(root_id=root_id),
            public_text=lambda text: text.replace(str(home.root), "<home>"),
        )
        self.tree = SessionTree(
            deps,
            create_workspace=self._create_workspace,
            begin_workspace=self.projects.workspaces.begin,
            room_on_disk=partial(require_room, home.data),
        )
        self.meter.tell(self.tree.pauses.hold, self.tree.pauses.release)
        self.containers.observe(
            lambda row, code, data: self.tree.container_changed(row.project_id, row.workspace_id, code, data)
        )
        self.scheduler = Scheduler(
            store,
            feed,
            config,
            self.tree,
            now=wall.now,
            sleep_until=wall.sleep_until,
            fresh_hex=clock.fresh_hex,
        )
        self.services = Services(
            config=config,
            store=store,
            feed=feed,
            tree=self.tree,
            projects=self.projects,
            containers=self.containers,
            schedules=Schedules(store, config, self.scheduler, now=wall.now, fresh_hex=clock.fresh_hex),
            version=version("oubliette"),
            readiness=self._readiness,
            about=self._about,
            supervisor=self.supervisor,
        )

    async def run(self, stop: trio.Event, task_status: trio.TaskStatus[Running]) -> None:
        """The tiers, by nesting."""
        secret = await self._cli_token()
        async with trio.open_nursery() as base:
            await base.start(self.supervisor.of("usage events", self.meter.run))
            await base.start(self.supervisor.of("webhooks", self.webhooks.run))
            await base.start(self.supervisor.of("budgets", self.gateway.run))
            await base.start(self.containers.run)
            base.start_soon(self.toolbox.warm)
            async with trio.open_nursery() as sessions:
                await sessions.start(self.tree.run)
                await sessions.start(self.projects.run)
                async with trio.open_nursery() as schedules:
                    owners = partial(run_owners, self._store, self._wall.now)
                    await schedules.start(self.supervisor.of("owners of schedules", owners))
                    await schedules.start(self.supervisor.of("schedules", self.scheduler.run))
                    async with trio.open_nursery() as doors:
                        doing = partial(run_api, self.services, shutdown=stop, agents=self.agents)
                        addresses = await doors.start(doing)
                        self._announce(addresses)
                        url = addresses[0]
                        running = Running(url, secret, self.services, self.containers, self.tree, self.gateway)
                        task_status.started(running)
                        await stop.wait()
                        watchdog = stopping.start_watchdog()
                        self._stopping = True
                        self.tree.close()
                    schedules.cancel_scope.cancel("the daemon is stopping")
                sessions.cancel_scope.cancel("the daemon is stopping")
            base.cancel_scope.cancel("the daemon is stopping")
        watchdog.cancel()

    def _announce(self, addresses: list[str]) -> None:
        told = {"pid": os.getpid(), "url": addresses[0], "addresses": addresses}
        tls = self._config.server.tls
        if tls is not None:
            told["certificate"] = str(tls.cert)
        write_private(self._home.daemon_file, json.dumps(told))
        log.info("serving", addresses=", ".join(addresses), runtime=self._choice.runtime.name)

    async def _cli_token(self) -> str:
        """The CLI's own admin token, new at each start; the one of before is good no more."""
        secret = token_values.secret_of(clock.fresh_hex(token_values.SECRET_HEX))
        row = token_values.new_token(
            clock.fresh_hex(token_values.ID_HEX),
            name=token_values.CLI_NAME,
            scope=Scope("admin"),
            kind="cli",
            at=clock.now(),
            by=LOCAL.as_json(),
        )

        def unit(tx: Tx) -> None:
            old = tokens.get(tx, token_values.CLI_NAME)
            if old is not None and old.kind == "cli":
                tokens.succeed(tx, old.token_id, row.token_id, row.created_at)
            tokens.create(tx, row, token_values.secret_hash(secret))

        await self._store.write(unit)
        redactor.add(secret)
        write_private(self._home.cli_token_file, secret)
        return secret

    # --- what one room offers to another

    async def _toolkit(self) -> os.PathLike[str]:
        return (await self.toolbox.get()).path

    async def _end_sessions(self, project_id: str) -> None:
        await self.tree.end_project(project_id)

    async def _model_settled(self, session_id: str) -> None:
        await self.gateway.settled(session_id)
        await self.meter.flush(session_id)

    async def _create_workspace(self, principal: Principal, project_id: str) -> str:
        row = await self.projects.workspaces.create(principal, project_id)
        return row.workspace_id

    def _readiness(self) -> str | None:
        if self._stopping:
            return "stopping"
        if isinstance(self._choice.runtime, AbsentRuntime):
            return "no_runtime"
        if self.toolbox.problem is not None:
            return "no_toolkit"
        if missing_room(self._home.data):
            return "storage_full"
        if self.supervisor.failing:
            return "degraded"
        return None

    def _about(self) -> Json:
        return {
            "runtimes": [
                {"name": one.name, "ok": one.ok, "version": one.version, "reason": one.reason}
                for one in self._choice.reports
            ],
            "versions": {"oubliette": version("oubliette"), "agent": OpenCodeLauncher(self._config).version},
        }
