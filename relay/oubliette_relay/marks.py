"""Finding and killing the processes that work for an agent session, by the mark in their environment.

The agent's own kill reaches one process group; ``setsid nohup`` leaves it, and an agent that dies leaves everything
behind. What a process was started with stays readable in ``/proc/PID/environ``.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, List, Optional, Set, Tuple

from oubliette_relay.protocol import SESSION_VARIABLE

KILL_SECONDS = 3.0
"""How long one kill goes on looking for new ones."""
_CHUNK = 1 << 16
_ENVIRONMENT_BYTES = 8 << 20
"""More than the kernel allows a process to be started with."""


def kill_marked(mark: Optional[str], deadline: float) -> Tuple[int, int]:
    """SIGKILL every process that carries ``mark`` (None: any mark), and what these have started; look again until
    none is left or ``time.monotonic()`` passes the deadline. Returns how many were found and how many are left. Blocks.
    """
    needle = f"\0{SESSION_VARIABLE}=".encode() + (b"" if mark is None else os.fsencode(mark) + b"\0")
    met: Set[Tuple[int, int]] = set()
    pause = 0.001
    while True:
        found = _marked(needle)
        for pid, started in found:
            met.add((pid, started))
            _kill(pid, started)
        if not found:
            return len(met), 0
        if time.monotonic() >= deadline:
            return len(met), len(found)
        # SIGKILL is not instant, and a process that was forking meanwhile has a child that this scan has not seen.
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def memory_of(pid: int) -> int:
    """Resident bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _marked(needle: bytes) -> List[Tuple[int, int]]:
    """Pid and start time of the marked ones that are alive, with their descendants. Never this process."""
    parents: Dict[int, int] = {}
    started: Dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            about = _about(int(name))
            if about is not None:
                parents[int(name)], started[int(name)] = about
    ours = os.getpid()
    chosen = {pid for pid in parents if pid != ours and _carries(pid, needle)}
    if chosen:
        grown = True
        while grown:
            born = {pid for pid, parent in parents.items() if parent in chosen} - chosen - {ours}
            grown = bool(born)
            chosen |= born
    return [(pid, started[pid]) for pid in chosen]


def _about(pid: int) -> Optional[Tuple[int, int]]:
    """Parent and start time in ticks; None for a zombie, or when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(words) < 20 or words[0] in (b"Z", b"X"):
        return None
    return int(words[1]), int(words[19])


def _carries(pid: int, needle: bytes) -> bool:
    """Read in pieces that overlap: an environment may be megabytes. Unreadable means not ours to judge."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            tail, total = b"\0", 0
            while total < _ENVIRONMENT_BYTES:
                piece = file.read(_CHUNK)
                if not piece:
                    return needle in tail + b"\0"
                total += len(piece)
                if needle in tail + piece:
                    return True
                tail = (tail + piece)[-len(needle) :]
    except OSError:
        return False
    return False


def _kill(pid: int, started: int) -> None:
    """Through a pidfd where the kernel has it: the number may belong to somebody else by now."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        handle = -1
    try:
        about = _about(pid)
        if about is None or about[1] != started:
            return
        if handle >= 0:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
    finally:
        if handle >= 0:
            os.close(handle)
