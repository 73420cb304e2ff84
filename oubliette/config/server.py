"""The doors of the daemon: sections ``server``, ``git``, ``webhooks``, ``log``, ``retention``, ``telemetry``."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, SecretStr, field_validator, model_validator

from oubliette.config.section import Count, FilePath, Positive, Section, Url
from oubliette.config.values import (
    Size,
    check_address,
    check_project_id,
    check_receiver,
    check_signing_secret,
    split_address,
)
from oubliette.core.limits import RUNS_PER_SCHEDULE
from oubliette.core.notices import NoticeType


class RateLimit(Section):
    """How many calls one token may make. The admin token on loopback is exempt."""

    per_second: Positive = 100
    """Calls per second, sustained."""
    burst: Count = 200
    """Calls at once on top of that."""


class Tls(Section):
    """Serve https. Both files are PEM; the daemon reads them when it starts."""

    cert: FilePath
    """The certificate with its chain."""
    key: FilePath
    """Its private key."""


class Server(Section):
    """The doors."""

    address: Annotated[str, AfterValidator(check_address)] = "127.0.0.1:8080"
    """Where to listen, as `host:port`; port 0 takes a free one. `:8080` means every interface, with a warning."""
    allowed_hosts: list[str] = []
    """`Host` headers to accept besides the listening address and the loopback names."""
    allowed_origins: list[str] = []
    """`Origin` headers to accept besides the daemon's own, e.g. `https://tools.example.org`."""
    trusted_proxies: list[str] = []
    """Addresses or networks whose `X-Forwarded-*` headers are believed."""
    tls: Tls | None = None
    """Serve https instead of http."""
    unix_socket: FilePath | None = None
    """Listen on this UNIX socket too."""
    rate_limit: RateLimit = RateLimit()
    max_body_bytes: Size = 32 << 20
    """The largest request body."""
    elicitation: Literal["auto", "on", "off"] = "auto"
    """Whether a client that can ask its human is asked when an agent asks: `auto` does so during `session wait`."""

    @property
    def host(self) -> str:
        """The host to bind; ``0.0.0.0`` when the address names none."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        return split_address(self.address)[1]

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the daemon."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: list[str]) -> list[str]:
        for item in value:
            ipaddress.ip_network(item, strict=False)
        return value


class Retention(Section):
    """How long history is kept."""

    sessions_days: Count | None = None
    """Days after its end that a session with its events is deleted; without it never."""
    audit_days: Count = 90
    """Days that the audit log is kept."""
    runs_per_schedule: Count = RUNS_PER_SCHEDULE
    """Runs of a schedule that are kept, besides those that are open."""


class Webhook(Section):
    """A receiver of notices. They are signed as in Standard Webhooks and carry no text of the agent."""

    url: Annotated[str, AfterValidator(check_receiver)]
    """Where they are sent: https, at a public address, unless `allow_private` is set."""
    secret: Annotated[SecretStr, AfterValidator(check_signing_secret)]
    """Signs each notice: `whsec_` and 24 to 64 random bytes in base64."""
    types: list[NoticeType] = []
    """Which notices; none means all."""
    projects: list[Annotated[str, AfterValidator(check_project_id)]] = []
    """Only of the projects with these ids; none means all."""
    allow_private: bool = False
    """Also an address in a private network or of this machine, and plain http."""

    @model_validator(mode="after")
    def _check_encrypted(self) -> Self:
        if not self.allow_private and not self.url.startswith("https://"):
            raise ValueError('"url" must begin with "https://", unless "allow_private" is set')
        return self


class Git(Section):
    """Where projects may be cloned from."""

    allowed_hosts: list[str] = []
    """Only these hosts; none means every public one."""
    allow_private_hosts: bool = False
    """Also hosts in private networks."""
    allow_local: bool = False
    """Also repositories on this machine, by path. For tests and single users."""


class Log(Section):
    """The daemon's own log, on stderr and in `data/logs`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Prompts and outputs appear at `debug` alone."""
    format: Literal["auto", "json", "console"] = "auto"
    """On stderr: JSON lines or for people; `auto` looks whether it is a terminal. Files are always JSON lines."""


class Telemetry(Section):
    """Traces by OpenTelemetry."""

    endpoint: Url | None = None
    """An OTLP/HTTP receiver; without it nothing is sent."""
    headers: dict[str, SecretStr] = {}
