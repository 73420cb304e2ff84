"""``session``: look at sessions and steer them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oubliette.cli import session_changes, session_tree, session_update
from oubliette.cli.follow import project_id_of
from oubliette.cli.output import ago, note, say, say_json, say_table, tokens_and_cost
from oubliette.cli.place import connect
from oubliette.cli.problems import FAILED, OK
from oubliette.cli.render import PlainScreen, TurnView
from oubliette.cli.run import follow

app = typer.Typer(name="session", help="Sessions (gogols): look at them, steer them.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="Its id, gogol_…")]
PAGE = 200


@app.command("list")
def list_(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Option(help="Only of this project (name or id).")] = None,
    status: Annotated[str | None, typer.Option(help="open, or one status, e.g. running.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List sessions, newest first."""
    daemon = connect(ctx)
    project_id = project_id_of(daemon, project) if project else None
    found = daemon.call("session", action="list", project_id=project_id, status=status, limit=limit)
    if as_json:
        say_json(found)
        return
    say_table(
        ("SESSION", "STATUS", "TURN", "MODEL", "SINCE", "TITLE"),
        [
            (
                one["session_id"],
                one["status"],
                one.get("turn"),
                one.get("model"),
                ago(one.get("since")),
                one.get("title"),
            )
            for one in found["sessions"]
        ],
        empty="no sessions",
    )
    if "next_cursor" in found:
        note(f"there are more; --limit {limit * 5} shows them")


