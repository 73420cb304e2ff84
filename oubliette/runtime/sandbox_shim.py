"""The program between the daemon and one sandbox: it starts bubblewrap, keeps its output, and notes how it ended.

A sandbox outlives the daemon, so somebody else must be its parent: a pipe to the daemon would die with it, and its exit
code would reach nobody (containerd and podman have such a program for the same reason). Started by ``Bubblewrap.start``
as ``python -I -S``, with the launch (a marshalled dict) on its stdin; it detaches, answers through its first process'
exit code (0 started, 75 already running, 1 with a reason on stderr), and sleeps until the sandbox ends.

In its directory: ``lock`` (held for as long as it lives), ``run.json`` (who runs, removed at the end), ``exit.json``,
``log`` and ``log.old`` (together at most twice LOG_BYTES).
"""

# Without pathlib, dataclasses and the like: this program stays in memory once for every sandbox. See linux.py.
# ruff: noqa: PTH105, PTH108, PTH116

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import select
import signal
import sys
import time

from oubliette.runtime import cgroup, linux, sandbox_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOG_BYTES = 4 << 20
START_SECONDS = 20.0
ALREADY_RUNNING = 75
POLL_SECONDS = 0.002
OOM_SCORE = "300"
"""A host that runs out of memory takes it from sandboxes before anything else."""


class LaunchError(Exception):
    """The sandbox did not start; the text says why."""


def main() -> int:
    os.chdir(sys.argv[-1])
    os.umask(0o077)
    launch = marshal.load(sys.stdin.buffer)  # noqa: S302  (the daemon's own)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock(lock):
        return ALREADY_RUNNING
    answer_read, answer_write = os.pipe()
    if os.fork():
        os.close(answer_write)
        with os.fdopen(answer_read, "rb") as answer:
            said = answer.read().decode(errors="replace")
        if said != "ok":
            sys.stderr.write(said or "its launcher died")
        return 0 if said == "ok" else 1
    os.close(answer_read)
    os.setsid()
    _silence()
    try:
        shim = Shim(launch)
    except (LaunchError, sandbox_network.NetworkError, OSError) as error:
        _answer(answer_write, str(error))
        return 1
    _answer(answer_write, "ok")
    shim.wait()
    return 0


def _answer(descriptor: int, text: str) -> None:
    """Tell the first process, which may have been killed: whoever asked for this sandbox finds it by its name then."""
    try:
        os.write(descriptor, text.encode())
    except BrokenPipeError:
        pass
    finally:
        os.close(descriptor)


