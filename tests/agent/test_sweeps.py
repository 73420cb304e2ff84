"""Cancelled at every step: no descriptor, no feed and no half a toolkit is left."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from oubliette.agent.base import AgentSessionSpec
from oubliette.agent.opencode import OpenCode
from oubliette.agent.toolkit import Platform, ensure_toolkit
from tests.agent.fake_opencode import open_fake_opencode
from tests.agent.test_reader import HISTORY, MODELS, PROMPT, SESSION, TOLD, tcp
from tests.agent.test_toolkit import Registry, quiet
from tests.sweep import Check, Cut, Operation, cancel_sweep


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_a_conversation_cancelled_at_any_step_leaves_no_connection() -> None:
    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        async with open_fake_opencode() as fake:
            fake.answers |= {
                "POST /session": {"id": SESSION},
                f"/session/{SESSION}/prompt_async": None,
                HISTORY: TOLD["history"],
                "/session/status": {},
            }
            agent = OpenCode(tcp, "secret", MODELS, port=fake.port)
            before = open_files()

            async def operation() -> None:
                session = await agent.create_session(AgentSessionSpec("t", "/w"))
                async with agent.events(session, "/w"):
                    await agent.prompt(session, "/w", PROMPT)
                    await agent.backfill(session, "/w", PROMPT.message_id)

            async def check(cut: Cut) -> None:
                assert not [stream for stream in agent._feeds.all() if not stream.used], cut
                assert await agent.has_message(SESSION, "/w", PROMPT.message_id)
                left = open_files() - before
                assert left <= len(fake.serving), cut  # the server's own ends may take a moment

            yield operation, check

    assert await cancel_sweep(subject) > 10


async def test_a_toolkit_cancelled_at_any_step_is_not_there_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(tmp_path, monkeypatch)
    runs = iter(range(10_000))

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        root = tmp_path / f"kits{next(runs)}"

        async def operation() -> None:
            await ensure_toolkit(root, quiet, target=Platform("x64"))

        async def check(cut: Cut) -> None:
            names = sorted(path.name for path in root.iterdir()) if root.exists() else []
            kits = [name for name in names if not name.startswith(".")]
            assert [name for name in names if name.startswith(".new")] == [], cut
            if not cut.cancelled:
                assert len(kits) == 1
            for kit in kits:
                assert json.loads((root / kit / "toolkit.json").read_text())["version"] == kit
                assert (root / kit / "tools/rg").read_bytes() == b"#!rg"

        yield operation, check

    assert await cancel_sweep(subject, every=3) > 5
