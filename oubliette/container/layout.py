"""What a container is, decided from rows and configuration: names, labels, mounts, environment, limits. Pure.

Nothing writable is mounted in two containers, and no directory that is mounted writable holds another mount's source:
an agent could put a symbolic link in its place, and the next start would follow it on the host.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from oubliette.agent.base import MODEL_PORT
from oubliette.config import Config
from oubliette.core.model import ContainerRow, Json, ProjectRow
from oubliette.core.principals import AGENT_GRANT
from oubliette.errors import ContainerError
from oubliette.home import Home
from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo, ContainerSpec, Mount, Resources
from oubliette.runtime.default_images import DEFAULT_IMAGES

AGENT_UID = 10001
"""Who runs inside when the daemon is root; otherwise the daemon's own uid does."""

WORKSPACES_INSIDE = "/workspaces"
STATE_INSIDE = "/state"
CACHE_INSIDE = "/cache"
RUN_INSIDE = "/run/oubliette"
TOOLKIT_INSIDE = "/opt/oubliette"
HOME_INSIDE = "/tmp/home"  # noqa: S108 - a tmpfs of the container's own
PATH_INSIDE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

RELAY_ARGV = (
    "python3",
    "-ISB",
    f"{TOOLKIT_INSIDE}/python/oubliette_relay",
    "--socket",
    f"{RUN_INSIDE}/relay.sock",
    "--model-port",
    str(MODEL_PORT),
)
"""The container's own process. Isolated, without site-packages: nothing of the image's Python gets into it."""

AGENT = "agent"
"""The agent's name among the relay's processes."""

_GRANT_LABEL = f"{LABEL_PREFIX}agent-grant"
"""Which loan of ``agent_scope`` the container is made for: what it was trusted with from its first process on."""

SHARED = "shared"
"""The key of a place that all workspaces of a project share."""


@dataclass(frozen=True, slots=True)
class Place:
    """What one container serves: a workspace, or (None) all workspaces of a project without isolation."""

    project_id: str
    workspace_id: str | None

    @property
    def key(self) -> str:
        return self.workspace_id or SHARED


@dataclass(frozen=True, slots=True)
class Ground:
    """What is the same for every container of this daemon."""

    home: Home
    config: Config
    instance: str
    uid: int
    """Who runs inside."""
    gid: int


def is_isolated(project: ProjectRow) -> bool:
    return bool(project.settings.get("workspace_isolation", True))


def place_of(project: ProjectRow, workspace_id: str) -> Place:
    return Place(project.project_id, workspace_id if is_isolated(project) else None)


def id_inside(daemon_id: int, *, daemon_is_root: bool) -> int:
    """Uid (and likewise gid) of everything inside: files belong to the operator; root's agent is nobody else."""
    return AGENT_UID if daemon_is_root else daemon_id


def short_id(container_id: str) -> str:
    return container_id[:12]


def container_name(instance: str, container_id: str) -> str:
    """The engine's name of it, chosen before the first call."""
    return f"oub-{instance[:8]}-{short_id(container_id)}"


def labels(instance: str, row: ContainerRow) -> dict[str, str]:
    return {
        f"{LABEL_PREFIX}instance": instance,
        f"{LABEL_PREFIX}project": row.project_id,
        f"{LABEL_PREFIX}workspace": row.workspace_id or "-",
        f"{LABEL_PREFIX}container": row.container_id,
        f"{LABEL_PREFIX}generation": str(row.generation),
    }


def is_of(info: ContainerInfo, instance: str, row: ContainerRow) -> bool:
    """Whether an engine's container is exactly the one of that row."""
    return all(info.labels.get(name) == value for name, value in labels(instance, row).items())


def run_dir(home: Home, container_id: str) -> Path:
    return home.container_run_dir(short_id(container_id))


def cache_dir(home: Home, place: Place) -> Path:
    """Beside the state, not in it: both are mounted writable."""
    return home.project_dir(place.project_id) / "cache" / place.key


def workspace_inside(workspace_id: str) -> str:
    return f"{WORKSPACES_INSIDE}/{workspace_id}"


def agent_password(row: ContainerRow) -> str:
    """New for each start of the agent (``row.agent["start"]``), and known again after a restart of the daemon."""
    return hmac.new(row.capability.encode(), str(row.agent.get("start", "")).encode(), hashlib.sha256).hexdigest()


