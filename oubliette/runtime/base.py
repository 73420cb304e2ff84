"""What the daemon asks of a container runtime, and nothing about any particular one.

A runtime is stateless between calls: truth is in the engine (or, for bubblewrap, in its state directory) and is found
again by labels. Every method has a deadline of its own; third-party errors become ``errors.ContainerError``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

LABEL_PREFIX = "dev.oubliette."
"""Of every container of ours: ``instance``, ``project``, ``workspace`` (or ``-``), ``container``, ``generation``."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A host directory (or file) seen inside at ``target``."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    memory_bytes: int = 4 << 30
    cpus: float = 4.0
    pids: int = 1024
    disk_bytes: int = 20 << 30


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that decides what a container is. ``name`` is ours and chosen before the first call,
    so that a cancelled create can be removed by name."""

    name: str
    image: str
    argv: Sequence[str]
    env: Mapping[str, str]
    mounts: Sequence[Mount]
    labels: Mapping[str, str]
    """Full label names, LABEL_PREFIX included."""
    working_dir: str
    uid: int
    gid: int
    network: Literal["none", "bridge"] = "none"
    network_name: str = ""
    """For ``bridge``: the project's own network, made on demand."""
    resources: Resources = Resources()
    tmpfs: Mapping[str, int] = field(default_factory=lambda: {"/tmp": 1 << 30})  # noqa: S108
    """Writable scratch inside, path to size in bytes."""
    protected_paths: Sequence[str] = ()
    """Absolute paths inside that are read-only with every ancestor up to the workspace a mount point (SECURITY.md)."""
    hostname: str = "oubliette"


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """What the engine says of one container. ``engine_id`` is its own id; ``state`` is reduced to three words."""

    name: str
    engine_id: str
    state: Literal["created", "running", "exited"]
    labels: Mapping[str, str]
    exit_code: int | None = None
    pid: int | None = None
    image: str | None = None
    enforced: Sequence[str] = ()
    """Which of memory, cpus, pids, disk this runtime really enforces for it."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    exit_code: int
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    """Full sizes; the kept bytes are head and tail when larger than the cap."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    what: Literal["pulling", "building"]
    done: int
    total: int
    unit: Literal["bytes", "steps"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """The result of *trying* a runtime. ``ok`` False carries the reason and what to do about it."""

    name: str
    ok: bool
    version: str = ""
    reason: str = ""
    hint: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


ReportProgress = Callable[[Progress], None]


class Runtime(Protocol):
    """A way to run containers. Implementations: ``docker``, ``bubblewrap``; the contract suite runs over each."""

    name: str

    async def probe(self) -> RuntimeReport:
        """Try it for real (run something, mount a file and read it back). Never raises."""

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        """Make sure the image is there (pull where possible). Returns its pinned identity. Raises ImageMissing."""

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        """Build ``context/Dockerfile`` as ``tag``; returns its identity. RuntimeUnavailable where none can be built."""

    async def create(self, spec: ContainerSpec) -> str:
        """Create it, not running; returns the engine's id. Idempotent by name when the labels are the same."""

    async def start(self, name: str) -> None:
        """Start it. Starting a running one is fine."""

    async def stop(self, name: str, grace_seconds: float) -> None:
        """SIGTERM, after the grace SIGKILL. Nothing of it runs when this returns. An absent one is fine."""

    async def remove(self, name: str) -> None:
        """Stop by force and remove. Removing an absent one is fine."""

    async def inspect(self, name: str) -> ContainerInfo | None:
        """None when there is none of that name."""

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        """All that carry every given label."""

    async def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """Run a command inside as the container's user, under the same walls. A time-out kills it and is a result."""

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        """The newest lines of stdout and stderr of the container's own process."""

    async def stats(self, name: str) -> Mapping[str, int]:
        """``memory_bytes``, ``pids`` where known; empty when not running."""


class Exec(Protocol):
    """Run a command in one particular container. A time-out kills it and is a result."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult: ...
