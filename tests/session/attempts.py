"""What a child or a prompt-injected parent may try to get more than it has; each is refused, and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oubliette.core.model import Autonomy
from tests.api.agent_world import FOREIGN_WORKSPACE, OTHER_WORKSPACE
from tests.api.world import OTHER_PROJECT
from tests.session.world import PROJECT, WORKSPACE

HAS: dict[str, Any] = {
    "autonomy": Autonomy.MEDIUM,
    "tools_allowed": ["read", "edit", "webfetch", "oubliette_*"],
    "tools_disallowed": ["webfetch"],
    "timeout_minutes": 10,
}
"""What the caller of the attempts was given."""


@dataclass(frozen=True)
class Attempt:
    what: str
    tool: str
    arguments: Mapping[str, Any]
    code: str
    says: str = ""
    by_child: bool = False
    by_asker: bool = False
    """A child that waits for the answer to an ask."""


def spawn(what: str, code: str = "permission_denied", says: str = "", **arguments: Any) -> Attempt:
    return Attempt(what, "session", {"action": "spawn", "message": "say hi", **arguments}, code, says)


def act(
    what: str,
    action: str,
    code: str = "not_found",
    says: str = "",
    *,
    by_child: bool = False,
    by_asker: bool = False,
    **more: Any,
) -> Attempt:
    return Attempt(what, "session", {"action": action, **more}, code, says, by_child, by_asker)


ATTEMPTS = [
    spawn("autonomy that asks nothing", says="autonomy", autonomy_level="off"),
    spawn("autonomy that asks less", says="medium", autonomy_level="high"),
    spawn("a tool that the caller lacks", says="bash", tools_allowed=["read", "bash"]),
    spawn("all tools", says="'*'", tools_allowed=["*"]),
    spawn("a glob that is wider", says="r*", tools_allowed=["r*"]),
    spawn("a tool that the caller was denied", says="webfetch", tools_allowed=["webfetch"]),
    spawn("more time than is left", says="minutes left", timeout_minutes=60),
    spawn("a budget of its own", says="max_cost_usd", max_cost_usd=100),
    spawn("a model that the project does not allow", says="scripted-openai", model="scripted-openai"),
    spawn("a model that does not exist", "invalid_argument", "gpt-9", model="gpt-9"),
    spawn("another project", says="project_id", project_id=OTHER_PROJECT),
    spawn("another workspace", "not_found", "workspace", workspace_id=OTHER_WORKSPACE),
    spawn("another project's workspace", "not_found", "workspace", workspace_id=FOREIGN_WORKSPACE),
    spawn("a workspace out of nothing", says="create_workspace", create_workspace=True),
    spawn("a fetch by url", says="attachments", attachments=[{"filename": "x", "url": "http://169.254.169.254/"}]),
    spawn("somebody's external id", says="external_id", external_id="ticket-41"),
    spawn("to resume a session of others", says="new_session", new_session=False),
    spawn("a parent of its choice", "invalid_argument", "parent_id", parent_id="{stranger}"),
    spawn("tools of a caller", "permission_denied", "caller_tools", caller_tools=[{"name": "x"}]),
    act("to read a stranger", "get", session_id="{stranger}"),
    act("to read one of another project", "get", session_id="{foreign}"),
    act("to read what does not exist", "get", session_id="gogol_nope"),
    act("to read a stranger's events", "events", session_id="{stranger}"),
    act("to read its parent", "get", session_id="{parent}", by_child=True),
    act("to wait for a stranger", "wait", session_ids=["{child}", "{stranger}"]),
    act("to message a stranger", "message", session_id="{stranger}", message="say hi"),
    act("to message its parent", "message", session_id="{parent}", message="say hi", by_child=True),
    act("to message its sibling", "message", session_id="{sibling}", message="say hi", by_child=True),
    act("to interrupt a stranger", "interrupt", session_id="{stranger}"),
    act("to end its parent", "end", session_id="{parent}", by_child=True),
    act("to cancel a stranger", "cancel", session_id="{stranger}"),
    act("more autonomy for a child", "message", "permission_denied", "autonomy", session_id="{child}", message="say hi",
        autonomy_level="off"),
    act("more time for a child", "message", "permission_denied", "minutes left", session_id="{child}", message="say hi",
        timeout_minutes=11),
    act("a turn of its own after this one", "message", "invalid_argument", "itself", session_id="{parent}",
        message="say hi"),
    act("to answer an ask", "answer", "permission_denied", "answer", request_id="req_1", reply="once"),
    act("to raise its limits", "update", "permission_denied", session_id="{parent}", max_cost_usd=1000),
    Attempt("a token", "token", {"action": "create", "name": "x", "scope": "admin"}, "permission_denied"),
    Attempt("the list of tokens", "token", {"action": "list"}, "permission_denied"),
    Attempt("other settings", "project", {"action": "update", "project_id": PROJECT, "autonomy": "off"},
            "permission_denied"),
    Attempt("the list of projects", "project", {"action": "list"}, "permission_denied"),
    Attempt("a command in another container", "container", {"action": "exec", "workspace_id": OTHER_WORKSPACE,
            "command": "id"}, "permission_denied"),
    # the attachments, caller tools and budgets of tokens
    spawn("a fetch by url in a message", says="attachments", attachments=[{"filename": "x", "url": "https://x.test/"}]),
    spawn("data of its choice as an attachment", says="attachments", attachments=[{"filename": "x", "data": "eA=="}]),
    act("attachments for a child", "message", "permission_denied", "attachments", session_id="{child}",
        message="say hi", attachments=[{"filename": "x", "url": "https://x.test/"}]),
    spawn("tools of a caller of its own", says="caller", caller_id="ide", caller_tools=[]),
    act("tools of a caller for a child", "message", "permission_denied", "caller", session_id="{child}",
        message="say hi", caller_id="ide", caller_tools=[{"name": "x"}]),
    Attempt("to answer for a caller", "caller_tool_response", {"session_id": "{parent}", "request_id": "req_1",
            "result": "x"}, "permission_denied"),
    act("a budget for a child", "message", "invalid_argument", "max_cost_usd", session_id="{child}", message="say hi",
        max_cost_usd=100),
    act("to raise the budget of its tree", "update", "permission_denied", "update", session_id="{parent}",
        max_cost_usd=1000),
    act("to raise the budget of a child", "update", "permission_denied", "update", session_id="{child}",
        max_cost_usd=1000),
    act("to raise its own autonomy", "update", "permission_denied", "update", session_id="{parent}",
        autonomy_level="off"),
    # asks
    act("to answer the ask of a child", "answer", "permission_denied", "answer", request_id="{ask}", reply="once"),
    act("to answer its own ask", "answer", "permission_denied", "answer", by_asker=True, request_id="{ask}",
        reply="always"),
    act("to answer the ask of its sibling", "answer", "permission_denied", "answer", by_child=True, request_id="{ask}",
        reply="always"),
    # reads beyond its subtree
    act("the tree of a stranger", "tree", session_id="{stranger}"),
    act("the tree from above", "tree", session_id="{parent}", by_child=True),
    act("the tree of another project", "tree", session_id="{foreign}"),
    act("what a stranger changed", "diff", session_id="{stranger}"),
    act("what its parent changed", "diff", session_id="{parent}", by_child=True),
    act("a stranger's commits", "merge", session_id="{stranger}"),
    act("its sibling's commits", "merge", session_id="{sibling}", by_child=True),
    act("to merge itself into its parent", "merge", "invalid_argument", "itself", session_id="{child}", by_child=True),
    act("a stranger's events with its children", "events", session_id="{stranger}", include_children=True),
    act("to delete a session", "delete", "unknown_action", "delete", session_id="{child}"),
    # workspaces
    Attempt("a file of another workspace", "workspace", {"action": "read", "workspace_id": OTHER_WORKSPACE,
            "path": "x"}, "not_found"),
    Attempt("a file of another project", "workspace", {"action": "read", "workspace_id": FOREIGN_WORKSPACE,
            "path": "x"}, "not_found"),
    Attempt("the files of another workspace", "workspace", {"action": "files", "workspace_id": OTHER_WORKSPACE},
            "not_found"),
    Attempt("the results of a stranger", "workspace", {"action": "read", "session_id": "{stranger}", "path": "x"},
            "not_found"),
    Attempt("the results of its parent", "workspace", {"action": "files", "session_id": "{parent}"}, "not_found",
            by_child=True),
    Attempt("a copy of another workspace", "workspace", {"action": "create", "from_workspace": OTHER_WORKSPACE},
            "not_found"),
    Attempt("a workspace of another project", "workspace", {"action": "create", "project_id": OTHER_PROJECT},
            "permission_denied", "project_id"),
    Attempt("the workspaces of another project", "workspace", {"action": "list", "project_id": OTHER_PROJECT},
            "permission_denied", "project_id"),
    *(
        Attempt(f"to delete {what} workspace", "workspace", {"action": "delete", "workspace_id": one},
                "permission_denied")
        for what, one in (("its own", WORKSPACE), ("another", OTHER_WORKSPACE))
    ),
    Attempt("a schedule", "schedule", {"action": "create", "name": "x", "cron_expr": "* * * * *", "message": "x",
            "targets": [{"project_id": PROJECT}]}, "permission_denied"),
    Attempt("the list of schedules", "schedule", {"action": "list"}, "permission_denied"),
    # limits, schedules, tokens, scopes
    Attempt("the limits of another project", "config_limits", {"project_id": OTHER_PROJECT}, "permission_denied",
            "project_id"),
    Attempt("the limits of a stranger's tree", "config_limits", {"session_id": "{stranger}"}, "permission_denied",
            "session_id"),
    Attempt("a scope for agents", "project", {"action": "update", "project_id": PROJECT, "agent_scope": "admin"},
            "permission_denied"),
    Attempt("a project with a scope", "project", {"action": "create", "name": "x", "agent_scope": "admin"},
            "permission_denied"),
    Attempt("to delete its project", "project", {"action": "delete", "project_id": PROJECT, "force": True},
            "permission_denied"),
    Attempt("to revoke a token", "token", {"action": "revoke", "name": "laptop"}, "permission_denied"),
    Attempt("to stop its container", "container", {"action": "stop"}, "permission_denied"),
    Attempt("a new container", "container", {"action": "start", "recreate": True, "force": True}, "permission_denied"),
]  # fmt: skip
