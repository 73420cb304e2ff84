"""The tree of sessions: the one door through which everybody spawns, finds, messages and ends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

import structlog
import trio

from oubliette.core.model import Json, Outcome, RequestKind, RequestRow, SessionRow, session_id
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.session import accepting, ask_units, ending, orders, units, views, waiting
from oubliette.session.deps import Deps
from oubliette.session.merges import Merges
from oubliette.session.pauses import Pauses
from oubliette.session.requests import MessageArgs, SpawnArgs
from oubliette.session.session import Session
from oubliette.session.status import require_session
from oubliette.session.update import UpdateArgs, update
from oubliette.store import requests, sessions
from oubliette.store.database import Tx

log = structlog.get_logger(__name__)

Remember = Callable[[Tx, Json], None]


class SessionTree:
    """All open sessions of this daemon, each a task: children inside their parent's, roots here."""

    def __init__(
        self,
        deps: Deps,
        *,
        create_workspace: Callable[[Principal, str], Awaitable[str]],
        begin_workspace: Callable[[str], None],
        room_on_disk: Callable[[], None],
    ) -> None:
        """``create_workspace(principal, project_id)`` returns the new workspace's id; ``begin_workspace(workspace_id)``
        has one prepared whose row is written, without a checkpoint; ``room_on_disk`` raises RequestError
        ``storage_full`` when the host's disk is too full for new turns."""
        self._deps = deps
        self._create_workspace = create_workspace
        self._begin_workspace = begin_workspace
        self._room_on_disk = room_on_disk
        self.callers = deps.callers
        self._live: dict[str, Session] = {}
        self.pauses = Pauses(deps, self._live)
        self.merges = Merges(deps)
        self._nursery: trio.Nursery | None = None
        self._closing = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the tasks; first take up every open session that the rows know. Starting is recovering."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self.callers.run)
                await self._nursery.start(self.pauses.run)
                await self._nursery.start(self.merges.run)
                rows = await self._deps.store.read(sessions.open_all)
                for row in sorted(rows, key=lambda r: r.depth):
                    self._start(row)
                unfinished = [row.session_id for row in rows if row.ending is not None]
                if unfinished:
                    self._nursery.start_soon(self._finish_ending, unfinished)
                if rows:
                    log.info("sessions taken up", count=len(rows), ending=len(unfinished))
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def _finish_ending(self, ids: list[str]) -> None:
        """What a daemon before had begun to end."""
        try:
            await ending.finish(self._deps, self._live, ids, ids[0], seconds=ending.TAKE_UP_SECONDS)
        except OublietteError as error:
            log.error("sessions that were being ended were not; the next start tries again", error=str(error))

    def container_changed(self, project_id: str, workspace_id: str | None, code: str, data: Json) -> None:
        """Something happened to the container of a place: those who work there have it in their log. Never blocks."""
        if self._nursery is not None:
            note = partial(
                units.note_container,
                project_id=project_id,
                workspace_id=workspace_id,
                code=code,
                data=data,
                at=self._deps.now(),
            )
            self._nursery.start_soon(self._note, note, name=f"note {code}")

    async def _note(self, note: Callable[[Tx], None]) -> None:
        try:
            await self._deps.store.write(note)
        except OublietteError as error:
            log.warning("what happened to a container was not noted", error=str(error))

    def close(self) -> None:
        """From now on nothing new is accepted (shutdown has begun)."""
        self._closing = True

    # --- for rooms that write sessions' rows in units of their own

    @property
    def closing(self) -> bool:
        """Shutdown has begun."""
        return self._closing

    def check_accepting(self) -> None:
        """Raises RequestError unavailable or storage_full when no new turn may be asked for."""
        self._accepting()

    def take_up(self, row: SessionRow) -> None:
        """A message to this session has just been committed: let it be taken. No checkpoint."""
        self._start(row)

    def finish_marked(self, ids: Sequence[str]) -> None:
        """A commit has just marked these as ending (``units.mark_ending``; at least one, the topmost first): end them,
        in the background."""
        if self._nursery is None:
            raise RuntimeError("SessionTree.run is not running")
        self._nursery.start_soon(self._finish_ending, list(ids))

    # --- tasks

    def _start(self, row: SessionRow, *, new: bool = False) -> None:
        """Give a session its task. No checkpoint: after the commit of its row nothing comes between. ``new``: it was
        spawned just now; what its parent's end has marked it has marked as well."""
        if self._nursery is None:
            raise RuntimeError("SessionTree.run is not running")
        known = self._live.get(row.session_id)
        if known is not None and known.takes_turns:
            known.wake()
            return
        session = Session(self._deps, row.session_id)
        self._live[row.session_id] = session
        # Detached ones outlive their root too, and so may those below them: these have their tasks here.
        parent = self._live.get(row.parent_id) if row.parent_id and not row.detached else None
        if parent is not None and (parent.takes_turns or (new and not parent.finished.is_set())):
            parent.adopt(session)
        else:
            self._nursery.start_soon(session.run, name=f"session {row.session_id}")
        self._nursery.start_soon(self._forget, session)

    async def _forget(self, session: Session) -> None:
        await session.finished.wait()
        if self._live.get(session.id) is session:
            del self._live[session.id]

    def _accepting(self) -> None:
        if self._closing:
            raise _stopping()
        self._room_on_disk()

    # --- asking for work

    async def spawn(self, principal: Principal, args: SpawnArgs, *, remember: Remember | None = None) -> Json:
        """A new session, or an idle one resumed. Answers as soon as it is durable; the rest comes up behind.

        ``remember`` is called with the result in the unit that writes it.
        """
        self._accepting()
        project_id = self._project_of(principal, args.project_id)
        workspace_created = args.create_workspace and principal.kind != "session"
        workspace_id = args.workspace_id
        if workspace_created:
            # What would refuse the spawn refuses it before anything is made.
            await self._deps.store.read(
                partial(
                    orders.check_spawn,
                    config=self._deps.config,
                    principal=principal,
                    project_id=project_id,
                    args=args,
                )
            )
            workspace_id = await self._create_workspace(principal, project_id)
        with trio.CancelScope(shield=True):
            accept = partial(
                orders.spawn,
                order=self._order(principal),
                project_id=project_id,
                workspace_id=workspace_id,
                args=args,
                workspace_created=workspace_created,
            )
            accepted, result = await self._deps.store.write(partial(_remembered, accept=accept, remember=remember))
        if accepted.workspace_created and args.workspace != "parent":
            self._begin_workspace(accepted.row.workspace_id)
        self._start(accepted.row, new=accepted.created)
        return result

    def _order(self, principal: Principal) -> orders.Order:
        at = self._deps.now()
        return orders.Order(
            config=self._deps.config,
            principal=principal,
            session_id=session_id(at, self._deps.fresh_hex(8)),
            at=at,
            seconds_left=self._seconds_left(principal),
        )

    def _seconds_left(self, principal: Principal) -> float | None:
        """Of the running turn of a session that calls."""
        session = self._live.get(principal.id) if principal.kind == "session" else None
        return session.driver.seconds_left if session is not None and session.driver is not None else None

    def _project_of(self, principal: Principal, asked: str | None) -> str:
        project_id = asked or principal.scope.project_id
        if project_id is None:
            raise RequestError("invalid_argument", "project_id is needed.", field="project_id")
        return project_id

    async def message(self, principal: Principal, args: MessageArgs, *, remember: Remember | None = None) -> Json:
        """One more turn for a session, durably queued when it is busy. Without a session_id: the one that fits the
        place; several → ``ambiguous`` with candidates, none → a new one is spawned."""
        self._accepting()
        accept: Callable[[Tx], tuple[accepting.Accepted, Json]]
        if args.session_id is not None:
            accept = partial(orders.message, order=self._order(principal), session_id=args.session_id, args=args)
        else:
            project_id = self._project_of(principal, args.project_id)
            accept = partial(orders.message_there, order=self._order(principal), project_id=project_id, args=args)
        with trio.CancelScope(shield=True):
            accepted, result = await self._deps.store.write(partial(_remembered, accept=accept, remember=remember))
        self._start(accepted.row)
        if args.delivery == "interrupt":
            self._stop_turn(accepted.row.session_id, before=accepted.turn.turn)
        return result

    async def update(self, principal: Principal, args: UpdateArgs) -> Json:
        """Change a session or the limits of its tree; a raised limit lets a held tree go on at once."""
        unit = partial(
            update,
            config=self._deps.config,
            principal=principal,
            args=args,
            at=self._deps.now(),
            release=self.pauses.release,
        )
        with trio.CancelScope(shield=True):
            result = await self._deps.store.write(unit)
            self._deps.budget_changed(result["root_id"])
        return result

    # --- following

    async def wait(
        self, principal: Principal, session_ids: Sequence[str], any_one: bool, timeout_seconds: float
    ) -> Json:
        """Each session once it is settled or waits for somebody; a time-out is a result."""
        return await waiting.wait(self._deps, session_ids, any_one=any_one, timeout_seconds=timeout_seconds)

    # --- stopping

    def _stop_turn(self, one: str, *, before: int | None = None) -> bool:
        """``before``: only an earlier turn than that one, which may have begun by now."""
        session = self._live.get(one)
        if session is None or session.driver is None:
            return False
        if before is not None and session.driver.turn.turn >= before:
            return False
        return session.stop_turn(Outcome.CANCELLED, kill=False)

    async def interrupt(self, principal: Principal, session_id: str) -> Json:
        """Stop the running turn; the session stays and takes its next message."""
        stopped = self._stop_turn(session_id)
        row = await self._deps.store.read(partial(require_session, session_id=session_id))
        return {
            "session_id": session_id,
            "status": str(row.status),
            "interrupted": stopped,
            "next": f"session wait session_ids={views.quoted([session_id])}",
        }

    async def end(self, principal: Principal, session_id: str, how: Literal["completed", "cancelled"]) -> Json:
        """End the session and all below it, children first. Ending one that has ended is fine."""
        await self._deps.store.read(partial(require_session, session_id=session_id))
        ended = await self._in_background(
            partial(ending.end_subtree, self._deps, self._live, session_id, how), name=f"end {session_id}"
        )
        row = await self._deps.store.read(partial(require_session, session_id=session_id))
        return {"session_id": session_id, "status": str(row.status), "ended": ended}

    async def end_project(self, project_id: str) -> None:
        """End everything that is open in a project (it is being deleted)."""
        for one in await self._deps.store.read(partial(_open_tops_in, project_id=project_id)):
            await self._in_background(
                partial(ending.end_subtree, self._deps, self._live, one, "cancelled"), name=f"end {one}"
            )

    async def _in_background(self, work: Callable[[], Awaitable[list[str]]], name: str) -> list[str]:
        """Run ``work`` in the tree's own nursery: a caller that leaves does not leave it half done."""
        if self._nursery is None:
            raise _stopping()
        done = trio.Event()
        results: list[list[str]] = []

        async def task() -> None:
            try:
                results.append(await work())
            except Exception:
                log.exception("background work failed", what=name)
            finally:
                done.set()

        self._nursery.start_soon(task, name=name)
        await done.wait()
        if not results:
            raise RequestError("internal", f"Could not {name}.", hint="The daemon's log has the details.")
        return results[0]

    # --- asks

    async def answer(
        self,
        principal: Principal,
        request_id: str,
        reply: str | None,
        answers: dict[str, list[str]] | None,
        message: str | None = None,
    ) -> Json:
        """Settle an ask of an agent. One winner: the loser gets ``accepted: false`` and who won."""
        request = await self._deps.store.read(partial(_request, request_id=request_id))
        resolution: Json = {"accepted": True, "how": "answered", "by": principal.as_json()}
        if request.kind is RequestKind.PERMISSION:
            if reply not in ("once", "always", "reject"):
                raise RequestError("invalid_argument", "reply is one of once, always, reject.", field="reply")
            resolution["reply"] = reply
        elif request.kind is RequestKind.QUESTION:
            if reply == "reject":
                resolution["reply"] = "reject"
            elif not answers:
                raise RequestError("invalid_argument", "answers are needed, or reply reject.", field="answers")
            else:
                resolution["answers"] = answers
        else:
            raise RequestError(
                "invalid_argument",
                "That is a caller tool's call.",
                hint="Use caller_tool_response.",
                field="request_id",
            )
        if message is not None:
            resolution["message"] = message
        with trio.CancelScope(shield=True):
            won, row = await self._deps.store.write(
                partial(ask_units.resolve_request, request_id=request_id, resolution=resolution, at=self._deps.now())
            )
            if won:
                session = self._live.get(row.session_id)
                if session is not None:
                    with trio.move_on_after(10):
                        await session.reply(row, resolution)
        return {**(row.resolution or {}), "accepted": won, "session_id": row.session_id}


def _stopping() -> RequestError:
    return RequestError("unavailable", "The daemon is stopping.", hint="Try again when it is back.", retryable=True)


def _remembered(
    tx: Tx, accept: Callable[[Tx], tuple[accepting.Accepted, Json]], remember: Remember | None
) -> tuple[accepting.Accepted, Json]:
    accepted, result = accept(tx)
    if remember is not None:
        remember(tx, result)
    return accepted, result


def _request(tx: Tx, request_id: str) -> RequestRow:
    row = requests.get(tx, request_id)
    if row is None:
        raise RequestError("not_found", f"There is no request {request_id[:64]!r}.", field="request_id")
    return row


def _open_tops_in(tx: Tx, project_id: str) -> list[str]:
    """Open sessions of the project whose parent is not open: roots, and what has outlived its parent."""
    rows = [row for row in sessions.open_all(tx) if row.project_id == project_id]
    known = {row.session_id for row in rows}
    return [row.session_id for row in rows if row.parent_id not in known]
