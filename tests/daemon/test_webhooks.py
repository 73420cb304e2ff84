"""Webhooks of the real daemon: what happened is told, also when both it and the receiver were down."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
import trio
from standardwebhooks import Webhook

from tests.daemon.harness import open_daemon, ready, start
from tests.webhooks.receiver import answers, open_receiver
from tests.webhooks.world import SECRET

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]


async def test_what_happened_is_told_after_a_kill_although_the_receiver_was_down(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    hook = {"url": f"http://127.0.0.1:{port}/hook", "secret": SECRET, "allow_private": True}
    config = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap", "webhooks": {"ci": hook}}
    async with open_daemon(home, config) as daemon:
        project = await daemon.call("project", action="create", name="hooked")
        place = {"project_id": project["project_id"]}
        spawned = await daemon.call("session", action="spawn", message="say a secret plan", model="scripted", **place)
        session_id = spawned["session_id"]
        await daemon.settle(session_id)
        made = await daemon.call(
            "schedule", action="create", name="nightly", cron_expr="@daily", message="say hello", model="scripted",
            targets=[place],
        )  # fmt: skip
        daemon.kill()
        again = start(home, environment=daemon.environment)
        daemon.process = again.process
        await ready(again)
        daemon.url, daemon.token = again.url, again.token
        async with open_receiver(answers(500), port=port) as receiver:
            run = await daemon.call("schedule", action="trigger", schedule_id=made["schedule_id"])
            with trio.fail_after(120):
                while True:
                    told = [Webhook(SECRET).verify(one.body, one.headers) for one in receiver.received]
                    kinds = {(one["type"], one["session_id"]) for one in told[1:]}
                    if ("session.turn_ended", session_id) in kinds and "schedule.run_ended" in {
                        one[0] for one in kinds
                    }:
                        break
                    await receiver.until(len(receiver.received) + 1, seconds=100)  # a third attempt is 30 s off
            async with httpx.AsyncClient() as client:
                metrics = (await client.get(f"{daemon.url}/metrics")).text
    assert 'oubliette_webhook_notices_total{outcome="delivered",receiver="ci"}' in metrics
    assert 'oubliette_webhook_notices_total{outcome="failed",receiver="ci"}' in metrics
    (ended,) = {one["id"]: one for one in told[1:] if one["type"] == "schedule.run_ended"}.values()
    assert ended["run"]["run_id"] == run["run_ids"][0]
    assert ended["run"]["status"] == "succeeded"
    assert "output" not in ended["run"]
    by_id = {one["id"]: one for one in told}
    assert by_id[told[0]["id"]]["type"] in {"session.turn_ended", "schedule.run_ended"}
    assert not any(b"secret plan" in one.body or b"hello" in one.body for one in receiver.received)
    log = daemon.log.read_text()
    assert "a webhook notice was not delivered" in log
    assert SECRET.removeprefix("whsec_") not in log
    assert "/hook" not in log
