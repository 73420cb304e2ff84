"""What a new workspace begins with: a clone, a copy of another workspace, the template, or an empty repository.

Everything here happens before an agent has touched the tree, and can be done again from the start.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from oubliette.config import Config
from oubliette.core.model import Json, ProjectRow, WorkspaceRow
from oubliette.errors import OublietteError, RequestError
from oubliette.home import Home
from oubliette.host import require_room
from oubliette.project import files
from oubliette.project.clone import GitCredential, clone, init_repository
from oubliette.project.copy import copy_tree, is_git_lock
from oubliette.project.remote import Remote, check_remote
from oubliette.project.shares import Shares
from oubliette.project.walk import Bounds, TreeChangedError

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEAVE_SECONDS = 10.0
"""How long a thread that was told to stop may take to leave the tree."""

FORK_ATTEMPTS = 5
COPIES_AT_ONCE = 8
CLONES_AT_ONCE = 8
OF_A_PROJECT = 2
"""Agents make workspaces too: theirs must not take every thread there is, nor keep those of other projects waiting."""

DELETE_SLICE_SECONDS = 1.0
"""How long a deletion may keep its thread before a cancel is heard."""


@dataclass(frozen=True, slots=True)
class Trees:
    """The directories of projects. ``owner``: uid and gid that agents run as when the daemon is root, else None.

    ``host_env`` is the daemon's environment, of which the clone uses what ``clone.PASSED_ON`` names.
    """

    config: Config
    home: Home
    owner: int | None
    host_env: Mapping[str, str]
    copying: Shares = field(default_factory=lambda: Shares(COPIES_AT_ONCE, OF_A_PROJECT))
    cloning: Shares = field(default_factory=lambda: Shares(CLONES_AT_ONCE, OF_A_PROJECT))

    async def fill(self, project: ProjectRow, workspace: WorkspaceRow) -> None:
        """Make the workspace's directory with what it begins with, from whatever an earlier attempt has left.

        Raises RequestError and OSError; what is there then is to be deleted with ``delete_workspace``.
        """
        target = self.home.workspace_dir(project.project_id, workspace.workspace_id)
        making = self._making(project.project_id, workspace.workspace_id)
        await _delete(target)
        await _delete(making)
        await self._begin(project, workspace, making)
        await _in_thread(partial(self._put, making, target))

    async def _begin(self, project: ProjectRow, workspace: WorkspaceRow, target: Path) -> None:
        await _in_thread(partial(files.make_directory, target))
        template = self.config.defaults.project.template
        if workspace.forked_from is not None:
            await self._fork(project, self.home.workspace_dir(project.project_id, workspace.forked_from), target)
            return
        if project.remote_url is not None:
            remote = check_remote(project.remote_url, self.config.git)
            async with self.cloning.of(project.project_id):
                require_room(self.home.data)
                await clone(
                    remote,
                    target,
                    self.config.git,
                    branch=project.branch,
                    credential=git_credential(self.config, project.settings, remote),
                    max_bytes=self.config.defaults.container.disk_bytes,
                    host_env=self.host_env,
                )
        else:
            if template is not None:
                await self._copy(project, template, target, None)
            if project.settings.get("init_git", True) and not await _in_thread(partial(_has_repository, target)):
                await _in_thread(partial(init_repository, target))
        if self.owner is not None:
            bounds = Bounds(entries=20_000_000, seconds=1800)
            await _in_thread(partial(files.give, target, self.owner, bounds), bounds)

    async def _fork(self, project: ProjectRow, source: Path, target: Path) -> None:
        """Copy a tree in which agents work meanwhile: when a directory was moved from under the copy, once more."""
        for _ in range(FORK_ATTEMPTS):
            try:
                await self._copy(project, source, target, self.owner, is_git_lock)
            except TreeChangedError:
                await _delete(target)
            else:
                return
        raise RequestError(
            "conflict",
            "The workspace was changed all the time while it was copied.",
            hint="Fork it again when nothing moves directories in it.",
            retryable=True,
        )

    async def _copy(
        self,
        project: ProjectRow,
        source: Path,
        target: Path,
        owner: int | None,
        leave_out: Callable[[Sequence[str], str], bool] = lambda _path, _name: False,
    ) -> None:
        max_bytes = self.config.defaults.container.disk_bytes
        async with self.copying.of(project.project_id):
            bounds = Bounds(entries=2_000_000, seconds=900)
            copy = partial(
                copy_tree,
                source,
                target,
                max_bytes=max_bytes,
                owner=owner,
                bounds=bounds,
                leave_out=leave_out,
                room=partial(require_room, self.home.data),
            )
            copied = await _in_thread(copy, bounds)
        if copied.skipped:
            log.info("a copy left out what is no file, cannot be read or locks a repository", skipped=copied.skipped)

    def _making(self, project_id: str, workspace_id: str) -> Path:
        """Where a workspace is made: where the workspaces of a project share one container, that could otherwise reach
        into it, or put a link in its place, while the host still works there."""
        return self.home.project_dir(project_id) / "making" / workspace_id

    def _put(self, making: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Where the workspaces of a project share one container their parent is its mount: the agent's uid must get
        # through it. Host users are kept out further up.
        target.parent.chmod(0o755)
        making.rename(target)

    async def delete_workspace(self, project_id: str, workspace_id: str) -> None:
        """The work tree and the agent's state of one workspace. Raises OSError."""
        await _delete(self._making(project_id, workspace_id))
        await _delete(self.home.workspace_dir(project_id, workspace_id))
        await _delete(self.home.state_dir(project_id, workspace_id))

    async def delete_project(self, project_id: str) -> None:
        """Everything of a project. Raises OSError."""
        await _delete(self.home.workspaces_dir(project_id))
        await _delete(self.home.project_dir(project_id))


