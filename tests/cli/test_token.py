"""Tokens from the command line, with and without a daemon."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from oubliette.home import Home

from .conftest import Cli
from .fake_daemon import FakeDaemon


def test_tokens_are_made_listed_and_revoked_on_the_store_while_the_daemon_is_stopped(cli: Cli, home: Home) -> None:
    made = cli("token", "create", "laptop", "--scope", "admin:ro", "--expires-in-days", "3")
    assert made.code == 0
    secret = made.out.strip()
    assert re.fullmatch(r"oub_[0-9a-f]{64}", secret)
    stored = apsw.Connection(str(home.database)).execute("SELECT secret_hash, scope, kind FROM tokens").fetchall()
    assert stored == [(hashlib.sha256(secret.encode()).digest(), "admin:ro", "client")]
    assert home.database.stat().st_mode & 0o777 == 0o600

    assert "laptop" in cli("token", "list").out
    assert cli("token", "create", "laptop", "--scope", "admin").code == 1, "the name is taken"
    assert cli("token", "revoke", "laptop").code == 0
    assert "laptop" not in cli("token", "list").out
    (shown,) = json.loads(cli("token", "list", "--all", "--json").out)["tokens"]
    assert {"revoked_at", "expires_at", "token_id"} <= shown.keys()
    assert "secret" not in shown
    assert cli("token", "create", "laptop", "--scope", "admin").code == 0, "and free again"
    assert cli("token", "revoke", "nobody").code == 1
    assert cli("token", "create", "cli", "--scope", "admin").code == 1, "the daemon's own name"


@pytest.mark.parametrize("scope", ["root", "project:x", "project:00000000-0000-0000-0000-000000000000"])
def test_a_scope_that_means_nothing_is_refused(cli: Cli, scope: str) -> None:
    done = cli("token", "create", "x", "--scope", scope)
    assert done.code == 1
    assert done.out == ""
    assert cli("token", "list", "--json").out == '{"tokens": []}\n'


def test_a_token_is_not_written_into_a_store_that_somebody_else_holds(cli: Cli, home: Home) -> None:
    with home.lock():
        done = cli("token", "create", "x", "--scope", "admin")
        assert done.code == 1
        assert "already running (pid " in done.err
        assert cli("token", "list", "--json").code == 0, "reading takes no lock"


def test_a_running_daemon_makes_the_token_itself(cli: Cli, daemon: FakeDaemon, home: Home) -> None:
    def made(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"token_id": "tok_1", "name": arguments["name"], "scope": arguments["scope"], "secret": "oub_shown"}

    pages: Iterator[dict[str, Any]] = iter(
        [
            {"tokens": [{"token_id": "tok_2", "name": "b", "scope": "admin"}], "next_cursor": "c"},
            {
                "tokens": [
                    {"token_id": "tok_1", "name": "a\x1b", "scope": "admin", "revoked_at": "2026-01-01T00:00:00.000Z"}
                ]
            },
        ]
    )
    daemon.tools = {
        "token.create": made,
        "token.list": lambda _arguments: next(pages),
        "token.revoke": lambda arguments: {"token_id": arguments["token_id"], "name": "a"},
    }
    assert cli("token", "create", "x", "--scope", "admin").out == "oub_shown\n"
    assert daemon.called("token.create") == [{"name": "x", "scope": "admin"}]
    assert "a\\x1b" in cli("token", "list", "--all").out
    assert daemon.called("token.list")[1]["cursor"] == "c"
    assert cli("token", "revoke", "tok_1").code == 0
    assert not home.database.exists()
