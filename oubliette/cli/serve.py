"""``serve``, ``stop``, ``status``, ``logs``: the daemon itself."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, Any

import typer

from oubliette.cli import child
from oubliette.cli.output import note, say, say_json
from oubliette.cli.place import home_of, initialised, running_daemon
from oubliette.cli.problems import FAILED, NOT_RUNNING, CliError, known_cause
from oubliette.home import Home, HomeLockedError
from oubliette.safe_text import safe_text


def serve(
    ctx: typer.Context,
    daemon: Annotated[bool, typer.Option("--daemon", help="Go on in the background once it answers.")] = False,
    address: Annotated[str, typer.Option(help="Listen here instead of server.address, e.g. 127.0.0.1:0.")] = "",
) -> None:
    """Serve in the foreground; Ctrl-C or `oubliette stop` ends it."""
    home = initialised(home_of(ctx))
    if daemon:
        holder = home.holder()
        if holder is not None:
            raise HomeLockedError(home.root, holder)
        started = child.start(home, *(["--address", address] if address else []))
        say(f"oubliette runs at {started.url} (pid {home.holder() or '?'}); oubliette stop ends it")
        return
    raise typer.Exit(serve_here(home, address))


def serve_here(home: Home, address: str = "") -> int:
    """Run the daemon in this process; returns its exit code."""
    from oubliette.config import load_config
    from oubliette.log import configure_logging, get_logger

    warnings = home.check()
    config, more = load_config(home.config_file, os.environ)
    if address:
        config = config.with_address(address)
    home.create()
    configure_logging(level=config.log.level, form=config.log.format, directory=home.logs, secrets=config.secrets())
    log = get_logger("oubliette")
    for warning in [*warnings, *more]:
        log.warning(warning)
    from oubliette.daemon import run_daemon

    try:
        return run_daemon(home, config)
    except Exception as error:
        known = known_cause(error)
        if known is None:
            log.exception("the daemon failed")  # one of our bugs: the traceback goes into the log
            raise CliError(f"the daemon failed: {type(error).__name__}", hint="See: oubliette logs") from error
        log.error("the daemon ended", error=known.message, hint=known.hint)
        raise known from error


def stop(
    ctx: typer.Context,
    seconds: Annotated[float, typer.Option("--timeout", help="How long to wait for it to end.")] = child.STOP_SECONDS,
) -> None:
    """Stop the daemon; what agents do goes on in their containers and is found again by the next start."""
    home = home_of(ctx)
    holder = home.holder()
    if holder is None:
        raise CliError(f"no daemon is running in {home.root}", exit_code=NOT_RUNNING)
    if not holder:
        raise CliError(f"the process that holds {home.root} has not said its pid", hint="Try again.")
    if not child.stop(home, holder, seconds=seconds):
        raise CliError(f"the daemon (pid {holder}) is still running after {seconds:g} s", hint=f"kill -9 {holder}")
    note(f"stopped (pid {holder})")


def status(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say whether the daemon runs, where, and whether it is ready. Exit code 3 when it does not run."""
    home = home_of(ctx)
    said = home.running()
    holder = home.holder()
    found: dict[str, Any] = {"home": str(home.root), "initialised": home.initialised, "running": holder is not None}
    daemon = running_daemon(home) if said is not None else None
    if holder:
        found["pid"] = holder
    if daemon is not None:
        found["url"] = daemon.url
        code, body = daemon.get("/ready")
        found["ready"] = code == 200
        found |= {key: body[key] for key in ("reason", "version") if key in body}
    if as_json:
        say_json(found)
    elif daemon is not None:
        state = "ready" if found["ready"] else f"not ready: {found.get('reason', 'unknown')}"
        say(f"running at {daemon.url} (pid {holder}), {state}")
        say(f"home {home.root}")
    elif holder is not None:
        say(f"starting or stopping (pid {holder}) in {home.root}")
    else:
        say(f"not running; home {home.root}" + ("" if home.initialised else " (not initialised)"))
    if daemon is None:
        raise typer.Exit(NOT_RUNNING)
    if not found["ready"]:
        raise typer.Exit(FAILED)


def logs(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the newest lines.")] = 50,
) -> None:
    """Print the daemon's log."""
    home = initialised(home_of(ctx))
    path = home.logs / "oubliette.log"
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise CliError(f"there is no log yet in {home.logs}") from None
    with stream:
        for line in _newest(stream.read() if path.stat().st_size < _WINDOW else _tail_bytes(stream), lines):
            print(safe_text(line.decode(errors="replace")))
        sys.stdout.flush()
        while follow:
            line = stream.readline()
            if line:
                print(safe_text(line.decode(errors="replace").rstrip("\n")), flush=True)
                continue
            if _rotated(path, stream.fileno()):
                stream.close()
                stream = path.open("rb")
                continue
            time.sleep(0.25)


_WINDOW = 4 << 20


def _tail_bytes(stream: Any) -> bytes:
    stream.seek(-_WINDOW, os.SEEK_END)
    return bytes(stream.read())


def _newest(content: bytes, count: int) -> list[bytes]:
    return content.splitlines()[-count:] if count else []


def _rotated(path: Any, descriptor: int) -> bool:
    try:
        return bool(path.stat().st_ino != os.fstat(descriptor).st_ino)
    except FileNotFoundError:
        return False
