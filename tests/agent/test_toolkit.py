"""The toolkit made with a fake npm: pinned, atomic, shared by many callers, read-only."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import trio

from oubliette.agent import toolkit, toolkit_npm
from oubliette.agent.toolkit import OPENCODE_VERSION, Platform, Toolkit, ensure_toolkit, packages_for
from oubliette.agent.toolkit_npm import Package
from oubliette.errors import AgentError

TARGET = Platform("x64")
NPM = """#!{python}
import os, shutil, sys, time
assert sys.argv[1] == "pack" and "--ignore-scripts" in sys.argv
name, _, version = sys.argv[2].rpartition("@")
file = name.removeprefix("@").replace("/", "-") + "-" + version + ".tgz"
into = sys.argv[sys.argv.index("--pack-destination") + 1]
with open(os.environ["NPM_LOG"], "a") as log:
    log.write(file + "\\n")
time.sleep(float(os.environ.get("NPM_SECONDS", "0")))
source = os.path.join(os.environ["NPM_FILES"], file)
if not os.path.exists(source):
    print("npm error code E404\\nnpm error 404 Not Found - " + sys.argv[2], file=sys.stderr)
    sys.exit(1)
shutil.copy(source, into)
"""


class Registry:
    """Packages made here, a fake npm on PATH that gives them out, and the pins that belong to them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = root / "registry"
        self.files.mkdir()
        self.log = root / "npm.log"
        self._monkeypatch = monkeypatch
        bin_folder = root / "bin"
        bin_folder.mkdir()
        npm = bin_folder / "npm"
        npm.write_text(NPM.format(python=sys.executable))
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", str(bin_folder))
        monkeypatch.setenv("NPM_LOG", str(self.log))
        monkeypatch.setenv("NPM_FILES", str(self.files))
        self.publish("opencode-linux-x64", "1", "package/bin/opencode", b"#!opencode", toolkit._OPENCODE, "linux-x64")
        self.publish("@vscode/ripgrep-linux-x64", "2", "package/bin/rg", b"#!rg", toolkit._RIPGREP, "x64")

    def publish(
        self, name: str, version: str, member: str, data: bytes, table: dict[str, Package], key: str, pin: bytes = b""
    ) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for entry, content in (("package/evil.sh", b"x"), (member, data)):
                about = tarfile.TarInfo(entry)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
        raw = archive.getvalue()
        digest = base64.b64encode(hashlib.sha512(pin or raw).digest()).decode()
        package = Package(name, version, f"sha512-{digest}", len(raw), member)
        (self.files / package.file_name).write_bytes(raw)
        self._monkeypatch.setitem(table, key, package)

    def fetched(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(tmp_path, monkeypatch)


def quiet(_what: str, _done: int, _total: int) -> None:
    return None


async def make(root: Path) -> Toolkit:
    with trio.fail_after(20):
        return await ensure_toolkit(root, quiet, target=TARGET)


def tree(path: Path) -> dict[str, str]:
    """Every path below with its mode."""
    return {found.relative_to(path).as_posix(): f"{stat.S_IMODE(found.stat().st_mode):o}" for found in path.rglob("*")}


async def test_it_holds_everything_and_nobody_may_write(registry: Registry, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    kit = await ensure_toolkit(tmp_path / "kits", lambda *one: told.append(one), target=TARGET)
    found = tree(kit.path)
    assert found["bin/opencode"] == found["tools/rg"] == "555"
    for name in ("plugin.js", "models.json", "toolkit.json", "python/oubliette_relay/__main__.py",
                 "python/oubliette_client/__init__.py", "seed/opencode/.gitignore", "seed/opencode/package.json",
                 "seed/opencode/package-lock.json"):  # fmt: skip
        assert found[name] == "444", name
    assert found["seed/opencode/node_modules"] == "555"
    assert not any(int(mode, 8) & 0o222 for mode in found.values())
    assert "evil.sh" not in str(found)
    assert (kit.path / "models.json").read_text() == "{}\n"
    assert told[-1] == ("toolkit ready", 1, 1)
    assert all(0 <= done <= total for _, done, total in told)
    assert sorted(path.name for path in (tmp_path / "kits").iterdir()) == [".lock", kit.version]


async def test_a_complete_one_needs_no_npm(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await make(tmp_path / "kits")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert await make(tmp_path / "kits") == first
    assert len(registry.fetched()) == 2


async def test_twenty_callers_make_one(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_SECONDS", "0.2")
    found: list[Toolkit] = []

    async def one() -> None:
        found.append(await make(tmp_path / "kits"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert len(set(found)) == 1
    assert len(registry.fetched()) == 2


async def test_a_change_of_our_own_files_is_a_new_version_without_a_new_download(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make(tmp_path / "kits")
    monkeypatch.setattr(toolkit, "_seed", lambda: {".gitignore": b"changed"})
    second = await make(tmp_path / "kits")
    assert second.version != first.version
    assert first.path.is_dir()
    assert (second.path / "bin/opencode").read_bytes() == b"#!opencode"
    assert len(registry.fetched()) == 2


async def test_a_program_that_was_changed_is_not_taken_over(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make(tmp_path / "kits")
    program = first.path / "bin/opencode"
    program.chmod(0o755)
    program.write_bytes(b"#!changed!")
    monkeypatch.setattr(toolkit, "_seed", dict)
    second = await make(tmp_path / "kits")
    assert (second.path / "bin/opencode").read_bytes() == b"#!opencode"
    assert len(registry.fetched()) == 3


async def test_a_package_that_is_not_the_pinned_one_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.publish(
        "opencode-linux-x64", "1", "package/bin/opencode", b"evil", toolkit._OPENCODE, "linux-x64", b"good"
    )
    with pytest.raises(AgentError, match="not the package that was pinned") as caught:
        await make(tmp_path / "kits")
    assert "sha512-" in caught.value.hint
    assert [path.name for path in (tmp_path / "kits").iterdir()] == [".lock"]


async def test_without_npm_the_command_to_run_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(AgentError, match="no npm on PATH") as caught:
        await make(tmp_path / "kits")
    assert "npm pack opencode-linux-x64@1" in caught.value.hint
    assert caught.value.code == "not_ready"
    local = tmp_path / "kits/packages"
    local.mkdir()
    for archive in registry.files.iterdir():
        (local / archive.name).write_bytes(archive.read_bytes())
    assert (await make(tmp_path / "kits")).path.is_dir()


async def test_an_error_of_npm_is_told(registry: Registry, tmp_path: Path) -> None:
    for archive in registry.files.iterdir():
        archive.unlink()
    with pytest.raises(AgentError, match="404 Not Found - opencode-linux-x64@1") as caught:
        await make(tmp_path / "kits")
    assert caught.value.retryable


async def test_a_cancelled_fetch_leaves_nothing_and_no_npm(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_SECONDS", "600")
    with trio.move_on_after(1) as scope:
        await ensure_toolkit(tmp_path / "kits", quiet, target=TARGET)
    assert scope.cancelled_caught
    assert [path.name for path in (tmp_path / "kits").iterdir()] == [".lock"]
    assert not _running(str(tmp_path))


def _running(text: str) -> list[str]:
    """Processes with that text in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if f"NPM_LOG={text}".encode() in (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


async def test_what_a_dead_maker_left_is_swept(registry: Registry, tmp_path: Path) -> None:
    left = tmp_path / "kits/.new-dead/x"
    left.mkdir(parents=True)
    (left / "bin").write_text("half")
    left.chmod(0o555)
    kit = await make(tmp_path / "kits")
    assert sorted(path.name for path in (tmp_path / "kits").iterdir()) == [".lock", kit.version]


def test_an_archive_with_a_link_in_place_of_the_program_is_refused(tmp_path: Path) -> None:
    package = Package("x", "1", "sha512-", 1, "package/bin/opencode")
    archive = tmp_path / "x.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        about = tarfile.TarInfo(package.member)
        about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(about)
    with pytest.raises(AgentError, match="not a plain file"):
        toolkit_npm.extract(archive, package, tmp_path / "out")
    archive.write_bytes(b"not an archive")
    with pytest.raises(AgentError):
        toolkit_npm.extract(archive, package, tmp_path / "out")


def test_platforms_without_a_pin_are_said() -> None:
    assert packages_for(Platform("x64", baseline=True))[0].name == "opencode-linux-x64-baseline"
    assert packages_for(Platform("arm64"))[1].name == "@vscode/ripgrep-linux-arm64"
    with pytest.raises(AgentError, match="linux-x64-musl"):
        packages_for(Platform("x64", musl=True))


@pytest.mark.agent
@pytest.mark.parametrize(("program", "expected"), [("bin/opencode", OPENCODE_VERSION), ("tools/rg", "ripgrep")])
def test_the_real_programs_run_for_a_user_who_owns_nothing(toolkit: Toolkit, program: str, expected: str) -> None:
    other = {"user": 10001, "group": 10001, "extra_groups": ()} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as home, (toolkit.path / program).open("rb") as file:
        Path(home).chmod(0o777)
        found = subprocess.run(
            [f"/proc/self/fd/{file.fileno()}", "--version"],  # the cache may lie where that user cannot look
            env={"HOME": home, "PATH": "/usr/bin:/bin"},
            cwd="/",
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            **other,  # type: ignore[call-overload]
        )
    assert expected in found.stdout
