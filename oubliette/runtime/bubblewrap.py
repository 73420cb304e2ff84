"""The runtime that needs no daemon, no image and no root: sandboxes of bubblewrap over the host's own ``/usr``.

As root there is no user namespace: bubblewrap builds the walls with root's rights, and ``setpriv`` takes these off
inside. As an ordinary user everything is in a user namespace. For both: ``bubblewrap_args`` (the walls), ``seccomp``
(the filter), ``sandbox_etc`` (its /etc), ``sandbox_shim`` (its parent, which outlives the daemon), ``sandbox_enter``
(exec), and ``bubblewrap_state`` (what is known of it).
"""

from __future__ import annotations

import marshal
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import trio

from oubliette.errors import ContainerExited, EngineError, RuntimeUnavailable
from oubliette.runtime import bubblewrap_probe, cgroup, linux, process
from oubliette.runtime.base import (
    ContainerInfo,
    ContainerSpec,
    ExecResult,
    Mount,
    ReportProgress,
    RuntimeReport,
)
from oubliette.runtime.bubblewrap_args import WRAPPERS, command, exec_environment, options, read_host
from oubliette.runtime.bubblewrap_end import LAUNCH_SECONDS, POLL_SECONDS, SHIM_SECONDS, end_sandbox
from oubliette.runtime.bubblewrap_state import Box, ProcessId, Run, StateDirectory
from oubliette.runtime.protected import check_no_links, with_protection
from oubliette.runtime.sandbox_enter import FAILED
from oubliette.runtime.sandbox_shim import ALREADY_RUNNING
from oubliette.runtime.seccomp import build_filter

NOBODY = 65534
"""Whose root's networks are. Not the sandbox's user: the owner of a user namespace, seen from its parent, has every
capability over what belongs to it, without holding any: a sandbox could administer its network."""

_Result = TypeVar("_Result")

_BOOT = "import sys, importlib; sys.path.insert(0, sys.argv[1]); sys.exit(importlib.import_module(sys.argv[2]).main())"
_PACKAGES = str(Path(__file__).resolve().parents[2])


