"""What is known of bubblewrap's sandboxes: one directory each, since no engine keeps it.

``spec.json`` from create; ``run.json`` while one runs and ``exit.json`` after it, both written by ``sandbox_shim``.
A process is recognised by its id, its start time and the boot, a sandbox's first process also by its process namespace,
the helpers of the host by the tag in their command line: so another process under a reused id is never taken for one.
Everything here blocks for a few small files.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from oubliette.errors import EngineError
from oubliette.runtime import linux
from oubliette.runtime.base import ContainerInfo, ContainerSpec, Mount, Resources
from oubliette.runtime.sandbox_etc import make_etc, remove_tree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number and when it started (clock ticks since boot)."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Run:
    """A sandbox that was started. ``init`` is its first process; with it everything inside ends."""

    tag: str
    boot: str
    init: ProcessId | None
    pid_namespace: int
    helpers: Mapping[str, ProcessId]
    """``shim``, ``monitor`` (bubblewrap itself) and, with a network, ``pasta``: processes of the host."""
    groups: Sequence[str]
    enforced: Sequence[str]

    def init_runs(self) -> bool:
        return (
            self.init is not None
            and self.boot == linux.boot_id()
            and linux.start_time(self.init.pid) == self.init.start
            and linux.namespace_number(self.init.pid, "pid") == self.pid_namespace
        )

    def helper_runs(self, name: str) -> bool:
        helper = self.helpers.get(name)
        if helper is None or self.boot != linux.boot_id() or linux.start_time(helper.pid) != helper.start:
            return False
        words = linux.command_line(helper.pid)
        return words[:1] == ["pasta"] if name == "pasta" else self.tag in words


@dataclass(frozen=True, slots=True)
class Box:
    """A sandbox as its directory tells it. ``tag`` is unique for each creation, and is its engine id."""

    path: Path
    tag: str
    image: str
    spec: ContainerSpec

    @property
    def etc(self) -> Path:
        """What it sees as /etc. Made with it and never changed: many starts may be under way at once."""
        return self.path / "etc"

    def run(self) -> Run | None:
        """The present run; None when it was not started or has ended and was cleaned up after."""
        record = _read_json(self.path / "run.json")
        if record is None:
            return None
        names = ("shim", "monitor", "pasta")
        return Run(
            tag=record["tag"],
            boot=record["boot"],
            init=ProcessId(*record["init"]) if record["init"] else None,
            pid_namespace=record["pid_namespace"] or 0,
            helpers={name: ProcessId(*record[name]) for name in names if record[name]},
            groups=record["groups"],
            enforced=record["enforced"],
        )

    def running(self) -> Run | None:
        """The present run if its first process really runs."""
        run = self.run()
        return run if run is not None and run.init_runs() else None

    def shim_lives(self) -> bool:
        """True from the beginning of a start until everything after the end is done."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def ending(self) -> bool:
        """The sandbox is over and its shim about to note it: for some milliseconds."""
        run = self.run()
        return run is not None and run.init is not None and not run.init_runs() and self.shim_lives()

    def info(self) -> ContainerInfo:
        run = self.run()
        running = run is not None and run.init_runs()
        ended = _read_json(self.path / "exit.json")
        begun = run is not None and run.init is not None
        return ContainerInfo(
            name=self.spec.name,
            engine_id=self.tag,
            state="running" if running else "exited" if ended is not None or begun else "created",
            labels=dict(self.spec.labels),
            exit_code=None if running or ended is None else ended["exit_code"],
            pid=run.init.pid if running and run is not None and run.init is not None else None,
            image=self.image,
            enforced=tuple(run.enforced) if run is not None else (),
        )

    def note_end(self, exit_code: int | None) -> None:
        """In the shim's place, when that was killed: the run is over."""
        if not (self.path / "exit.json").exists():
            _write_json(self.path / "exit.json", {"exit_code": exit_code})
        (self.path / "run.json").unlink(missing_ok=True)

    def log(self, tail: int, max_bytes: int) -> bytes:
        """The newest ``tail`` lines, cut to the newest ``max_bytes``."""
        text = b"".join(_end_of(self.path / name, max_bytes) for name in ("log.old", "log"))
        lines = text.splitlines(keepends=True)
        return b"".join(lines[-tail:] if tail > 0 else [])[-max_bytes:] if max_bytes > 0 else b""


class StateDirectory:
    """All sandboxes of one daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def box(self, name: str) -> Box | None:
        if not _NAME.fullmatch(name):
            return None
        record = _read_json(self.root / name / "spec.json")
        if record is None:
            return None
        return Box(self.root / name, record["tag"], record["image"], _spec_from_json(record["spec"]))

    def boxes(self, labels: Mapping[str, str]) -> Sequence[Box]:
        """Those that carry every given label, by name."""
        names = sorted(os.listdir(self.root)) if self.root.is_dir() else ()  # noqa: PTH208  (names, not paths)
        found = [self.box(name) for name in names]
        return [box for box in found if box is not None and labels.items() <= box.spec.labels.items()]

    def create(self, spec: ContainerSpec, image: str) -> Box:
        """Make the directory of a sandbox, all at once, its /etc included. EngineError ``conflict``: the name has other
        labels."""
        if not _NAME.fullmatch(spec.name):
            raise EngineError(f"create container {spec.name!r}: not a name", code="invalid_argument", retryable=False)
        box = self.box(spec.name)
        if box is None:
            tag = f"oubliette-{secrets.token_hex(8)}"
            record = {"version": 1, "tag": tag, "image": image, "spec": _spec_to_json(spec)}
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self.root / f".new-{tag}"
            fresh.mkdir(mode=0o700)
            _write_json(fresh / "spec.json", record)
            make_etc(
                fresh / "etc",
                uid=spec.uid,
                gid=spec.gid,
                home=spec.env.get("HOME", "/"),
                hostname=spec.hostname,
                bridged=spec.network == "bridge",
            )
            try:
                fresh.rename(self.root / spec.name)
            except OSError:
                remove_tree(fresh)  # Somebody else was first.
            box = self.box(spec.name)
        if box is None:
            raise EngineError(f"create container {spec.name}: its directory cannot be made")
        if dict(box.spec.labels) != dict(spec.labels):
            raise EngineError(
                f"create container {spec.name}: there is one of that name with other labels",
                code="conflict",
                retryable=False,
            )
        return box

    def forget(self, box: Box) -> None:
        """Remove the directory of a sandbox that has ended. Fine when somebody else was first."""
        grave = self.root / f".old-{box.tag}-{secrets.token_hex(4)}"
        try:
            box.path.rename(grave)
        except FileNotFoundError:
            return
        remove_tree(grave)


def _spec_to_json(spec: ContainerSpec) -> dict[str, Any]:
    record: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    record["mounts"] = [{"source": str(m.source), "target": m.target, "read_only": m.read_only} for m in spec.mounts]
    record["resources"] = asdict(spec.resources)
    record.update({name: dict(record[name]) for name in ("env", "labels", "tmpfs")})
    record.update({name: list(record[name]) for name in ("argv", "protected_paths")})
    return record


def _spec_from_json(record: Mapping[str, Any]) -> ContainerSpec:
    mounts = [Mount(Path(entry["source"]), entry["target"], entry["read_only"]) for entry in record["mounts"]]
    return ContainerSpec(**{**record, "mounts": mounts, "resources": Resources(**record["resources"])})


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def _write_json(path: Path, value: object) -> None:
    scratch = path.with_name(f"{path.name}.new")
    scratch.touch(mode=0o600)
    scratch.write_text(json.dumps(value))
    scratch.replace(path)


def _end_of(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""
