"""The receiver that the documentation shows really verifies what is sent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio

from oubliette import clock
from oubliette.core.notices import body_of, signature
from oubliette.webhooks.post import NotDelivered, Poster
from tests.webhooks.world import KEY, SECRET

PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


async def test_the_receiver_of_the_documentation_takes_ours_once_and_refuses_others() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    body = body_of("wh_1", "session.ended", clock.now(), "7b1c", {"session_id": "gogol_1"}, 1)

    async def post(key: bytes, seconds_ago: int = 0, sent: bytes = body) -> int:
        at = int(clock.now().timestamp()) - seconds_ago
        headers = [
            ("webhook-id", "wh_1"),
            ("webhook-timestamp", str(at)),
            ("webhook-signature", signature([b"another key" * 3, key], "wh_1", at, body)),
        ]
        while True:
            try:
                return (await Poster().post(f"http://127.0.0.1:{port}/", headers, sent, allow_private=True)).status
            except NotDelivered:  # it is still starting
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
        running = await nursery.start(start, [sys.executable, "-c", program])
        with trio.fail_after(20):
            assert await post(KEY) == 204
            assert await post(KEY) == 204
            assert await post(bytes(32)) == 401
            assert await post(KEY, seconds_ago=400) == 401
            assert await post(KEY, sent=body.replace(b"ended", b"began")) == 401
            running.send_signal(signal.SIGTERM)
            printed = b"".join([piece async for piece in running.stdout])
    assert printed.decode().splitlines() == [str(json.loads(body))]
