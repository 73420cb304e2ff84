"""``doctor``: try everything that the daemon needs, and say what to do about what is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oubliette.cli.output import say, say_json
from oubliette.cli.place import home_of, running_daemon
from oubliette.cli.problems import FAILED
from oubliette.errors import OublietteError
from oubliette.home import Home
from oubliette.host import missing_room

if TYPE_CHECKING:
    from oubliette.config import Config
    from oubliette.runtime.base import RuntimeReport

TOOL_SECONDS = 20
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    state: Literal["ok", "warning", "error"]
    detail: str
    hint: str = ""


def doctor(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Try runtimes, npm, git, disk, configuration, permissions and the port. Exit code 1 when something is broken."""
    findings: list[Finding] = []
    for finding in examine(home_of(ctx)):
        findings.append(finding)
        if not as_json:
            mark = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}[finding.state]
            say(f"{mark} {finding.what}: {finding.detail}")
            if finding.hint and finding.state != "ok":
                say(f"          {finding.hint}")
    broken = [finding for finding in findings if finding.state == "error"]
    if as_json:
        say_json({"ok": not broken, "findings": [
            {"what": one.what, "state": one.state, "detail": one.detail, **({"hint": one.hint} if one.hint else {})}
            for one in findings
        ]})  # fmt: skip
    if broken:
        raise typer.Exit(FAILED)


def examine(home: Home) -> Iterator[Finding]:
    """Everything, one after the other. Starts nothing that stays."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok" if sys.version_info >= OLDEST_PYTHON else "error", version, "Python 3.11 or newer.")
    yield _tool("git", "Install git: apt-get install git")
    yield _tool("npm", "Install Node.js with npm: the agent comes from there.")
    yield from _home(home)
    config = None
    if home.initialised:
        config, findings = _config(home)
        yield from findings
    yield _daemon(home, config)
    yield _disk(home)
    yield from _runtimes(config)


def _tool(name: str, hint: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, "error", "not found", hint)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, "error", f"{path} does not run: {error}", hint)
    if done.returncode:
        return Finding(name, "error", f"{path} --version ends with {done.returncode}", hint)
    return Finding(name, "ok", done.stdout.strip())


def _home(home: Home) -> Iterator[Finding]:
    if not home.initialised:
        yield Finding("home", "warning", f"{home.root} is not initialised", "Run: oubliette init")
        return
    try:
        warnings = home.check()
    except OublietteError as error:
        yield Finding("home", "error", error.message, error.hint)
        return
    yield Finding("home", "ok", f"{home.root} ({home.chosen_by})")
    for warning in warnings:
        yield Finding("permissions", "warning", warning)


def _config(home: Home) -> tuple[Config | None, list[Finding]]:
    from oubliette.config import check_config

    config, problems, warnings = check_config(home.config_file, os.environ)
    findings = [Finding("config", "error", problem.message, problem.hint) for problem in problems]
    findings += [Finding("config", "warning", warning) for warning in warnings]
    if config is not None:
        models = list(config.usable_models())
        findings.append(Finding("config", "ok", str(home.config_file)))
        findings.append(
            Finding("models", "ok", f"{', '.join(models)}; default: {config.default_model() or 'none'}")
            if models
            else Finding("models", "warning", "none but the built-in scripted one", f"Add one to {home.config_file}")
        )
        if config.webhooks:
            findings.append(Finding("webhooks", "ok", f"told of what happens: {', '.join(config.webhooks)}"))
    return config, findings


def _daemon(home: Home, config: Config | None) -> Finding:
    if home.holder() is not None:
        try:
            daemon = running_daemon(home)
            if daemon is None:
                return Finding("daemon", "warning", "starting or stopping")
            code, body = daemon.get("/ready")
        except OublietteError as error:
            return Finding("daemon", "error", error.message, "See: oubliette logs")
        if code == 200:
            return Finding("daemon", "ok", f"running at {daemon.url}")
        return Finding("daemon", "error", f"running at {daemon.url}, not ready: {body.get('reason', 'unknown')}")
    if config is None:
        return Finding("daemon", "ok", "not running")
    family = socket.AF_INET6 if ":" in config.server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.server.host, config.server.port))
        except OSError as error:
            hint = "Stop what listens there, or set server.address."
            return Finding("port", "error", f"{config.server.address}: {error.strerror}", hint)
    return Finding("port", "ok", f"{config.server.address} is free; the daemon is not running")


def _disk(home: Home) -> Finding:
    place = home.root
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    detail = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    missing = missing_room(place)
    if missing:
        return Finding("disk", "error", detail, f"No new turns begin until {missing / 1e9:.1f} GB more are free.")
    return Finding("disk", "ok", detail)


def _runtimes(config: Config | None) -> Iterator[Finding]:
    """Each runtime by trying it, in a directory that goes away."""
    import trio

    wanted = config.runtime if config is not None else os.environ.get("CONTAINER_RUNTIME") or "auto"
    with tempfile.TemporaryDirectory(prefix="oubliette-doctor-") as scratch:
        reports = trio.run(_probe_all, Path(scratch))
    usable = [report.name for report in reports if report.ok]
    for report in reports:
        needed = report.name == wanted or (wanted == "auto" and not usable)
        state: Literal["ok", "warning", "error"] = "ok" if report.ok else "error" if needed else "warning"
        yield Finding(f"runtime {report.name}", state, report.version if report.ok else report.reason, report.hint)


async def _probe_all(scratch: Path) -> list[RuntimeReport]:
    from oubliette.runtime.candidates import candidates

    return [await make().probe() for make in candidates(os.environ, scratch).values()]
