"""The first clone of a repository: the one time that git runs on the host, before any agent has touched the tree.

No configuration of the host's is read, no hook, template, submodule, filter or prompt of anybody's runs, redirects are
not followed, and the host is connected to at the address that was judged. A token goes to its host alone, through a
helper that can be asked once; it is in no argument, no variable and no file of the clone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from oubliette.config.server import Git
from oubliette.errors import RequestError, RuntimeUnavailable
from oubliette.project import files
from oubliette.project.remote import Remote, addresses_of
from oubliette.project.walk import Bounds
from oubliette.runtime.base import ExecResult
from oubliette.runtime.process import run

CLONE_SECONDS = 1800.0
LOOK_AT_SIZE_SECONDS = 5.0

_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
PASSED_ON = (*_PROXIES, "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "SSH_AUTH_SOCK")
"""The only variables of the daemon's environment that git sees: how to reach a host, and whom to believe."""


@dataclass(frozen=True, slots=True)
class GitCredential:
    """A token and the one host it is for."""

    host: str
    token: str = field(repr=False)
    username: str = "x-access-token"


async def clone(
    remote: Remote,
    target: Path,
    rules: Git,
    *,
    branch: str | None = None,
    credential: GitCredential | None = None,
    max_bytes: int,
    host_env: Mapping[str, str],
    timeout_seconds: float = CLONE_SECONDS,
) -> None:
    """Clone ``remote`` into ``target``, an empty directory of ours.

    ``host_env`` is the daemon's environment, of which PATH and PASSED_ON are used. Raises RequestError clone_failed
    (with what git said), timed_out or too_large; whatever lies in ``target`` then is the caller's to delete.
    """
    argv = [*_git(), "clone", "--quiet", "--template=", "--no-recurse-submodules", "--no-local"]
    if branch is not None:
        argv += ["--branch", branch]
    behind_proxy = remote.scheme == "https" and any(host_env.get(name) for name in _PROXIES)
    address = None
    if remote.host and not behind_proxy:
        address = (await addresses_of(remote, rules))[0]
    # Blocking, and quick: a private directory with at most one small file.
    scratch = Path(tempfile.mkdtemp(prefix="oubliette-clone-"))
    try:
        options = _reach(remote, address) + _helper(remote, credential, scratch)
        result = await _bounded(
            [argv[0], *options, *argv[1:], "--", remote.url, str(target)],
            _env(remote, host_env, scratch, address),
            scratch,
            target,
            max_bytes,
            timeout_seconds,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if result.exit_code != 0:
        raise RequestError("clone_failed", _said(result, credential), hint=_hint(result), retryable=True)


async def _bounded(
    argv: list[str], env: Mapping[str, str], cwd: Path, target: Path, max_bytes: int, timeout_seconds: float
) -> ExecResult:
    results: list[ExecResult] = []
    try:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    await trio.sleep(LOOK_AT_SIZE_SECONDS)
                    size = await trio.to_thread.run_sync(_size_of, target)
                    if size > max_bytes:
                        raise RequestError("too_large", f"The repository is larger than {max_bytes >> 20} MiB.")

            nursery.start_soon(watch)
            results.append(
                await run(argv, env=env, cwd=cwd, timeout_seconds=timeout_seconds, max_output_bytes=16 << 10)
            )
            nursery.cancel_scope.cancel("git has ended")
    except* RuntimeUnavailable as group:
        raise RequestError(
            "clone_failed", "git cannot be run on this host.", hint="Install git, for example: apt-get install git."
        ) from group
    except* RequestError as group:
        raise _only(group) from None
    if results[0].timed_out:
        raise RequestError("timed_out", f"The clone was not done after {timeout_seconds:g} s.", retryable=True)
    size = await trio.to_thread.run_sync(_size_of, target)
    if size > max_bytes:
        raise RequestError("too_large", f"The repository is larger than {max_bytes >> 20} MiB.")
    return results[0]


def _only(group: BaseExceptionGroup[RequestError]) -> RequestError:
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


def _size_of(target: Path) -> int:
    try:
        return files.measure(target, Bounds(seconds=10)).size_bytes
    except OSError:
        return 0  # git renames what it makes: the next look, or the last one, sees it


def _git() -> list[str]:
    options = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "core.symlinks": "true",
        "core.autocrlf": "false",
        "credential.helper": "",
        "credential.interactive": "false",
        "filter.lfs.smudge": "",
        "filter.lfs.process": "",
        "filter.lfs.required": "false",
        "gc.auto": "0",
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "60",
        "submodule.recurse": "false",
        "transfer.bundleURI": "false",
    }
    return ["git", *(part for name, value in options.items() for part in ("-c", f"{name}={value}"))]


