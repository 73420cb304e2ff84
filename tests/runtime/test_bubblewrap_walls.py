"""Walls that bubblewrap does not put up by itself (measured: it inherits environment, descriptors and keyring, keeps
root's capabilities, has no filter), and those of its networks. Root's path; test_bubblewrap_user runs them as a user.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from oubliette.runtime import linux
from oubliette.runtime.base import Mount
from oubliette.runtime.bubblewrap import NOBODY, Bubblewrap
from tests.runtime.contract import ENVIRONMENT, Kit, cleaned
from tests.runtime.outside import listening, outside

SECONDS = 60

pytestmark = pytest.mark.engine


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Kit]:
    async with cleaned(Kit(Bubblewrap(tmp_path / "sandboxes"), tmp_path, walls=True)) as kit:
        yield kit


LOOK = """
import json, os
status = dict(line.rstrip("\\n").split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "environ": open("/proc/self/environ").read(), "descriptors": sorted(os.listdir("/proc/self/fd")),
    "filter": status["Seccomp"].strip(), "limits": open("/proc/self/limits").read(),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16), "umask": status["Umask"].strip(),
    "session": os.getsid(0), "cgroup": open("/proc/self/cgroup").read(),
}))
"""


async def test_the_first_program_and_every_command_start_from_a_clean_slate(
    own: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "planted")
    with trio.fail_after(SECONDS):
        name = await own.run(["python3", "-I", "-c", LOOK + "\nimport sys, time; sys.stdout.flush(); time.sleep(1000)"])
        first = json.loads(await own.said(name))
        command = json.loads(await own.python(name, LOOK))
    wanted = sorted(f"{key}={value}" for key, value in ENVIRONMENT.items())
    for found in (first, command):
        assert sorted(found["environ"].rstrip("\0").split("\0")) == wanted
        # One more than stdin, stdout and stderr: the folder that is being listed.
        assert found["descriptors"] == ["0", "1", "2", "3"]
        assert found["filter"] == "2"
        assert found["blocked"] == 0
        assert found["umask"] == "0022"
        assert not found["ignored"] >> signal.SIGINT - 1 & 1
        limits = [line.split() for line in found["limits"].splitlines()]
        assert ["0", "0"] in [words[4:6] for words in limits if words[:2] == ["Max", "core"]]
        # Whatever groups the host has: from inside, it is at their root.
        assert {line.rsplit(":", 1)[1] for line in found["cgroup"].splitlines()} <= {"/"}
    assert first["session"] == 1


async def test_the_file_system_has_nothing_of_the_hosts_but_usr(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        top = set((await own.sh(name, "ls -A /")).split())
        always = {"bin", "dev", "etc", "lib", "proc", "sbin", "tmp", "usr", "var", "workspaces"}
        assert top - {"lib32", "lib64", "libx32"} == always
        assert await own.sh(name, "find /var /tmp /workspaces /dev/shm /dev/pts -mindepth 1") == (
            "/var/tmp\n/workspaces/w\n/dev/pts/ptmx\n"
        )
        assert await own.sh(name, "ls -d /sys /run /home /root /var/run /var/lib 2>/dev/null; true") == ""
        mounts = await own.sh(name, "cat /proc/self/mountinfo")
    for line in mounts.splitlines():
        words = line.split()
        kind = words[words.index("-") + 1]
        assert "nosuid" in words[5], line
        if words[4] not in ("/workspaces/w", "/tmp", "/dev/shm", "/dev/pts", "/proc") and kind != "devtmpfs":
            assert words[5].startswith("ro") or words[4].startswith("/dev/"), line


async def test_etc_is_made_and_not_the_hosts(own: Kit, tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run(hostname="gaol")
        assert await own.sh(name, "cat /etc/hostname; hostname; id -un; getent hosts localhost | wc -l") == (
            "gaol\ngaol\nagent\n1\n"
        )
        passwd = await own.sh(name, "cut -d: -f1,3 /etc/passwd")
        assert passwd == f"root:0\nagent:{own.uid}\nnobody:65534\n"
        for absent in ("/etc/shadow", "/etc/ssh", "/etc/machine-id", "/etc/sudoers", "/etc/fstab", "/etc/ssl/private"):
            assert (await own.runtime.exec(name, ["test", "-e", absent])).exit_code == 1, absent
        script = "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)"
        assert await own.python(name, script) == "True\n"
        assert (await own.sh(name, "git --version; awk 'BEGIN {print 6*7}'")).endswith("42\n")


async def test_the_hidden_files_of_proc_say_nothing(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        for path in ("/proc/keys", "/proc/kcore", "/proc/timer_list", "/proc/interrupts", "/proc/latency_stats"):
            result = await own.runtime.exec(name, ["sh", "-c", f"cat {path} 2>/dev/null | wc -c"])
            assert result.stdout.strip() == b"0", path


async def test_every_process_inside_has_the_filter_and_is_the_same_powerless_user(own: Kit) -> None:
    script = "for p in /proc/[0-9]*; do grep -hE '^(Seccomp|Uid|CapEff|CapPrm|NoNewPrivs):' $p/status; done"
    with trio.fail_after(SECONDS):
        name = await own.run(["sh", "-c", "sleep 500 & sleep 501 & wait"])
        lines = (await own.sh(name, script)).splitlines()
    assert len(lines) >= 15
    assert {line.partition(":")[2].strip() for line in lines if line.startswith("Seccomp")} == {"2"}
    assert {line.partition(":")[2].strip() for line in lines if line.startswith("Cap")} == {"0" * 16}
    assert {line.partition(":")[2].strip() for line in lines if line.startswith("NoNewPrivs")} == {"1"}
    uids = {tuple(line.split()[1:]) for line in lines if line.startswith("Uid")}
    assert uids == {(str(own.uid),) * 4}


def session_keyrings() -> set[str]:
    lines = Path("/proc/keys").read_text().splitlines()
    return {line.split()[0] for line in lines if line.split()[7] == "keyring" and line.split()[8].startswith("_ses")}


async def test_the_session_keyring_is_a_new_one_and_keys_are_out_of_reach(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        before = session_keyrings()
        name = await own.run()
        assert session_keyrings() - before
        number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
        script = f"import ctypes; l = ctypes.CDLL(None, use_errno=True); r = l.syscall({number}, 0, -3, 0); "
        assert await own.python(name, script + "print(r, ctypes.get_errno())") == "-1 1\n"
        if (await own.runtime.exec(name, ["sh", "-c", "command -v keyctl"])).exit_code == 0:
            assert (await own.runtime.exec(name, ["keyctl", "show"])).exit_code != 0


TERMINAL = """
import ctypes, fcntl, os, pty
libc = ctypes.CDLL(None, use_errno=True)
main, side = pty.openpty()
for request in (0x5412, 0x541C, 0x5412 | 1 << 32):
    answer = libc.syscall({ioctl}, side, ctypes.c_ulong(request), ctypes.c_char_p(b"x"))
    print(answer, ctypes.get_errno())
