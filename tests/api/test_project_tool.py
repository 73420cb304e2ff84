from __future__ import annotations

import trio

from tests.api.rpc import open_rpc
from tests.api.world import PROJECT, Doors


async def test_x(doors: Doors) -> None:
    with trio.fail_after(20):
        async with open_rpc(doors) as rpc:
            for args in (
                {"action": "create", "name": "shop"},
                {"action": "list"},
                {"action": "options"},
                {"action": "get", "project_id": PROJECT},
            ):
                r = await rpc.call("project", **args)
                print(r["content"][0]["text"])
                print(r["structuredContent"])
                print()
