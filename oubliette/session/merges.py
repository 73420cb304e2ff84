"""Merging forks: a child's commits into the workspace of its parent, one merge into a workspace at a time.

A merge has a row and a task of its own; the call that began it may leave. What a restart interrupts is said to be
interrupted and can be asked for again: what has been merged is not merged twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog
import trio

from oubliette.core.model import Json, PlaceState, SessionRow
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.project.merge import Bundle, Merged, Repository
from oubliette.project.shares import Shares
from oubliette.session import views
from oubliette.session.deps import Deps
from oubliette.session.status import require_session
from oubliette.store import merges, projects, sessions, workspaces
from oubliette.store.database import Tx
from oubliette.store.merges import MergeRow, MergeState

log = structlog.get_logger(__name__)

AT_ONCE = 4
OF_A_PROJECT = 2
"""Merges that work at the same time: each may hold a bundle in memory, and agents decide how long theirs takes."""
LONGEST_SECONDS = 1800.0
"""Two containers that must be started first included."""
WRITE_AGAIN_SECONDS = 1.0
"""After an end that could not be written (a full disk, say): how long until the next try."""


class Merges:
    """Hosted by the tree. ``begin`` answers once the row exists; ``wait`` and ``shown`` follow it."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._nursery: trio.Nursery | None = None
        self._done: dict[str, trio.Event] = {}
        self._places: dict[str, trio.Lock] = {}
        self._slots = Shares(AT_ONCE, OF_A_PROJECT)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service."""
        await self._deps.store.write(partial(_give_up, at=self._deps.now()))
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def begin(self, principal: Principal, session_id: str) -> str:
        """Start to merge what that child has committed, or join the merge of it that is running or has ended without
        anybody being told. Returns the merge's id. Raises RequestError: conflict (it has no workspace of its own),
        busy (it is at work)."""
        if self._nursery is None:
            raise RequestError("unavailable", "The daemon is stopping.", retryable=True)
        merge_id = "merge_" + self._deps.fresh_hex(24)
        with trio.CancelScope(shield=True):
            row = await self._deps.store.write(
                partial(_begin, session_id=session_id, merge_id=merge_id, principal=principal, at=self._deps.now())
            )
        if row.merge_id == merge_id:
            self._done[merge_id] = trio.Event()
            self._nursery.start_soon(self._run, row, name=f"merge {session_id}")
        return row.merge_id

    async def wait(self, merge_id: str, seconds: float) -> None:
        """Until it has ended, or so long."""
        done = self._done.get(merge_id)
        if done is not None:
            with trio.move_on_after(seconds):
                await done.wait()

    async def shown(self, merge_id: str) -> Json:
        """SHAPES' result of merge as it is now. Raises RequestError with what made it fail."""
        row = await self._deps.store.write(partial(_tell, merge_id=merge_id))
        if row.error is not None:
            raise RequestError(
                str(row.error.get("code", "internal")),
                str(row.error.get("message", "The merge failed.")),
                hint=str(row.error.get("hint", "")),
                retryable=bool(row.error.get("retryable")),
            )
        if row.state is MergeState.RUNNING:
            again = f"It goes on; the same call again tells how it ends: session merge session_id={row.session_id}"
            return {**_head(row), "merged": False, "next": again}
        return {**_head(row), **(row.result or {})}

    # --- the work

    async def _run(self, row: MergeRow) -> None:
        try:
            changes = await self._outcome(row)
            await self._write(partial(merges.update, merge_id=row.merge_id, ended_at=self._deps.now(), **changes))
        finally:
            # Without its end in the row: the daemon stops, and its next start says that it was interrupted.
            self._done.pop(row.merge_id).set()

    async def _write(self, end: Callable[[Tx], bool]) -> None:
        """A merge whose end is not written would run for ever, for everybody who asks for it again."""
        while True:
            try:
                with trio.CancelScope(shield=True):
                    await self._deps.store.write(end)
            except OublietteError:
                log.exception("a merge's end could not be written")
            else:
                return
            await trio.sleep(WRITE_AGAIN_SECONDS)

    async def _outcome(self, row: MergeRow) -> Json:
        try:
            job = await self._deps.store.read(partial(_job, session_id=row.session_id))
            async with self._alone_in(job.parent.workspace_id), self._slots.of(job.child.project_id):
                with trio.fail_after(LONGEST_SECONDS):
                    result = await self._merge(job)
        except trio.TooSlowError:
            log.warning("merge given up", session=row.session_id, seconds=LONGEST_SECONDS)
            return {"state": MergeState.FAILED, "error": _too_slow().as_json()}
        except OublietteError as error:
            log.warning("merge failed", session=row.session_id, error=str(error))
            return {"state": MergeState.FAILED, "error": _shown(error).as_json()}
        except Exception:
            # A boundary: one merge's trouble is not the others'.
            log.exception("merge crashed", session=row.session_id)
            shown = OublietteError("The merge failed inside Oubliette.", hint="The daemon's log has the details.")
            return {"state": MergeState.FAILED, "error": shown.as_json()}
        log.info("merge ended", session=row.session_id, merged=result["merged"], commits=result["commits"])
        return {"state": MergeState.DONE, "result": result}

    async def _merge(self, job: _Job) -> Json:
        deps, child, parent = self._deps, job.child, job.parent
        for one in (child, parent):
            await deps.place_ready(one.project_id, one.workspace_id)
        async with deps.lease(parent.project_id, parent.workspace_id) as target:
            into = Repository(target.exec, target.directory(parent.workspace_id))
            known = await into.known()
            async with deps.lease(child.project_id, child.workspace_id) as source:
                bundle = await Repository(source.exec, source.directory(child.workspace_id)).bundle(known)
            ref = f"refs/oubliette/{child.session_id}"
            merged = Merged(False, "", bundle.head, 0)
            if bundle.data:
                message = f"Merge {child.session_id}: {child.title}"
                merged = await into.merge(bundle.data, ref=ref, message=message, protected=job.protected)
        return _result(bundle, merged, ref, child.session_id) | {"workspace_id": parent.workspace_id}

    @asynccontextmanager
    async def _alone_in(self, workspace_id: str) -> AsyncIterator[None]:
        lock = self._places.setdefault(workspace_id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and lock.statistics().tasks_waiting == 0:
                self._places.pop(workspace_id, None)


@dataclass(frozen=True, slots=True)
class _Job:
    child: SessionRow
    parent: SessionRow
    protected: list[str]


def _begin(tx: Tx, session_id: str, merge_id: str, principal: Principal, at: datetime) -> MergeRow:
    child = require_session(tx, session_id)
    known = merges.last(tx, session_id)
    untold = known is not None and (known.state is MergeState.RUNNING or not known.told)
    if known is not None and untold and known.turn == child.turn:
        return known
    if child.parent_id is None:
        raise RequestError("conflict", "This session is nobody's child: it has nothing to be merged into.")
    parent = require_session(tx, child.parent_id)
    if parent.workspace_id == child.workspace_id:
        raise RequestError(
            "conflict",
            "It works in its parent's own workspace: what it does is there already.",
            hint="Only children that were spawned with workspace fork or new are merged.",
        )
    for row in (child, parent):
        place = workspaces.get(tx, row.workspace_id)
        if place is None or place.state in (PlaceState.DELETING, PlaceState.FAILED):
            whose = "The fork's" if row is child else "The parent's"
            raise RequestError("conflict", f"{whose} workspace is {place.state if place else 'deleted'}.")
    if not views.settled(tx, child):
        raise RequestError(
            "busy",
            "The session is at work.",
            hint=f"Merge it when it is settled: session wait session_ids={views.quoted([session_id])}",
            retryable=True,
        )
    new = MergeRow(merge_id, session_id, child.turn, MergeState.RUNNING, at, principal.as_json())
    merges.insert(tx, new)
    return new


def _job(tx: Tx, session_id: str) -> _Job:
    child = require_session(tx, session_id)
    parent = sessions.get(tx, child.parent_id or "")
    project = projects.get(tx, child.project_id)
    if parent is None or project is None:
        raise RequestError("conflict", "Its parent is gone.")
    return _Job(child, parent, list(project.settings.get("protected_paths") or ()))


def _tell(tx: Tx, merge_id: str) -> MergeRow:
    row = merges.get(tx, merge_id)
    if row is None:
        raise RequestError("not_found", "There is no such merge any more.")
    if row.state is not MergeState.RUNNING and not row.told:
        merges.update(tx, merge_id, told=True)
    return row


def _give_up(tx: Tx, at: datetime) -> None:
    error = RequestError(
        "unavailable",
        "The daemon was stopped during the merge.",
        hint="Merge again: what has arrived is not merged twice.",
        retryable=True,
    ).as_json()
    for row in merges.running(tx):
        merges.update(tx, row.merge_id, state=MergeState.FAILED, ended_at=at, error=error)


def _too_slow() -> RequestError:
    return RequestError(
        "timed_out",
        f"The merge was not done within {LONGEST_SECONDS / 60:g} minutes and was given up.",
        hint="Merge again: what has arrived is not merged twice.",
        retryable=True,
    )


def _shown(error: OublietteError) -> OublietteError:
    """What callers learn of it: only a RequestError was written for them."""
    if isinstance(error, RequestError):
        return error
    return RequestError(
        error.code,
        "A sandbox of the merge could not do its part.",
        hint="The daemon's log has the details.",
        retryable=error.retryable,
    )


def _head(row: MergeRow) -> Json:
    return {"session_id": row.session_id, "merge_id": row.merge_id, "state": str(row.state)}


def _result(bundle: Bundle, merged: Merged, ref: str, session_id: str) -> Json:
    result: Json = {
        "merged": merged.merged,
        "commits": merged.commits,
        "files": list(merged.files),
        "conflicts": list(merged.conflicts),
        "uncommitted": list(bundle.uncommitted),
    }
    if merged.base:
        result["base"] = merged.base
    if merged.head:
        result["head"] = merged.head
    if merged.files_truncated:
        result["files_truncated"] = True
    if merged.conflicts_truncated:
        result["conflicts_truncated"] = True
    if bundle.left_behind > len(bundle.uncommitted):
        result["uncommitted_truncated"] = True
    following = _next(bundle, merged, ref, session_id)
    return {**result, "next": following} if following else result


def _next(bundle: Bundle, merged: Merged, ref: str, session_id: str) -> str:
    kinds = {one["kind"] for one in merged.conflicts}
    if "protected" in kinds:
        return "Nothing was changed: the commits write to protected paths. Have them made without."
    if "uncommitted" in kinds:
        return "Nothing was changed: commit (or stash) these files in the parent's workspace, then merge again."
    if kinds:
        return (
            f"Nothing was changed. To resolve it in the parent's workspace: git merge {ref}, edit the files, commit; "
            f"or message the fork to do its work differently, and merge again."
        )
    behind = f"{bundle.left_behind} uncommitted files of the fork stayed there; " if bundle.left_behind else ""
    lead = "" if merged.merged else "Nothing new: the fork has no commits that its parent lacks. "
    if not behind:
        return lead.strip()
    return f"{lead}{behind}to have them too, message {session_id} to commit them, and merge again."