"""


async def test_no_terminal_can_be_typed_into(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        ioctl = {"x86_64": 16, "aarch64": 29}[platform.machine()]
        assert await own.python(name, TERMINAL.format(ioctl=ioctl)) == "-1 1\n" * 3


async def test_the_usual_tools_of_escape_fail(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        for command in (
            "unshare -U true",
            "unshare -m true",
            "unshare -n true",
            "mount -t tmpfs none /tmp",
            "mount --bind /usr /tmp",
            "mount -o remount,rw /usr",
            "umount /workspaces/w",
            "nsenter -t 1 -m true",
            "chroot /tmp",
            "su -c true",
            "bwrap --ro-bind / / true",
            "dmesg",
            "ip link add x type dummy",
            "mknod /tmp/disk b 254 0",
        ):
            assert (await own.runtime.exec(name, ["sh", "-c", command])).exit_code != 0, command


OLD_TABLE = """
import ctypes, mmap
code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid of i386); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""


async def test_the_system_calls_of_another_architecture_kill(own: Kit) -> None:
    if platform.machine() != "x86_64":
        return  # Only there can a process choose another table.
    with trio.fail_after(SECONDS):
        name = await own.run()
        result = await own.runtime.exec(name, ["python3", "-I", "-c", OLD_TABLE])
        assert (result.exit_code, result.stdout) == (128 + signal.SIGSYS, b"")


