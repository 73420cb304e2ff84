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
CALM_SCANS = 20
"""Scans that found nothing are believed after so many, however many unrelated processes come and go."""
_PF_EXITING = 0x4
"""In the flags of /proc/PID/stat (linux/sched.h)."""
_CHUNK = 1 << 16
_ENVIRONMENT_BYTES = 8 << 20
"""More than the kernel allows a process to be started with."""


def kill_marked(mark: Optional[str], deadline: float) -> Tuple[int, int]:
    """SIGKILL every process that carries ``mark`` (None: any mark), and what these have started; look again until
    none is left or ``time.monotonic()`` passes the deadline. Returns how many were found and how many are left. Blocks.
    """
    needle = f"\0{SESSION_VARIABLE}=".encode() + (b"" if mark is None else os.fsencode(mark) + b"\0")
    met: Set[Tuple[int, int]] = set()
    ended_before: Set[int] = set()
    calm = 0
    pause = 0.001
    while True:
        found, ended = _marked(needle)
        for pid, started in found:
            met.add((pid, started))
            _signal(pid, started, signal.SIGKILL)
        # A process that ended while we looked may have had a child that we have not seen. Old zombies have not.
        calm = 0 if found else calm + 1
        if not found and (ended <= ended_before or calm > CALM_SCANS):
            return len(met), 0
        if time.monotonic() >= deadline:
            return len(met), len(found)
        ended_before = ended
        # SIGKILL is not instant, and a process that was forking meanwhile has a child that this scan has not seen.
        time.sleep(pause)
        pause = min(pause * 2, 0.05) if found else 0.001


def memory_of(pid: int) -> int:
    """Resident bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def is_exiting(pid: int) -> bool:
    """It has begun to end: its descriptors may be closed already, though nobody can wait for it yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & _PF_EXITING)
    except (OSError, IndexError, ValueError):
        return True


def _marked(needle: bytes) -> Tuple[List[Tuple[int, int]], Set[int]]:
    """Pid and start time of the marked ones that are alive, with their descendants; and who had ended or ended
    meanwhile. Never this process.

    The newest are looked at first, and stopped when marked: what forks and exits without end would otherwise always be
    a step ahead. Stopped and not killed, because a dead one's child cannot be told from a stranger.
    """
    parents: Dict[int, int] = {}
    started: Dict[int, int] = {}
    ended: Set[int] = set()
    chosen: Set[int] = set()
    ours = os.getpid()
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        carries = pid != ours and _carries(pid, needle)
        about = _about(pid)
        if about is None:
            ended.add(pid)
            continue
        parents[pid], started[pid] = about
        if carries:
            chosen.add(pid)
            _signal(pid, started[pid], signal.SIGSTOP)
    grown = bool(chosen)
    while grown:
        born = {pid for pid, parent in parents.items() if parent in chosen} - chosen - {ours}
        grown = bool(born)
        chosen |= born
    return [(pid, started[pid]) for pid in chosen], ended


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


def _signal(pid: int, started: int, number: int) -> None:
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
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except OSError:
        return
    finally:
        if handle >= 0:
            os.close(handle)
