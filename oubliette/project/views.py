"""What callers see of projects and workspaces (SHAPES): secrets masked, host paths for admins only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from oubliette.config import Config
from oubliette.core import access
from oubliette.core.model import ContainerRow, Json, ProjectRow, WorkspaceRow, rfc3339
from oubliette.core.principals import Principal
from oubliette.home import Home
from oubliette.project import grants
from oubliette.project.settings import effective_limits, masked_servers
from oubliette.store import containers, model_requests, projects, workspaces
from oubliette.store.database import Tx

DescribeContainer = Callable[[ContainerRow], Json]


def describe_row(row: ContainerRow) -> Json:
    """SHAPES' Container as far as its row knows it; the container room knows more while it runs."""
    return _present(
        container_id=row.container_id,
        project_id=row.project_id,
        workspace_id=row.workspace_id,
        runtime=row.runtime,
        image=row.image,
        state=row.state.value,
        since=rfc3339(row.since),
        error=row.error,
    )


@dataclass(frozen=True, slots=True)
class Views:
    """Turns rows into shapes; each function reads what else it needs in the same transaction."""

    config: Config
    home: Home
    now: Callable[[], datetime]
    describe_container: DescribeContainer = describe_row

    def project(self, tx: Tx, row: ProjectRow, principal: Principal) -> Json:
        """SHAPES' Project."""
        settings, defaults = row.settings, self.config.defaults
        live = containers.of_project(tx, row.project_id)
        midnight = self.now().replace(hour=0, minute=0, second=0, microsecond=0)
        refs: Json = settings.get("credential_refs") or {}
        path = str(self.home.workspaces_dir(row.project_id)) if access.may_ever(principal, "results.paths") else None
        return _present(
            project_id=row.project_id,
            name=row.name,
            description=row.description,
            state=row.state.value,
            error=row.error,
            created_at=rfc3339(row.created_at),
            updated_at=rfc3339(row.updated_at),
            created_by=row.created_by,
            remote_url=row.remote_url,
            branch=row.branch,
            default_workspace_id=row.default_workspace_id,
            path=path,
            model=settings.get("model") or self.config.default_model(),
            allowed_models=settings.get("allowed_models"),
            autonomy=settings.get("autonomy") or defaults.agent.autonomy.value,
            reasoning=settings.get("reasoning") or defaults.agent.reasoning.value,
            container_type=settings.get("container_type") or defaults.container.type,
            image=live[0].image if live else None,
            network=settings.get("network") or defaults.container.network,
            runtime=live[0].runtime if live else None,
            workspace_isolation=settings.get("workspace_isolation", True),
            protected_paths=settings.get("protected_paths", []),
            disabled_tools=settings.get("disabled_tools", []),
            permissions=settings.get("permissions", {}),
            mcp_servers=masked_servers(settings),
            credentials=_present(
                provider=refs.get("provider"),
                github=refs.get("github"),
                github_token_set=bool(settings.get("github_token")),
            ),
            agent_scope=settings.get("agent_scope", "none") if grants.of_project(tx, row, self.now()) else "none",
            limits=effective_limits(self.config, settings),
            usage=model_requests.project_usage(tx, row.project_id).as_json(),
            usage_today=model_requests.project_usage(tx, row.project_id, midnight).as_json(),
            counts=projects.counts(tx, row.project_id),
            containers=[self.describe_container(one) for one in live],
        )

    def workspace(self, tx: Tx, row: WorkspaceRow, principal: Principal, *, isolated: bool = True) -> Json:
        """SHAPES' Workspace, without what takes a look into the tree (``git``, ``size_bytes``)."""
        container = containers.for_place(tx, row.project_id, row.workspace_id if isolated else None)
        path = None
        if access.may_ever(principal, "results.paths"):
            path = str(self.home.workspace_dir(row.project_id, row.workspace_id))
        return _present(
            workspace_id=row.workspace_id,
            project_id=row.project_id,
            default=row.default,
            state=row.state.value,
            path=path,
            created_at=rfc3339(row.created_at),
            last_session_at=rfc3339(row.last_session_at) if row.last_session_at else None,
            external_id=row.external_id,
            source=row.source,
            forked_from=row.forked_from,
            open_sessions=workspaces.open_sessions(tx, row.workspace_id),
            container=self.describe_container(container) if container else None,
            error=row.error,
        )


def _present(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
