// Runs inside OpenCode, in every container. It answers two questions that OpenCode leaves open, which session a tool
// call and which session a process belongs to, and brings back the one file of a repository that an agent should heed.
import { readFileSync } from "node:fs"

const OURS = "oubliette"
const STAMP = "_session"

// Servers whose tools belong to callers of a session. The daemon may add some while we run, so it is read each time.
function callers() {
  try {
    return JSON.parse(readFileSync(process.env.OUBLIETTE_STAMPED || "/run/oubliette/stamped.json", "utf8"))
  } catch {
    return [] // no such file: this container has no callers
  }
}

// OpenCode names a tool <server>_<tool>, with everything but letters, digits, "_" and "-" of both made "_".
function isOurs(tool) {
  if (tool.startsWith(OURS + "_")) return true
  return tool.includes("_") && callers().some((server) => tool.startsWith(server + "_"))
}

export const Oubliette = async ({ directory }) => ({
  // A repository's own opencode.json and .opencode/ are switched off (they could undo every rule), and with them
  // OpenCode drops these two as well. They are words for the model, not settings.
  config: async (config) => {
    config.instructions = [...(config.instructions ?? []), `${directory}/AGENTS.md`, `${directory}/CLAUDE.md`]
  },

  // An MCP request does not say which session it is from. What the model wrote there itself is overwritten.
  "tool.execute.before": async (input, output) => {
    if (output.args && isOurs(input.tool)) output.args[STAMP] = input.sessionID
  },

  // Every process of the bash tool carries its session, so that it can be found and killed with its children. The
  // server's password is none of its business, and OpenCode's config folder is read-only: tools take their default.
  "shell.env": async (input, output) => {
    if (input.sessionID) output.env.OUBLIETTE_SESSION = input.sessionID
    output.env.OPENCODE_SERVER_PASSWORD = ""
    output.env.XDG_CONFIG_HOME = ""
  },
})
