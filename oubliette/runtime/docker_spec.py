"""Our container spec as the Engine API's words, and the engine's answers as ours. No I/O."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oubliette.errors import EngineError
from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo, ContainerSpec, Mount

NETWORK_LABEL = LABEL_PREFIX + "network"
"""Label of a network that ``start`` made, with the network's name."""
WRITABLE_ROOT_LABEL = LABEL_PREFIX + "writable-root"
"""An image with this label set to ``true`` needs its root file system writable; all others get it read-only."""

OPEN_FILES = 65_536
SHM_BYTES = 256 << 20
LOG_FILE_BYTES = 8 << 20

_STATES: Mapping[str, Literal["created", "running", "exited"]] = {
    "created": "created",
    "configured": "created",  # Podman
    "running": "running",
    "paused": "running",
    "restarting": "running",
    "removing": "exited",
    "exited": "exited",
    "stopped": "exited",  # Podman
    "dead": "exited",
}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine says of itself in ``/info``, as far as it decides what we ask for."""

    cpus: int
    memory_limit: bool
    pids_limit: bool
    cpu_limit: bool
    disk_quota: bool
    seccomp: bool
    selinux: bool
    details: Mapping[str, str]


def abilities(info: Mapping[str, Any]) -> Abilities:
    """Read ``/info``."""
    options = [str(option) for option in info.get("SecurityOptions") or []]
    seccomp = next((option for option in options if option.startswith("name=seccomp")), "")
    driver = str(info.get("Driver", ""))
    status = {str(pair[0]): str(pair[1]) for pair in info.get("DriverStatus") or [] if len(pair) == 2}
    # overlay2 takes a size only on XFS with project quotas, which /info does not tell: create asks and may be refused.
    quota = driver in ("btrfs", "zfs") or (driver == "overlay2" and status.get("Backing Filesystem") == "xfs")
    return Abilities(
        cpus=max(1, int(info.get("NCPU") or 1)),
        memory_limit=bool(info.get("MemoryLimit")),
        pids_limit=bool(info.get("PidsLimit")),
        cpu_limit=bool(info.get("CpuCfsQuota")),
        disk_quota=quota,
        seccomp=bool(seccomp) and "unconfined" not in seccomp,
        selinux=any(option.startswith("name=selinux") for option in options),
        details={
            "storage": driver,
            "cgroups": str(info.get("CgroupVersion", "")),
            "security": ", ".join(options),
            "os": str(info.get("OperatingSystem", "")),
        },
    )


def create_body(
    spec: ContainerSpec, mounts: Sequence[Mount], image: Mapping[str, Any], able: Abilities
) -> dict[str, Any]:
    """The body of ``POST /containers/create``. ``image`` is the answer of ``GET /images/.../json``, ``mounts`` are the
    spec's with those for protected paths."""
    config: Mapping[str, Any] = image.get("Config") or {}
    body: dict[str, Any] = {
        "Image": spec.image,
        "Entrypoint": list(spec.argv[:1]),
        "Cmd": list(spec.argv[1:]),
        "Env": environment(spec.env, config.get("Env") or []),
        "User": f"{spec.uid}:{spec.gid}",
        "WorkingDir": spec.working_dir,
        "Hostname": spec.hostname,
        "Labels": dict(spec.labels),
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "Tty": False,
        "OpenStdin": False,
        "HostConfig": _host_config(spec, config, able),
    }
    body["HostConfig"].update(_mounts(mounts, able))
    return body


def environment(wanted: Mapping[str, str], of_image: Sequence[str]) -> list[str]:
    """``wanted`` and nothing else: a bare name takes a variable of the image, or of the engine, away again."""
    names = {"PATH", "HOSTNAME", *(entry.partition("=")[0] for entry in of_image)}
    return [f"{name}={value}" for name, value in wanted.items()] + sorted(names - set(wanted))


