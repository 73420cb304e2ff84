"""The sizes and counts that hold for everybody (SECURITY "Limits"): one constant each, enforced before allocating.

What an operator may change lives in the config; what is here holds for every installation.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20

# Requests
MAX_BODY_BYTES = 32 * MIB
"""Default of ``server.max_body_bytes``."""
MAX_HEADER_BYTES = 32 * KIB
HEADER_SECONDS = 10
"""How long a client may take to send its headers, and how long an idle connection is kept."""
BODY_SECONDS = 60
MAX_ARGUMENT_DEPTH = 32
"""Nesting of a JSON value in an argument."""

# Texts, in bytes of UTF-8 unless the name says characters
MAX_MESSAGE_BYTES = 1 * MIB
MAX_SYSTEM_BYTES = 64 * KIB
MAX_CONTEXT_BYTES = 256 * KIB
MAX_COMMAND_BYTES = 128 * KIB
MAX_DESCRIPTION_BYTES = 4 * KIB
MAX_LINE_CHARACTERS = 200
MAX_EXTERNAL_ID_CHARACTERS = 256
MAX_REQUEST_KEY_CHARACTERS = 128
MAX_ID_CHARACTERS = 64
MAX_CURSOR_CHARACTERS = 1024
MAX_URL_CHARACTERS = 2048
MAX_PATH_CHARACTERS = 1024
MAX_LIST_ITEMS = 100
MAX_JSON_ARGUMENT_BYTES = 64 * KIB
"""A free-form object argument (``permissions``, ``mcp_servers``), as compact JSON."""

# Attachments
MAX_ATTACHMENTS = 10
MAX_ATTACHMENT_BYTES = 10 * MIB
MAX_ATTACHMENTS_BYTES = 20 * MIB

# Caller tools
MAX_CALLER_TOOLS = 64
"""Of one caller in one session."""
MAX_CALLERS_PER_SESSION = 8
MAX_CALLERS_PER_PROJECT = 16
"""Callers with different ids in the open sessions of a project: each is a process in every workspace that uses it."""
MAX_AGENT_TOOL_NAME_CHARACTERS = 64
"""``<caller_id>_<name>``: what model providers take."""
MAX_CALLER_SCHEMA_BYTES = 32 * KIB
MAX_CALLER_TOOLS_BYTES = 128 * KIB
"""All tools of one declaration, as compact JSON."""
MAX_CALLER_CALLS = 32
"""Calls of one session that wait for their answers at once; other calls of its agent have room beside them."""
MAX_CALLER_ARGUMENTS_BYTES = 256 * KIB
MAX_CALLER_RESULT_BYTES = 512 * KIB
"""As compact JSON; a line to the agent holds 1 MiB."""

# Answers
RESULT_CHARACTERS = 20_000
MAX_RESULT_CHARACTERS = 1_000_000
FINAL_TEXT_CHARACTERS = 4_000
MAX_PAGE = 200
DEFAULT_PAGE = 50
MAX_EVENTS_PAGE = 1_000

# Time of one call, in seconds
WAIT_SECONDS = 40
MAX_WAIT_SECONDS = 45
MAX_WAIT_WITH_PROGRESS_SECONDS = 240
PROGRESS_SECONDS = 10
WORK_WAIT_SECONDS = 20
"""How long a call waits for durable work (clone, exec) before it answers with its present state."""

# Per token, and in all
STREAMS_PER_TOKEN = 20
WAITING_CALLS_PER_TOKEN = 50
STREAMS_IN_ALL = 500
BAD_TOKENS_PER_SECOND = 5
REQUEST_KEY_HOURS = 24

# Events
STREAM_BACKLOG_EVENTS = 1_000
STREAM_BACKLOG_BYTES = 4 * MIB
EVENT_STORED_BYTES = 1 * MIB
EVENT_SENT_BYTES = 64 * KIB

# Counts
MAX_PROJECTS = 1_000
MAX_WORKSPACES_PER_PROJECT = 100
MAX_OPEN_SESSIONS = 500
MAX_QUEUED_MESSAGES = 50
MAX_SCHEDULES = 1_000
MAX_SCHEDULE_TARGETS = 50
RUNS_PER_SCHEDULE = 1_000
MAX_QUEUED_RUNS = 10
"""Of one target, with ``overlap_behavior: queue``."""
AUDIT_DAYS = 90
MAX_CONNECTIONS = 2_000
"""TCP connections to the API at once."""
