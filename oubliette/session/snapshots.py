"""One snapshot for everybody who wants one at the same moment.

The sessions of a workspace share a tree. When twenty of them begin or end at once, each wants to know how it stands;
twenty runs of git over the same files would say the same, and take the machine from the agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from oubliette.project.git import Exec, Snapshots

if TYPE_CHECKING:
    from oubliette.session.deps import ReadyContainer


@dataclass(slots=True)
class Tree:
    """Snapshots of one directory. Who asks gets a number; a snapshot is good for all who asked before it began."""

    asked: int = 0
    covered: int = 0
    newest: str = ""
    turn: trio.Lock = field(default_factory=trio.Lock)


class SharedSnapshots(Snapshots):
    """Snapshots of one container's trees; ``trees`` is what all who take them there have in common."""

    def __init__(self, run: Exec, trees: dict[str, Tree]) -> None:
        super().__init__(run)
        self._trees = trees

    async def snapshot(self, workspace_dir: str) -> str:
        """As ``Snapshots.snapshot``: never of an earlier moment than the call. One that fails is its caller's alone."""
        tree = self._trees.setdefault(workspace_dir, Tree())
        tree.asked += 1
        mine = tree.asked
        async with tree.turn:
            if tree.covered < mine:
                covers = tree.asked
                tree.newest = await super().snapshot(workspace_dir)
                tree.covered = covers
            return tree.newest


class SnapshotDesk:
    """The trees of each container, for as long as anybody has the container."""

    def __init__(self) -> None:
        self._trees: WeakKeyDictionary[ReadyContainer, dict[str, Tree]] = WeakKeyDictionary()

    def of(self, container: ReadyContainer) -> SharedSnapshots:
        return SharedSnapshots(container.exec, self._trees.setdefault(container, {}))