def environment() -> dict[str, str]:
    """Of every command that we run inside."""
    return {
        "PATH": PATH_INSIDE,
        "HOME": HOME_INSIDE,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
        "XDG_CACHE_HOME": CACHE_INSIDE,
        "npm_config_cache": f"{CACHE_INSIDE}/npm",
    }


def image_of(config: Config, project: ProjectRow) -> str:
    """Raises ContainerError for a container type that no configuration names any more."""
    kind = project.settings.get("container_type") or config.defaults.container.type
    if kind in config.containers:
        return config.containers[kind].image
    if kind in DEFAULT_IMAGES:
        return DEFAULT_IMAGES[kind]
    known = ", ".join(sorted({*config.containers, *DEFAULT_IMAGES}))
    raise ContainerError(
        f"start a container of project {project.project_id}: its type {kind!r} is not configured",
        hint=f"Known are {known}; add containers.{kind} to the configuration, or change the project's container_type.",
        retryable=False,
    )


def network_of(config: Config, project: ProjectRow, runtime: str) -> Literal["none", "bridge"]:
    """The project's, the configuration's, the runtime's default."""
    wanted = project.settings.get("network") or config.defaults.container.network
    if wanted is None:
        wanted = "none" if runtime == "bubblewrap" else "bridge"
    return "bridge" if wanted == "bridge" else "none"


def hibernate_seconds(config: Config, project: ProjectRow) -> float:
    own: Json = project.settings.get("limits") or {}
    return float(own.get("hibernate_minutes") or config.defaults.limits.hibernate_minutes) * 60


def build_spec(
    ground: Ground, project: ProjectRow, row: ContainerRow, toolkit: Path, workspace_ids: Sequence[str]
) -> ContainerSpec:
    """``workspace_ids``: all that the container will see; their protected paths become read-only.

    Raises ContainerError for a container type that no configuration names any more.
    """
    limits = ground.config.defaults.container
    network = network_of(ground.config, project, row.runtime)
    protected = project.settings.get("protected_paths") or []
    grant = project.agent_grant
    return ContainerSpec(
        name=container_name(ground.instance, row.container_id),
        image=image_of(ground.config, project),
        argv=RELAY_ARGV,
        env={"PATH": PATH_INSIDE, "HOME": HOME_INSIDE, "LANG": "C.UTF-8"},
        mounts=mounts(ground, row, toolkit),
        labels={**labels(ground.instance, row), **({_GRANT_LABEL: grant} if grant else {})},
        working_dir="/",
        uid=ground.uid,
        gid=ground.gid,
        network=network,
        network_name=f"oub-{ground.instance[:8]}-{row.project_id[:8]}" if network == "bridge" else "",
        resources=Resources(limits.memory_bytes, float(limits.cpus), limits.pids, limits.disk_bytes),
        protected_paths=[f"{workspace_inside(one)}/{path}" for one in workspace_ids for path in protected],
    )


def mounts(ground: Ground, row: ContainerRow, toolkit: Path) -> list[Mount]:
    home, place = ground.home, Place(row.project_id, row.workspace_id)
    if place.workspace_id is None:
        work = Mount(home.workspaces_dir(place.project_id), WORKSPACES_INSIDE, read_only=False)
    else:
        source = home.workspace_dir(place.project_id, place.workspace_id)
        work = Mount(source, workspace_inside(place.workspace_id), read_only=False)
    return [
        work,
        Mount(home.state_dir(place.project_id, place.key), STATE_INSIDE, read_only=False),
        Mount(cache_dir(home, place), CACHE_INSIDE, read_only=False),
        Mount(run_dir(home, row.container_id), RUN_INSIDE),
        Mount(toolkit, TOOLKIT_INSIDE),
    ]


def fingerprint(spec: ContainerSpec) -> str:
    """Changes when a container made from this spec would be another one; its name, labels and own directory aside."""
    plain: dict[str, Any] = asdict(spec)
    del plain["name"], plain["labels"]
    if _GRANT_LABEL in spec.labels:
        plain["grant"] = spec.labels[_GRANT_LABEL]
    plain["mounts"] = [
        [str(mount.source), mount.target, mount.read_only] for mount in spec.mounts if mount.target != RUN_INSIDE
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=list).encode()).hexdigest()


def spec_record(spec: ContainerSpec) -> Json:
    """What the row keeps of a spec."""
    record: Json = {"fingerprint": fingerprint(spec), "network": spec.network, "limits": asdict(spec.resources)}
    grant = spec.labels.get(_GRANT_LABEL)
    return {**record, AGENT_GRANT: grant} if grant is not None else record
