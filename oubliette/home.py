"""The home: the one directory that holds everything the daemon has, and the lock that only one daemon gets.

Everything in it belongs to the user and is closed to others (directories 0700, files 0600).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oubliette.errors import OublietteError

MARKER = ".made-here"
"""Written by ``init``: proves that this directory was made by this user on this machine, at this path."""


LOOK_SECONDS = 0.5
"""Longer than anybody holds the lock just to look at it."""


class HomeError(OublietteError):
    """The home cannot be used."""

    code = "not_ready"


class HomeLockedError(HomeError):
    """Another process holds the home. ``pid`` is 0 when it has not said who it is."""

    code = "conflict"
    retryable = True

    def __init__(self, root: Path, pid: int) -> None:
        who = f" (pid {pid})" if pid else ""
        super().__init__(f"oubliette is already running{who} in {root}", hint="oubliette stop ends it.")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything is. Nothing is read or made by constructing one."""

    root: Path
    chosen_by: str = "--dir"
    """Why this one: ``--dir``, ``OUBLIETTE_HOME``, ``./.oubliette``, ``~/.oubliette``."""
    note: str = ""
    """Something the user should hear: a home that was passed over."""

    @property
    def config_file(self) -> Path:
        return self.root / "config" / "oubliette.jsonc"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def database(self) -> Path:
        return self.data / "oubliette.db"

    @property
    def projects(self) -> Path:
        return self.data / "projects"

    @property
    def backups(self) -> Path:
        return self.data / "backups"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def toolkit(self) -> Path:
        return self.root / "toolkit"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    @property
    def daemon_file(self) -> Path:
        """``{"pid", "url", ...}`` of the running daemon."""
        return self.run / "daemon.json"

    @property
    def cli_token_file(self) -> Path:
        """The CLI's own token, made by the daemon at each start."""
        return self.run / "cli-token"

    def project_dir(self, project_id: str) -> Path:
        return self.projects / project_id

    def workspaces_dir(self, project_id: str) -> Path:
        return self.projects / project_id / "workspaces"

    def workspace_dir(self, project_id: str, workspace_id: str) -> Path:
        """What agents see; nothing of ours in it."""
        return self.workspaces_dir(project_id) / workspace_id

    def state_dir(self, project_id: str, key: str) -> Path:
        """The agent's conversation store and caches; ``key`` is the workspace, or ``shared``."""
        return self.projects / project_id / "state" / key

    def container_run_dir(self, short_id: str) -> Path:
        """The directory that a container sees at /run/oubliette."""
        return self.run / "c" / short_id

    @property
    def initialised(self) -> bool:
        return self.config_file.is_file()

    def create(self) -> None:
        """Make the directories that are missing, 0700 each. Raises HomeError."""
        folders = (self.root, self.config_file.parent, self.data, self.projects, self.backups, self.logs)
        for folder in (*folders, self.run, self.toolkit):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise HomeError(f"{folder} cannot be made: {error.strerror}") from error

    def check(self) -> list[str]:
        """Ownership and modes of what would hurt in other hands. Raises HomeError; returns warnings."""
        warnings = []
        for path in (self.root, self.config_file.parent, self.config_file, self.data, self.database, self.run):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HomeError(f"{path} cannot be looked at: {error.strerror}") from error
            if status.st_uid != os.geteuid():
                raise HomeError(
                    f"{path} belongs to uid {status.st_uid}, not to uid {os.geteuid()}",
                    hint=f"Run as its owner, or give it away: chown -R {os.geteuid()} {self.root}",
                )
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise HomeError(f"{path} can be written by others", hint=f"chmod go-w {path}")
            if path == self.config_file and status.st_mode & 0o077:
                warnings.append(f"{path} can be read by others; it may hold keys: chmod 600 {path}")
        return warnings

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home alone. The lock dies with the process, however that dies. Blocks for up to LOOK_SECONDS.

        Raises HomeLockedError.
        """
        self.create()
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HomeError(f"{self.lock_file} cannot be opened: {error.strerror}") from error
        try:
            give_up_at = time.monotonic() + LOOK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    pid = self._pid_in_lock()
                    if pid or time.monotonic() > give_up_at:
                        raise HomeLockedError(self.root, pid) from error
                    time.sleep(0.02)  # no pid: somebody only looks (``holder``), or has not written it yet
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """The pid of the process that holds the lock, 0 when it has not said; None when nobody does."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HomeError(f"{self.lock_file} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._pid_in_lock()
        finally:
            os.close(descriptor)
        return None

    def _pid_in_lock(self) -> int:
        text = self.lock_file.read_text().strip()
        return int(text) if text.isdigit() else 0

    def running(self) -> dict[str, Any] | None:
        """What the running daemon said of itself (``pid``, ``url``); None when none runs or it is still starting."""
        holder = self.holder()
        if not holder:
            return None
        try:
            said = json.loads(self.daemon_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return said if isinstance(said, dict) and said.get("pid") == holder else None

    def mark(self, env: Mapping[str, str]) -> None:
        """Write the marker that lets ``./.oubliette`` be found here later."""
        write_private(self.root / MARKER, self._mark(_machine_key(env, make=True)))

    def made_here(self, env: Mapping[str, str]) -> bool:
        """Whether ``init`` made this directory, at this path, for this user on this machine."""
        key = _machine_key(env, make=False)
        try:
            found = (self.root / MARKER).read_text().strip()
        except OSError:
            return False
        return bool(key) and hmac.compare_digest(found, self._mark(key).strip())

    def _mark(self, key: bytes) -> str:
        return hmac.new(key, os.fsencode(self.root.resolve()), hashlib.sha256).hexdigest() + "\n"


def find_home(directory: Path | None, env: Mapping[str, str], cwd: Path) -> Home:
    """The first that applies: ``--dir``, ``OUBLIETTE_HOME``, ``./.oubliette`` if made here, ``~/.oubliette``."""
    if directory is not None:
        return Home(Path(cwd, directory.expanduser()))
    if named := env.get("OUBLIETTE_HOME"):
        return Home(Path(cwd, Path(named).expanduser()), "OUBLIETTE_HOME")
    note = ""
    local = Home(cwd / ".oubliette", "./.oubliette")
    if local.root.is_dir():
        if local.made_here(env):
            return local
        note = f"{local.root} was not made by oubliette init on this machine and is not used; --dir would use it."
    return Home(user_directory(env) / ".oubliette", "~/.oubliette", note)


def user_directory(env: Mapping[str, str]) -> Path:
    """``$HOME`` of the given environment, else what the system says."""
    return Path(env["HOME"]) if env.get("HOME") else Path.home()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            draft.unlink()
        raise


def _machine_key(env: Mapping[str, str], *, make: bool) -> bytes:
    """A secret of this user on this machine. /etc/machine-id would not do: images share it and anybody can read it."""
    state = Path(env["XDG_STATE_HOME"]) if env.get("XDG_STATE_HOME") else user_directory(env) / ".local" / "state"
    path = state / "oubliette" / "machine-key"
    if make and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(32))
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
