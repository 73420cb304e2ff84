"""Where a request comes from and whether it may come from there: addresses, Host and Origin."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from oubliette import clock
from oubliette.api.tools.fields import shown
from oubliette.config.server import Server
from oubliette.errors import RequestError

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
LOCAL: Final = "local"
"""The address of clients on the UNIX socket."""


class Headers:
    """The headers of an ASGI scope: lower-case names, all values kept."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one(self, name: str) -> str | None:
        values = self._values.get(name)
        return values[0] if values else None

    def __contains__(self, name: str) -> bool:
        return name in self._values


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end. ``direct``: no proxy in between; ``loopback``: on this machine."""

    address: str
    direct: bool
    loopback: bool


def request_id(headers: Headers) -> str:
    """The client's ``X-Request-ID`` when it is a plain id, else a new one."""
    given = headers.one("x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else clock.fresh_hex(20)


class Doorkeeper:
    """Checks what a browser or a proxy says about a request, by the config's ``server`` section."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._hosts = {_host(name) for name in (*server.allowed_hosts, server.host)} - {""}
        self._any_host = "*" in server.allowed_hosts
        if not server.loopback:
            self._hosts.add(socket.gethostname().lower())
        self._origins = {origin.lower().rstrip("/") for origin in server.allowed_origins}
        self._proxies = [ipaddress.ip_network(one, strict=False) for one in server.trusted_proxies]

    def peer(self, scope: Mapping[str, Any], headers: Headers) -> Peer:
        """The client's address; behind a trusted proxy the one that it reports."""
        client: Sequence[Any] | None = scope.get("client")
        direct = not any(name in headers for name in _FORWARDING)
        if not client:
            return Peer(LOCAL, direct, loopback=True)
        address = str(client[0])
        if self._trusted(address):
            for hop in reversed([hop.strip() for line in headers.all("x-forwarded-for") for hop in line.split(",")]):
                if _ip(hop) is None:
                    break
                address = hop
                if not self._trusted(hop):
                    break
        ip = _ip(address)
        return Peer(address, direct, loopback=ip is not None and ip.is_loopback)

    def _trusted(self, address: str) -> bool:
        ip = _ip(address)
        return ip is not None and any(ip in network for network in self._proxies)

    def check(self, headers: Headers, peer: Peer) -> None:
        """Refuse names that are not ours (DNS rebinding) and pages of other sites. Raises RequestError."""
        named = headers.one("host")
        if peer.address != LOCAL and not self._known_host(named):
            raise RequestError(
                "permission_denied",
                f"The Host {shown(named or '')} is not a name of this daemon.",
                hint="Add it to server.allowed_hosts in the config.",
            )
        origin = headers.one("origin")
        if origin is not None and not self.same_site(origin, named) and not self.allowed_origin(origin):
            raise RequestError(
                "permission_denied",
                f"Pages of the origin {shown(origin)} may not call this daemon.",
                hint="Add it to server.allowed_origins in the config.",
            )

    def _known_host(self, named: str | None) -> bool:
        if named is None:
            return False
        host = _host(named)
        ip = _ip(host)
        if host == "localhost" or (ip is not None and (ip.is_loopback or not self._server.loopback)):
            return True
        return self._any_host or host in self._hosts

    def same_site(self, origin: str, named: str | None) -> bool:
        """A page that this daemon served itself."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and named is not None and parts.netloc.lower() == named.lower()

    def allowed_origin(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower().rstrip("/") in self._origins


def _host(named: str) -> str:
    """The name in a Host header or config entry, without its port, lower-case."""
    try:
        return (urlsplit(f"//{named}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
