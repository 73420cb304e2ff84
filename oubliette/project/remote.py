"""Which repositories the daemon may fetch: the address is judged here, before anything is run.

https and ssh only, no password in the address, nothing that git would take for an option or a helper. Hosts must be
public unless the config says otherwise, and are connected to at the address that was judged.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import trio

from oubliette.config.server import Git
from oubliette.core.addresses import all_public
from oubliette.core.limits import MAX_URL_CHARACTERS
from oubliette.errors import RequestError

RESOLVE_SECONDS = 10

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PATH = re.compile(r"/[A-Za-z0-9._~/+@%!$&'()*,;=:-]+")
_BRANCH = re.compile(r"(?![-./])(?!.*(?:\.\.|//|@\{|\.lock(?:/|$)))[A-Za-z0-9._/+@#-]{1,200}(?<![./])")
_SCP_LIKE = re.compile(r"([a-z_][a-z0-9_-]*)@([^:/@\s]+):(?!/)(.+)")
_PORTS = {"https": 443, "ssh": 22}


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository that may be fetched. ``host`` is empty for one on this machine."""

    url: str
    scheme: str
    host: str
    port: int


def check_remote(url: str, rules: Git) -> Remote:
    """Parse and judge ``remote_url``, without asking any name server. Raises RequestError invalid_argument."""
    if not url or len(url) > MAX_URL_CHARACTERS or url.startswith("-") or not url.isprintable() or " " in url:
        raise _refused("It is empty, too long, or holds characters that no address has.")
    if rules.allow_local and url.startswith(("/", "file:///")):
        return Remote(str(Path(url.removeprefix("file://"))), "file", "", 0)
    scp = _SCP_LIKE.fullmatch(url)
    try:
        parts = urlsplit(f"ssh://{scp[1]}@{scp[2]}/{scp[3]}" if scp else url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise _refused("Its host or port is malformed.") from None
    if parts.scheme not in _PORTS:
        raise _refused("It must begin with https:// or ssh://.")
    host = _host_of(parts)
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise _refused("Its path is not one of a repository.")
    if rules.allowed_hosts and host not in {one.lower() for one in rules.allowed_hosts}:
        raise RequestError(
            "invalid_argument",
            f"Repositories may not be fetched from {host}.",
            field="remote_url",
            hint="The config's git.allowed_hosts lists the hosts.",
        )
    if not rules.allow_private_hosts and _is_private_name(host):
        raise _private(host)
    return Remote(url, parts.scheme, host, port)


def _host_of(parts: SplitResult) -> str:
    user, _, host_port = parts.netloc.rpartition("@")
    host = (parts.hostname or "").lower()
    if user and not (parts.scheme == "ssh" and _USER.fullmatch(user)):
        raise _refused("It holds a user name or password; use github_token or a credential instead.")
    bracketed = f"[{host}]" if host_port.startswith("[") else host
    if not _HOST.fullmatch(bracketed):
        raise _refused("Its host is malformed.")
    return host


def check_branch(branch: str) -> str:
    """A branch name that git takes and that is no option. Raises RequestError invalid_argument."""
    if not _BRANCH.fullmatch(branch):
        raise RequestError("invalid_argument", "This is not the name of a branch.", field="branch")
    return branch


async def addresses_of(remote: Remote, rules: Git) -> list[str]:
    """The addresses at which the host may be reached, in the resolver's order.

    Raises RequestError clone_failed (it has none, or the name server does not answer) and invalid_argument (not
    public).
    """
    try:
        with trio.fail_after(RESOLVE_SECONDS):
            found = await trio.socket.getaddrinfo(remote.host, remote.port, type=socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError, UnicodeError) as error:
        raise RequestError("clone_failed", f"The host {remote.host} has no address.", retryable=True) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not rules.allow_private_hosts and not all_public(addresses):
        raise _private(remote.host)
    return addresses


def _is_private_name(host: str) -> bool:
    """What can be told without a name server; odd spellings of addresses (127.1, 0x7f000001) are told by it."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not all_public([host])
    except ValueError:
        return False


def _private(host: str) -> RequestError:
    return RequestError(
        "invalid_argument",
        f"{host} is in a private network.",
        field="remote_url",
        hint="The config's git.allow_private_hosts allows such hosts.",
    )


def _refused(why: str) -> RequestError:
    return RequestError(
        "invalid_argument",
        f"The repository's address cannot be used. {why}",
        field="remote_url",
        hint="For example https://github.com/owner/name or git@github.com:owner/name.git.",
    )