async def test_unusual_sockets_cannot_be_made(own: Kit) -> None:
    script = """
import socket
for family in (16, 17, 38, 40, 15, 29, 31):
    try:
        socket.socket(family, socket.SOCK_DGRAM if family == 16 else socket.SOCK_RAW).close()
        print(family, 0)
    except OSError as error:
        print(family, error.errno)
"""
    with trio.fail_after(SECONDS):
        name = await own.run()
        answers = dict(line.split() for line in (await own.python(name, script)).splitlines())
    assert answers.pop("16") == "0"
    assert set(answers.values()) == {"97"}


WATCH = """
import os, sys
own = os.getpid()
seen = set()
print("watching", flush=True)
while not os.path.exists("/tmp/enough"):
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own:
            try:
                program = os.readlink(f"/proc/{entry}/exe")
                os.close(os.open(f"/proc/{entry}/mem", os.O_RDWR))
            except OSError:
                continue
            seen.add(program)
print(sorted(seen), flush=True)
"""


async def test_a_command_on_its_way_in_is_never_a_program_of_the_host_that_can_be_touched(own: Kit) -> None:
    """CVE-2019-5736: what enters is, for a moment, the daemon's own Python, which the user may own."""
    with trio.fail_after(SECONDS):
        name = await own.run(["python3", "-I", "-c", WATCH])
        assert await own.said(name) == "watching\n"
        for _ in range(15):
            await own.sh(name, "true")
        await own.sh(name, "sleep 0.2; touch /tmp/enough")
        await own.ended(name)
        seen = (await own.runtime.logs(name)).decode().splitlines()[1]
    programs = json.loads(seen.replace("'", '"'))
    assert programs
    assert all(program.startswith("/usr/bin/") for program in programs), programs


