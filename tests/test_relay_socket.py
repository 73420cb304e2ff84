"""The daemon's socket for a relay: private, where it should be, gone afterwards, and out of reach of the inside."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from oubliette.container.link import RelayLink
from oubliette.errors import ContainerError
from oubliette.relay_host import RelayHost
from tests.relay.harness import PATIENCE, connected, echo, read_all


def listening(directory: Path) -> AbstractAsyncContextManager[RelayLink]:
    return RelayHost(serve_model=echo).listen("c1", directory)


async def still_serves(directory: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_unix_socket(directory / "relay.sock") as stream:
            await stream.send_all(b'{"hello":"http"}\nare you there')
            await stream.send_eof()
            assert await read_all(stream) == b"are you there"


async def test_the_socket_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    async with listening(tmp_path):
        found = (tmp_path / "relay.sock").lstat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())
    assert os.listdir(tmp_path) == []


async def test_a_stale_socket_is_replaced_and_anything_else_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "relay.sock"))
    async with listening(tmp_path):
        await still_serves(tmp_path)
    (tmp_path / "relay.sock").symlink_to("/elsewhere")
    with pytest.raises(ContainerError, match="is not a socket"):
        async with listening(tmp_path):
            pass
    with pytest.raises(ContainerError, match="No such file"):
        async with listening(tmp_path / "missing"):
            pass


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    async with connected(deep) as (link, _):
        assert (await link.exec(["echo", "deep"], env={"PATH": os.environ["PATH"]})).stdout == b"deep\n"


async def test_what_the_listener_does_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bare"):
        async with listening(tmp_path):
            raise ValueError("bare")


async def test_who_waits_for_a_relay_is_told_when_nobody_listens_any_more(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(link: RelayLink) -> None:
            with pytest.raises(ContainerError, match="nobody listens"):
                await link.wait_connected()

        with trio.fail_after(PATIENCE):
            async with listening(tmp_path) as link:
                nursery.start_soon(wait, link)
                await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, as /run/oubliette is inside; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
async def test_exactly_the_uid_of_the_container_may_dial(open_directory: Path) -> None:
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    async with RelayHost(serve_model=echo).listen("c1", open_directory, uid=10001):
        for uid, allowed in ((10001, True), (10002, False)):
            done = await trio.run_process(
                ["/usr/bin/python3", "-c", script, str(open_directory / "relay.sock")],
                user=uid,
                group=uid,
                extra_groups=[],
                check=False,
                capture_stderr=True,
            )
            assert (done.returncode == 0) is allowed, done.stderr
            assert allowed or b"PermissionError" in done.stderr


@pytest.mark.engine
async def test_from_inside_a_read_only_mount_the_socket_can_be_dialled_and_not_replaced(open_directory: Path) -> None:
    bwrap = shutil.which("bwrap") or str(Path(sys.executable).with_name("bwrap"))
    script = """
import os, socket
for attempt in (
    lambda: os.unlink("/run/o/relay.sock"),
    lambda: os.rename("/run/o/relay.sock", "/run/o/other"),
    lambda: os.symlink("/elsewhere", "/run/o/relay.sock"),
    lambda: os.link("/run/o/relay.sock", "/run/o/other"),
    lambda: os.chmod("/run/o/relay.sock", 0o777),
    lambda: open("/run/o/new", "w"),
    lambda: socket.socket(socket.AF_UNIX).bind("/run/o/new.sock"),
    lambda: os.rename("/run/o", "/run/p"),
):
    try:
        attempt()
    except OSError as error:
        print(error.errno)
    else:
        print("done")
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect("/run/o/relay.sock")
    peer.sendall(b'{"hello":"http"}\\nhello')
    peer.shutdown(socket.SHUT_WR)
    print(peer.recv(100).decode())
"""
    async with RelayHost(serve_model=echo).listen("c1", open_directory):
        command = [bwrap, "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib"]
        command += ["--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin", "--tmpfs", "/run"]
        command += ["--ro-bind", str(open_directory), "/run/o", "/usr/bin/python3", "-c", script]
        done = await trio.run_process(command, capture_stdout=True)
    *errors, last = done.stdout.decode().split()
    assert last == "hello"
    read_only, busy, exists = "30", "16", "17"
    assert errors == [read_only] * 2 + [exists] + [read_only] * 4 + [busy]
