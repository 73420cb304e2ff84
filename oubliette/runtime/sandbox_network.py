"""A network for one sandbox that is not the host's: a namespace of its own that ``pasta`` joins with the outside.

``pasta`` (package passt) passes connections on from user space. It is told to know neither the host's loopback nor any
of its listening ports. The namespace belongs to a user namespace of an unprivileged user, also when the daemon is root:
so pasta, which reads what a sandbox sends, has no rights on the host (started as root it keeps CAP_SYS_ADMIN there).
That user is not the sandbox's: see ``bubblewrap.NOBODY``.
Standard library only (``sandbox_shim`` uses it).
"""

# Without pathlib: see linux.py.
# ruff: noqa: PTH103

from __future__ import annotations

import os
import signal
import time

from oubliette.runtime import linux

READY_SECONDS = 10.0
POLL_SECONDS = 0.005
DNS_ADDRESS = "169.254.1.1"
"""Where a sandbox asks for names; pasta passes it on to the host's own resolver, wherever that listens."""
_TUN = (10, 200)
_PASTA_LOG = "pasta.log"


class NetworkError(Exception):
    """The network could not be made; the text says why."""


class Network:
    """A network namespace with a running ``pasta``. ``pasta`` is its process id."""

    def __init__(self, pasta: int, network: int, user: int | None) -> None:
        self.pasta = pasta
        self._network = network
        self._user = user

    def enter(self) -> None:
        """Put the calling process into it (an ordinary user has to own the namespace first)."""
        if self._user is not None:
            linux.setns(self._user, linux.CLONE_NEWUSER)
        linux.setns(self._network, linux.CLONE_NEWNET)

    def close_descriptors(self) -> None:
        for descriptor in (self._network, self._user):
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        """End pasta, a child of this process."""
        _end(self.pasta)


def open_network(pasta: str, drop_to: list[int] | None) -> Network:
    """Make one. ``drop_to`` is [uid, gid] when this process is root. Raises NetworkError."""
    holder = _hold_namespace(drop_to)
    try:
        process = _spawn_pasta(pasta, holder, drop_to)
        try:
            _wait_until_routed(process, holder)
            network = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            user = None if drop_to else os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            _end(process)
            raise
    finally:
        _end(holder)
    return Network(process, network, user)


def _hold_namespace(drop_to: list[int] | None) -> int:
    """Start a process that does nothing but be in new user and network namespaces, and return its id."""
    ready_read, ready_write = os.pipe()

    def hold() -> None:
        os.close(ready_read)
        _drop(drop_to)
        uid, gid = os.geteuid(), os.getegid()
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
        # Changing the user made it undumpable, and pasta, the same user, has to read its /proc/PID/ns.
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        os.write(ready_write, b"ok")
        while True:
            signal.pause()

    pid = linux.fork(hold, ready_write)
    os.close(ready_write)
    with os.fdopen(ready_read, "rb", buffering=0) as ready:
        said = ready.read(4096) or b""
    if said != b"ok":
        _end(pid)
        raise NetworkError(f"a network namespace cannot be made: {said.decode(errors='replace').strip()}")
    return pid


def _spawn_pasta(pasta: str, holder: int, drop_to: list[int] | None) -> int:
    log = os.open(_PASTA_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def work() -> None:
        os.dup2(log, 1)
        os.dup2(log, 2)
        if drop_to:
            _own_tun_device()
        _drop(drop_to)
        nothing = ("-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw")
        place = ("--userns", f"/proc/{holder}/ns/user", "--netns", f"/proc/{holder}/ns/net", "--no-netns-quit")
        words = ("--foreground", "--stderr", "--quiet", "--config-net", "--dns-forward", DNS_ADDRESS)
        linux.execute(pasta, ["pasta", *words, *nothing, *place], {})

    try:
        return linux.fork(work, log)
    finally:
        os.close(log)


def _own_tun_device() -> None:
    """A /dev/net/tun that everybody may open, for this process alone: some systems have it for root only."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    os.makedirs("/dev/net", exist_ok=True)
    linux.mount("none", "/dev/net", "tmpfs", 0)
    os.umask(0)
    os.mknod("/dev/net/tun", 0o020666, os.makedev(*_TUN))


def _wait_until_routed(pasta: int, holder: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _has_route(holder):
        if linux.start_time(pasta) is None or time.monotonic() > deadline:
            with open(_PASTA_LOG, errors="replace") as file:
                lines = [line.strip() for line in file if line.strip() and "syslog" not in line]
            said = "; ".join(lines[-3:]) or f"not ready after {READY_SECONDS:g} s"
            raise NetworkError(f"pasta: {said}")
        time.sleep(POLL_SECONDS)


def _has_route(pid: int) -> bool:
    """A route to elsewhere: any of IPv4 (loopback's is not listed), a default one of IPv6 that is not loopback's."""
    with open(f"/proc/{pid}/net/route") as file:
        if len(file.readlines()) > 1:
            return True
    try:
        with open(f"/proc/{pid}/net/ipv6_route") as file:
            return any(line.startswith("0" * 32 + " 00") and line.split()[-1] != "lo" for line in file)
    except FileNotFoundError:
        return False  # A kernel without IPv6.


def _drop(drop_to: list[int] | None) -> None:
    if drop_to:
        os.setgroups([])
        os.setresgid(drop_to[1], drop_to[1], drop_to[1])
        os.setresuid(drop_to[0], drop_to[0], drop_to[0])


def _end(pid: int) -> None:
    """Kill a child of this process and take its exit status."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
