"""What the gateway adds to the first byte of an answer; scripts/benchmarks.py prints it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import trio

from oubliette.gateway.models import Wire
from tests.gateway.world import KEY, MODELS, open_world, request_body, sdk_headers

WIRE = Wire.CHAT
WARM_UP = 5
ROUND_SECONDS = 30


async def measure(rounds: int) -> tuple[float, float]:
    """Median seconds to the first body byte of a streamed answer: through the gateway, and straight to its upstream.

    Both are asked in turn by one client, each on a kept connection: what disturbs the machine disturbs both.
    """
    through, direct = [], []
    with tempfile.TemporaryDirectory(prefix="oubliette-bench-gateway-") as folder:
        async with (
            open_world(Path(folder)) as world,
            httpx.AsyncClient(timeout=ROUND_SECONDS, trust_env=False) as client,
        ):
            straight = f"{world.provider.base_url(WIRE)}/chat/completions"
            ours = request_body(WIRE, "@say hello")
            theirs = request_body(WIRE, "@say hello", alias=MODELS[WIRE])
            for number in range(WARM_UP + rounds):
                with trio.fail_after(2 * ROUND_SECONDS):
                    ours_took = await _first_byte(client, world.url(WIRE), sdk_headers(WIRE), ours)
                    theirs_took = await _first_byte(client, straight, sdk_headers(WIRE, KEY), theirs)
                if number >= WARM_UP:
                    through.append(ours_took)
                    direct.append(theirs_took)
    return statistics.median(through), statistics.median(direct)


async def _first_byte(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], body: Mapping[str, Any]
) -> float:
    """The answer is read to its end, so that the connection can be used again."""
    first: float | None = None
    began = trio.current_time()
    async with client.stream("POST", url, json=body, headers=headers) as response:
        async for _ in response.aiter_raw():
            first = first or trio.current_time() - began
    assert response.status_code == 200
    assert first is not None
    return first
