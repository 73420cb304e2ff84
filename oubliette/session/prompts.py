"""What an agent is told: the set-up of its session and the prompt of one turn, from rows."""

from __future__ import annotations

from functools import partial

from oubliette.agent.base import AgentSessionSpec, Attachment, Prompt
from oubliette.agent.permissions import is_covered, names_tool
from oubliette.core.caller_tools import full_name
from oubliette.core.model import Autonomy, Json, ProjectRow, Reasoning, SessionRow, TurnRow
from oubliette.errors import ContainerError, RequestError
from oubliette.project import results
from oubliette.session import choices
from oubliette.session.deps import Deps, ReadyContainer
from oubliette.store import attachments, caller_tools, projects
from oubliette.store.database import Tx

CONTEXT_DIRECTORY = "/state/context"
TOOL = "oubliette_session"
"""What the model calls our session tool."""


async def _project(deps: Deps, row: SessionRow) -> ProjectRow:
    project = await deps.store.read(partial(projects.get, project_id=row.project_id))
    if project is None:
        raise RequestError("not_found", "The project of this session is gone.")
    return project


def _effective(row: SessionRow, turn: TurnRow) -> Json:
    """The session's settings under the message's."""
    return {**row.settings, **turn.overrides}


async def agent_session(deps: Deps, row: SessionRow, turn: TurnRow, directory: str) -> AgentSessionSpec:
    """How the agent's session for this one is set up. Raises RequestError when the project is gone."""
    project = await _project(deps, row)
    settings = _effective(row, turn)
    disabled = [*project.settings.get("disabled_tools", ()), *settings.get("tools_disallowed", ())]
    return AgentSessionSpec(
        title=row.title,
        directory=directory,
        autonomy=Autonomy(settings.get("autonomy", row.autonomy)),
        tools_allowed=settings.get("tools_allowed"),
        tools_disallowed=disabled,
        protected_paths=project.settings.get("protected_paths", ()),
        permissions=project.settings.get("permissions") or {},
        caller_tools=await deps.store.read(partial(_caller_tools, session_id=row.session_id)),
        mcp_servers=sorted(choices.mcp_servers_of(deps.config, project)),
    )


def _caller_tools(tx: Tx, session_id: str) -> list[str]:
    declared = caller_tools.of_session(tx, session_id)
    return [full_name(one.caller_id, str(tool["name"])) for one in declared for tool in one.tools]


async def prompt(deps: Deps, row: SessionRow, turn: TurnRow, container: ReadyContainer, directory: str) -> Prompt:
    """The prompt of one turn; the context of a session goes along with its first one as a file in the agent's state."""
    settings = _effective(row, turn)
    files = await deps.store.read(partial(attachments.for_turn, session_id=row.session_id, turn=turn.turn))
    spec = await agent_session(deps, row, turn, directory)
    system = [_ABOUT.format(directory=directory)]
    if _may_spawn(row, spec):
        system.append(_CHILDREN)
    context = row.settings.get("context")
    if context:
        path = f"{CONTEXT_DIRECTORY}/{row.session_id}.md"
        if turn.turn == 1:
            await _leave(container, path, context)
        system.append(f"Background for your task is in the file {path}; read it first.")
    if row.parent_id is not None:
        system.append(_RESULTS.format(folder=results.inside(row.session_id)))
    if settings.get("system"):
        system.append(settings["system"])
    return Prompt(
        message_id=turn.agent_message_id or deps.message_id(),
        text=turn.prompt,
        model=settings.get("model", row.model),
        system="\n\n".join(system),
        attachments=[Attachment(one.filename, one.content_type, one.data) for one in files],
        reasoning=Reasoning(settings.get("reasoning", row.reasoning)),
        spec=spec,
    )


def _may_spawn(row: SessionRow, spec: AgentSessionSpec) -> bool:
    """Whether the agent sees the tool and is not on the tree's last level."""
    hidden = any(names_tool(one, TOOL) for one in spec.tools_disallowed)
    offered = not hidden and (spec.tools_allowed is None or is_covered(TOOL, spec.tools_allowed))
    deepest = row.limits.get("max_recursion_depth")
    return offered and (deepest is None or row.depth < deepest)


async def _leave(container: ReadyContainer, path: str, text: str) -> None:
    script = 'mkdir -p "$(dirname "$1")" && cat > "$1"'
    result = await container.exec(
        ["sh", "-c", script, "sh", path],
        env={},
        cwd="/",
        stdin=text.encode(),
        timeout_seconds=20,
        max_output_bytes=4096,
    )
    if result.exit_code != 0:
        raise ContainerError(
            "The context file could not be written.", hint=result.stderr.decode(errors="replace")[:200]
        )


_ABOUT = (
    "You work without a screen in a container of your own; your project is in {directory}. "
    "Nobody watches while you work: finish the task, then say in a few sentences what you did and what is left."
)

_CHILDREN = (
    f"With the tool {TOOL} you can give parts of the task to other agents that work beside you in the same files: "
    "action spawn with a message starts one and answers at once, action wait returns the final texts of all you have "
    "started (call it again while it says timed_out), action message gives one its next task. A child knows only what "
    "its message says, so say everything it needs; do small things yourself. With workspace fork a child works in a "
    "copy of your files as they are at that moment: commit first, have it commit what it did, and action merge brings "
    "its commits here; conflicts are listed and change nothing. Files that wait lists under results are read with "
    "oubliette_workspace, action read, its session_id and that path."
)

_RESULTS = (
    "Another agent gave you this task and reads your final text. For anything longer leave files in {folder} "
    "(make that directory first): they are listed for it."
)