@app.command("get")
def get(ctx: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """Show one session: state, turns, usage, what it waits for."""
    found = connect(ctx).call("session", action="get", session_id=session, detail="full")
    if as_json:
        say_json(found)
        return
    reason = f" ({found['reason']})" if "reason" in found else ""
    say(f"{found['session_id']}  {found['status']}{reason}")
    for label, value in (
        ("title", found.get("title")),
        ("project", found.get("project_id")),
        ("workspace", found.get("workspace_id")),
        ("model", found.get("model")),
        ("made", ago(found.get("created_at"))),
        ("usage", tokens_and_cost(found["usage"]) if found.get("usage") else None),
    ):
        if value:
            say(f"  {label:<10} {value}")
    for request in found.get("pending") or []:
        say(f"  waits for  {request.get('kind')} {request.get('request_id')}")
    for turn in sorted(found.get("turns") or [], key=lambda one: int(one["turn"])):
        say(f"  turn {turn['turn']:<5} {turn.get('outcome') or turn.get('status')}  {_first_line(turn.get('prompt'))}")
    final = (found.get("last_turn") or {}).get("final_text")
    if final:
        say()
        say(str(final))


@app.command("tail")
def tail(
    ctx: typer.Context,
    session: SessionId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the session ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the newest events.")] = 30,
) -> None:
    """Show what happened last, and with -f what happens."""
    daemon = connect(ctx)
    found = daemon.call("session", action="get", session_id=session)
    since = max(-1, int(found.get("last_index", -1)) - lines)
    view = TurnView(PlainScreen(say))
    if follow_it:
        for received in daemon.events(session, since=since):
            view.show(received.kind, received.data)
            if received.data.get("type") == "completion":
                view.summarise()
        return
    for event in _all_events(daemon, session, since):
        view.show(event["type"], event)


@app.command("events")
def events(
    ctx: typer.Context,
    session: SessionId,
    since: Annotated[int, typer.Option(help="Only after this index; with --children after this seq.")] = -1,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the session ends.")] = False,
    children: Annotated[bool, typer.Option("--children", help="Merged with those of all sessions below it.")] = False,
    kinds: Annotated[list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")] = None,
) -> None:
    """Print events as JSON Lines."""
    daemon = connect(ctx)
    if follow_it:
        for received in daemon.events(session, since=since, children=children):
            if received.kind != "end" and (not kinds or received.data.get("type") in kinds):
                say_json(received.data)
        return
    if children:
        for event in _merged_events(daemon, session, kinds):
            if event["seq"] > since:
                say_json(event)
        return
    for event in _all_events(daemon, session, since):
        if not kinds or event["type"] in kinds:
            say_json(event)


def _all_events(daemon: Any, session: str, since: int) -> Any:
    while True:
        page = daemon.call("session", action="events", session_id=session, since_index=since, max_events=PAGE)
        yield from page["events"]
        since = page["last_index"]
        if not page.get("more"):
            return


def _merged_events(daemon: Any, session: str, kinds: list[str] | None) -> Any:
    cursor: str | None = None
    while True:
        page = daemon.call(
            "session",
            action="events",
            session_id=session,
            include_children=True,
            cursor=cursor,
            types=kinds or None,
            max_events=PAGE,
        )
        yield from page["events"]
        cursor = page["cursor"]
        if not page.get("more"):
            return


@app.command("message")
def message(
    ctx: typer.Context,
    session: SessionId,
    text: Annotated[str, typer.Argument(help="What to tell it.")],
    interrupt_first: Annotated[bool, typer.Option("--interrupt", help="Stop the running turn first.")] = False,
    model: Annotated[str | None, typer.Option(help="Another model for this turn.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not watch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send the next message to a session and watch the turn; it stays open."""
    daemon = connect(ctx)
    sent = daemon.call(
        "session",
        action="message",
        session_id=session,
        message=text,
        model=model,
        delivery="interrupt" if interrupt_first else None,
    )
    if detach:
        if as_json:
            say_json(sent)
        else:
            say(f"{sent['session_id']} turn {sent['turn']}")
        return
    raise typer.Exit(follow(daemon, sent, keep=True, as_json=as_json))


@app.command("wait")
def wait(
    ctx: typer.Context,
    session: SessionId,
    seconds: Annotated[float, typer.Option("--timeout", help="Give up after that many seconds.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Wait until a session is settled or needs an answer. Exit code 0 when its last turn completed."""
    daemon = connect(ctx)
    while True:
        slice_seconds = min(40.0, seconds)
        result = daemon.call("session", action="wait", session_ids=[session], wait_seconds=slice_seconds)
        seconds -= slice_seconds
        if result.get("done") or seconds <= 0:
            break
    found = (result.get("sessions") or [{}])[0]
    if as_json:
        say_json(result)
    else:
        say(f"{session} {found.get('outcome') or found.get('status', 'not settled')}")
        if found.get("final_text"):
            say(str(found["final_text"]))
    raise typer.Exit(OK if found.get("outcome") == "completed" else FAILED)


@app.command("answer")
def answer(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, req_…")],
    reply: Annotated[str | None, typer.Option(help="To a permission: once, always or reject.")] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option("--choose", help="To a question: QUESTION=OPTION or QUESTION=text; may be repeated."),
    ] = None,
) -> None:
    """Answer what an agent asked. The first answer wins."""
    answers: dict[str, list[str]] = {}
    for choice in choose or []:
        question, equals, option = choice.partition("=")
        if not equals:
            raise typer.BadParameter("--choose takes QUESTION=OPTION")
        answers.setdefault(question, []).append(option)
    result = connect(ctx).call("session", action="answer", request_id=request, reply=reply, answers=answers or None)
    if result.get("accepted"):
        note("answered")
        return
    by = (result.get("by") or {}).get("name", "")
    note(f"too late: {result.get('how', 'resolved')} {by}".rstrip())
    raise typer.Exit(FAILED)


def _steer(ctx: typer.Context, action: str, session: str, as_json: bool, done: str) -> None:
    result = connect(ctx).call("session", action=action, session_id=session)
    if as_json:
        say_json(result)
    else:
        note(f"{session} {done}")


@app.command("interrupt")
def interrupt(ctx: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """Stop the running turn; the session stays open."""
    _steer(ctx, "interrupt", session, as_json, "interrupted")


@app.command("end")
def end(ctx: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """End a session and its children."""
    _steer(ctx, "end", session, as_json, "ended")


@app.command("cancel")
def cancel(ctx: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """Stop a session and its children now."""
    _steer(ctx, "cancel", session, as_json, "cancelled")


app.command("tree")(session_tree.tree)
app.command("diff")(session_changes.diff)
app.command("merge")(session_changes.merge)
app.command("update")(session_update.update)


def _first_line(text: object) -> str:
    from oubliette.safe_text import safe_line

    return safe_line(str(text or ""), 80)
