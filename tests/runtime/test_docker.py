"""What only an engine has: images, networks, its own words. On the engine of DOCKER_HOST."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.errors import ContainerError, EngineError, ImageMissing
from oubliette.runtime import docker_probe, images
from oubliette.runtime.base import LABEL_PREFIX, Mount, Progress
from oubliette.runtime.default_images import DEFAULT_IMAGES
from oubliette.runtime.docker import Docker
from oubliette.runtime.docker_api import EngineApi, EngineRefused
from oubliette.runtime.docker_spec import SHM_BYTES
from tests.runtime.conftest import docker
from tests.runtime.contract import ENVIRONMENT, SLEEPER, Kit, processes_with, until_gone, until_there
from tests.runtime.test_contract import marker, variables
from tests.runtime.tls import tls_in_front_of

pytestmark = pytest.mark.engine
SECONDS = 120
BASE = DEFAULT_IMAGES["base"]


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Kit]:
    async with docker(tmp_path) as kit:
        yield kit


@pytest.fixture
def api(box: Kit) -> EngineApi:
    return EngineApi(os.environ)


@asynccontextmanager
async def built(box: Kit, api: EngineApi, dockerfile: str) -> AsyncIterator[str]:
    """An image of its own for a test, gone afterwards."""
    tag = f"oubliette-{box.instance}:{secrets.token_hex(4)}"
    context = box.directory("context")
    (context / "Dockerfile").write_text(dockerfile)
    try:
        await box.runtime.build_image(context, tag, lambda progress: None)
        yield tag
    finally:
        with trio.CancelScope(shield=True):
            await box.remove_all()
            if await images.look(api, tag) is not None:
                await api.call("DELETE", f"/images/{tag}", what="remove the test's image", params={"force": 1})


async def networks(api: EngineApi, box: Kit) -> list[dict[str, Any]]:
    filters = json.dumps({"label": [f"{key}={value}" for key, value in box.labels.items()]})
    return list(await api.call("GET", "/networks", what="list networks", params={"filters": filters}))


async def raw(api: EngineApi, name: str) -> dict[str, Any]:
    return dict(await api.call("GET", f"/containers/{name}/json", what="look"))


async def test_a_container_is_made_as_hard_as_the_security_page_says(box: Kit, api: EngineApi) -> None:
    with trio.fail_after(SECONDS):
        name = await box.create()
        made = await raw(api, name)
    host = made["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] in (None, [])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, True, False)
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["PortBindings"] in (None, {})
    assert host["PublishAllPorts"] is False
    assert host["NetworkMode"] == "none"
    assert host["LogConfig"]["Type"] == "json-file"
    assert int(host["LogConfig"]["Config"]["max-size"]) > 0
    assert host["Memory"] == host["MemorySwap"] == 256 << 20
    assert (host["PidsLimit"], host["NanoCpus"], host["ShmSize"]) == (128, 10**9, SHM_BYTES)
    assert {limit["Name"] for limit in host["Ulimits"]} == {"nofile", "core"}
    assert host["Binds"] in (None, [])
    assert made["Config"]["User"] == f"{box.uid}:{box.gid}"


async def test_this_engine_enforces_what_the_walls_are_tested_for(box: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await box.create()
        assert list((await box.info(name)).enforced) == ["memory", "cpus", "pids"]


async def test_an_image_cannot_widen_what_the_spec_says(box: Kit, api: EngineApi) -> None:
    dockerfile = f"""FROM {BASE}
        ENV LEAKED=1 LANG=de_DE
        USER root
        WORKDIR /usr
        ENTRYPOINT ["false"]
        CMD ["never"]
        EXPOSE 80
        STOPSIGNAL SIGKILL
        HEALTHCHECK CMD touch /tmp/healthy
        VOLUME /data
    """
    with trio.fail_after(SECONDS):
        volumes = await api.call("GET", "/volumes", what="list volumes")
        async with built(box, api, dockerfile) as tag:
            name = await box.run(image=tag)
            own = variables(await box.sh(name, "cat /proc/1/environ"))
            assert own == ENVIRONMENT
            assert await box.sh(name, "id -u; pwd") == f"{box.uid}\n/workspaces/w\n"
            made = await raw(api, name)
            assert made["Config"]["StopSignal"] == "SIGTERM"
            assert "Health" not in made["State"] or made["State"]["Health"] is None
            await box.runtime.remove(name)
        after = await api.call("GET", "/volumes", what="list volumes")
        assert len(after["Volumes"] or []) == len(volumes["Volumes"] or [])


async def test_an_image_may_ask_for_a_writable_root(box: Kit, api: EngineApi) -> None:
    dockerfile = f"FROM {BASE}\nLABEL {LABEL_PREFIX}writable-root=true\nRUN mkdir -m 777 /scratch\n"
    with trio.fail_after(SECONDS):
        async with built(box, api, dockerfile) as tag:
            name = await box.run(image=tag)
            await box.sh(name, "touch /scratch/x")
            assert "disk" not in (await box.info(name)).enforced


async def test_a_missing_image_is_said_before_anything_is_made(box: Kit) -> None:
    with trio.fail_after(SECONDS):
        with pytest.raises(ImageMissing, match="no-such-image"):
            await box.create(image="no-such-image:1")
        assert await box.runtime.list(box.labels) == []


async def test_a_missing_mount_is_an_error_and_leaves_nothing(box: Kit) -> None:
    mounts = [Mount(box.place / "not-there", "/workspaces/w")]
    with trio.fail_after(SECONDS):
        with pytest.raises(ContainerError, match="not-there"):
            await box.run(mounts=mounts)
        await box.remove_all()
    assert not (box.place / "not-there").exists()


async def test_the_identity_of_an_image_makes_containers(box: Kit) -> None:
    with trio.fail_after(SECONDS):
        pinned = await box.runtime.ensure_image(BASE, lambda progress: None)
        assert pinned.startswith("sha256:")
        assert await box.runtime.ensure_image(pinned, lambda progress: None) == pinned
        name = await box.create(image=pinned)
        assert (await box.info(name)).image == pinned


async def test_an_image_that_cannot_be_had_says_so(box: Kit) -> None:
    with trio.fail_after(SECONDS), pytest.raises(ImageMissing, match=r"registry\.invalid/nothing:1"):
        await box.runtime.ensure_image("registry.invalid/nothing:1", lambda progress: None)


async def test_building_reports_its_steps_and_gives_an_image(box: Kit, api: EngineApi) -> None:
    reports: list[Progress] = []
    context = box.directory("context")
    (context / "Dockerfile").write_text(f"FROM {BASE}\nCOPY below/file /copied\nRUN cat /copied\n")
    (context / "below").mkdir()
    (context / "below" / "file").write_text("content\n")
    (context / "link").symlink_to("/etc/passwd")
    tag = f"oubliette-{box.instance}:built"
    with trio.fail_after(SECONDS):
        pinned = await box.runtime.build_image(context, tag, reports.append)
        try:
            assert [(report.what, report.done, report.total) for report in reports] == [
                ("building", 1, 3),
                ("building", 2, 3),
                ("building", 3, 3),
            ]
            assert reports[1].text == "COPY below/file /copied"
            name = await box.run(image=pinned)
            assert await box.sh(name, "cat /copied") == "content\n"
        finally:
            with trio.CancelScope(shield=True), trio.fail_after(30):
                await box.remove_all()
                await api.call("DELETE", f"/images/{tag}", what="remove", params={"force": 1})


async def test_a_failing_build_gives_the_builders_words(box: Kit, api: EngineApi) -> None:
    context = box.directory("context")
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN exit 42\n")
    with trio.fail_after(SECONDS):
        with pytest.raises(EngineError, match="42"):
            await box.runtime.build_image(context, f"oubliette-{box.instance}:failed", lambda progress: None)
        (context / "Dockerfile").unlink()
        with pytest.raises(EngineError, match="Dockerfile"):
            await box.runtime.build_image(context, f"oubliette-{box.instance}:failed", lambda progress: None)


async def test_a_cancelled_build_stops(box: Kit, api: EngineApi) -> None:
    time = marker()
    context = box.directory("context")
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN sleep {time}\n")
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            tag = f"oubliette-{box.instance}:cancelled"
            nursery.start_soon(box.runtime.build_image, context, tag, lambda progress: None)
            await until_there(f"sleep\0{time}")
            nursery.cancel_scope.cancel("the test")
        await until_gone(f"sleep\0{time}")


REACH = """
import socket, sys
try:
    socket.create_connection(("{host}", {port}), timeout=2).close()
    print("reached")
