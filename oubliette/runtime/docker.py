"""The Docker Engine as a runtime."""

from __future__ import annotations

import builtins
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import trio

from oubliette.errors import ContainerError, EngineError, ImageMissing
from oubliette.runtime import docker_exec, docker_probe, images
from oubliette.runtime.base import (
    LABEL_PREFIX,
    ContainerInfo,
    ContainerSpec,
    ExecResult,
    ReportProgress,
    RuntimeReport,
)
from oubliette.runtime.docker_api import EngineApi, EngineRefused
from oubliette.runtime.docker_spec import (
    NETWORK_LABEL,
    Abilities,
    abilities,
    container_info,
    create_body,
    network_body,
)
from oubliette.runtime.protected import check_no_links, with_protection

CREATE_SECONDS = 60.0
START_SECONDS = 120.0
STOP_MARGIN_SECONDS = 30.0
REMOVE_SECONDS = 60.0
NETWORK_SECONDS = 30.0
RELEASE_SECONDS = 5.0
"""How long an engine may take to let go of the network of a container that has just ended."""
POLL_SECONDS = 0.1
CREATE_ATTEMPTS = 4


class Docker:
    """Runtime over the Engine HTTP API. ``environ`` is the daemon's environment: DOCKER_HOST and its TLS variables.
    ``scratch`` is a directory that the engine can mount from, used by ``probe``."""

    def __init__(
        self, environ: Mapping[str, str] | None = None, *, scratch: Path | None = None, name: str = "docker"
    ) -> None:
        self.name = name
        self._api = EngineApi(os.environ if environ is None else environ)
        self._scratch = scratch
        self._able: Abilities | None = None
        self._images: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._networks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def probe(self) -> RuntimeReport:
        return await docker_probe.probe(self, self._api, self._scratch)

    async def abilities(self) -> Abilities:
        """What the engine can enforce; asked once."""
        if self._able is None:
            self._able = abilities(await self._api.call("GET", "/info", what="ask the engine what it can do"))
        return self._able

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        async with self._images[image]:  # ten workspaces that start at once pull, or build, once
            return await images.ensure(self._api, image, report)

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        async with self._images[tag]:
            return await images.build(self._api, context, tag, report)

    async def create(self, spec: ContainerSpec) -> str:
        what = f"create container {spec.name}"
        able = await self.abilities()
        image = await images.look(self._api, spec.image)
        if image is None:
            raise ImageMissing(f"{what}: the image {spec.image} is not there")
        mounts = with_protection(spec.mounts, spec.protected_paths)
        body = create_body(spec, mounts, image, able)
        for _ in range(CREATE_ATTEMPTS):
            made = await self._create(spec.name, body, what)
            if isinstance(made, str):
                return made
            if made.status == 409:
                existing = await self._existing(spec, what)
                if existing is not None:
                    return existing
            elif "storage-opt" in made.message and body["HostConfig"].pop("StorageOpt", None):
                continue  # a driver without quotas here; `enforced` then does not say disk
            elif made.status == 404 and "network" in made.message.lower() and spec.network == "bridge":
                await self._ensure_network(spec.network_name, spec.labels)
            else:
                raise made
        raise EngineError(f"{what}: the engine refuses the name, and has nothing of that name", retryable=True)

    async def _create(self, name: str, body: Mapping[str, Any], what: str) -> str | EngineRefused:
        """The new container's id, or why the engine refused."""
        try:
            answer = await self._api.settle(
                "POST", "/containers/create", what=what, params={"name": name}, body=body, seconds=CREATE_SECONDS
            )
        except EngineRefused as refused:
            return refused
        return str(answer["Id"])

    async def _existing(self, spec: ContainerSpec, what: str) -> str | None:
        """The id of the container that has the name already. Raises EngineError when it is another one's."""
        answer = await self._look(spec.name)
        if answer is None:
            return None
        labels: Mapping[str, str] = answer["Config"].get("Labels") or {}
        if any(labels.get(key) != value for key, value in spec.labels.items()):
            raise EngineError(
                f"{what}: the name is taken by a container with other labels ({answer['Id'][:12]})",
                hint="It is not this daemon's, or is of another generation; remove it first.",
                code="conflict",
                retryable=False,
            )
        return str(answer["Id"])

    async def start(self, name: str) -> None:
        what = f"start container {name}"
        answer = await self._look(name)
        if answer is None:
            raise EngineError(f"{what}: there is none of that name", code="not_found", retryable=False)
        _check_sources(answer)
        network = _own_network(answer)
        if network is None:
            await self._start(name, what)
            return
        # The network is made only now, when a container already names it: whatever is interrupted, `remove` of that
        # container finds and removes it. The lock keeps a `remove` in the same network from doing so in between.
        async with self._networks[network]:
            await self._ensure_network(network, answer["Config"].get("Labels") or {})
            await self._start(name, what)

    async def _start(self, name: str, what: str) -> None:
        await self._api.settle("POST", _path(name, "start"), what=what, seconds=START_SECONDS)

    async def stop(self, name: str, grace_seconds: float) -> None:
        grace = max(0, math.ceil(grace_seconds))
        try:
            await self._api.call(
                "POST",
                _path(name, "stop"),
                what=f"stop container {name}",
                params={"t": grace},
                seconds=grace + STOP_MARGIN_SECONDS,
            )
        except EngineRefused as refused:
            if refused.status != 404:
                raise

    async def remove(self, name: str) -> None:
        what = f"remove container {name}"
        answer = await self._look(name)
        if answer is None:
            return
        network = _own_network(answer)
        if network is not None:
            # Network first, container last: as long as the container is there, an interrupted removal is tried again.
            await self._kill(name)
            async with self._networks[network]:
                await self._remove_network(network, but_for=str(answer["Id"]))
        deadline = trio.current_time() + REMOVE_SECONDS
        while True:
            try:
                await self._api.call(
                    "DELETE", _path(name), what=what, params={"force": 1, "v": 1}, seconds=REMOVE_SECONDS
                )
                return
            except EngineRefused as refused:
                if refused.status == 404:
                    return
                # 409: its removal is already in progress; 5xx: something still holds its file system for a moment.
                if (refused.status < 500 and refused.status != 409) or trio.current_time() > deadline:
                    raise
            await trio.sleep(POLL_SECONDS)

    async def inspect(self, name: str) -> ContainerInfo | None:
        answer = await self._look(name)
        return None if answer is None else container_info(answer, await self.abilities())

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        wanted = [f"{key}={value}" for key, value in labels.items()] or [f"{LABEL_PREFIX}instance"]
        found = await self._api.call(
            "GET",
            "/containers/json",
            what="list containers",
            params={"all": 1, "filters": json.dumps({"label": wanted})},
        )
        infos: builtins.list[ContainerInfo] = []
        for entry in found or []:
            info = await self.inspect(str(entry["Id"]))
            if info is not None:  # it may have gone in between
                infos.append(info)
        return infos

    async def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        return await docker_exec.run_exec(
            self._api,
            name,
            argv,
            env=env or {},
            working_dir=working_dir,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
        )

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        return await docker_exec.read_logs(self._api, name, tail=tail, max_bytes=max_bytes)

    async def stats(self, name: str) -> Mapping[str, int]:
        try:
            answer = await self._api.call(
                "GET",
                _path(name, "stats"),
                what=f"measure container {name}",
                params={"stream": "false", "one-shot": "true"},
            )
        except EngineRefused as refused:
            if refused.status in (404, 409):
                return {}
            raise
        memory, pids = answer.get("memory_stats") or {}, answer.get("pids_stats") or {}
        measured: dict[str, int] = {}
        if "usage" in memory:
            # What the kernel can take back at any time is not use; the name differs between cgroups v1 and v2.
            details = memory.get("stats") or {}
            cache = details.get("total_inactive_file", details.get("inactive_file", 0))
            measured["memory_bytes"] = max(0, int(memory["usage"]) - int(cache))
        if pids.get("current"):
            measured["pids"] = int(pids["current"])
        return measured

    async def _look(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(await self._api.call("GET", _path(name, "json"), what=f"look at container {name}"))
        except EngineRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def _kill(self, name: str) -> None:
        try:
            await self._api.call("POST", _path(name, "kill"), what=f"kill container {name}", seconds=REMOVE_SECONDS)
        except EngineRefused as refused:
            if refused.status not in (404, 409):  # gone, or not running
                raise

    async def _ensure_network(self, network: str, labels: Mapping[str, str]) -> None:
        what = f"make network {network}"
        try:
            await self._api.settle(
                "POST", "/networks/create", what=what, body=network_body(network, labels), seconds=NETWORK_SECONDS
            )
        except EngineRefused as refused:
            if "address pool" in refused.message:
                raise EngineError(
                    f"{what}: the engine has no addresses left for one more network",
                    hint="Set default-address-pools in the engine's daemon.json, or stop projects that use a network.",
                ) from refused
            if refused.status != 409:
                raise
        else:
            return
        if not await self._is_ours(network, what):
            raise EngineError(f"{what}: there is one of that name that Oubliette has not made", code="conflict")

    async def _remove_network(self, network: str, *, but_for: str) -> None:
        """Remove a network that only the container ``but_for`` names, and that this code has made."""
        what = f"remove network {network}"
        users = await self._api.call(
            "GET", "/containers/json", what=what, params={"all": 1, "filters": json.dumps({"network": [network]})}
        )
        if any(str(user["Id"]) != but_for for user in users or []) or not await self._is_ours(network, what):
            return
        deadline = trio.current_time() + RELEASE_SECONDS
        while True:
            try:
                await self._api.call("DELETE", f"/networks/{quote(network, safe='')}", what=what)
                return
            except EngineRefused as refused:
                if refused.status == 404:
                    return
                if refused.status != 403 or trio.current_time() > deadline:
                    raise
            await trio.sleep(POLL_SECONDS)

    async def _is_ours(self, network: str, what: str) -> bool:
        try:
            answer = await self._api.call("GET", f"/networks/{quote(network, safe='')}", what=what)
        except EngineRefused as refused:
            if refused.status == 404:
                return False
            raise
        return (answer.get("Labels") or {}).get(NETWORK_LABEL) == network


def _path(name: str, action: str = "") -> str:
    return f"/containers/{quote(name, safe='')}" + (f"/{action}" if action else "")


def _own_network(answer: Mapping[str, Any]) -> str | None:
    """The network of our making that a container names, if any."""
    mode = str((answer.get("HostConfig") or {}).get("NetworkMode") or "none")
    return None if mode in ("none", "host", "default", "bridge") or mode.startswith("container:") else mode


def _check_sources(answer: Mapping[str, Any]) -> None:
    """Before a start: no bind source that lies in a directory writable from inside may be reached through a link that
    was put there since (protected paths are such sources)."""
    binds = [mount for mount in answer.get("Mounts") or [] if mount.get("Type") == "bind"]
    for mount in binds:
        source = PurePosixPath(mount["Source"])
        for outer in binds:
            above = PurePosixPath(outer["Source"])
            if outer is not mount and outer.get("RW") and source != above and source.is_relative_to(above):
                relative = source.relative_to(above)
                if not check_no_links(Path(above), relative):
                    raise ContainerError(f"mount {source}: it is not there any more", retryable=False)
