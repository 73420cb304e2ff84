"""Images of an engine: look, pull, build, and the identity that pins one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import trio

from oubliette.errors import EngineError, ImageMissing
from oubliette.runtime.base import Progress, ReportProgress
from oubliette.runtime.default_images import (
    DEFAULT_IMAGES,
    SOURCE_LABEL,
    context_digest,
    context_tar,
    default_context,
)
from oubliette.runtime.docker_api import EngineApi, EngineRefused, Query, read_lines

__all__ = ["DEFAULT_IMAGES", "build", "default_context", "ensure", "identity", "look", "pull"]

PULL_SECONDS = 1800.0
PULL_SILENCE_SECONDS = 120.0
BUILD_SECONDS = 3600.0
BUILD_SILENCE_SECONDS = 900.0
REPORT_SECONDS = 0.2
UPLOAD_BYTES = 1 << 16
LONGEST_TEXT = 200

_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


async def look(api: EngineApi, image: str) -> dict[str, Any] | None:
    """What the engine knows of an image, None when it does not have it."""
    try:
        return dict(await api.call("GET", f"/images/{quote(image, safe='')}/json", what=f"look at image {image}"))
    except EngineRefused as refused:
        if refused.status == 404:
            return None
        raise


def identity(image: str, known: dict[str, Any]) -> str:
    """What pins it: ``name@sha256:...`` when it came from a registry, else the engine's own id."""
    repository, _ = split_reference(image)
    if image not in DEFAULT_IMAGES.values():
        for digest in known.get("RepoDigests") or []:
            if str(digest).partition("@")[0] == repository:
                return str(digest)
    return str(known["Id"])


def split_reference(image: str) -> tuple[str, str]:
    """``name:tag`` or ``name@digest`` as its two halves; the tag defaults to ``latest``."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "latest")


async def ensure(api: EngineApi, image: str, report: ReportProgress) -> str:
    """The identity of the image, which is pulled, or built when it is one of ours, if it is missing.
    Raises ImageMissing, EngineError, RuntimeUnavailable."""
    known = await look(api, image)
    if known is None:
        context = default_context(image)
        if context is not None:
            await _build_default(api, context, image, report)
        elif image in DEFAULT_IMAGES.values():
            raise ImageMissing(f"The image {image} is not there, and neither is what it is built from.")
        else:
            await pull(api, image, report)
        known = await look(api, image)
        if known is None:
            raise ImageMissing(f"The image {image} is still missing after it was fetched.")
    return identity(image, known)


async def _build_default(api: EngineApi, context: Path, image: str, report: ReportProgress) -> None:
    labels = {SOURCE_LABEL: await trio.to_thread.run_sync(context_digest, context)}
    try:
        # The Dockerfile is ours; the host's network is the one where package sources and proxies of the machine work.
        await build(api, context, image, report, network="host", labels=labels)
    except EngineError as error:
        raise ImageMissing(
            f"The image {image} is missing and cannot be built: {error.message}",
            hint=f"Check that the host reaches the package sources, or run: docker build -t {image} {context}",
        ) from error


async def pull(api: EngineApi, image: str, report: ReportProgress) -> None:
    """Fetch it from its registry. Raises ImageMissing when it cannot be had."""
    name, tag = split_reference(image)
    what = f"pull image {image}"
    try:
        async with api.stream(
            "POST", "/images/create", what=what, params={"fromImage": name, "tag": tag}, seconds=PULL_SECONDS
        ) as answer:
            await read_lines(answer, _PullProgress(report), what=what, silence_seconds=PULL_SILENCE_SECONDS)
    except EngineError as error:
        raise ImageMissing(
            f"The image {image} cannot be pulled: {error.message}",
            hint="Check the name and the network; an image of a private registry: docker pull it once by hand.",
            retryable=error.retryable,
        ) from error


class _PullProgress:
    """Adds up the layers' bytes, and reports every REPORT_SECONDS at most."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._layers: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    def __call__(self, entry: dict[str, Any]) -> None:
        layer, detail = str(entry.get("id", "")), entry.get("progressDetail") or {}
        status = str(entry.get("status", ""))
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail.get("current") or 0), int(detail["total"]))
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1],) * 2
        now = trio.current_time()
        if self._layers and now >= self._next:
            self._next = now + REPORT_SECONDS
            done, total = (sum(part) for part in zip(*self._layers.values(), strict=True))
            self._report(Progress("pulling", done, total, "bytes", status[:LONGEST_TEXT]))


async def build(
    api: EngineApi,
    context: Path,
    tag: str,
    report: ReportProgress,
    *,
    network: str = "default",
    labels: dict[str, str] | None = None,
) -> str:
    """Build ``context/Dockerfile`` with the classic builder and name it ``tag``. Returns the identity.
    Cancelled, it stops and leaves at most cached layers. Raises EngineError with the builder's own words."""
    what = f"build image {tag}"
    params: dict[str, str | int] = {"t": tag, "rm": 1, "forcerm": 1, "networkmode": network, "version": "1"}
    if labels:
        params["labels"] = json.dumps(labels)
    with tempfile.TemporaryFile() as tar:
        try:
            await trio.to_thread.run_sync(context_tar, context, tar)
        except (OSError, ValueError) as error:
            raise EngineError(f"{what}: the context {context} cannot be packed: {error}", retryable=False) from error
        tar.seek(0)
        await _send(api, tar, params, what, _build_progress(report))
    known = await look(api, tag)
    if known is None:
        raise EngineError(f"{what}: the builder ended and the image is not there")
    return str(known["Id"])


async def _send(
    api: EngineApi, tar: IO[bytes], params: Query, what: str, handle: Callable[[dict[str, Any]], None]
) -> None:
    async with api.stream(
        "POST", "/build", what=what, params=params, content=FileChunks(tar), seconds=BUILD_SECONDS
    ) as answer:
        await read_lines(answer, handle, what=what, silence_seconds=BUILD_SILENCE_SECONDS)


def _build_progress(report: ReportProgress) -> Callable[[dict[str, Any]], None]:
    def handle(entry: dict[str, Any]) -> None:
        step = _STEP.match(str(entry.get("stream", "")))
        if step:
            report(Progress("building", int(step[1]), int(step[2]), "steps", step[3].strip()[:LONGEST_TEXT]))

    return handle


class FileChunks:
    """A file as an asynchronous iterable of bytes, read in a thread."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __aiter__(self) -> FileChunks:
        return self

    async def __anext__(self) -> bytes:
        data = await trio.to_thread.run_sync(self._file.read, UPLOAD_BYTES)
        if not data:
            raise StopAsyncIteration
        return data
