"""Where a Docker Engine is, and which version of its API is spoken. No I/O but reading certificates."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from oubliette.errors import RuntimeUnavailable

OLDEST_API = (1, 41)
"""Docker Engine 20.10."""
NEWEST_API = (1, 51)
"""The newest version whose changes were read; an engine that knows more is spoken to at this one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens: a unix socket, or TCP with TLS."""

    base_url: str
    socket_path: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket_path}" if self.socket_path else self.base_url


def endpoint_from(environ: Mapping[str, str]) -> Endpoint:
    """The engine that ``environ`` (the daemon's own) names, as the docker command finds it. Raises RuntimeUnavailable;
    plain TCP is refused, because whoever reaches that port is root on the host."""
    asked = environ.get("DOCKER_HOST", "").strip()
    if not asked:
        places = ["/var/run/docker.sock"]
        if runtime_dir := environ.get("XDG_RUNTIME_DIR"):
            places.append(f"{runtime_dir}/docker.sock")
        if home := environ.get("HOME"):
            places.append(f"{home}/.docker/run/docker.sock")
        found = next((place for place in places if Path(place).is_socket()), places[0])
        return Endpoint("http://docker", socket_path=found)
    url = urlsplit(asked)
    if url.scheme == "unix" and url.path:
        return Endpoint("http://docker", socket_path=url.path)
    if url.scheme in ("tcp", "https") and url.hostname:
        if url.scheme == "tcp" and not environ.get("DOCKER_TLS_VERIFY"):
            raise RuntimeUnavailable(
                f"DOCKER_HOST={asked} would be spoken to without TLS.",
                hint="Use a unix socket, or set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH.",
            )
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        return Endpoint(f"https://{host}:{url.port or 2376}", tls=_tls(environ))
    raise RuntimeUnavailable(
        f"DOCKER_HOST={asked} is not understood.", hint="Use unix:///path, or tcp://host:port with TLS."
    )


def _tls(environ: Mapping[str, str]) -> ssl.SSLContext:
    directory = Path(environ.get("DOCKER_CERT_PATH") or Path(environ.get("HOME", "/")) / ".docker")
    try:
        context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    except OSError as error:  # ssl.SSLError is one
        raise RuntimeUnavailable(
            f"The certificates of DOCKER_HOST cannot be read from {directory}: {error}",
            hint="DOCKER_CERT_PATH must hold ca.pem, cert.pem and key.pem.",
        ) from error
    return context


def negotiated(newest: str, oldest: str) -> str:
    """The version to speak with an engine that knows ``oldest`` to ``newest``. Raises RuntimeUnavailable."""
    theirs = _number(newest)
    if theirs < OLDEST_API:
        raise RuntimeUnavailable(
            f"The engine speaks API {newest}; {_spelled(OLDEST_API)} is needed.", hint="Install Docker Engine 20.10."
        )
    if oldest and _number(oldest) > NEWEST_API:
        raise RuntimeUnavailable(
            f"The engine speaks no API older than {oldest}; this Oubliette knows {_spelled(NEWEST_API)} at most.",
            hint="Upgrade Oubliette.",
        )
    return _spelled(min(theirs, NEWEST_API))


def _number(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    try:
        return int(major), int(minor)
    except ValueError:
        raise RuntimeUnavailable(f"The engine names its API version {version!r}.") from None


def _spelled(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