def _reach(remote: Remote, address: str | None) -> list[str]:
    """Connect where the judged address is, whatever the name says a moment later (git 2.37 and newer heed it)."""
    if remote.scheme != "https" or address is None:
        return []
    shown = f"[{address}]" if ":" in address else address
    return ["-c", f"http.curloptResolve={remote.host}:{remote.port}:{shown}"]


def _helper(remote: Remote, credential: GitCredential | None, scratch: Path) -> list[str]:
    if credential is None or remote.scheme != "https" or credential.host.lower() != remote.host:
        return []
    secret = scratch / "credential"
    secret.touch(mode=0o600)
    secret.write_text(f"username={credential.username}\npassword={credential.token}\n")
    script = f'!f() {{ test "$1" = get && cat "{secret}" && rm -f "{secret}"; }}; f'
    port = "" if remote.port == 443 else f":{remote.port}"
    return ["-c", f"credential.https://{remote.host}{port}.helper={script}"]


def _env(remote: Remote, host_env: Mapping[str, str], scratch: Path, address: str | None) -> dict[str, str]:
    ssh = (
        "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=20"
        " -o ForwardAgent=no -o PermitLocalCommand=no -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
    )
    if address is not None and remote.scheme == "ssh":
        ssh += f" -o HostName={address} -o HostKeyAlias={remote.host}"
    protocols = {"https": "https", "ssh": "ssh", "file": "file"}[remote.scheme]
    return {
        "PATH": host_env.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": str(scratch),
        "XDG_CONFIG_HOME": str(scratch),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": protocols,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_SSH_COMMAND": ssh,
        **{name: host_env[name] for name in PASSED_ON if name in host_env},
    }


def _said(result: ExecResult, credential: GitCredential | None) -> str:
    text = result.stderr.decode("utf-8", "replace").strip() or f"git ended with {result.exit_code}"
    if credential is not None:
        text = text.replace(credential.token, "***")
    lines = [line for line in text.splitlines() if not line.startswith(("warning:", "Cloning into", "hint:"))]
    printable = "".join(char if char.isprintable() else " " for char in " ".join(lines[:4]))
    return f"The clone failed: {printable[:400]}"


_HINTS = (
    (r"could not read Username|Authentication failed|403|401", "Give a github_token, or credential_refs.github."),
    (r"Remote branch .* not found", "Leave branch out to get the repository's own default."),
    (r"not found|does not exist|404", "Check the address; a private repository needs a github_token."),
    (r"redirect", "The repository has moved: use its present address (some hosts want .git at its end)."),
    (r"Permission denied \(publickey|Host key verification", "Set up an ssh key for the daemon's user, or use https."),
)


def _hint(result: ExecResult) -> str:
    text = result.stderr.decode("utf-8", "replace")
    return next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")


def init_repository(root: Path, *, owner: int | None = None) -> None:
    """Make the empty directory ``root`` a repository on branch ``main``, as ``git init`` would: blocks.

    Written by hand, because a host needs no git for it, and no template or configuration of the host's gets in.
    """
    config = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n"
    for folder in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info"):
        (root / ".git" / folder).mkdir(parents=True, exist_ok=True)
    (root / ".git" / "config").write_text(config)
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    if owner is not None:
        files.give(root, owner)
