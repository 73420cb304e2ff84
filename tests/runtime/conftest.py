"""The runtimes that the contract suite runs over. One that cannot be had here fails its tests; none is skipped."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from oubliette.runtime.bubblewrap import Bubblewrap
from oubliette.runtime.default_images import DEFAULT_IMAGES
from oubliette.runtime.docker import Docker
from tests.runtime.contract import Factory, Kit, cleaned
from tests.runtime.fake import MARK, FakeRuntime


@asynccontextmanager
async def fake(place: Path) -> AsyncIterator[Kit]:
    async with cleaned(Kit(FakeRuntime(place), place, walls=False, extra_env=frozenset({MARK}))) as kit:
        yield kit


@asynccontextmanager
async def docker(place: Path) -> AsyncIterator[Kit]:
    async with cleaned(Kit(await usable_docker(place), place, walls=True)) as kit:
        yield kit


@asynccontextmanager
async def bubblewrap(place: Path) -> AsyncIterator[Kit]:
    """The path of whoever runs the tests: root's, or an ordinary user's (`test_bubblewrap_user` runs these as one)."""
    async with cleaned(Kit(Bubblewrap(place / "sandboxes"), place, walls=True)) as kit:
        yield kit


async def usable_docker(place: Path) -> Docker:
    """The engine of DOCKER_HOST with the base image in it. Fails the test otherwise."""
    runtime = Docker(os.environ, scratch=place)
    if not _tried:
        report = await runtime.probe()
        if not report.ok:
            pytest.fail(f"These tests need a Docker Engine: {report.reason} Run: export $(scripts/engine)")
        if "inside" not in report.details["mounts"].replace("no image yet to try from inside", ""):
            pytest.fail(f"These tests need the image {DEFAULT_IMAGES['base']}. Run: scripts/images")
        _tried.append(report.version)
    return runtime


_tried: list[str] = []

FACTORIES: dict[str, Factory] = {"fake": fake, "docker": docker, "bubblewrap": bubblewrap}
"""Every runtime by name. Those but the fake are marked ``engine``."""

CONFINING = ("docker", "bubblewrap")
"""Those of FACTORIES that have walls."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``kit`` runs over every runtime; one that asks for ``confined`` over those with walls."""
    for fixture, names in (("kit", tuple(FACTORIES)), ("confined", CONFINING)):
        if fixture in metafunc.fixturenames:
            marks = {name: [] if name == "fake" else [pytest.mark.engine] for name in names}
            metafunc.parametrize(
                fixture, [pytest.param(name, marks=marks[name], id=name) for name in names], indirect=True
            )


@pytest.fixture
async def kit(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    async with FACTORIES[request.param](tmp_path) as made:
        yield made


@pytest.fixture
async def confined(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    async with FACTORIES[request.param](tmp_path) as made:
        yield made
