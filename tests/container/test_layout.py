"""What a container is: decided by rows and configuration alone, and safe to hand to an engine."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oubliette.config import Config
from oubliette.container import directories, layout
from oubliette.container.layout import Ground
from oubliette.core.model import ContainerRow, ContainerState, PlaceState, ProjectRow
from oubliette.errors import ContainerError
from oubliette.home import Home
from oubliette.runtime.base import ContainerSpec, Mount
from tests.container.fakes import AT, INSTANCE

UID, GID = os.geteuid(), os.getegid()


def ground(root: Path, config: dict[str, Any] | None = None) -> Ground:
    home = Home(root / "home")
    home.create()
    return Ground(home, Config.model_validate(config or {}), INSTANCE, UID, GID)


def project(**settings: Any) -> ProjectRow:
    by = {"kind": "local", "id": "local", "name": "test"}
    return ProjectRow("p1", "shop", PlaceState.READY, AT, AT, by, "w1", settings=settings)


def row(workspace_id: str | None = "w1", container_id: str = "c" * 32, **more: Any) -> ContainerRow:
    return ContainerRow(container_id, "p1", workspace_id, "docker", 3, "cap", ContainerState.CREATING, AT, **more)


def spec_of(on: Ground, of: ContainerRow | None = None, **settings: Any) -> ContainerSpec:
    return layout.build_spec(on, project(**settings), of or row(), on.home.toolkit / "1", ["w1", "w2"])


@pytest.mark.parametrize("workspace_id", ["w1", None])
def test_no_writable_mount_holds_another_mounts_source(tmp_path: Path, workspace_id: str | None) -> None:
    mounts = spec_of(ground(tmp_path), row(workspace_id)).mounts
    for mount in mounts:
        for other in mounts:
            inside = other is not mount and other.source.is_relative_to(mount.source)
            assert not (inside and not mount.read_only), f"{other.source} lies in the writable {mount.source}"


def test_places_share_nothing_writable(tmp_path: Path) -> None:
    on = ground(tmp_path)
    one, two = spec_of(on, row("w1")).mounts, spec_of(on, row("w2", "d" * 32)).mounts
    for mount in one:
        for other in two:
            if not (mount.read_only and other.read_only):
                assert not mount.source.is_relative_to(other.source)
                assert not other.source.is_relative_to(mount.source)


def test_the_inside_looks_the_same_everywhere(tmp_path: Path) -> None:
    spec = spec_of(ground(tmp_path))
    assert {mount.target: mount.read_only for mount in spec.mounts} == {
        "/workspaces/w1": False,
        "/state": False,
        "/cache": False,
        "/run/oubliette": True,
        "/opt/oubliette": True,
    }
    assert spec.env.keys() == {"PATH", "HOME", "LANG"}, "nothing of the daemon's environment"
    assert spec.name == "oub-01234567-cccccccccccc"
    assert spec.labels == {
        "dev.oubliette.instance": INSTANCE,
        "dev.oubliette.project": "p1",
        "dev.oubliette.workspace": "w1",
        "dev.oubliette.container": "c" * 32,
        "dev.oubliette.generation": "3",
    }
    assert spec_of(ground(tmp_path), row(None)).labels["dev.oubliette.workspace"] == "-"


def test_protected_paths_hold_in_every_workspace_of_the_container(tmp_path: Path) -> None:
    spec = spec_of(ground(tmp_path), row(None), protected_paths=["ci", ".github"])
    assert list(spec.protected_paths) == [
        "/workspaces/w1/ci",
        "/workspaces/w1/.github",
        "/workspaces/w2/ci",
        "/workspaces/w2/.github",
    ]


@pytest.mark.parametrize(
    ("config", "settings", "runtime", "network"),
    [
        (None, None, "docker", "bridge"),
        (None, None, "bubblewrap", "none"),
        ("bridge", None, "bubblewrap", "bridge"),
        ("none", None, "docker", "none"),
        ("none", "bridge", "docker", "bridge"),
        (None, "none", "docker", "none"),
    ],
)
def test_the_network_is_the_projects_the_configs_the_runtimes(
    tmp_path: Path, config: str | None, settings: str | None, runtime: str, network: str
) -> None:
    on = ground(tmp_path, {"defaults": {"container": {"network": config}}} if config else None)
    spec = spec_of(on, replace(row(), runtime=runtime), **({"network": settings} if settings else {}))
    assert spec.network == network
    assert spec.network_name == ("oub-01234567-p1" if network == "bridge" else "")


def test_limits_and_images_come_from_the_configuration(tmp_path: Path) -> None:
    limits = {"memory": "1g", "cpus": 0.5, "pids": 100, "disk": "2g", "type": "dev"}
    on = ground(tmp_path, {"defaults": {"container": limits}, "containers": {"dev": "registry/dev:1"}})
    spec = spec_of(on)
    assert (spec.resources.memory_bytes, spec.resources.cpus, spec.resources.pids) == (1 << 30, 0.5, 100)
    assert spec.image == "registry/dev:1"
    assert spec_of(on, container_type="base").image == "oubliette-base:0.1"
    with pytest.raises(ContainerError, match="'huge' is not configured") as caught:
        spec_of(on, container_type="huge")
    assert "base, dev" in caught.value.hint


def test_a_fingerprint_tells_one_container_from_another_it_would_be_now(tmp_path: Path) -> None:
    on = ground(tmp_path)
    same = layout.fingerprint(spec_of(on))
    assert layout.fingerprint(spec_of(on, row(container_id="d" * 32))) == same
    assert layout.fingerprint(replace(spec_of(on), labels={})) == same
    for other in (
        spec_of(on, network="none"),
        spec_of(on, protected_paths=["ci"]),
        layout.build_spec(on, project(), row(), on.home.toolkit / "2", ["w1"]),
        spec_of(replace(on, uid=7)),
        spec_of(ground(tmp_path, {"defaults": {"container": {"pids": 7}}})),
    ):
        assert layout.fingerprint(other) != same


def test_a_password_is_new_for_each_start_and_says_nothing_of_the_key() -> None:
    one, two = (layout.agent_password(row(agent={"start": start})) for start in ("1", "2"))
    assert one != two
    assert one == layout.agent_password(row(agent={"start": "1", "restarts": 9}))
    assert layout.agent_password(replace(row(agent={"start": "1"}), capability="other")) != one
    assert "cap" not in one


def test_a_project_may_have_its_own_time_to_sleep(tmp_path: Path) -> None:
    config = ground(tmp_path).config
    assert layout.hibernate_seconds(config, project()) == 1800
    assert layout.hibernate_seconds(config, project(limits={"hibernate_minutes": 0.5})) == 30


def test_root_runs_agents_as_nobody_and_others_as_themselves() -> None:
    assert layout.id_inside(0, daemon_is_root=True) == 10001
    assert layout.id_inside(1000, daemon_is_root=False) == 1000


# --- directories


def test_directories_are_made_for_whoever_runs_inside_and_closed_to_others(tmp_path: Path) -> None:
    on = replace(ground(tmp_path), uid=10001 if UID == 0 else UID, gid=10001 if UID == 0 else GID)
    on.home.workspace_dir("p1", "w1").mkdir(parents=True)
    for _ in range(2):
        inside = directories.prepare(on, row())
    state, cache = on.home.state_dir("p1", "w1"), layout.cache_dir(on.home, layout.Place("p1", "w1"))
    for folder in (state, cache):
        found = folder.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o700, on.uid, on.gid)
    assert inside == on.home.container_run_dir("c" * 12)
    assert stat.S_IMODE(inside.stat().st_mode) == 0o755
    assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700


def test_a_link_where_a_directory_should_be_is_refused(tmp_path: Path) -> None:
    on = ground(tmp_path)
    on.home.workspace_dir("p1", "w1").mkdir(parents=True)
    directories.prepare(on, row())
    state = on.home.state_dir("p1", "w1")
    state.rmdir()
    state.symlink_to(tmp_path)
    with pytest.raises(ContainerError, match="start a container"):
        directories.prepare(on, row())
    with pytest.raises(ContainerError, match="is not a directory"):
        directories.check_sources([Mount(state, "/state", read_only=False)])
    with pytest.raises(ContainerError, match="No such file"):
        directories.check_sources([Mount(tmp_path / "missing", "/state")])


def test_files_for_the_inside_are_whole_and_readable(tmp_path: Path) -> None:
    directories.put_files(tmp_path, {"a.json": b"1", "b.json": b"2"})
    directories.put_files(tmp_path, {"a.json": b"3"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"3", "b.json": b"2"}
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(ContainerError, match="taken"):
        directories.put_files(tmp_path, {"taken": b"4"})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_run_directories_of_nobody_are_swept(tmp_path: Path) -> None:
    on = ground(tmp_path)
    directories.forget_others(on, [])
    on.home.project_dir("p1").mkdir()
    for container_id in ("c" * 32, "d" * 32):
        directories.prepare(on, row(container_id=container_id))
    directories.forget_others(on, ["c" * 32])
    assert [path.name for path in (on.home.run / "c").iterdir()] == ["c" * 12]
    directories.forget(on, "c" * 32)
    directories.forget(on, "c" * 32)
    assert list((on.home.run / "c").iterdir()) == []
