"""The toolkit: everything of ours that a container needs inside, in one read-only folder of the home.

    <root>/<version>/bin/opencode        the agent, pinned
                     tools/rg            without it OpenCode's glob and grep tools want to download one
                     python/oubliette_relay/, python/oubliette_client/
                     plugin.js
                     seed/opencode/      OpenCode's own config folder (XDG_CONFIG_HOME is seed)
                     models.json         {}: no catalogue
                     toolkit.json        what this is

A new OpenCode, another platform or a changed file of ours is another version, beside the old one, which running
containers still use. A folder with its final name is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from oubliette.agent.toolkit_npm import Package, Report, extract, fetch
from oubliette.core.model import Json
from oubliette.errors import AgentError

log = structlog.get_logger(__name__)

OPENCODE_VERSION = "1.18.33"
LOCK_PAUSE_SECONDS = 0.1
PROGRAMS = ("bin/opencode", "tools/rg")
ABOUT = "toolkit.json"
_OURS = ("oubliette_relay", "oubliette_client")


def _opencode(name: str, integrity: str, size_bytes: int) -> Package:
    return Package(f"opencode-{name}", OPENCODE_VERSION, integrity, size_bytes, "package/bin/opencode")


def _ripgrep(name: str, integrity: str) -> Package:
    return Package(f"@vscode/ripgrep-{name}", "1.18.0", integrity, 2_400_000, "package/bin/rg")


_OPENCODE = {
    "linux-x64": _opencode(
        "linux-x64",
        "sha512-q/t/3p2CTxOT9y2kvjesb/LZab2+1eqlhhWA02Be6mjTtmYtNBcBsrI5yDo4Fw7ZSPBW2oyMIGMNRqiKQjiAWw==",
        60_275_143,
    ),
    "linux-x64-baseline": _opencode(
        "linux-x64-baseline",
        "sha512-1KQGBiiDDeL/VHHbHkOvvFo8Jr97WT5+C1tear+p7IcDTnXgVHXqIjU4O4jM4mHQzykTP2i884FCnW5LDa+zCA==",
        60_000_000,
    ),
    # Not measured by ourselves: a public list whose number for linux-x64 is ours. A wrong one refuses, never admits.
    "linux-arm64": _opencode("linux-arm64", "sha256-GW0MrxwFU/zRLvFf8UQ56n5rx6TofqUji8tXu+blS5M=", 60_060_899),
}
_RIPGREP = {
    "x64": _ripgrep(
        "linux-x64", "sha512-mQ3bVrUpnD2vs7QT0vX90Lt0cnUq467uFtEktIdsJJmW296RoSULRGqWgzG1AKxyBpNDD6l4ZO4qKf6SgyC23Q=="
    ),
    "arm64": _ripgrep(
        "linux-arm64", "sha512-lQ/5zTG++U0E3IhVgS4EPTTn/U4okncaRMM5GOFfOYZywS4nuD31GhkHbNYlDk5CuDC68+hYJ0/eQeyCKJDA+g=="
    ),
}


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A complete toolkit on this machine."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class Platform:
    """What containers of this machine run. They are always Linux, on a Mac too."""

    arch: str
    musl: bool = False
    baseline: bool = False
    """An x64 processor without AVX2."""

    @property
    def name(self) -> str:
        return f"linux-{self.arch}{'-baseline' if self.baseline else ''}{'-musl' if self.musl else ''}"


def this_platform() -> Platform:
    """Found out from the machine. Raises AgentError for a processor that OpenCode is not made for."""
    machine = platform.machine().lower()
    arch = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(machine)
    if arch is None:
        raise AgentError(f"There is no OpenCode for the processor {machine!r}.", code="unavailable")
    linux = platform.system() == "Linux"
    musl = linux and not list(Path("/").glob("lib*/ld-linux*")) and bool(list(Path("/lib").glob("ld-musl-*")))
    avx2 = linux and arch == "x64" and "avx2" in Path("/proc/cpuinfo").read_text(errors="replace").split()
    return Platform(arch, musl=musl, baseline=arch == "x64" and not avx2)


def packages_for(target: Platform) -> tuple[Package, Package]:
    """OpenCode and ripgrep for that platform. Raises AgentError when none is pinned."""
    opencode = _OPENCODE.get(target.name)
    if opencode is None:
        raise AgentError(
            f"No OpenCode {OPENCODE_VERSION} for {target.name} is pinned in this version of Oubliette.",
            hint=f"There are: {', '.join(_OPENCODE)}. With the docker runtime the image's libc counts, not the host's.",
            code="unavailable",
        )
    return opencode, _RIPGREP[target.arch]


async def ensure_toolkit(toolkit_root: Path, report: Report, *, target: Platform | None = None) -> Toolkit:
    """The toolkit of this version, made first when it is not there yet (60 MB by npm; ``report`` is told).

    Any number of callers, of several processes too, may call at once: one makes it, the others wait. Needs npm only
    when something has to be fetched. Raises AgentError; then nothing is left behind.
    """
    wanted = await trio.to_thread.run_sync(this_platform) if target is None else target
    packages = packages_for(wanted)
    files = await trio.to_thread.run_sync(_own_files)
    version = _version(wanted, packages, files)
    toolkit = Toolkit(toolkit_root / version, version)
    if await trio.to_thread.run_sync(toolkit.path.is_dir):
        return toolkit
    await trio.to_thread.run_sync(_make_folder, toolkit_root)
    async with _locked(toolkit_root / ".lock"):
        if not await trio.to_thread.run_sync(toolkit.path.is_dir):
            await _make(toolkit, packages, files, report)
    return toolkit


async def _make(
    toolkit: Toolkit, packages: tuple[Package, Package], files: Mapping[str, bytes], report: Report
) -> None:
    root = toolkit.path.parent
    await trio.to_thread.run_sync(_sweep, root)
    scratch = root / f".new-{secrets.token_hex(4)}"
    tree = scratch / toolkit.version
    try:
        await trio.to_thread.run_sync(_write_files, tree, files)
        programs: Json = {}
        for package, place in zip(packages, PROGRAMS, strict=True):
            digest = await trio.to_thread.run_sync(_reuse, root, package, place, tree / place)
            if digest is None:
                archive = await fetch(package, scratch=scratch, local=root / "packages", report=report)
                report(f"unpacking {package.spec}", 0, package.size_bytes)
                await trio.to_thread.run_sync(extract, archive, package, tree / place)
                digest = await trio.to_thread.run_sync(_digest, tree / place)
            programs[place] = {"package": package.spec, "integrity": package.integrity, "sha256": digest}
        about = {"version": toolkit.version, "opencode": OPENCODE_VERSION, "programs": programs}
        await trio.to_thread.run_sync(_write_files, tree, {ABOUT: json.dumps(about).encode()})
        await trio.to_thread.run_sync(_publish, tree, toolkit.path)
    except OSError as error:
        raise AgentError(f"make the toolkit {toolkit.path}: {error}") from error
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_sweep, root)
    report("toolkit ready", 1, 1)


def _reuse(root: Path, package: Package, place: str, target: Path) -> str | None:
    """Link the program out of another version that has the very same one: only our own files have changed then."""
    for about in root.glob(f"[!.]*/{ABOUT}"):
        try:
            known = json.loads(about.read_text())["programs"][place]
            same = known["package"] == package.spec and known["integrity"] == package.integrity
            if same and _digest(about.parent / place) == known["sha256"]:
                os.link(about.parent / place, target)
                return str(known["sha256"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.debug("toolkit not reusable", path=str(about.parent), error=str(error))
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgentError(f"make the toolkit folder {root}: {error}") from error


def _own_files() -> dict[str, bytes]:
    """What we put in ourselves, by path: small, so all of it is held in memory and hashed."""
    files = {
        "plugin.js": Path(__file__).with_name("plugin.js").read_bytes(),
        "models.json": b"{}\n",
        **{f"seed/opencode/{name}": data for name, data in _seed().items()},
    }
    for package in _OURS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise AgentError(f"The package {package} is not installed.", hint="Install oubliette again.")
        folder = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(folder.rglob("*.py")):
            files[f"python/{package}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return files


def _seed() -> dict[str, bytes]:
    """OpenCode installs ``@opencode-ai/plugin`` into its config folder (63 MB, 70 s without network) unless that is not
    writable or holds ``node_modules`` and a lock that names it. Our plugin imports nothing of it, so the names will do.
    Without ``.gitignore`` it tries to write one, and a read-only file system makes that a fatal error."""
    wanted = {"dependencies": {"@opencode-ai/plugin": OPENCODE_VERSION}}
    lock = {"name": "opencode", "lockfileVersion": 3, "requires": True, "packages": {"": wanted}}
    return {
        ".gitignore": b"node_modules\npackage.json\npackage-lock.json\nbun.lock\n.gitignore",
        "package.json": json.dumps(wanted).encode(),
        "package-lock.json": json.dumps(lock).encode(),
        "node_modules/.keep": b"",
    }


def _version(target: Platform, packages: tuple[Package, Package], files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for package in packages:
        digest.update(f"{package.spec} {package.integrity}\n".encode())
    for name, data in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return f"{OPENCODE_VERSION}-{target.name.removeprefix('linux-')}-{digest.hexdigest()[:10]}"


def _write_files(tree: Path, files: Mapping[str, bytes]) -> None:
    for program in PROGRAMS:
        (tree / program).parent.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _publish(tree: Path, final: Path) -> None:
    """Make it readable for any user inside and writable for none, then give it its name."""
    for path in tree.rglob("*"):
        program = path.relative_to(tree).as_posix() in PROGRAMS
        path.chmod(0o555 if path.is_dir() or program else 0o444)
    tree.rename(final)
    final.chmod(0o555)  # only now: an ordinary user cannot move a folder that he may not write


def _sweep(root: Path) -> None:
    """Remove what makers left, alive or dead; only under the lock."""
    for path in root.glob(".new-*"):
        _remove(path)


def _remove(tree: Path) -> None:
    for folder, _, _ in os.walk(tree):
        os.chmod(folder, 0o700)  # noqa: PTH101  os.walk gives strings
    shutil.rmtree(tree)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Alone on this machine. Asked for again and again: a thread that blocks in flock could not be cancelled."""
    with _open(path) as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await trio.sleep(LOCK_PAUSE_SECONDS)
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AgentError(f"lock the toolkit folder: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
