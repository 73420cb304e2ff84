"""init, status, stop, errors and exit codes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oubliette.cli import doctor
from oubliette.cli.main import run_command
from oubliette.config import load_config
from oubliette.home import Home, find_home, write_private
from oubliette.runtime.base import RuntimeReport

from .conftest import Cli
from .fake_daemon import FakeDaemon, Refusal

HEAVY = {"mcp", "quart", "quart_trio", "hypercorn", "rich", "trio", "apsw", "structlog", "httpx", "json5"}
HELP_SECONDS = 0.5
"""What --help takes on two slow cores."""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["token", "--help"], ["status"], ["stop"]])
def test_quick_commands_import_nothing_heavy_and_are_quick(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom oubliette.cli.main import run_command\nrun_command(sys.argv[1:])\n"
        "print('loaded', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    took = time.monotonic() - started
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert loaded & HEAVY == set()
    assert took < 5 * HELP_SECONDS, sorted(loaded)


def test_init_makes_a_home_that_loads_and_ends_with_the_line_for_claude_code(
    tmp_path: Path, cli: Cli, home: Home
) -> None:
    done = cli("--dir", str(tmp_path / "new"), "init", "--yes")
    assert done.code == 0
    made = Home(tmp_path / "new")
    config, warnings = load_config(made.config_file, {})
    assert warnings == []
    assert config.model_dump(exclude_none=True) == type(config)().model_dump(exclude_none=True), "only defaults"
    last = done.out.splitlines()[-1]
    assert re.fullmatch(
        r"claude mcp add --transport http oubliette http://127\.0\.0\.1:8080/mcp "
        r'--header "Authorization: Bearer oub_[0-9a-f]{64}"',
        last,
    )
    assert {path.stat().st_mode & 0o077 for path in made.root.rglob("*") if path.name != "lock"} == {0}


def test_init_again_keeps_the_configuration_and_force_keeps_a_copy(cli: Cli, home: Home) -> None:
    write_private(home.config_file, '{"log": {"level": "debug"}}')
    assert cli("init", "--yes").code == 0
    assert "debug" in home.config_file.read_text()
    again = cli("init", "--yes")
    assert again.code == 0
    assert "oub_" not in again.out
    done = cli("init", "--force", "--token", "second", "--json")
    assert done.code == 0
    assert json.loads(done.out)["wrote_config"] is True
    assert "debug" in home.config_file.with_suffix(".jsonc.bak").read_text()
    assert "debug" not in home.config_file.read_text()


def test_a_local_home_is_found_after_init_made_it_here(cli: Cli, home: Home) -> None:
    assert cli("init", "--dir", ".oubliette", "--yes").code == 0
    found = find_home(None, {"HOME": str(Path.home())}, Path.cwd())
    assert found.chosen_by == "./.oubliette"
    assert str(found.root) in cli("status").out


def test_status_says_where_it_runs_and_whether_it_is_ready(cli: Cli, daemon: FakeDaemon) -> None:
    done = cli("status")
    assert (done.code, done.err) == (0, "")
    assert f"running at {daemon.url} (pid " in done.out
    daemon.ready = (503, {"status": "not ready", "reason": "disk"})
    done = cli("status", "--json")
    assert done.code == 1
    assert json.loads(done.out) | {"ready": False, "reason": "disk", "running": True} == json.loads(done.out)


def test_without_a_daemon_commands_end_with_3_and_say_how_to_start_one(cli: Cli, home: Home, tmp_path: Path) -> None:
    for command in (["status"], ["stop"], ["session", "list"], ["container", "status", "x"]):
        assert cli(*command).code == 3, command
    assert "oubliette serve --daemon" in cli("session", "list").err
    fresh = cli("--dir", str(tmp_path / "none"), "serve")
    assert fresh.code == 3
    assert f"oubliette --dir {tmp_path}/none init" in fresh.err


def test_a_dead_daemon_that_left_its_files_does_not_count_as_running(cli: Cli, home: Home) -> None:
    home.create()
    write_private(home.daemon_file, json.dumps({"pid": 999999, "url": "http://127.0.0.1:1"}))
    assert cli("status").code == 3
    assert cli("session", "list").code == 3


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(cli: Cli, daemon: FakeDaemon) -> None:
    done = cli("serve", "--daemon")
    assert done.code == 1
    assert re.match(r"oubliette: oubliette is already running \(pid \d+\)", done.err)


def test_errors_are_one_line_and_a_hint_and_debug_shows_the_traceback(cli: Cli, daemon: FakeDaemon) -> None:
    def refuse(_arguments: object) -> dict[str, object]:
        raise Refusal(403, "permission_denied", "Not yours \x1b[31m.\nAt all.", "Ask.")

    daemon.tools["session.list"] = refuse
    done = cli("session", "list")
    assert done.code == 4
    assert done.out == ""
    assert done.err == "oubliette: Not yours \\x1b[31m. At all.\n  Ask.\n"
    with pytest.raises(Exception, match="Not yours"):
        run_command(["--debug", "session", "list"])


def test_a_token_that_is_not_good_ends_with_4(cli: Cli, daemon: FakeDaemon, home: Home) -> None:
    write_private(home.cli_token_file, "oub_" + "0" * 64)
    assert cli("session", "list").code == 4
    done = cli("session", "events", "gogol_x", "--follow")
    assert (done.code, done.err) == (4, "oubliette: This needs a token.\n")


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["session", "get"], ["token", "create", "x"], ["run", "--zzz", "x"], ["project", "update"]]
)
def test_wrong_usage_ends_with_2_and_one_line(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("oubliette: ")
    assert "--help" in done.err.splitlines()[1]


def test_the_directory_option_may_stand_anywhere_but_after_a_double_dash(cli: Cli, tmp_path: Path) -> None:
    assert str(tmp_path / "a") in cli("status", "--dir", str(tmp_path / "a")).out
    assert str(tmp_path / "a") in cli("status", f"--dir={tmp_path / 'a'}").out
    assert "oubliette: no daemon is running" in cli("container", "exec", "p", "--", "ls", "--dir", "/x").err


def test_logs_prints_the_newest_lines_made_safe(cli: Cli, home: Home) -> None:
    assert cli("logs").code == 1
    (home.logs / "oubliette.log").write_text("".join(f'{{"n": {n}}} \x1b[2J\n' for n in range(100)))
    done = cli("logs", "-n", "2")
    assert done.out == '{"n": 98} \\x1b[2J\n{"n": 99} \\x1b[2J\n'


def test_a_daemon_that_cannot_start_leaves_its_words_with_the_caller(cli: Cli, home: Home) -> None:
    write_private(home.config_file, '{\n"server": {"adress": "x"}}')
    done = cli("serve", "--daemon")
    assert done.code == 1
    assert "the daemon did not start (exit code 1)" in done.err
    assert f'{home.config_file}:2: there is no key "adress" in server. Did you mean "address"?' in done.err
    assert home.holder() is None


def fake_reports(ok: bool) -> list[RuntimeReport]:
    return [
        RuntimeReport("docker", False, reason="No engine answers.", hint="Start Docker."),
        RuntimeReport("bubblewrap", ok, version="0.8.0" if ok else "", reason="" if ok else "not allowed"),
    ]


@pytest.mark.parametrize("works", [True, False])
def test_doctor_needs_one_runtime_that_works(
    cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    async def probe(_scratch: Path) -> list[RuntimeReport]:
        return fake_reports(works)

    monkeypatch.setattr(doctor, "_probe_all", probe)
    write_private(home.config_file, '{"server": {"address": "127.0.0.1:0"}}')
    found = {one["what"]: one for one in json.loads(cli("doctor", "--json").out)["findings"]}
    assert found["runtime docker"]["state"] == ("warning" if works else "error")
    assert found["runtime bubblewrap"]["state"] == ("ok" if works else "error")
    assert {found[name]["state"] for name in ("python", "git", "npm", "home", "config", "port", "disk")} == {"ok"}
    assert cli("doctor").code == (0 if works else 1)


def test_doctor_says_what_is_broken(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(_scratch: Path) -> list[RuntimeReport]:
        return fake_reports(True)

    monkeypatch.setattr(doctor, "_probe_all", probe)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        write_private(home.config_file, f'{{"server": {{"address": "127.0.0.1:{taken.getsockname()[1]}"}}}}')
        done = cli("doctor")
        assert done.code == 1
        assert "ERROR   port: 127.0.0.1:" in done.out
    write_private(home.config_file, '{"server": 3}')
    home.data.chmod(0o777)
    monkeypatch.setenv("PATH", "/nonexistent")
    done = cli("doctor")
    assert done.code == 1
    for what in ("git", "npm", "home", "config"):
        assert f"ERROR   {what}: " in done.out
