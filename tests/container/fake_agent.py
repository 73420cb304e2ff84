"""Stands in for the agent's process: answers each line with its pid and the password that it was started with.

Lines: ``die`` (exit 3 with last words), ``grow`` (use 100 MiB), ``tool PATH`` (start a marked process).
Ends with its relay: there is no sandbox around it that would end it.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys

PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
kept = []
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", file=sys.stderr, flush=True)
while True:
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as lines:
        for line in lines:
            word, _, rest = line.decode().strip().partition(" ")
            if word == "die":
                print("I was told to die", file=sys.stderr, flush=True)
                os._exit(3)
            if word == "grow":
                kept.append(b"x" * (100 << 20))
            if word == "tool":
                script = f"echo $$ > {rest}; exec sleep 600"
                env = {**os.environ, os.environ["MARK"]: "ses_tool"}
                subprocess.Popen(["setsid", "sh", "-c", script], env=env)
            lines.write(f"{os.getpid()} {os.environ['PASSWORD']}\n".encode())
            lines.flush()
