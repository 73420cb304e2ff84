"""Linux calls that Python 3.11 has no name for, and what /proc says of a process.

Standard library only, and little of it: the programs that stand between daemon and sandbox (``sandbox_shim``,
``sandbox_enter``) import it too, outside of any environment. Every call raises OSError; none blocks.
"""

# Without pathlib, which would double what such a program loads.
# ruff: noqa: PTH116

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 1 << 18

OPEN_FILES = 1 << 16

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SECCOMP_MODE_FILTER = 2
_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}


class _Libc:
    """The C library, loaded at the first call: elsewhere than on Linux this module can be imported all the same."""

    loaded: ctypes.CDLL | None = None

    @classmethod
    def get(cls) -> ctypes.CDLL:
        if cls.loaded is None:
            cls.loaded = ctypes.CDLL(None, use_errno=True)
            cls.loaded.syscall.restype = ctypes.c_long
        return cls.loaded


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: int) -> int:
    values = [ctypes.c_long(value) for value in arguments]
    return _checked(int(_Libc.get().syscall(ctypes.c_long(number), *values)), what)


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    values = [ctypes.c_ulong(value) for value in (a, b, c, d)]
    return _checked(int(_Libc.get().prctl(ctypes.c_int(option), *values)), f"prctl {option}")


def setns(descriptor: int, kind: int) -> None:
    _checked(_Libc.get().setns(descriptor, kind), "setns")


def unshare(flags: int) -> None:
    _checked(_Libc.get().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int) -> None:
    _checked(
        _Libc.get().mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None),
        f"mount {target}",
    )


def pidfd_open(pid: int) -> int:
    """Like ``os.pidfd_open``, which a Python built on an old system lacks. The descriptor is close-on-exec."""
    return _syscall(_SYS_PIDFD_OPEN, f"pidfd_open {pid}", pid, 0)


def pidfd_signal(descriptor: int, number: signal.Signals) -> None:
    _syscall(_SYS_PIDFD_SEND_SIGNAL, "pidfd_send_signal", descriptor, int(number), 0, 0)


def join_new_session_keyring() -> None:
    """Leave the session keyring that was inherited: kernel keys of the daemon's user are in reach through it.

    A kernel without keyrings (ENOSYS) has nothing to leave.
    """
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(f"keyctl: unknown machine {os.uname().machine}")
    try:
        _syscall(number, "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, 0)
    except OSError as error:
        if error.errno != 38:
            raise


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def drop_bounding_set(last: int) -> None:
    """No program executed from here on can gain a capability. Needs CAP_SETPCAP."""
    for number in range(last + 1):
        prctl(PR_CAPBSET_DROP, number)


def clear_capabilities() -> None:
    """Empty the ambient, inheritable, permitted and effective sets."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_Libc.get().capset(header, data), "capset")


def limit_files(wanted: int = OPEN_FILES) -> None:
    """Neither the daemon's low nor its high limit of open files; and no core files, which hold what memory held."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    number = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load_seccomp(program: bytes) -> None:
    """Put the BPF ``program`` in front of every system call of this process, for good. Needs no_new_privs."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    instructions = ctypes.create_string_buffer(program, len(program))
    loaded = Program(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(loaded))


def owner_of_namespace(descriptor: int) -> int | None:
    """A descriptor of the user namespace that owns this namespace; None when it is not below ours."""
    try:
        return fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except PermissionError:
        return None


def parent_of_user_namespace(descriptor: int) -> int | None:
    """A descriptor of its parent; None when that is not below ours."""
    try:
        return fcntl.ioctl(descriptor, _NS_GET_PARENT)
    except PermissionError:
        return None


def fork(work: Callable[[], None], complain: int) -> int:
    """Run ``work`` in a child process and return its id. The child ends with 125 when ``work`` returns or raises; what
    it raises is written to the descriptor ``complain``. For programs with one thread."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:  # noqa: BLE001  (whatever it is, it must not go on in the parent's code)
        os.write(complain, f"{error}\n".encode(errors="replace"))
    finally:
        os._exit(125)


def execute(program: str, argv: list[str], env: dict[str, str]) -> None:
    """Become ``program``, with signals as programs expect them: Python ignores SIGPIPE and SIGXFSZ, and an ignored
    signal survives exec (pasta 2023 even refuses to start then)."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execve(program, argv, env)  # noqa: S606  (no shell is what is wanted)


def boot_id() -> str:
    """Changes with every boot: process ids and start times mean nothing across it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (/proc/pid/stat, field 22). None when it does not run any
    more: a zombie runs no more either."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def namespace_number(pid: int, kind: str) -> int | None:
    """The inode that names a namespace of the process. None when it is gone or not ours to ask."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def command_line(pid: int) -> list[str]:
    """Its arguments; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).split("\0")[:-1]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """Its child processes; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(number) for number in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def seccomp_mode(pid: int) -> int:
    """0 none, 2 filter; 0 when it is gone."""
    return int(_status_field(pid, "Seccomp:") or "0")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal. Without one the first process of a namespace never gets it."""
    return bool(int(_status_field(pid, "SigCgt:") or "0", 16) >> (int(number) - 1) & 1)


def _status_field(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(name):
                    return line[len(name) :].strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return ""