class Shim:
    """One sandbox, from its start (in the constructor, which raises LaunchError and leaves nothing) to its end."""

    def __init__(self, launch: dict[str, Any]) -> None:
        self._launch = launch
        self._log = Log()
        self._output, output = os.pipe()
        self._status, status = os.pipe()
        self._said = b""
        self._run: dict[str, Any] = {}
        self._init: list[int] | None = None
        self._groups: list[str] = []
        self._network: sandbox_network.Network | None = None
        self._monitor = 0
        _remove("exit.json")
        _remove("run.json")
        try:
            if launch["network"] == "bridge":
                self._network = sandbox_network.open_network(launch["pasta"], launch["network_user"])
            self._spawn(output, status)
            os.close(output)
            os.close(status)
            os.set_blocking(self._status, False)
            os.set_blocking(self._output, False)
            self._settle()
        except BaseException:
            self._abandon()
            raise

    def wait(self) -> None:
        """Copy output until the sandbox is gone, then note how it ended and remove what it needed."""
        watched = select.poll()
        watched.register(self._output, select.POLLIN)
        pending = set()
        for identity in (_identity(self._monitor), self._init):
            # The monitor may be killed alone, and then the sandbox goes on: both have to end.
            descriptor = _watch(identity)
            if descriptor is not None:
                pending.add(descriptor)
                watched.register(descriptor, select.POLLIN)
        while pending:
            for descriptor, _ in watched.poll():
                if descriptor != self._output:
                    watched.unregister(descriptor)
                    pending.remove(descriptor)
                elif not self._log.copy(self._output):
                    watched.unregister(self._output)
        self._log.copy(self._output)
        os.waitpid(self._monitor, 0)
        self._read_status()
        _write_json("exit.json", {"exit_code": self._exit_code()})
        _remove("run.json")
        self._clean_up()

    def _spawn(self, output: int, status: int) -> None:
        """Start bubblewrap. It is held at a gate until it is in its control groups."""
        launch = self._launch
        limits = launch["limits"]
        self._groups, enforced = cgroup.open_groups(launch["tag"], limits["memory"], limits["cpus"], limits["pids"])
        options = _file_of(b"".join(option.encode() + b"\0" for option in launch["options"]))
        seccomp = _file_of(launch["seccomp"])
        command = [
            launch["tag"],
            *("--args", str(options), "--seccomp", str(seccomp), "--json-status-fd", str(status)),
            *("--", *launch["command"]),
        ]
        gate_read, gate_write = os.pipe()

        def work() -> None:
            os.close(gate_write)
            if os.read(gate_read, 1):
                os.dup2(output, 1)
                os.dup2(output, 2)
                for descriptor in (options, seccomp, status):
                    os.set_inheritable(descriptor, True)
                _become(launch["bwrap"], command, self._network)

        self._monitor = linux.fork(work, output)
        os.close(gate_read)
        os.close(options)
        os.close(seccomp)
        if not cgroup.join_groups(self._groups, self._monitor):
            enforced = []
        self._run = {
            "boot": linux.boot_id(),
            "tag": launch["tag"],
            "shim": _identity(os.getpid()),
            "monitor": _identity(self._monitor),
            "pasta": _identity(self._network.pasta) if self._network else None,
            "init": None,
            "pid_namespace": None,
            "groups": self._groups,
            "enforced": list(dict.fromkeys(enforced + launch["enforced"])),
        }
        _write_json("run.json", self._run)
        os.write(gate_write, b"x")
        os.close(gate_write)
        if self._network is not None:
            self._network.close_descriptors()

    def _settle(self) -> None:
        """Return once the sandbox's own program runs behind its filter, or has already run and ended."""
        deadline = time.monotonic() + START_SECONDS
        watch = _watch(_identity(self._monitor))
        while True:
            ended = watch is None or bool(select.select([watch], [], [], POLL_SECONDS)[0])
            self._log.copy(self._output)
            self._read_status()
            if self._init is not None and self._running(self._init[0]):
                break
            if ended:
                self._judge_early_end()
                break
            if time.monotonic() > deadline:
                raise LaunchError(f"it was not up after {START_SECONDS:g} s")
        if watch is not None:
            os.close(watch)

    def _running(self, pid: int) -> bool:
        """bubblewrap loads the filter last, then executes the programs that drop privileges, then the wanted one."""
        if linux.seccomp_mode(pid) != 2:
            return False
        try:
            found = os.stat(f"/proc/{pid}/exe")
        except OSError:
            return False
        return [found.st_dev, found.st_ino] not in self._launch["wrappers"]

    def _judge_early_end(self) -> None:
        """A program may be quick. It has run unless bubblewrap, or what executes it, complained."""
        tail = self._log.tail()
        last = tail.strip().splitlines()[-1:] or ["it ended without a word"]
        code = self._exit_code()
        speaker = last[0].partition(":")[0].rpartition("/")[2]
        if code is None or (code in (126, 127) and speaker in ("env", "setpriv", "prlimit")):
            raise LaunchError(last[0])

    def _read_status(self) -> None:
        """What bubblewrap has written to its status descriptor: JSON objects, one a line."""
        try:
            while data := os.read(self._status, 4096):
                self._said += data
        except BlockingIOError:
            pass  # Nothing more for now.
        if self._init is None:
            pid = self._reported("child-pid")
            self._init = None if pid is None else _identity(pid)
            if self._init is not None:
                self._run.update(init=self._init, pid_namespace=linux.namespace_number(self._init[0], "pid"))
                _write_json("run.json", self._run)

    def _reported(self, key: str) -> int | None:
        for line in self._said.decode().splitlines():
            _, found, rest = line.partition(f'"{key}": ')
            if found and line.endswith("}"):
                return int(rest.partition(",")[0].rstrip(" }"))
        return None

    def _exit_code(self) -> int | None:
        return self._reported("exit-code")

    def _abandon(self) -> None:
        """Undo a start that failed."""
        if self._monitor:
            for pid in (self._init[0] if self._init else 0, self._monitor):
                if pid:
                    _kill(pid)
            os.waitpid(self._monitor, 0)
        _remove("run.json")
        self._clean_up()

    def _clean_up(self) -> None:
        if self._network is not None:
            self._network.close()
        deadline = time.monotonic() + 1
        while not cgroup.remove_groups(self._groups) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


