"""The ``config_limits`` tool: what a tree has left, or what a new one may use."""

from __future__ import annotations

from typing import Annotated

from oubliette.api.tools import tree_prose
from oubliette.api.tools.fields import Args, Doc, Id, Only
from oubliette.api.tools.gate import Target
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core.model import Json
from oubliette.core.shapes import TreeLimits
from oubliette.project.settings import effective_limits
from oubliette.session.limit_views import cost_today, limits_view, project_limits
from oubliette.store import projects
from oubliette.store.database import Tx


class Limits(Args):
    session_id: Annotated[Id | None, Doc("of a tree: any session of it"), Only("tokens")] = None
    project_id: Annotated[Id | None, Doc("of a project [the token's own]"), Only("tokens")] = None


async def limits(call: Call, args: Limits) -> Json:
    services = call.shared.services
    place = call.place

    def look(tx: Tx) -> Json:
        project = projects.get(tx, place.project_id) if place.project_id is not None else None
        own = effective_limits(services.config, project.settings if project is not None else {})
        if place.sessions:
            row = place.session
            # An agent asks how deep it may still go; a token how deep the tree is.
            at = row if call.principal.kind == "session" else None
            shape: Json = {"root_id": row.root_id, **limits_view(tx, row.root_id, at=at)}
        else:
            shape = project_limits(own)
        if project is not None:
            shape["project_id"] = project.project_id
            shape["cost_usd_today"] = cost_today(tx, services.config, project, services.now())
        return shape

    return await services.store.read(look)


TOOL = Tool(
    name="config_limits",
    doc="Limits and what is used of them: depth, agents, sessions at work, tokens, USD; of a tree, or for a new one.",
    results=[TreeLimits],
    actions=[Action("config_limits", "", Limits, limits, Target.SESSION_OR_LISTED, prose=tree_prose.limits)],
    destructive=False,
)
