"""A tiny MCP server over stdio: its one tool, ``echo``, answers with the arguments that it got."""

import json
import sys

SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False}


def answer(method: str, params: dict) -> dict:  # type: ignore[type-arg]
    if method == "initialize":
        about = {"name": "echo", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": [{"name": "echo", "description": "echo", "inputSchema": SCHEMA}]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": json.dumps(params["arguments"])}]}
    return {}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        result = answer(message["method"], message.get("params", {}))
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}) + "\n")
        sys.stdout.flush()
