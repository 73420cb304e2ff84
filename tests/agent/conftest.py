"""The toolkit once per machine, one OpenCode per run, a model and an Agent per test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from oubliette.agent.opencode_config import ModelEntry
from oubliette.agent.toolkit import Toolkit, ensure_toolkit
from tests.agent.fake_model import open_fake_model
from tests.agent.rig import MODELS, Process, Rig, free_port, open_rig, start, toolkit_root


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    """The real one, kept between runs."""
    return trio.run(ensure_toolkit, toolkit_root(), lambda _what, _done, _total: None)


@pytest.fixture(scope="session")
def shared(toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, int]]:
    """A process for all tests that leave it alive, and the port where it looks for its model."""
    model_port = free_port()
    process = start(toolkit, tmp_path_factory.mktemp("opencode"), model_port)
    yield process, model_port
    process.kill()


@pytest.fixture
async def rig(shared: tuple[Process, int]) -> AsyncIterator[Rig]:
    process, model_port = shared
    async with open_fake_model(model_port) as model, open_rig(process, model) as rig:
        yield rig


@pytest.fixture
def directory(shared: tuple[Process, int], tmp_path: Path) -> str:
    return shared[0].directory(tmp_path.name)


@pytest.fixture
async def own_rig(toolkit: Toolkit, tmp_path: Path) -> AsyncIterator[Rig]:
    """With a process that the test may kill."""
    async with _own(toolkit, tmp_path) as rig:
        yield rig


@pytest.fixture
async def own_small(toolkit: Toolkit, tmp_path: Path) -> AsyncIterator[Rig]:
    """Its model has a small context."""
    async with _own(toolkit, tmp_path, [ModelEntry("m", "openai-compatible", 40_000, 8_000)]) as rig:
        yield rig


@asynccontextmanager
async def _own(toolkit: Toolkit, root: Path, models: Sequence[ModelEntry] = MODELS) -> AsyncIterator[Rig]:
    async with open_fake_model() as model:
        process = start(toolkit, root, model.port, models=models)
        try:
            async with open_rig(process, model, models) as rig:
                yield rig
        finally:
            process.kill()
