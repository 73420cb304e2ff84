"""The ``session`` tool: gogols, from spawn to end."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from oubliette.api.tools import (
    attachments,
    caller_declaration,
    prose,
    session_changes,
    session_events,
    session_reads,
    session_update,
    tree_prose,
)
from oubliette.api.tools.fields import (
    Args,
    ContextText,
    Cursor,
    Doc,
    ExternalId,
    Id,
    Ids,
    JsonObject,
    Line,
    Lines,
    Message,
    Only,
    PageSize,
    Spellings,
    SystemText,
    WaitSeconds,
    WriteArgs,
)
from oubliette.api.tools.gate import Target
from oubliette.api.tools.progress import patience, with_progress
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core.limits import DEFAULT_PAGE, MAX_ATTACHMENTS, MAX_EVENTS_PAGE, WAIT_SECONDS
from oubliette.core.model import Autonomy, Json, Reasoning
from oubliette.core.shapes import (
    DiffResult,
    EventsResult,
    MergeResult,
    Resolution,
    Session,
    SessionList,
    SpawnResult,
    WaitResult,
)
from oubliette.core.shapes import (
    Tree as TreeShape,
)
from oubliette.session.requests import MessageArgs, SpawnArgs, TurnArgs

ProjectId = Annotated[Id | None, Doc("default: the token's own project"), Only("tokens")]
Status = Literal["open", "starting", "running", "waiting", "paused", "idle", "completed", "failed", "cancelled"]


class TurnFields(WriteArgs):
    """What spawn and message have in common."""

    message: Annotated[Message, Doc("what the agent is to do")]
    project_id: ProjectId = None
    workspace_id: Annotated[Id | None, Doc("default: the project's default one"), Only("tokens")] = None
    model: Annotated[Line | None, Doc("alias, see project options")] = None
    autonomy_level: Annotated[Autonomy | None, Doc("off asks nothing, low asks most")] = None
    reasoning_level: Annotated[Reasoning | None, Doc("how long the model thinks")] = None
    tools_allowed: Annotated[Lines | None, Doc("only these tools of the agent")] = None
    tools_disallowed: Annotated[Lines | None, Doc("not these")] = None
    system: Annotated[SystemText | None, Doc("added to the agent's instructions")] = None
    attachments: Annotated[
        Annotated[list[dict[str, Any]], Field(max_length=MAX_ATTACHMENTS)] | None,
        Doc("{filename, content_type, data (base64)}"),
        Only("tokens"),
    ] = None
    timeout_minutes: Annotated[float | None, Field(gt=0, le=10080), Doc("of the turn")] = None
    caller_id: Annotated[Line | None, Doc("whose caller_tools: their prefix for the agent"), Only("tokens")] = None
    caller_tools: Annotated[
        list[dict[str, Any]] | None,
        Doc("your tools, {name, description, input_schema}; calls show under pending; [] takes them back"),
        Only("tokens"),
    ] = None


class Spawn(TurnFields):
    workspace_id: Annotated[Id | None, Doc("default: the project's default one; an agent: its own")] = None
    workspace: Annotated[
        Literal["parent", "new", "fork"], Doc("where it works [parent: beside you]; fork: a copy"), Only("agents")
    ] = "parent"
    create_workspace: Annotated[bool, Doc("work in a new workspace"), Only("tokens")] = False
    new_session: Annotated[bool, Doc("never resume a settled one"), Only("tokens")] = False
    detach: Annotated[bool, Doc("goes on when you end"), Only("agents")] = False
    title: Annotated[Line | None, Doc("default: the message's first words")] = None
    context: Annotated[ContextText | None, Doc("background the agent can read as a file")] = None
    max_cost_usd: Annotated[float | None, Field(gt=0, le=100_000), Doc("budget of its whole tree"), Only("tokens")] = (
        None
    )
    external_id: Annotated[ExternalId | None, Doc("yours, unique in the project"), Only("tokens")] = None
    source: Annotated[Line | None, Doc("who asks, e.g. ci"), Only("tokens")] = None


class SendMessage(TurnFields):
    session_id: Annotated[Id | None, Doc("which session [message: the one open there]")] = None
    delivery: Annotated[Literal["queue", "interrupt"], Doc("interrupt stops the running turn")] = "queue"


class Wait(Args):
    session_ids: Annotated[Ids | None, Doc("which to wait for [an agent: all its children]")] = None
    session_id: Annotated[Id | None, Doc("which session")] = None
    any: Annotated[bool, Doc("until one of them is settled")] = False
    wait_seconds: Annotated[WaitSeconds, Doc("longest wait [wait 40, events 0]; a time-out is a result")] = WAIT_SECONDS


class Get(Args):
    session_id: Annotated[Id, Doc("which session")]


class List(Args):
    project_id: ProjectId = None
    workspace_id: Annotated[Id | None, Doc("only of this one")] = None
    status: Annotated[Status | None, Doc("open = all that are not ended"), Spellings({"active": "open"})] = None
    root_id: Annotated[Id | None, Doc("only of this tree")] = None
    parent_id: Annotated[Id | None, Doc("only children of this one")] = None
    external_id: Annotated[ExternalId | None, Doc("yours"), Only("tokens")] = None
    source: Annotated[Line | None, Doc("who asked"), Only("tokens")] = None
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None


class Tree(Args):
    session_id: Annotated[Id | None, Doc("any of the tree")] = None
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None


class Events(Args):
    session_id: Annotated[Id, Doc("which session")]
    since_index: Annotated[int, Field(ge=-1), Doc("after this index [-1: from the start]")] = -1
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None
    max_events: Annotated[int, Field(ge=1, le=MAX_EVENTS_PAGE), Doc("[200]")] = 200
    include_children: Annotated[bool, Doc("merged with its children's; use cursor")] = False
    types: Annotated[Lines | None, Doc("only these, e.g. message, completion")] = None
    wait_seconds: Annotated[WaitSeconds, Doc("wait for news [0]")] = 0


class Answer(WriteArgs):
    request_id: Annotated[Id, Doc("from pending")]
    reply: Annotated[Literal["once", "always", "reject"] | None, Doc("to a permission")] = None
    answers: Annotated[JsonObject | None, Doc("to questions: {question id: [option ids or text]}")] = None
    note: Annotated[Line | None, Doc("said to the agent with the reply")] = None


class One(WriteArgs):
    session_id: Annotated[Id, Doc("which session")]


def turn_of(args: TurnFields) -> TurnArgs:
    return TurnArgs(
        message=args.message,
        model=args.model,
        autonomy=args.autonomy_level,
        reasoning=args.reasoning_level,
        tools_allowed=args.tools_allowed,
        tools_disallowed=args.tools_disallowed,
        system=args.system,
        attachments=attachments.decode(args.attachments or ()),
        timeout_minutes=args.timeout_minutes,
        request_key=args.request_key,
        caller=caller_declaration.of(args.caller_id, args.caller_tools),
    )


async def spawn(call: Call, args: Spawn) -> Json:
    return await call.shared.services.tree.spawn(
        call.principal,
        SpawnArgs(
            turn=turn_of(args),
            project_id=call.project_id,
            workspace_id=args.workspace_id,
            create_workspace=args.create_workspace,
            new_session=args.new_session,
            title=args.title,
            context=args.context,
            max_cost_usd=args.max_cost_usd,
            external_id=args.external_id,
            source=args.source,
            workspace=args.workspace,
            detach=args.detach,
            parent_id=call.principal.scope.session_id,
        ),
        remember=call.remember,
    )


async def message(call: Call, args: SendMessage) -> Json:
    return await call.shared.services.tree.message(
        call.principal,
        MessageArgs(
            turn=turn_of(args),
            session_id=args.session_id,
            project_id=call.project_id,
            workspace_id=args.workspace_id,
            delivery=args.delivery,
        ),
        remember=call.remember,
    )


async def wait(call: Call, args: Wait) -> Json:
    ids = [row.session_id for row in call.place.sessions]
    if not ids:
        return {
            "done": True,
            "timed_out": False,
            "sessions": [],
            "remaining": [],
            "next": "session spawn starts a child",
        }
    seconds = patience(call, args.wait_seconds)
    tree = call.shared.services.tree
    what = f"waiting for {len(ids)} session{'s' if len(ids) > 1 else ''}"
    return await with_progress(call, seconds, what, partial(tree.wait, call.principal, ids, args.any, seconds))


async def answer(call: Call, args: Answer) -> Json:
    answers = session_reads.as_answers(args.answers) if args.answers is not None else None
    return await call.shared.services.tree.answer(call.principal, args.request_id, args.reply, answers, args.note)


async def interrupt(call: Call, args: One) -> Json:
    return await call.shared.services.tree.interrupt(call.principal, args.session_id)


async def end(call: Call, args: One) -> Json:
    return await call.shared.services.tree.end(call.principal, args.session_id, "completed")


async def cancel(call: Call, args: One) -> Json:
    return await call.shared.services.tree.end(call.principal, args.session_id, "cancelled")


TOOL = Tool(
    name="session",
    doc=(
        "Agent sessions (gogols). spawn starts one on a task and answers at once; wait returns when sessions are "
        "settled or need an answer, with their final text; events is the full log. message sends the next task to a "
        "session (queued while it is busy). answer settles an ask listed under pending. interrupt stops the running "
        "turn only; end and cancel end the session and its children. diff shows what one changed; merge brings a "
        "forked child's commits into its parent's workspace. A star marks what an action needs."
    ),
    results=[
        SpawnResult,
        WaitResult,
        EventsResult,
        SessionList,
        Session,
        TreeShape,
        DiffResult,
        MergeResult,
        Resolution,
        {"ended": {"type": "array"}, "interrupted": {"type": "boolean"}, "dropped": {"type": "integer"}},
    ],
    implied={"prompt": "spawn"},
    actions=[
        Action("session", "spawn", Spawn, spawn, Target.PROJECT, prose=prose.spawned),
        Action("session", "message", SendMessage, message, Target.SESSION_OR_PROJECT),
        Action("session", "wait", Wait, wait, Target.SESSIONS, prose=prose.waited),
        Action("session", "get", Get, session_reads.get, Target.SESSION, prose=prose.session),
        Action(
            "session",
            "list",
            List,
            session_reads.list_sessions,
            Target.LISTED,
            prose=prose.session_list,
            page="limit",
            items="sessions",
        ),
        Action(
            "session",
            "tree",
            Tree,
            session_reads.tree,
            Target.SESSION_OR_SELF,
            prose=tree_prose.tree,
            page="limit",
            items="nodes",
        ),
        Action("session", "events", Events, session_events.events, Target.SESSION, page="max_events", items="events"),
        Action(
            "session",
            "diff",
            session_changes.Diff,
            session_changes.diff,
            Target.SESSION,
            prose=session_changes.diff_words,
        ),
        Action(
            "session",
            "merge",
            session_changes.Merge,
            session_changes.merge,
            Target.SESSION,
            settle=session_changes.wait_for_merge,
            prose=session_changes.merge_words,
        ),
        Action("session", "answer", Answer, answer, Target.REQUEST, prose=prose.answered),
        Action(
            "session",
            "update",
            session_update.Update,
            session_update.update,
            Target.SESSION,
            prose=session_update.words,
        ),
        Action("session", "interrupt", One, interrupt, Target.SESSION, prose=prose.interrupted),
        Action("session", "end", One, end, Target.SESSION, prose=prose.ended),
        Action("session", "cancel", One, cancel, Target.SESSION, prose=prose.ended),
    ],
)
