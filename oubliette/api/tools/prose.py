"""Results in words: ids first, then facts, and what the agent wrote last, under a line that says so.

Each function is made from the brief object alone, so that text and object cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable

from oubliette.api.tools.reply import UNTRUSTED, compact
from oubliette.core.model import Json
from oubliette.safe_text import safe_line


def lines(*parts: str | None) -> str:
    return "\n".join(part for part in parts if part)


def fact(name: str, value: object) -> str | None:
    """``Name: value`` on one line; None when there is nothing to say."""
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f"{name}: {safe_line(str(value), 300)}"


def status_words(data: Json) -> str:
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"{data.get('status', 'unknown')}{reason}"


def usage_words(usage: Json | None) -> str | None:
    if not usage or not usage.get("requests"):
        return None
    cost = f"${usage['cost_usd']:.4f}" if "cost_usd" in usage else "unknown"
    partly = "" if usage.get("cost_complete", True) else " (estimate)"
    return (
        f"{usage['requests']} model requests, {usage.get('input_tokens', 0)} tokens in, "
        f"{usage.get('output_tokens', 0)} out, {cost}{partly}"
    )


def pending_words(pending: Iterable[Json]) -> list[str]:
    """Each ask with what answers it. What it asks is the agent's wording."""
    found = []
    for ask in pending:
        permission = ask.get("permission") or {}
        questions = ask.get("questions") or []
        about = permission.get("text") or permission.get("action") or "; ".join(q.get("text", "") for q in questions)
        call = ask.get("caller_tool")
        if call:
            about = f"{call.get('caller_id')} {call.get('name')} {compact(call.get('arguments', {}))}"
        found.append(f"{ask['request_id']} ({ask.get('kind', 'ask')}): {safe_line(str(about), 300)}")
    return found


def files_words(files: Iterable[Json]) -> str | None:
    shown = [f"{file.get('change', 'changed')} {safe_line(str(file.get('path')), 200)}" for file in files]
    if not shown:
        return None
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(shown[:20]) + more


def error_words(error: Json | None) -> str | None:
    return f"{error.get('code')}: {safe_line(str(error.get('message', '')), 500)}" if error else None


def untrusted(*texts: str | None) -> str | None:
    """What the agent wrote, under the line that says so."""
    kept = [text for text in texts if text]
    return "\n".join([UNTRUSTED, *kept]) if kept else None


# --- sessions


def spawned(data: Json) -> str:
    opening = "Session resumed" if data.get("resumed") else "New session created"
    made = " (created)" if data.get("workspace_created") else ""
    return lines(
        f"{opening}: {data['session_id']}",
        fact("Project", data.get("project_id")),
        f"Workspace: {data['workspace_id']}{made}" if data.get("workspace_id") else None,
        f"Status: {status_words(data)}",
        fact("Turn", data.get("turn")),
        fact("Queue position", data.get("queue_position")),
        fact("Last event index", data.get("last_event_index")),
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
        fact("Next", data.get("next")),
    )


def session(data: Json) -> str:
    last = data.get("last_turn") or {}
    pending = pending_words(data.get("pending", ()))
    children = data.get("children") or {}
    return lines(
        f"Session: {data['session_id']}",
        fact("Project", data.get("project_id")),
        fact("Workspace", data.get("workspace_id")),
        fact("Parent", data.get("parent_id")),
        f"Status: {status_words(data)}",
        fact("Title", data.get("title")),
        fact("Model", data.get("model")),
        fact("Turn", data.get("turn")),
        fact("Queued", data.get("queued") or None),
        f"Children: {children['total']} ({children['open']} open)" if children.get("total") else None,
        fact("Last turn", f"{last.get('turn')} {last.get('outcome', last.get('status', ''))}" if last else None),
        fact("Error", error_words(last.get("error") or data.get("error"))),
        fact("Files", files_words(last.get("files", ()))),
        fact("Events", f"{data.get('oldest_index')} to {data.get('last_index')}" if "last_index" in data else None),
        fact("Usage", usage_words(data.get("usage"))),
        *(f"Turn {turn['turn']}: {turn.get('outcome', turn.get('status'))}" for turn in data.get("turns", ())),
        untrusted(*(f"Asks: {one}" for one in pending), last.get("final_text")),
    )