def git_credential(config: Config, settings: Json, remote: Remote) -> GitCredential | None:
    """The token for a remote's host, if there is one: the project's own, the named one, or the one that fits."""
    if not remote.host:
        return None
    if settings.get("github_token"):
        return GitCredential(remote.host, settings["github_token"])
    known = config.credentials.github
    name = (settings.get("credential_refs") or {}).get("github") or known.default
    if name is None:
        fitting = [key for key, item in known.credentials.items() if item.host.lower() == remote.host]
        name = fitting[0] if len(fitting) == 1 else None
    found = known.credentials.get(name) if name is not None else None
    if found is None or found.host.lower() != remote.host:
        return None
    return GitCredential(found.host, found.token.get_secret_value())


def failure(error: OublietteError | OSError) -> Json:
    """SHAPES' error object for a place that could not be made."""
    if isinstance(error, OublietteError):
        return error.as_json()
    code = "storage_full" if error.errno == errno.ENOSPC else "internal"
    text = error.strerror or type(error).__name__
    return RequestError(code, f"The directory could not be prepared: {text}.").as_json()


def _has_repository(target: Path) -> bool:
    return (target / ".git").exists()


async def _delete(path: Path) -> None:
    while not await trio.to_thread.run_sync(partial(files.delete, path, max_seconds=DELETE_SLICE_SECONDS)):
        pass


async def _in_thread(work: Callable[[], T], bounds: Bounds | None = None) -> T:
    """Blocking work on a tree of ours. A cancel stops its walk, and is raised when the thread has left the tree."""
    left = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def job() -> T:
        try:
            return work()
        finally:
            token.run_sync_soon(left.set)

    try:
        return await trio.to_thread.run_sync(job, abandon_on_cancel=True)
    except trio.Cancelled:
        if bounds is not None:
            bounds.stop()
        with trio.CancelScope(deadline=trio.current_time() + LEAVE_SECONDS, shield=True):
            await left.wait()
        raise