async def test_shared_memory_and_scratch_have_an_end_and_nothing_else_can_be_written(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        result = await own.runtime.exec(name, ["sh", "-c", "head -c 80000000 /dev/zero > /dev/shm/x"])
        assert b"space" in result.stderr
        found = await own.sh(
            name, "find / -path /proc -prune -o -path /dev/pts -prune -o -writable ! -type l -print || true"
        )
    devices = {f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")}
    assert set(found.split()) - devices == {"/dev/shm", "/dev/shm/x", "/tmp", "/workspaces/w"}


async def test_two_mounts_of_which_one_lies_in_the_other_are_both_seen(own: Kit) -> None:
    outer, inner = own.directory("outer"), own.directory("inner")
    (inner / "file").write_text("inner")
    (outer / "in").mkdir()
    own.give(outer / "in")
    mounts = [Mount(inner, "/workspaces/w/in"), Mount(outer, "/workspaces/w", read_only=False)]
    with trio.fail_after(SECONDS):
        name = await own.run(mounts=mounts)
        assert await own.sh(name, "cat in/file") == "inner"
        await own.runtime.stop(name, 1)
        (outer / "in").rmdir()
        (outer / "in").symlink_to("/etc")
        with pytest.raises(Exception, match="symbolic link"):
            await own.runtime.start(name)


TRY = """
import socket, sys
for place in sys.argv[1:]:
    address, _, port = place.rpartition(":")
    try:
        with socket.create_connection((address, int(port)), timeout=2) as stream:
            print(place, stream.recv(9).decode() or "connected")
    except OSError as error:
        print(place, "no")
"""


def uids_of(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


def gateways(run: int) -> list[str]:
    """Addresses that could lead to the host: those of its routers, its own, and where names are asked for."""
    lines = [line.split() for line in Path(f"/proc/{run}/net/route").read_text().splitlines()[1:]]
    numbers = [bytes.fromhex(words[2]) for words in lines if words[2] != "00000000"]
    return [".".join(str(byte) for byte in reversed(number)) for number in numbers]


@pytest.mark.parametrize("network", ["none", "bridge"])
async def test_the_hosts_loopback_cannot_be_reached(own: Kit, network: str) -> None:
    with trio.fail_after(SECONDS), listening("127.0.0.1") as port:
        name = await own.run(network=network)
        info = await own.info(name)
        assert info.pid is not None
        assert linux.namespace_number(info.pid, "net") != linux.namespace_number(os.getpid(), "net")
        hosts = {"127.0.0.1", "localhost", "169.254.1.1", "10.0.2.2", "host.containers.internal", own_address()}
        places = [f"{host}:{port}" for host in sorted(hosts | set(gateways(info.pid)))]
        result = await own.runtime.exec(name, ["python3", "-I", "-c", TRY, *places])
    assert b" host" not in result.stdout, result.stdout
    assert result.stdout.count(b" no\n") == len(places)


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


RAW = """
import socket
for kind in (socket.IPPROTO_ICMP, socket.IPPROTO_RAW):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, kind)
        print("made")
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("network", ["none", "bridge"])
async def test_a_sandbox_cannot_administer_its_own_network(own: Kit, network: str) -> None:
    """The owner of a user namespace has every capability over it from outside, with none in its own sets."""
    with trio.fail_after(SECONDS):
        name = await own.run(network=network)
        for command in (
            "ip address add 10.9.9.9/32 dev lo",
            "ip link set lo down",
            "ip link add x type veth",
            "ip route add 10.8.8.8/32 dev lo",
        ):
            result = await own.runtime.exec(name, ["sh", "-c", command])
            assert result.exit_code != 0, command
            assert b"not permitted" in result.stderr, result.stderr
        assert await own.python(name, RAW) == "1\n1\n"


async def test_a_bridged_sandbox_reaches_the_world_and_is_reached_by_nobody(own: Kit) -> None:
    with trio.fail_after(SECONDS), outside() as place:
        name = await own.run(network="bridge")
        result = await own.runtime.exec(name, ["python3", "-I", "-c", TRY, place])
        assert result.stdout.decode() == f"{place} host\n", result.stderr
        assert "nameserver 169.254.1.1" in await own.sh(name, "cat /etc/resolv.conf")
        # What listens inside does not show on the host.
        inside = "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); s.accept()"
        async with trio.open_nursery() as nursery:
            name2 = await own.run(["python3", "-I", "-c", inside], network="bridge")
            port = int(await own.said(name2))
            for address in ("127.0.0.1", own_address()):
                with pytest.raises(OSError):
                    await trio.open_tcp_stream(address, port)
            nursery.cancel_scope.cancel("enough")


async def test_what_joins_a_network_ends_with_its_sandbox_and_has_no_rights(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run(network="bridge")
        record = json.loads((own.place / "sandboxes" / name / "run.json").read_text())
        pasta = record["pasta"][0]
        assert uids_of(pasta) == {NOBODY if os.geteuid() == 0 else own.uid}
        assert linux.namespace_number(pasta, "user") != linux.namespace_number(os.getpid(), "user")
        os.kill(record["shim"][0], signal.SIGKILL)
        await own.runtime.remove(name)
        assert linux.start_time(pasta) is None
        name = await own.run(network="bridge")
        pasta = json.loads((own.place / "sandboxes" / name / "run.json").read_text())["pasta"][0]
        await own.runtime.stop(name, 5)
        assert linux.start_time(pasta) is None
