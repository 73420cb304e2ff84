"""The system call filter of a sandbox, as classic BPF: an allow-list as strict as Docker's default profile.

Built here rather than by libseccomp, which is a system library that a bare machine lacks. What is not listed answers
EPERM, what is newer than the list ENOSYS. Beyond Docker's: no terminal injection (TIOCSTI, TIOCLINUX), only the socket
families that programs use, and no second system call table (i386, x32), whose numbers mean other calls.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence

from oubliette.errors import RuntimeUnavailable
from oubliette.runtime.syscalls import ALLOWED, EXAMINED, LAST_KNOWN

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
TERMINAL_INJECTION = (0x5412, 0x541C)
"""TIOCSTI types into, TIOCLINUX pastes into the terminal from which the daemon may have been started."""
SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. AF_VSOCK reaches the hypervisor past every network namespace; AF_ALG, AF_KEY,
AF_PACKET and the rest are kernel code that no build needs."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000


def refuse(number: int) -> int:
    """The filter's answer that makes the call fail with this errno."""
    return 0x00050000 | number


_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL = 0x15
_JUMP_ABOVE = 0x25
_JUMP_FROM = 0x35  # >=
_RETURN = 0x06

_NUMBER = 0
_ARCHITECTURE = 4

_Instruction = tuple[int, int, int, int]


def _argument(index: int) -> int:
    """Offset of the low half. The kernel takes flags, ioctl numbers and families as 32 bits and ignores the rest, so a
    filter that compared 64 bits could be passed by setting a high one (CVE-2019-10063)."""
    return 16 + 8 * index


def build_filter(machine: str) -> bytes:
    """The program for ``uname -m``: 8 bytes an instruction, as ``bwrap --seccomp`` and prctl take it."""
    if machine not in ALLOWED:
        raise RuntimeUnavailable(
            f"bubblewrap: there is no system call filter for {machine}",
            hint="Use docker or podman on this machine.",
            retryable=False,
        )
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JUMP_FROM, 0, 1, _X32_BIT), (_RETURN, 0, 0, refuse(errno.ENOSYS))]
    examined = EXAMINED[machine]
    program += _call(examined["clone3"], [(_RETURN, 0, 0, refuse(errno.ENOSYS))])
    program += _call(
        examined["clone"],
        [
            (_LOAD, 0, 0, _argument(0)),
            (_AND, 0, 0, NEW_NAMESPACES),
            *_one_of((0,), ALLOW, refuse(errno.EPERM)),
        ],
    )
    program += _call(
        examined["ioctl"],
        [(_LOAD, 0, 0, _argument(1)), *_one_of(TERMINAL_INJECTION, refuse(errno.EPERM), ALLOW)],
    )
    program += _call(
        examined["socket"],
        [(_LOAD, 0, 0, _argument(0)), *_one_of(SOCKET_FAMILIES, ALLOW, refuse(errno.EAFNOSUPPORT))],
    )
    program += _call(
        examined["personality"],
        [(_LOAD, 0, 0, _argument(0)), *_one_of(PERSONALITIES, ALLOW, refuse(errno.EPERM))],
    )
    for first, last in _ranges(ALLOWED[machine].values()):
        program += [(_JUMP_FROM, 0, 2, first), (_JUMP_ABOVE, 1, 0, last), (_RETURN, 0, 0, ALLOW)]
    program += [
        (_JUMP_ABOVE, 0, 1, LAST_KNOWN),
        (_RETURN, 0, 0, refuse(errno.ENOSYS)),
        (_RETURN, 0, 0, refuse(errno.EPERM)),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _call(number: int, body: Sequence[_Instruction]) -> list[_Instruction]:
    """``body`` for one call. It ends in a return on every path, so that its loads never reach the next comparison."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _one_of(values: Sequence[int], then: int, otherwise: int) -> list[_Instruction]:
    """Return ``then`` when the accumulator is one of ``values``, else ``otherwise``."""
    jumps = [(_JUMP_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*jumps, (_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, then)]


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The numbers as runs without a gap, first and last of each."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