def _host_config(spec: ContainerSpec, config: Mapping[str, Any], able: Abilities) -> dict[str, Any]:
    limits = spec.resources
    writable_root = (config.get("Labels") or {}).get(WRITABLE_ROOT_LABEL) == "true"
    host: dict[str, Any] = {
        "NetworkMode": "none" if spec.network == "none" else spec.network_name,
        "CapDrop": ["ALL"],
        # The engine's default seccomp profile and AppArmor profile are what it uses when none is named.
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "ReadonlyRootfs": not writable_root,
        "Tmpfs": {path: f"rw,exec,nosuid,nodev,mode=1777,size={size}" for path, size in spec.tmpfs.items()},
        "ShmSize": SHM_BYTES,
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,  # memory and swap together: no swap
        "NanoCpus": int(min(limits.cpus, able.cpus) * 1e9),
        "PidsLimit": limits.pids,
        # Said, because an engine under a lowered hard limit refuses its own default.
        "Ulimits": [
            {"Name": "nofile", "Soft": open_files(), "Hard": open_files()},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "Init": False,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "PublishAllPorts": False,
        "PortBindings": {},
        "IpcMode": "private",
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(LOG_FILE_BYTES), "max-file": "2"}},
    }
    if writable_root and able.disk_quota:
        host["StorageOpt"] = {"size": str(limits.disk_bytes)}
    return host


def open_files() -> int:
    """OPEN_FILES, or this process's own hard limit where that is lower: an engine of the same user has the same."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)


def _mounts(mounts: Sequence[Mount], able: Abilities) -> dict[str, Any]:
    if not able.selinux:
        return {
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": str(mount.source),
                    "Target": mount.target,
                    "ReadOnly": mount.read_only,
                    "BindOptions": {"Propagation": "rprivate"},
                }
                for mount in mounts
            ]
        }
    # Only the old spelling can relabel: Z for what one container writes, z for what several may read.
    for mount in mounts:
        if ":" in f"{mount.source}{mount.target}":
            raise EngineError(f"mount {mount.source}: on SELinux hosts a path may not contain a colon", retryable=False)
    return {"Binds": [f"{mount.source}:{mount.target}:{'ro,z' if mount.read_only else 'rw,Z'}" for mount in mounts]}


def container_info(answer: Mapping[str, Any], able: Abilities) -> ContainerInfo:
    """The answer of ``GET /containers/.../json``."""
    state: Mapping[str, Any] = answer.get("State") or {}
    reduced = _STATES.get(str(state.get("Status", "")), "exited")
    config: Mapping[str, Any] = answer.get("Config") or {}
    return ContainerInfo(
        name=str(answer.get("Name", "")).removeprefix("/"),
        engine_id=str(answer["Id"]),
        state=reduced,
        labels=dict(config.get("Labels") or {}),
        exit_code=int(state.get("ExitCode") or 0) if reduced == "exited" else None,
        pid=int(state.get("Pid") or 0) or None,
        image=str(config.get("Image") or "") or None,
        enforced=_enforced(answer.get("HostConfig") or {}, answer.get("Mounts") or [], able),
    )


def _enforced(host: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]], able: Abilities) -> tuple[str, ...]:
    """A quota holds for the container's own layer only: with a writable bind mount the disk is not limited by it."""
    has = {
        "memory": able.memory_limit and bool(host.get("Memory")),
        "cpus": able.cpu_limit and bool(host.get("NanoCpus")),
        "pids": able.pids_limit and bool(host.get("PidsLimit")),
        "disk": bool((host.get("StorageOpt") or {}).get("size")) and not any(mount.get("RW") for mount in mounts),
    }
    return tuple(name for name, held in has.items() if held)


def network_body(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /networks/create``: a bridge whose containers cannot reach each other."""
    ours = {key: value for key, value in labels.items() if key in (f"{LABEL_PREFIX}instance", f"{LABEL_PREFIX}project")}
    return {
        "Name": name,
        "CheckDuplicate": True,
        "Driver": "bridge",
        "Attachable": False,
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
        "Labels": {**ours, NETWORK_LABEL: name},
    }
