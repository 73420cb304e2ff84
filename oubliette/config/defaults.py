"""What holds unless somebody says otherwise: sections ``defaults`` and ``containers``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from oubliette.config.section import Count, FilePath, Name, NotNegative, Positive, Section, Url
from oubliette.config.values import Size
from oubliette.core.model import Autonomy, Reasoning


class Limits(Section):
    """Limits of a tree of sessions, unless the project has its own."""

    max_recursion_depth: Annotated[int, Field(ge=0)] = 3
    """How deep agents may spawn agents."""
    max_agents_per_session: Count = 50
    """Sessions in one tree, the root included."""
    max_cost_usd: NotNegative = 10
    """USD for one tree (per run in a session that a schedule pins). Over it the tree is paused until raised."""
    max_cost_usd_per_day: NotNegative = 50
    """USD for one project and day (UTC)."""
    max_tokens_per_session: Count | None = None
    """Tokens for one tree, read and written."""
    max_active_sessions: Count = 10
    """Sessions of one tree at work at once; a spawn over it, or a message that wakes one, is refused, never queued."""
    turn_timeout_minutes: Positive = 60
    """A turn's time. The clock stands still while the session waits or is paused."""
    hibernate_minutes: Positive = 30
    """After this long without work a container is stopped; the next message wakes it."""


class McpServer(Section):
    """An MCP server that agents may use: `remote` by URL, or `local`, a command run in the container."""

    type: Literal["remote", "local"]
    """`remote` speaks HTTP, `local` stdio."""
    url: Url | None = None
    """Of a remote one."""
    headers: dict[str, SecretStr] = {}
    """Sent to a remote one."""
    command: list[str] = []
    """Program and arguments of a local one."""
    environment: dict[str, SecretStr] = {}
    """Set for a local one."""
    enabled: bool = True
    timeout_ms: Count | None = None
    """How long a silent call may take; the agent's own default is 60,000."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        wanted, other = ("url", self.command) if self.type == "remote" else ("command", self.url)
        if not getattr(self, wanted) or other:
            raise ValueError(f'a {self.type} server needs "{wanted}" and nothing of the other kind')
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain values, secrets revealed: only for the agent's own configuration."""
        plain = self.model_dump(exclude_defaults=True) | {"type": self.type, "enabled": self.enabled}
        for key in ("headers", "environment"):
            if key in plain:
                plain[key] = {name: secret.get_secret_value() for name, secret in getattr(self, key).items()}
        return plain


class AgentDefaults(Section):
    """How agents work, unless the project, the spawn or the message says otherwise."""

    model: str | None = None
    """An alias; comes before `models.defaults.session_model`."""
    autonomy: Annotated[Autonomy, Field(strict=False)] = Autonomy.OFF
    """How much an agent asks: `off` asks nothing inside the sandbox; `high`, `medium`, `low` ask more and more."""
    reasoning: Annotated[Reasoning, Field(strict=False)] = Reasoning.MEDIUM
    """How much the model thinks before it answers: `off`, `low`, `medium`, `high`, `max`."""
    mcp_servers: dict[Name, McpServer] = {}
    """MCP servers of every project, by name."""
    ask_timeout_minutes: Positive = 10
    """How long an ask waits for an answer."""
    ask_on_expiry: Literal["reject", "pause"] = "reject"
    """What happens then: the ask is rejected and the agent goes on, or the session is paused."""
    caller_tool_timeout_seconds: Positive = 60
    """How long a call of a caller's tool waits for its result."""


class ContainerDefaults(Section):
    """What a sandbox may use, unless the project says otherwise."""

    type: str = "base"
    """A key of `containers`: which image. Bubblewrap shows the host's own /usr instead."""
    memory: Size = 4 << 30
    """Memory, e.g. `"4g"`."""
    cpus: Positive = 4
    """Processors, fractions allowed."""
    pids: Count = 1024
    """Processes and threads."""
    disk: Size = 20 << 30
    """Disk, e.g. `"20g"`. Copies of workspaces are held to it; containers are not yet."""
    network: Literal["none", "bridge"] | None = None
    """`none`: no network but the model gateway. Without it the runtime's default: `bridge`, under bubblewrap `none`."""

    @property
    def memory_bytes(self) -> int:
        return self.memory

    @property
    def disk_bytes(self) -> int:
        return self.disk


class ProjectDefaults(Section):
    """New projects."""

    template: FilePath | None = None
    """A directory whose files every new project without `remote_url` begins with."""


class BackupDefaults(Section):
    """Regular copies of the database and the projects."""

    enabled: bool = False
    directory: FilePath | None = None
    """Where to put them; without it `data/backups` in the home."""
    retention: Count = 7
    """How many to keep."""
    interval_hours: Positive = 24
    """How often."""


class Defaults(Section):
    """What holds unless somebody says otherwise."""

    limits: Limits = Limits()
    agent: AgentDefaults = AgentDefaults()
    container: ContainerDefaults = ContainerDefaults()
    project: ProjectDefaults = ProjectDefaults()
    backup: BackupDefaults = BackupDefaults()


class ContainerType(Section):
    """What a container type is. A plain string is its image."""

    image: Annotated[str, Field(min_length=1)]
    """The image to run. Any with python3 and git will do; the agent is mounted."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"image": value} if isinstance(value, str) else value
