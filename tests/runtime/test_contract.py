"""The contract of a runtime, part one: a container's life. Runs over every runtime, the fake included."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from oubliette.errors import ContainerError, ContainerExited
from oubliette.runtime.base import LABEL_PREFIX, Mount
from tests.runtime.contract import ENVIRONMENT, Kit, processes_with, until, until_gone, until_there

SECONDS = 60


def marker() -> str:
    """A sleeping time that no other process has."""
    return f"9{secrets.randbelow(10**9):09d}"


async def test_the_trial_of_a_usable_runtime_says_so(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        report = await kit.runtime.probe()
    assert report.ok, report.reason
    assert report.name == kit.runtime.name
    assert report.version


async def test_a_created_container_does_not_run_until_it_is_started(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.create()
        info = await kit.info(name)
        assert (info.state, info.pid, info.exit_code) == ("created", None, None)
        await kit.runtime.start(name)
        info = await kit.info(name)
        assert info.state == "running"
        assert info.pid


async def test_creating_twice_gives_the_same_container(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        spec = kit.spec()
        first = await kit.runtime.create(spec)
        assert await kit.runtime.create(spec) == first
        await kit.runtime.start(spec.name)
        assert await kit.runtime.create(spec) == first
        assert (await kit.info(spec.name)).state == "running"
        assert len(await kit.runtime.list(kit.labels)) == 1


async def test_creating_many_at_once_under_one_name_makes_one(kit: Kit) -> None:
    made: list[str] = []
    spec = kit.spec()

    async def create() -> None:
        made.append(await kit.runtime.create(spec))

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(create)
        assert len(set(made)) == 1
        assert len(await kit.runtime.list(kit.labels)) == 1


async def test_a_name_with_other_labels_is_refused(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        spec = kit.spec(labels={LABEL_PREFIX + "generation": "1"})
        await kit.runtime.create(spec)
        with pytest.raises(ContainerError) as refused:
            await kit.runtime.create(replace(spec, labels={**spec.labels, LABEL_PREFIX + "generation": "2"}))
        assert refused.value.code == "conflict"
        assert spec.name in str(refused.value)


async def test_starting_a_running_container_changes_nothing(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        before = await kit.info(name)
        await kit.runtime.start(name)
        assert await kit.info(name) == before


async def test_starting_an_absent_container_is_an_error(kit: Kit) -> None:
    with trio.fail_after(SECONDS), pytest.raises(ContainerError, match="nobody-here"):
        await kit.runtime.start("nobody-here")


async def test_absent_containers_can_be_stopped_removed_and_looked_for(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        await kit.runtime.stop("nobody-here", 1)
        await kit.runtime.remove("nobody-here")
        assert await kit.runtime.inspect("nobody-here") is None
        assert await kit.runtime.stats("nobody-here") == {}


async def test_a_container_that_ends_by_itself_leaves_its_exit_code(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run(["sh", "-c", "exit 3"])
        info = await kit.ended(name)
        assert (info.state, info.exit_code, info.pid) == ("exited", 3, None)


async def test_an_ended_container_can_be_started_again(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        workspace = kit.directory("workspace")
        mounts = [Mount(workspace, "/workspaces/w", read_only=False)]
        name = await kit.run(["sh", "-c", "echo once >> /workspaces/w/lives"], mounts=mounts)
        await kit.ended(name)
        await kit.runtime.start(name)
        await kit.ended(name)
        assert (workspace / "lives").read_text() == "once\nonce\n"


async def test_stopping_asks_first(kit: Kit) -> None:
    script = "trap 'echo asked > /workspaces/w/asked; exit 7' TERM; echo up > /workspaces/w/up; sleep 1000 & wait"
    with trio.fail_after(SECONDS):
        workspace = kit.directory("workspace")
        mounts = [Mount(workspace, "/workspaces/w", read_only=False)]
        name = await kit.run(["sh", "-c", script], mounts=mounts)
        await until(workspace / "up")
        await kit.runtime.stop(name, 20)
        info = await kit.info(name)
        assert (info.state, info.exit_code, info.pid) == ("exited", 7, None)
        assert (workspace / "asked").read_text() == "asked\n"


async def test_stopping_kills_what_does_not_listen_and_what_left_the_session(kit: Kit) -> None:
    deaf, away = marker(), marker()
    with trio.fail_after(SECONDS):
        name = await kit.run(["sh", "-c", f"trap '' TERM; setsid sleep {away} & sleep {deaf}"])
        await kit.sh(name, f"setsid nohup sleep {away} > /dev/null 2>&1 &")
        if kit.local:
            await until_there(deaf)
            await until_there(away)
        await kit.runtime.stop(name, 0.2)
        assert (await kit.info(name)).state == "exited"
        assert not processes_with(deaf) + processes_with(away)


async def test_stopping_and_removing_twice_is_fine(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        await kit.runtime.stop(name, 5)
        await kit.runtime.stop(name, 5)
        await kit.runtime.remove(name)
        await kit.runtime.remove(name)
        assert await kit.runtime.inspect(name) is None


async def test_removing_stops_by_force(kit: Kit) -> None:
    time = marker()
    with trio.fail_after(SECONDS):
        name = await kit.run(["sh", "-c", f"trap '' TERM; sleep {time}"])
        if kit.local:
            await until_there(time)
        await kit.runtime.remove(name)
        assert await kit.runtime.inspect(name) is None
        assert not processes_with(time)


async def test_removing_at_the_same_time_from_many_sides_is_fine(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(kit.runtime.remove, name)
        assert await kit.runtime.inspect(name) is None


async def test_containers_are_found_by_all_their_labels(kit: Kit) -> None:
    project, workspace = LABEL_PREFIX + "project", LABEL_PREFIX + "workspace"
    with trio.fail_after(SECONDS):
        first = await kit.create(labels={project: "p", workspace: "1"})
        second = await kit.run(labels={project: "p", workspace: "2"})
        other = await kit.create(labels={project: "q", workspace: "1"})

        async def found(**labels: str) -> set[str]:
            wanted = {**kit.labels, **{LABEL_PREFIX + key: value for key, value in labels.items()}}
            return {info.name for info in await kit.runtime.list(wanted)}

        assert await found() == {first, second, other}
        assert await found(project="p") == {first, second}
        assert await found(project="p", workspace="1") == {first}
        assert await found(project="r") == set()
        (info,) = await kit.runtime.list({**kit.labels, project: "p", workspace: "2"})
        assert info == await kit.info(second)
        assert {project: "p", workspace: "2"}.items() <= info.labels.items()


async def test_only_the_listed_variables_reach_a_container(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PLANTED_KEY", "DOCKER_HOST_OF_NOBODY", "GIT_DIR", "PYTHONPATH", "LD_LIBRARY_PATH", "NODE_OPTIONS"):
        monkeypatch.setenv(name, "planted")
    wanted = {**ENVIRONMENT, "EMPTY": "", "SPACED": "a b\tc=d", "UTF": "ä"}
    workspace = kit.directory("workspace")
    with trio.fail_after(SECONDS):
        name = await kit.run(
            ["sh", "-c", "cat /proc/1/environ /proc/self/environ > /dev/null 2>&1; exec cat /proc/self/environ"],
            env=wanted,
            mounts=[Mount(workspace, "/workspaces/w", read_only=False)],
        )
        await kit.ended(name)
        own = variables((await kit.runtime.logs(name)).decode())
        assert {key: own[key] for key in wanted} == wanted
        # A shell that has changed nothing adds where it is.
        assert own.keys() - wanted.keys() <= kit.extra_env | {"PWD"}


async def test_a_command_has_the_containers_variables_and_its_own(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run(env={**ENVIRONMENT, "KEPT": "1", "CHANGED": "1"})
        result = await kit.runtime.exec(name, ["cat", "/proc/self/environ"], env={"CHANGED": "2", "NEW": "3"})
        wanted = {**ENVIRONMENT, "KEPT": "1", "CHANGED": "2", "NEW": "3"}
        own = variables(result.stdout.decode())
        assert {key: own.get(key) for key in wanted} == wanted
        assert own.keys() - wanted.keys() <= kit.extra_env | {"OUBLIETTE_EXEC"}


def variables(text: str) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if entry)


async def test_a_command_gives_its_exit_code_and_both_outputs(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        result = await kit.runtime.exec(name, ["sh", "-c", "echo out; echo err >&2; exit 5"])
        assert (result.exit_code, result.stdout, result.stderr) == (5, b"out\n", b"err\n")
        assert (result.stdout_bytes, result.stderr_bytes, result.timed_out) == (4, 4, False)


async def test_a_command_that_is_not_there_is_a_result(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        result = await kit.runtime.exec(name, ["no-such-command"])
        assert result.exit_code in (126, 127)
        assert b"no-such-command" in result.stdout + result.stderr


async def test_a_command_reads_its_stdin_to_the_end(kit: Kit) -> None:
    text = os.urandom(1 << 20)
    with trio.fail_after(SECONDS):
        name = await kit.run()
        result = await kit.runtime.exec(name, ["wc", "-c"], stdin=text)
        assert result.stdout.strip() == str(len(text)).encode()
        echoed = await kit.runtime.exec(name, ["cat"], stdin=text, max_output_bytes=2 << 20)
        assert echoed.stdout == text
        assert (await kit.runtime.exec(name, ["cat"])).stdout == b""
        assert (await kit.runtime.exec(name, ["true"], stdin=text)).exit_code == 0


async def test_a_command_starts_where_it_is_told_or_where_the_container_does(kit: Kit) -> None:
    workspace = kit.directory("workspace")
    (workspace / "below").mkdir()
    with trio.fail_after(SECONDS):
        name = await kit.run(mounts=[Mount(workspace, "/workspaces/w", read_only=False)])
        (workspace / "here").write_text("")
        (workspace / "below" / "there").write_text("")
        assert await kit.sh(name, "ls") == "below\nhere\n"
        assert await kit.sh(name, "ls", working_dir="/workspaces/w/below") == "there\n"


async def test_much_output_is_kept_at_both_ends_and_counted(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run()
        script = "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last; echo quiet >&2"
        result = await kit.runtime.exec(name, ["sh", "-c", script], max_output_bytes=10_000)
        assert result.exit_code == 0
        assert result.stdout_bytes == 6 + 3_000_000 + 1 + 5
        assert 9_000 < len(result.stdout) <= 10_000
        assert result.stdout.startswith(b"first\nxxx")
        assert result.stdout.endswith(b"xxx\nlast\n")
        assert result.stderr == b"quiet\n"


async def test_a_command_over_its_time_is_killed_with_its_children(kit: Kit) -> None:
    child, self_ = marker(), marker()
    with trio.fail_after(SECONDS):
        name = await kit.run()
        started = trio.current_time()
        script = f"echo begun; sleep {child} & trap '' TERM; sleep {self_}"
        result = await kit.runtime.exec(name, ["sh", "-c", script], timeout_seconds=1)
        assert result.timed_out
        assert result.exit_code != 0
        assert result.stdout == b"begun\n"
        assert trio.current_time() - started < 10
        await until_gone(child)
        await until_gone(self_)
        assert (await kit.info(name)).state == "running"


async def test_a_cancelled_command_is_killed(kit: Kit) -> None:
    time = marker()
    with trio.fail_after(SECONDS):
        name = await kit.run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.runtime.exec, name, ["sleep", time])
            if kit.local:
                await until_there(time)
            nursery.cancel_scope.cancel("the test")
        await until_gone(time)


async def test_commands_run_at_the_same_time(kit: Kit) -> None:
    outputs: list[str] = []

    async def one(number: int) -> None:
        outputs.append(await kit.sh(name, f"sleep 0.2; echo {number}"))

    with trio.fail_after(SECONDS):
        name = await kit.run()
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
    assert sorted(outputs) == [f"{number}\n" for number in range(10)]


async def test_a_command_in_a_container_that_does_not_run_says_so(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.create()
        with pytest.raises(ContainerExited):
            await kit.runtime.exec(name, ["true"])
        with pytest.raises(ContainerExited):
            await kit.runtime.exec("nobody-here", ["true"])


async def test_the_end_of_its_container_ends_a_command(kit: Kit) -> None:
    time = marker()
    outcome: list[object] = []

    async def command() -> None:
        try:
            outcome.append((await kit.runtime.exec(name, ["sleep", time])).exit_code)
        except ContainerExited as error:
            outcome.append(error)

    with trio.fail_after(SECONDS):
        name = await kit.run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command)
            if kit.local:
                await until_there(time)
            await kit.runtime.stop(name, 1)
    assert outcome
    assert outcome != [0]


async def test_logs_are_the_newest_lines_of_both_outputs(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run(["sh", "-c", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; echo end >&2"])
        await kit.ended(name)
        logs = await kit.runtime.logs(name, tail=1000)
        assert logs.count(b"\n") == 301
        assert b"\nend\n" in b"\n" + logs
        assert [line for line in logs.splitlines() if line != b"end"] == [f"line {n}".encode() for n in range(300)]
        assert (await kit.runtime.logs(name, tail=3)).splitlines() == logs.splitlines()[-3:]
        assert len(await kit.runtime.logs(name, tail=1000, max_bytes=20)) == 20


async def test_the_logs_of_a_container_that_says_nothing_are_empty(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run(["true"])
        await kit.ended(name)
        assert await kit.runtime.logs(name) == b""
        with pytest.raises(ContainerError):
            await kit.runtime.logs("nobody-here")


async def test_a_container_has_an_empty_stdin(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.run(["sh", "-c", "cat; exit 4"])
        assert (await kit.ended(name)).exit_code == 4


async def test_what_a_container_uses_is_measured_while_it_runs(kit: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await kit.create()
        assert await kit.runtime.stats(name) == {}
        await kit.runtime.start(name)
        await kit.sh(name, "true")
        measured = await kit.runtime.stats(name)
        assert set(measured) <= {"memory_bytes", "pids"}
        if "pids" in measured:
            assert 1 <= measured["pids"] < 50
        if "memory_bytes" in measured:
            assert 0 < measured["memory_bytes"] < 256 << 20
        await kit.runtime.stop(name, 5)
        assert await kit.runtime.stats(name) == {}


async def test_files_written_inside_are_outside_and_the_other_way(kit: Kit) -> None:
    workspace = kit.directory("workspace")
    with trio.fail_after(SECONDS):
        name = await kit.run(mounts=[Mount(workspace, "/workspaces/w", read_only=False)])
        await kit.sh(name, "echo from inside > /workspaces/w/a")
        assert (workspace / "a").read_text() == "from inside\n"
        (workspace / "b").write_text("from outside\n")
        assert await kit.sh(name, "cat /workspaces/w/b") == "from outside\n"


async def test_nothing_is_left_open_by_a_containers_whole_life(kit: Kit) -> None:
    async def life() -> None:
        name = await kit.run()
        await kit.sh(name, "echo hello")
        await kit.runtime.exec(name, ["sleep", "60"], timeout_seconds=0.1)
        await kit.runtime.logs(name)
        await kit.runtime.stats(name)
        await kit.runtime.stop(name, 1)
        await kit.runtime.remove(name)

    with trio.fail_after(SECONDS):
        await life()
        before = open_files()
        for _ in range(3):
            await life()
        assert open_files() <= before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