class Bubblewrap:
    """Runtime over bubblewrap. ``state_dir`` (made when needed, 0700) holds one directory for each sandbox, and is all
    that a restarted daemon needs to find them. ``candidates``: the ``bwrap`` programs to try instead of the usual ones.
    """

    name = "bubblewrap"

    def __init__(self, state_dir: Path, *, candidates: Sequence[Path] | None = None) -> None:
        self._state = StateDirectory(state_dir)
        self._candidates = candidates
        self._program: Path | None = None
        self._python = bubblewrap_probe.python_to_show()

    async def probe(self) -> RuntimeReport:
        report, self._program = await bubblewrap_probe.try_candidates(
            self._candidates, self._state.root, partial(Bubblewrap._with_program, self)
        )
        return report

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        """There are no images: every one is the host's /usr."""
        return await trio.to_thread.run_sync(bubblewrap_probe.host_identity)

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        raise RuntimeUnavailable(
            f"build image {tag}: bubblewrap has no images",
            hint="Choose docker or podman as the runtime, or leave the container type at its default.",
            retryable=False,
        )

    async def create(self, spec: ContainerSpec) -> str:
        await self._usable_program()
        box = await _in_thread(f"create container {spec.name}", self._create, spec)
        return box.tag

    async def start(self, name: str) -> None:
        box = await self._box(name, "start")
        if await trio.to_thread.run_sync(box.running) is not None:
            return
        program = await self._usable_program()
        launch = await _in_thread(f"start container {name}", self._launch, box, program)
        done = await process.run(
            self._helper("oubliette.runtime.sandbox_shim", str(box.path)),
            env={},
            stdin=marshal.dumps(launch),
            timeout_seconds=LAUNCH_SECONDS,
        )
        if done.exit_code == ALREADY_RUNNING:
            await self._started_elsewhere(box)
        elif done.exit_code != 0:
            said = done.stderr.decode(errors="replace").strip() or f"its launcher ended with {done.exit_code}"
            raise EngineError(f"start container {name}: {said}", hint=bubblewrap_probe.hint_for(said))

    async def stop(self, name: str, grace_seconds: float) -> None:
        box = await trio.to_thread.run_sync(self._state.box, name)
        if box is not None:
            await end_sandbox(box, grace_seconds)

    async def remove(self, name: str) -> None:
        box = await trio.to_thread.run_sync(self._state.box, name)
        if box is not None:
            await end_sandbox(box, 0)
            await _in_thread(f"remove container {name}", self._state.forget, box)

    async def inspect(self, name: str) -> ContainerInfo | None:
        box = await trio.to_thread.run_sync(self._state.box, name)
        return None if box is None else await self._info(box)

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        boxes = await trio.to_thread.run_sync(self._state.boxes, labels)
        return [await self._info(box) for box in boxes]

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
        box = await trio.to_thread.run_sync(self._state.box, name)
        run = await trio.to_thread.run_sync(box.running) if box is not None else None
        if box is None or run is None or run.init is None:
            raise ContainerExited(f"exec in container {name}: it does not run")
        orders = self._orders(box, run, run.init)
        mark: str = orders["mark"]
        orders["argv"] = [*argv]
        orders["env"] = exec_environment(box.spec, env, read_host(self._python))
        orders["cwd"] = working_dir or box.spec.working_dir
        text = marshal.dumps(orders)
        done = await process.run(
            self._helper("oubliette.runtime.sandbox_enter"),
            env={},
            stdin=b"%08d" % len(text) + text + stdin,
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
            keep_background=True,
        )
        if done.exit_code == FAILED and done.stderr.startswith(mark.encode()):
            said = done.stderr.decode(errors="replace").removeprefix(mark).strip()
            if await trio.to_thread.run_sync(box.running) is None:
                raise ContainerExited(f"exec in container {name}: {said}")
            raise EngineError(f"exec in container {name}: {said}")
        return done

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        box = await self._box(name, "read the logs of")
        return await trio.to_thread.run_sync(box.log, tail, max_bytes)

    async def stats(self, name: str) -> Mapping[str, int]:
        def measure() -> Mapping[str, int]:
            box = self._state.box(name)
            run = box.running() if box is not None else None
            if run is None:
                return {}
            return {**_count(run.pid_namespace), **cgroup.usage([*run.groups])}

        return await trio.to_thread.run_sync(measure)

    def _with_program(self, program: Path, state_dir: Path) -> Bubblewrap:
        """Another one like this, that uses ``program`` untried: to try it with."""
        other = Bubblewrap(state_dir)
        other._program = program
        other._python = self._python
        return other

    async def _usable_program(self) -> Path:
        if self._program is None:
            report = await self.probe()
            if self._program is None:
                raise RuntimeUnavailable(f"bubblewrap cannot be used: {report.reason}", hint=report.hint)
        return self._program

    async def _info(self, box: Box) -> ContainerInfo:
        with trio.move_on_after(SHIM_SECONDS):
            while await trio.to_thread.run_sync(box.ending):  # noqa: ASYNC110  (it is another process)
                await trio.sleep(POLL_SECONDS)
        return await trio.to_thread.run_sync(box.info)

    async def _box(self, name: str, operation: str) -> Box:
        box = await trio.to_thread.run_sync(self._state.box, name)
        if box is None:
            raise EngineError(
                f"{operation} container {name}: there is none of that name", code="not_found", retryable=False
            )
        return box

    def _create(self, spec: ContainerSpec) -> Box:
        for mount in spec.mounts:
            if not mount.source.exists():
                raise EngineError(f"create container {spec.name}: {mount.source} does not exist", retryable=False)
        if spec.network == "bridge":
            bubblewrap_probe.find_pasta()
        return self._state.create(spec, bubblewrap_probe.host_identity())

    def _launch(self, box: Box, program: Path) -> dict[str, Any]:
        """All that the shim has to know. Looks at the mounts anew: an agent may have changed what lies in them."""
        spec, root = box.spec, os.geteuid() == 0
        for mount in spec.mounts:
            _check_place(spec.mounts, mount)
        mounts = with_protection(spec.mounts, spec.protected_paths)
        wanted = PurePosixPath(spec.argv[0]).name
        wrappers = [str(program), *(path for path in WRAPPERS if PurePosixPath(path).name != wanted)]
        return {
            "tag": box.tag,
            "bwrap": str(program),
            "options": options(spec, mounts, root=root, etc=box.etc, host=read_host(self._python)),
            "command": command(spec, root=root),
            "wrappers": [[found.st_dev, found.st_ino] for found in (Path(path).stat() for path in wrappers)],
            "seccomp": build_filter(os.uname().machine),
            "network_user": [NOBODY, NOBODY] if root else None,
            "network": spec.network,
            "pasta": str(bubblewrap_probe.find_pasta()) if spec.network == "bridge" else None,
            "limits": {
                "memory": spec.resources.memory_bytes,
                "cpus": spec.resources.cpus,
                "pids": spec.resources.pids,
            },
            "enforced": [] if root else ["pids"],
        }

    def _orders(self, box: Box, run: Run, init: ProcessId) -> dict[str, Any]:
        root = os.geteuid() == 0
        return {
            "mark": secrets.token_hex(8),
            "init": [init.pid, init.start],
            "pid_namespace": run.pid_namespace,
            "groups": [*run.groups],
            "drop_to": [box.spec.uid, box.spec.gid] if root else None,
            "processes": None if root else box.spec.resources.pids,
            "last_capability": linux.last_capability(),
            "seccomp": build_filter(os.uname().machine),
        }

    def _helper(self, module: str, *arguments: str) -> Sequence[str]:
        """A program of ours outside the sandbox: isolated (no environment, no site-packages), standard library only."""
        return [sys.executable, "-I", "-S", "-c", _BOOT, _PACKAGES, module, *arguments]

    async def _started_elsewhere(self, box: Box) -> None:
        """Another call is starting it, or a shim is still cleaning up: wait for the outcome of that."""
        with trio.move_on_after(LAUNCH_SECONDS):
            while await trio.to_thread.run_sync(box.shim_lives):
                if await trio.to_thread.run_sync(box.running) is not None:
                    return
                await trio.sleep(POLL_SECONDS)
        raise EngineError(f"start container {box.spec.name}: it ended while it was being started")


async def _in_thread(what: str, work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run what blocks on files; their errors become ours."""
    try:
        return await trio.to_thread.run_sync(work, *arguments)
    except OSError as error:
        raise EngineError(f"{what}: {error}") from error


def _check_place(mounts: Sequence[Mount], mount: Mount) -> None:
    """A mount within a writable one is placed by walking what an agent has written: no link on that way."""
    inner = PurePosixPath(mount.target)
    for outer in mounts:
        if outer is not mount and not outer.read_only and inner.is_relative_to(outer.target):
            check_no_links(outer.source, inner.relative_to(outer.target))


def _count(pid_namespace: int) -> dict[str, int]:
    """Processes and resident memory of everything in a process namespace, where no control group counts."""
    pids = memory = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and linux.namespace_number(int(entry.name), "pid") == pid_namespace:
            try:
                pages = int(Path(entry.path, "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has ended meanwhile.
            pids += 1
            memory += pages * os.sysconf("SC_PAGE_SIZE")
    return {"memory_bytes": memory, "pids": pids}