def session_list(data: Json) -> str:
    rows = []
    for one in data["sessions"]:
        outcome = (one.get("last_turn") or {}).get("outcome")
        facts = [
            str(one["session_id"]),
            status_words(one),
            f"turn {one.get('turn', 0)}" + (f" {outcome}" if outcome else ""),
            f"{len(one['pending'])} asks pending" if one.get("pending") else "",
            f"project {one.get('project_id')}",
            safe_line(str(one.get("title", "")), 80),
        ]
        rows.append("  ".join(part for part in facts if part))
    return lines(f"Sessions: {len(rows)}", *rows, fact("Next cursor", data.get("next_cursor")))


def waited(data: Json) -> str:
    heads, texts = [], []
    for one in data.get("sessions", ()):
        heads.append(
            lines(
                f"Session: {one['session_id']}",
                f"Status: {status_words(one)}",
                fact("Turn", one.get("turn")),
                fact("Outcome", one.get("outcome")),
                fact("Error", error_words(one.get("error"))),
                fact("Files", files_words(one.get("files", ()))),
                fact("Usage", usage_words(one.get("usage"))),
            )
        )
        texts += [f"Asks: {ask}" for ask in pending_words(one.get("pending", ()))]
        left = [f"{safe_line(str(file['path']), 200)} ({file['bytes']} bytes)" for file in one.get("results", ())]
        if left:
            texts.append(f"[{one['session_id']}] left files: {', '.join(left[:20])}")
        if one.get("final_text"):
            cut = " (cut)" if one.get("final_text_truncated") else ""
            texts.append(f"[{one['session_id']}{cut}]\n{one['final_text']}")
    state = "Done" if data.get("done") else "Timed out" if data.get("timed_out") else "Not all done"
    return lines(
        *heads,
        f"{state}.",
        fact("Still at work", ", ".join(data.get("remaining", ()))),
        fact("Next", data.get("next")),
        untrusted(*texts),
    )


def answered(data: Json) -> str:
    if data.get("accepted"):
        return lines(f"Answer accepted: {data.get('request_id')}", fact("Session", data.get("session_id")))
    by = data.get("by") or {}
    return lines(
        f"Answer not accepted: {data.get('request_id')} was settled before",
        fact("How", data.get("how")),
        fact("By", by.get("name") or by.get("id")),
        fact("Reply", data.get("reply")),
        fact("Session", data.get("session_id")),
    )


def ended(data: Json) -> str:
    return lines(
        f"Session: {data['session_id']}",
        f"Status: {status_words(data)}",
        fact("Ended", ", ".join(data.get("ended", ()))),
    )


def interrupted(data: Json) -> str:
    return lines(
        f"Session: {data['session_id']}",
        f"Status: {status_words(data)}",
        "The running turn was told to stop." if data.get("interrupted") else "No turn was running.",
        fact("Next", data.get("next")),
    )


# --- tokens


def token_created(data: Json) -> str:
    return lines(
        f"Token: {data['token_id']}",
        fact("Name", data.get("name")),
        fact("Scope", data.get("scope")),
        fact("Expires", data.get("expires_at")),
        f"Secret: {data['secret']}" if "secret" in data else "Secret: shown once, with the first call",
    )


def token_list(data: Json) -> str:
    rows = []
    for one in data["tokens"]:
        state = (
            "revoked" if one.get("revoked_at") else f"expires {one['expires_at']}" if one.get("expires_at") else "live"
        )
        rows.append(f"{one['token_id']}  {one.get('scope')}  {state}  {safe_line(one.get('name', ''), 80)}")
    return lines(f"Tokens: {len(rows)}", *rows, fact("Next cursor", data.get("next_cursor")))


def token_revoked(data: Json) -> str:
    return lines(
        f"Token revoked: {data['token_id']}", fact("Name", data.get("name")), fact("At", data.get("revoked_at"))
    )