except OSError as error:
    print("no:", error)
"""
SERVE = "import socket, time; s = socket.create_server(('0.0.0.0', 7777)); time.sleep(1000)"


async def test_containers_of_one_project_share_a_network_and_cannot_meet(box: Kit, api: EngineApi) -> None:
    network = f"oubliette-{box.instance}"
    bridge: dict[str, Any] = {"network": "bridge", "network_name": network, "labels": {LABEL_PREFIX + "project": "p"}}
    with trio.fail_after(SECONDS), socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(8)
        first = await box.run(["python3", "-c", SERVE], **bridge)
        second = await box.run(**bridge)
        (made,) = await networks(api, box)
        assert made["Name"] == network
        assert made["Options"]["com.docker.network.bridge.enable_icc"] == "false"
        assert made["Labels"][LABEL_PREFIX + "project"] == "p"
        seen = (await raw(api, first))["NetworkSettings"]
        address, gateway = (seen["Networks"][network][key] for key in ("IPAddress", "Gateway"))
        assert not any(seen["Ports"].values())
        assert await box.python(first, REACH.format(host=address, port=7777)) == "reached\n"
        assert (await box.python(second, REACH.format(host=address, port=7777))).startswith("no")
        assert await box.python(second, REACH.format(host=gateway, port=listener.getsockname()[1])) == "reached\n"
        await box.runtime.remove(first)
        assert len(await networks(api, box)) == 1
        await box.runtime.stop(second, 5)
        await box.runtime.start(second)
        await box.runtime.remove(second)
        assert await networks(api, box) == []


async def test_a_network_is_kept_for_a_container_that_has_not_started_yet(box: Kit, api: EngineApi) -> None:
    bridge: dict[str, Any] = {"network": "bridge", "network_name": f"oubliette-{box.instance}"}
    with trio.fail_after(SECONDS):
        first = await box.run(**bridge)
        second = await box.create(**bridge)
        await box.runtime.remove(first)
        assert len(await networks(api, box)) == 1
        await box.runtime.start(second)
        await box.runtime.remove(second)
        assert await networks(api, box) == []


async def test_a_network_of_somebody_else_is_neither_used_nor_removed(box: Kit, api: EngineApi) -> None:
    network = f"theirs-{box.instance}"
    await api.call("POST", "/networks/create", what="make one", body={"Name": network, "Driver": "bridge"})
    try:
        with trio.fail_after(SECONDS):
            name = await box.create(network="bridge", network_name=network)
            with pytest.raises(EngineError, match="has not made"):
                await box.runtime.start(name)
            await box.runtime.remove(name)
            await api.call("GET", f"/networks/{network}", what="it is still there")
    finally:
        with trio.CancelScope(shield=True):
            await api.call("DELETE", f"/networks/{network}", what="remove it")


async def test_starting_and_removing_in_one_network_at_once_strands_nothing(box: Kit, api: EngineApi) -> None:
    bridge: dict[str, Any] = {"network": "bridge", "network_name": f"oubliette-{box.instance}"}

    async def life() -> None:
        name = await box.run(**bridge)
        await box.runtime.remove(name)

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(life)
        assert await networks(api, box) == []
        assert await box.runtime.list(box.labels) == []


async def test_a_command_over_its_time_takes_along_what_left_its_session(box: Kit) -> None:
    away = marker()
    with trio.fail_after(SECONDS):
        name = await box.run()
        script = f"setsid nohup sh -c 'setsid sleep {away}' & sleep 1000"
        result = await box.runtime.exec(name, ["sh", "-c", script], timeout_seconds=0.5)
        assert result.timed_out
        assert not processes_with(away)


async def test_a_container_killed_from_outside_is_seen_as_ended(box: Kit, api: EngineApi) -> None:
    with trio.fail_after(SECONDS):
        name = await box.run()
        await api.call("POST", f"/containers/{name}/kill", what="kill")
        info = await box.ended(name)
        assert (info.state, info.exit_code) == ("exited", 137)


async def test_a_name_taken_by_a_stranger_is_refused(box: Kit, api: EngineApi) -> None:
    spec = box.spec()
    body = {"Image": BASE, "Cmd": ["true"]}
    await api.call("POST", "/containers/create", what="make", params={"name": spec.name}, body=body)
    try:
        with trio.fail_after(SECONDS), pytest.raises(EngineError, match="other labels") as refused:
            await box.runtime.create(spec)
        assert refused.value.code == "conflict"
    finally:
        with trio.CancelScope(shield=True):
            await box.runtime.remove(spec.name)


async def test_an_argument_that_cannot_be_run_is_an_error_of_start(box: Kit) -> None:
    with trio.fail_after(SECONDS):
        name = await box.create(["/no/such/program"])
        with pytest.raises(EngineError, match="no such file"):
            await box.runtime.start(name)


async def test_the_trial_without_an_image_reads_through_the_engine(
    box: Kit, api: EngineApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "DEFAULT_IMAGES", {})
    with trio.fail_after(SECONDS):
        before = await api.call("GET", "/images/json", what="list")
        report = await box.runtime.probe()
        assert report.ok, report.reason
        assert "by the engine" in report.details["mounts"]
        assert await api.call("GET", "/images/json", what="list") == before


@pytest.mark.parametrize("with_image", [True, False])
async def test_an_engine_that_mounts_something_else_fails_its_trial(
    box: Kit, monkeypatch: pytest.MonkeyPatch, with_image: bool
) -> None:
    elsewhere = box.directory("elsewhere", mode=0o777)
    (elsewhere / "file").write_text("another file")
    make = docker_probe._Trial.spec

    def astray(trial: docker_probe._Trial, image: str, argv: list[str]) -> Any:
        spec = make(trial, image, argv)
        return replace(spec, mounts=[replace(mount, source=elsewhere) for mount in spec.mounts])

    monkeypatch.setattr(docker_probe._Trial, "spec", astray)
    if not with_image:
        monkeypatch.setattr(images, "DEFAULT_IMAGES", {})
    with trio.fail_after(SECONDS):
        report = await box.runtime.probe()
    assert not report.ok
    assert "does not mount this host's directories" in report.reason
    assert report.hint


async def test_everything_works_over_tls_too(box: Kit, tmp_path: Path) -> None:
    path = EngineApi(os.environ).endpoint().socket_path
    assert path is not None
    text = os.urandom(300_000)
    with trio.fail_after(SECONDS):
        async with tls_in_front_of(Path(path), tmp_path) as environ:
            runtime = Docker(environ, scratch=tmp_path)
            spec = box.spec(SLEEPER)
            await runtime.create(spec)
            await runtime.start(spec.name)
            result = await runtime.exec(spec.name, ["wc", "-c"], stdin=text)
            assert result.stdout.strip() == b"300000"
            failed = await runtime.exec(spec.name, ["sh", "-c", "cat > /dev/null; exit 9"], stdin=text)
            assert failed.exit_code == 9
            assert (await runtime.exec(spec.name, ["sleep", "60"], timeout_seconds=0.3)).timed_out
            await runtime.remove(spec.name)


async def test_an_unknown_container_is_refused_with_its_status(api: EngineApi) -> None:
    with trio.fail_after(SECONDS), pytest.raises(EngineRefused) as refused:
        await api.call("GET", "/containers/nobody-here/json", what="look")
    assert refused.value.status == 404