class Log:
    """The newest output, in two files of LOG_BYTES each at most: a sandbox cannot fill the host's disk with words."""

    def __init__(self) -> None:
        _remove("log.old")
        self._file = self._fresh()
        self._size = 0

    def copy(self, source: int) -> bool:
        """Take all that ``source`` has to give now. False when nothing will come any more."""
        while True:
            try:
                data = os.read(source, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self._size + len(data) > LOG_BYTES:
                os.close(self._file)
                os.replace("log", "log.old")
                self._file = self._fresh()
                self._size = 0
            try:
                os.write(self._file, data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # A full disk loses words of a log; the sandbox must not stand still for it.
            self._size += len(data)

    def tail(self) -> str:
        with open("log", "rb") as file:
            return file.read()[-4096:].decode(errors="replace")

    def _fresh(self) -> int:
        return os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _become(bwrap: str, command: list[str], network: sandbox_network.Network | None) -> None:
    """Turn this process into bubblewrap: nothing of the daemon's but what is said here gets into it."""
    linux.join_new_session_keyring()
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    linux.limit_files()
    os.umask(0o022)
    if network is not None:
        network.enter()
    linux.execute(bwrap, command, {})


def _lock(descriptor: int) -> bool:
    """Take the lock. Tries for a moment: who only asks whether it is held takes it for an instant, too."""
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_SECONDS)
        else:
            return True
    return False


def _silence() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _identity(pid: int) -> list[int] | None:
    start = linux.start_time(pid)
    return None if start is None else [pid, start]


def _watch(identity: list[int] | None) -> int | None:
    """A descriptor that becomes readable when this process has ended; None when it has ended already."""
    if identity is None:
        return None
    try:
        descriptor = linux.pidfd_open(identity[0])
    except ProcessLookupError:
        return None
    if _identity(identity[0]) == identity:
        return descriptor
    os.close(descriptor)
    return None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _file_of(data: bytes) -> int:
    """A descriptor from which ``data`` can be read, with no name on disk."""
    descriptor = os.open("scratch", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.unlink("scratch")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _write_json(name: str, value: object) -> None:
    with open(f"{name}.new", "w") as file:
        file.write(_json(value))
    os.replace(f"{name}.new", name)


def _json(value: object) -> str:
    """As JSON: numbers, None, lists, dicts, and strings of our own making, which need no escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {_json(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_json(item) for item in value) + "]"
    if isinstance(value, str):
        if not value.isascii() or not value.isprintable() or '"' in value or "\\" in value:
            raise ValueError(f"not plain: {value!r}")
        return f'"{value}"'
    return "null" if value is None else str(value)


def _remove(name: str) -> None:
    try:
        os.unlink(name)
    except FileNotFoundError:
        return
