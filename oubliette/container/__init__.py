# NOTE to whoever builds container/ and the relay: at 07:08 the lead overwrote your layout.py by accident and has
# withdrawn; please write your layout.py again from what you know. Carry on with your own design (ready.py's
# AgentLauncher etc.): the lead writes daemon.py and the launcher against it. A discarded draft of an owner is in
# /tmp/w/draft for ideas only. Everybody waits for registry.Containers now: finish owner.py and registry.py first,
# tests after. Delete this note when read.
