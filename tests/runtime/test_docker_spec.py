from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oubliette.errors import EngineError
from oubliette.runtime.base import ContainerSpec, Mount, Resources
from oubliette.runtime.docker_spec import abilities, container_info, create_body, environment, network_body

ABLE = {
    "NCPU": 2,
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "Driver": "overlay2",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"],
}
SPEC = ContainerSpec(
    name="n",
    image="i:1",
    argv=["prog", "-x"],
    env={"A": "1"},
    mounts=[Mount(Path("/h"), "/w", read_only=False)],
    labels={"l": "1"},
    working_dir="/w",
    uid=5,
    gid=6,
)


def body(info: dict[str, Any] | None = None, labels: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    from dataclasses import replace

    spec = replace(SPEC, **changes)
    image = {"Config": {"Env": ["PATH=/x", "LEAK=1", "A=2"], "Labels": labels}}
    return create_body(spec, spec.mounts, image, abilities({**ABLE, **(info or {})}))


def test_variables_of_the_image_and_the_engine_are_taken_away() -> None:
    assert environment({"A": "1"}, ["PATH=/x", "LEAK=1", "A=2"]) == ["A=1", "HOSTNAME", "LEAK", "PATH"]
    assert environment({"PATH": "/mine", "HOSTNAME": "h"}, ["PATH=/x"]) == ["PATH=/mine", "HOSTNAME=h"]


def test_processors_are_capped_at_what_the_host_has() -> None:
    assert body(resources=Resources(cpus=64))["HostConfig"]["NanoCpus"] == 2 * 10**9
    assert body(resources=Resources(cpus=0.5))["HostConfig"]["NanoCpus"] == 5 * 10**8


def test_a_disk_quota_is_asked_for_where_the_layer_is_writable_and_the_driver_may_have_it() -> None:
    writable = {"dev.oubliette.writable-root": "true"}
    xfs = {"DriverStatus": [["Backing Filesystem", "xfs"]]}
    assert "StorageOpt" not in body()["HostConfig"]
    assert "StorageOpt" not in body(xfs)["HostConfig"]
    assert "StorageOpt" not in body(labels=writable)["HostConfig"]
    wanted = {"size": str(20 << 30)}
    assert body(xfs, labels=writable)["HostConfig"]["StorageOpt"] == wanted
    assert body({"Driver": "btrfs"}, labels=writable)["HostConfig"]["StorageOpt"] == wanted


def test_selinux_hosts_get_relabelling_binds() -> None:
    info = {"SecurityOptions": ["name=selinux"]}
    mounts = [Mount(Path("/h"), "/w", read_only=False), Mount(Path("/r"), "/ro")]
    host = body(info, mounts=mounts)["HostConfig"]
    assert host["Binds"] == ["/h:/w:rw,Z", "/r:/ro:ro,z"]
    assert "Mounts" not in host
    with pytest.raises(EngineError, match="colon"):
        body(info, mounts=[Mount(Path("/a:b"), "/w")])


def test_the_network_is_none_or_the_projects_own() -> None:
    assert body()["HostConfig"]["NetworkMode"] == "none"
    assert body(network="bridge", network_name="mine")["HostConfig"]["NetworkMode"] == "mine"


def test_a_network_keeps_its_containers_apart_and_says_whose_it_is() -> None:
    labels = {"dev.oubliette.instance": "i", "dev.oubliette.project": "p", "dev.oubliette.container": "c"}
    made = network_body("mine", labels)
    assert made["Options"] == {"com.docker.network.bridge.enable_icc": "false"}
    assert made["Labels"] == {
        "dev.oubliette.instance": "i",
        "dev.oubliette.project": "p",
        "dev.oubliette.network": "mine",
    }


def test_what_the_engine_cannot_do_is_not_said_to_be_enforced() -> None:
    made = {"Id": "1", "State": {"Status": "created"}, "HostConfig": {"Memory": 5, "NanoCpus": 5, "PidsLimit": 5}}
    assert container_info(made, abilities(ABLE)).enforced == ("memory", "cpus", "pids")
    rootless = {**ABLE, "MemoryLimit": False, "CpuCfsQuota": False}
    assert container_info(made, abilities(rootless)).enforced == ("pids",)
    quota = {**made, "HostConfig": {"StorageOpt": {"size": "5"}}}
    assert container_info(quota, abilities(ABLE)).enforced == ("disk",)
    assert container_info({**quota, "Mounts": [{"RW": True}]}, abilities(ABLE)).enforced == ()


@pytest.mark.parametrize(
    ("status", "state", "code"),
    [
        ("created", "created", None),
        ("running", "running", None),
        ("paused", "running", None),
        ("restarting", "running", None),
        ("exited", "exited", 3),
        ("dead", "exited", 3),
        ("removing", "exited", 3),
        ("some-new-word", "exited", 3),
    ],
)
def test_the_engines_states_are_reduced_to_three(status: str, state: str, code: int | None) -> None:
    answer = {"Id": "1", "Name": "/n", "State": {"Status": status, "ExitCode": 3, "Pid": 0}, "Config": {"Labels": None}}
    info = container_info(answer, abilities(ABLE))
    assert (info.name, info.state, info.exit_code, info.pid, info.labels) == ("n", state, code, None, {})


def test_an_engine_without_its_filter_is_recognised() -> None:
    assert abilities(ABLE).seccomp
    assert abilities({"SecurityOptions": ["name=seccomp,profile=default"]}).seccomp
    for options in ([], None, ["name=apparmor"], ["name=seccomp,profile=unconfined"]):
        assert not abilities({"SecurityOptions": options}).seccomp
