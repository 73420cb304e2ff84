"""Events through the store, to nobody and to many."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benches.report import Table
from oubliette.core.model import EventType, NewEvent
from oubliette.store import events
from tests.daemon.in_process import Client, inside, ready_project

READER = """
import socket, sys, threading, time
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokens, count, wanted = sys.argv[4].split(","), int(sys.argv[5]), int(sys.argv[6])
ready, done = [], []
def read(token):
    s = socket.create_connection((host, port))
    s.sendall(f"GET {path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n".encode())
    seen, tail = 0, b""
    ready.append(1)
    while seen < wanted:
        data = s.recv(1 << 20)
        if not data: break
        data = tail + data
        seen += data.count(b"\\nid:") + data.startswith(b"id:")
        tail = data[-3:] if not data.endswith(b"\\nid:") else b""
    done.append(seen)
threads = [threading.Thread(target=read, args=(tokens[n % len(tokens)],)) for n in range(count)]
[t.start() for t in threads]
while len(ready) < count: time.sleep(0.01)
time.sleep(0.5)
print("ready", flush=True)
[t.join() for t in threads]
print(min(done), flush=True)
"""


async def bench_events(table: Table, root: Path) -> None:
    """Events through the store to nobody, one reader and fifty."""
    total, batch = 5000, 50
    async with inside(root / "events", "bubblewrap") as running:
        client = Client(running)
        # A token may hold 20 streams.
        made = [await client.call("token", action="create", name=f"reader {n}", scope="admin:ro") for n in range(3)]
        secrets = ",".join(token["secret"] for token in made)
        project_id = (await ready_project(client))["project_id"]
        host, port = running.url.removeprefix("http://").split(":")
        for readers in (0, 1, 50):
            spawned = await client.spawn(project_id, "@say hi")
            session_id = spawned["session_id"]
            waited = await client.call("session", action="wait", session_ids=[session_id])
            last = waited["sessions"][0]["last_index"] + 2
            await client.call("session", action="message", session_id=session_id, message="@delay 120")
            await trio.sleep(1)
            process = None
            if readers:
                page = await client.call("session", action="events", session_id=session_id)
                last = page["last_index"]
                path = f"/v1/sessions/{session_id}/events?since={last}"
                process = subprocess.Popen(
                    [sys.executable, "-c", READER, host, port, path, secrets, str(readers), str(total)],
                    stdout=subprocess.PIPE,
                )
                assert process.stdout is not None
                await trio.to_thread.run_sync(process.stdout.readline)
            began = time.perf_counter()
            for at in range(0, total, batch):
                new = [
                    NewEvent(EventType.MESSAGE, 1, {"role": "assistant", "part": f"p{n}", "text": "x" * 200})
                    for n in range(at, at + batch)
                ]
                await running.services.store.write(partial(_append, session_id=session_id, new=new))
            if process is not None:
                with trio.fail_after(120):
                    await trio.to_thread.run_sync(process.wait)
            took = time.perf_counter() - began
            who = {0: "nobody", 1: "1 SSE reader", 50: "50 SSE readers"}[readers]
            table.add(f"events through the store to {who}", f"{total / took:,.0f}/s")
            await client.call("session", action="cancel", session_id=session_id)


def _append(tx: Any, session_id: str, new: list[NewEvent]) -> None:
    for one in new:
        events.append(tx, session_id, one)
