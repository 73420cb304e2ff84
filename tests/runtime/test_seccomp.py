"""The system call filter, run here on made-up system calls: every decision, on both architectures."""

from __future__ import annotations

import errno
import struct

import pytest

from oubliette.errors import RuntimeUnavailable
from oubliette.runtime.seccomp import (
    ALLOW,
    KILL_PROCESS,
    NEW_NAMESPACES,
    PERSONALITIES,
    SOCKET_FAMILIES,
    TERMINAL_INJECTION,
    build_filter,
    refuse,
)
from oubliette.runtime.syscalls import ALLOWED, EXAMINED, LAST_KNOWN

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
EPERM, ENOSYS = refuse(errno.EPERM), refuse(errno.ENOSYS)

DANGEROUS = {
    "x86_64": {
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "bpf": 321,
        "keyctl": 250, "add_key": 248, "request_key": 249, "perf_event_open": 298, "userfaultfd": 323,
        "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
        "open_by_handle_at": 304, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "sethostname": 170,
        "iopl": 172, "ioperm": 173, "settimeofday": 164, "clock_settime": 227, "quotactl": 179, "syslog": 103,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "move_mount": 429, "open_tree": 428,
        "mount_setattr": 442, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "kcmp": 312,
        "pidfd_getfd": 438, "process_madvise": 440, "modify_ldt": 154, "vhangup": 153, "fanotify_init": 300,
        "lookup_dcookie": 212, "mbind": 237, "set_mempolicy": 238, "move_pages": 279, "migrate_pages": 256,
        "ustat": 136, "sysfs": 139, "uselib": 134, "nfsservctl": 180, "lsm_set_self_attr": 460,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "bpf": 280,
        "keyctl": 219, "add_key": 217, "request_key": 218, "perf_event_open": 241, "userfaultfd": 282,
        "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273, "delete_module": 106,
        "open_by_handle_at": 265, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89, "sethostname": 161,
        "settimeofday": 170, "clock_settime": 112, "quotactl": 60, "syslog": 116, "fsopen": 430, "fsmount": 432,
        "move_mount": 429, "open_tree": 428, "mount_setattr": 442, "io_uring_setup": 425, "kcmp": 272,
        "pidfd_getfd": 438, "process_madvise": 440, "vhangup": 58, "fanotify_init": 262,
    },
}  # fmt: skip
NEEDED = {
    "x86_64": {"read": 0, "mmap": 9, "execve": 59, "fork": 57, "ptrace": 101, "seccomp": 317, "statx": 332},
    "aarch64": {"read": 63, "mmap": 222, "execve": 221, "ptrace": 117, "seccomp": 277, "statx": 291},
}  # fmt: skip


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel's interpreter would answer."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), architecture, 0, *padded)
    code = [struct.unpack_from("<HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator = position = 0
    while True:
        operation, yes, no, constant = code[position]
        position += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x06:
            return int(constant)
        else:
            held = {0x15: accumulator == constant, 0x25: accumulator > constant, 0x35: accumulator >= constant}
            position += yes if held[operation] else no


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_call_is_allowed_exactly_when_it_is_listed(machine: str) -> None:
    program, architecture = build_filter(machine), ARCHITECTURES[machine]
    allowed = set(ALLOWED[machine].values())
    examined = set(EXAMINED[machine].values())
    for number in range(1200):
        if number not in examined:
            expected = ALLOW if number in allowed else ENOSYS if number > LAST_KNOWN else EPERM
            assert decide(program, architecture, number) == expected, number


def test_what_breaks_out_of_sandboxes_is_refused_and_what_programs_need_is_not(machine: str) -> None:
    program, architecture = build_filter(machine), ARCHITECTURES[machine]
    for name, number in DANGEROUS[machine].items():
        assert decide(program, architecture, number) == EPERM, name
    for name, number in NEEDED[machine].items():
        assert decide(program, architecture, number) == ALLOW, name


def test_calls_of_another_system_call_table_kill(machine: str) -> None:
    program = build_filter(machine)
    for architecture in (0x40000003, 0x40000028, 0, *ARCHITECTURES.values()):
        if architecture != ARCHITECTURES[machine]:
            assert decide(program, architecture, 0) == KILL_PROCESS


def test_calls_of_the_x32_table_do_not_exist() -> None:
    program = build_filter("x86_64")
    for number in (0, 1, 16, 59, 165, 512, 547):
        assert decide(program, ARCHITECTURES["x86_64"], 0x40000000 | number) == ENOSYS
    assert decide(program, ARCHITECTURES["x86_64"], 0xFFFFFFFF) == ENOSYS


def test_a_process_may_be_made_but_no_namespace(machine: str) -> None:
    program, architecture, clone = build_filter(machine), ARCHITECTURES[machine], EXAMINED[machine]["clone"]
    for flags in (0, 17, 0x3D0F00, 0x4000 | 17):
        assert decide(program, architecture, clone, flags) == ALLOW
    for bit in range(64):
        wanted = EPERM if 1 << bit & NEW_NAMESPACES else ALLOW
        assert decide(program, architecture, clone, 1 << bit | 17) == wanted, bit
    assert decide(program, architecture, EXAMINED[machine]["clone3"]) == ENOSYS


def test_a_terminal_cannot_be_typed_into_whatever_the_high_half_says(machine: str) -> None:
    program, architecture, ioctl = build_filter(machine), ARCHITECTURES[machine], EXAMINED[machine]["ioctl"]
    for request in TERMINAL_INJECTION:
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):
            assert decide(program, architecture, ioctl, 0, high | request) == EPERM
    for request in (0x5401, 0x5413, 0x541B, 0x5421):
        assert decide(program, architecture, ioctl, 0, request) == ALLOW


def test_only_usual_sockets_can_be_made(machine: str) -> None:
    program, architecture, socket = build_filter(machine), ARCHITECTURES[machine], EXAMINED[machine]["socket"]
    for family in range(64):
        wanted = ALLOW if family in SOCKET_FAMILIES else refuse(errno.EAFNOSUPPORT)
        assert decide(program, architecture, socket, family, 1, 0) == wanted
        assert decide(program, architecture, socket, 1 << 32 | family, 1, 0) == wanted


def test_only_harmless_personalities_can_be_taken(machine: str) -> None:
    program, architecture, number = build_filter(machine), ARCHITECTURES[machine], EXAMINED[machine]["personality"]
    for value in PERSONALITIES:
        assert decide(program, architecture, number, value) == ALLOW
    for value in (0x0040000, 0x0400000, 0x4, 0x100000):
        assert decide(program, architecture, number, value) == EPERM


def test_an_unknown_machine_has_no_filter_and_so_no_sandbox() -> None:
    with pytest.raises(RuntimeUnavailable, match="riscv64"):
        build_filter("riscv64")
