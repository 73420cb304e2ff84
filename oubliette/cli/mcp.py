"""``mcp``: put this daemon into the configuration of an MCP client, with a token of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from oubliette.cli.init import address_of
from oubliette.cli.output import note, say, say_table
from oubliette.cli.place import home_of, initialised
from oubliette.cli.problems import FAILED, OK, CliError
from oubliette.cli.token import create_token, list_tokens, revoke_token
from oubliette.home import user_directory

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Client:
    """An MCP client: where its configuration is and how an HTTP server is written there."""

    name: str
    title: str
    path: Callable[[Path], Path]
    """From the user's home."""
    section: str
    entry: Callable[[str, str], Json]
    """From the URL and the Authorization header's value."""


def _config_dir(home: Path) -> Path:
    return home / "Library" / "Application Support" if sys.platform == "darwin" else home / ".config"


CLIENTS = (
    Client(
        "cursor",
        "Cursor",
        lambda home: home / ".cursor" / "mcp.json",
        "mcpServers",
        lambda url, auth: {"url": url, "headers": {"Authorization": auth}},
    ),
    Client(
        "vscode",
        "Visual Studio Code",
        lambda home: _config_dir(home) / "Code" / "User" / "mcp.json",
        "servers",
        lambda url, auth: {"type": "http", "url": url, "headers": {"Authorization": auth}},
    ),
    Client(
        "gemini-cli",
        "Gemini CLI",
        lambda home: home / ".gemini" / "settings.json",
        "mcpServers",
        lambda url, auth: {"httpUrl": url, "headers": {"Authorization": auth}},
    ),
    Client(
        "opencode",
        "OpenCode",
        lambda home: home / ".config" / "opencode" / "opencode.json",
        "mcp",
        lambda url, auth: {"type": "remote", "url": url, "headers": {"Authorization": auth}, "enabled": True},
    ),
    Client(
        "claude-desktop",
        "Claude Desktop (through npx mcp-remote)",
        lambda home: _config_dir(home) / "Claude" / "claude_desktop_config.json",
        "mcpServers",
        lambda url, auth: {
            "command": "npx",
            "args": ["-y", "mcp-remote", url, "--allow-http", "--header", "Authorization:${OUBLIETTE_AUTH}"],
            "env": {"OUBLIETTE_AUTH": auth},
        },
    ),
)
CLAUDE_CODE = "claude-code"
PATH = "/mcp?tools=split"
"""Reading and writing tools apart, so that a client can let the reading ones pass without asking."""


def mcp(
    ctx: typer.Context,
    setup: Annotated[str, typer.Option(metavar="CLIENT", help="Which client to set up; --list names them.")] = "",
    list_clients: Annotated[bool, typer.Option("--list", help="List the clients.")] = False,
    print_only: Annotated[bool, typer.Option("--print", help="Print what to add instead of writing it.")] = False,
    scope: Annotated[str, typer.Option(help="Of the token: admin, project:<id>, …")] = "admin",
    url: Annotated[str, typer.Option(help="The daemon's address as the client reaches it.")] = "",
) -> None:
    """Add this daemon to an MCP client, with a token made for it."""
    known = {client.name: client for client in CLIENTS}
    if list_clients or not setup:
        rows = [(CLAUDE_CODE, "Claude Code", "claude mcp add")]
        rows += [(client.name, client.title, str(client.path(user_directory(os.environ)))) for client in CLIENTS]
        say_table(("CLIENT", "", "CONFIGURATION"), rows)
        return
    if setup != CLAUDE_CODE and setup not in known:
        raise CliError(f"there is no client {setup}", hint=f"Known: {', '.join([CLAUDE_CODE, *known])}")
    home = initialised(home_of(ctx))
    address = url or address_of(home)
    if any(one["name"] == setup and "revoked_at" not in one for one in list_tokens(home)):
        revoke_token(home, setup)
        note(f"revoked the earlier token {setup}")
    secret = create_token(home, setup, scope)["secret"]
    if setup == CLAUDE_CODE:
        raise typer.Exit(_claude_code(address, secret, print_only))
    client = known[setup]
    entry = client.entry(address + PATH, f"Bearer {secret}")
    path = client.path(user_directory(os.environ))
    if print_only:
        say(f"{path}:")
        say(json.dumps({client.section: {"oubliette": entry}}, indent=2))
        return
    _write_entry(path, client.section, entry)
    note(f"wrote {path}; restart {client.title} to use it")


def _claude_code(address: str, secret: str, print_only: bool) -> int:
    """By its own command, which knows where its settings are."""
    add = ["mcp", "add", "--scope", "user", "--transport", "http", "oubliette", address + PATH]
    add += ["--header", f"Authorization: Bearer {secret}"]
    program = shutil.which("claude")
    if print_only or program is None:
        say(shlex.join(["claude", *add]))
        return OK
    subprocess.run([program, "mcp", "remove", "--scope", "user", "oubliette"], capture_output=True, check=False)
    return FAILED if subprocess.run([program, *add], check=False).returncode else OK


def _write_entry(path: Path, section: str, entry: Json) -> None:
    """Put the entry into the client's file and keep everything else. Raises CliError when it is not plain JSON."""
    from oubliette.home import write_private

    settings: Any = {}
    if path.exists():
        try:
            settings = json.loads(path.read_text(encoding="utf-8") or "{}")
        except ValueError as error:
            raise CliError(f"{path} is not plain JSON: {error}", hint="Use --print and add it by hand.") from error
        if not isinstance(settings, dict) or not isinstance(settings.get(section, {}), dict):
            raise CliError(f"{path} is not built as expected", hint="Use --print and add it by hand.")
        path.with_name(path.name + ".bak").write_bytes(path.read_bytes())
    settings.setdefault(section, {})["oubliette"] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path.resolve(), json.dumps(settings, indent=2) + "\n")
