"""The program that runs one command inside a running sandbox, under the same walls as everything there.

Started by ``Bubblewrap.exec`` as ``python -I -S`` with, on its stdin, its orders (a marshalled dict) and then the
command's own stdin. It enters the sandbox's namespaces, takes everything off itself (capabilities, groups, keyring,
descriptors), loads the same filter and executes. A failure of its own is exit code 125 and a line on stderr that begins
with the ``mark`` of the orders.

Until the exec, this is a program of the host standing in the sandbox. It is undumpable from before it enters, so
nothing inside can trace it or open its memory or its executable, which may be a file that the user can write
(CVE-2019-5736).
"""

# Without pathlib and dataclasses: see linux.py.

from __future__ import annotations

import marshal
import os
import resource
import sys

from oubliette.runtime import cgroup, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FAILED = 125
NAMESPACES = ("net", "ipc", "uts", "cgroup", "pid", "mnt")
"""The mount namespace last: /proc is another one from there on."""
LAUNCHER = "/usr/bin/setpriv"
"""What is executed first is a file of the system. If it were the command itself, a script of the agent that names
``/proc/self/exe`` as its interpreter would be given this host program's executable."""


class EnterError(Exception):
    """The command was not started; the text says why."""


def main() -> int:
    orders = _orders()
    try:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        namespaces = _open_namespaces(orders)
        cgroup.join_groups(orders["groups"], os.getpid())
        linux.join_new_session_keyring()
        _enter(namespaces)
        child = linux.fork(lambda: _become(orders), 2)
    except (EnterError, OSError) as error:
        sys.stderr.write(f"{orders['mark']} {error}\n")
        return FAILED
    # This process is not in the process namespace (its children are); it only carries the exit code out.
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _open_namespaces(orders: dict[str, Any]) -> dict[str, int]:
    """Descriptors of all namespaces of the sandbox's first process, which is surely still the one that was meant."""
    pid, start = orders["init"]
    try:
        opened = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", *NAMESPACES)}
    except FileNotFoundError as error:
        raise EnterError("the sandbox has ended") from error
    if linux.start_time(pid) != start or os.fstat(opened["pid"]).st_ino != orders["pid_namespace"]:
        raise EnterError("the sandbox has ended")
    return opened


def _enter(namespaces: dict[str, int]) -> None:
    """Enter each namespace from the user namespace that owns it.

    bubblewrap makes two user namespaces, one in the other, so that the inner one may make no more; a bridged network
    has an outer one. They are entered from the outermost on, each followed by what it owns.
    """
    own = os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116
    chain: list[int] = []
    descriptor: int | None = namespaces["user"]
    while descriptor is not None and os.fstat(descriptor).st_ino != own:
        chain.insert(0, descriptor)
        descriptor = linux.parent_of_user_namespace(descriptor)
    inside = {os.fstat(descriptor).st_ino for descriptor in chain}
    owners = {}
    for kind in NAMESPACES:
        owner = linux.owner_of_namespace(namespaces[kind])
        number = own if owner is None else os.fstat(owner).st_ino
        # A bridged sandbox of root's: root owns all there is, and stays where it is.
        owners[kind] = number if number in inside else own
    for place in [None, *chain]:
        if place is not None:
            linux.setns(place, linux.CLONE_NEWUSER)
        number = own if place is None else os.fstat(place).st_ino
        for kind in NAMESPACES:
            if owners[kind] == number:
                linux.setns(namespaces[kind], 0)


def _become(orders: dict[str, Any]) -> None:
    """In the child, which is in the process namespace: take everything off, then execute."""
    try:
        linux.limit_files()
        if orders["processes"]:
            resource.setrlimit(resource.RLIMIT_NPROC, (orders["processes"], orders["processes"]))
        linux.drop_bounding_set(orders["last_capability"])
        if orders["drop_to"]:
            uid, gid = orders["drop_to"]
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        linux.clear_capabilities()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        os.umask(0o022)
        os.chdir(orders["cwd"])
        os.closerange(3, linux.OPEN_FILES)
        linux.load_seccomp(orders["seccomp"])
        linux.execute(LAUNCHER, ["setpriv", "--no-new-privs", "--", *orders["argv"]], orders["env"])
    except OSError as error:
        os.write(2, f"{orders['mark']} {error}\n".encode())


def _orders() -> dict[str, Any]:
    """Eight digits that say how long they are, then the orders. Not a byte more is read: that is the command's.

    Marshalled rather than JSON, of which the import alone took a third of the time; both ends are one Python.
    """
    orders: dict[str, Any] = marshal.loads(_read_exactly(int(_read_exactly(8))))  # noqa: S302  (the daemon's own)
    return orders


def _read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            raise SystemExit("sandbox_enter: no orders on stdin")
        data += more
    return data
