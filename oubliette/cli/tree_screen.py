"""A tree of sessions in a terminal: one line each, redrawn in place."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from oubliette.cli.tree_view import Node, TreeView
from oubliette.safe_text import safe_line

REFRESHES_PER_SECOND = 8
_STYLES = {"completed": "green", "failed": "red", "timed_out": "red", "budget": "red", "cancelled": "yellow"}


class LiveTree:
    """Draws with rich. Nothing given to it is ever read as markup: only ``Text`` made of safe text is printed."""

    def __init__(self, view: TreeView, console: Console | None = None) -> None:
        self._view = view
        self._console = console or Console(markup=False, emoji=False, highlight=False)
        self._what = ""
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def line(self, text: str) -> None:
        """The picture says it."""

    def working(self, what: str) -> None:
        self._what = what

    def close(self) -> None:
        self._what = ""
        self._live.stop()

    def _picture(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim", expand=True)
        table.add_column("session", no_wrap=True, overflow="ellipsis", ratio=3)
        table.add_column("status", no_wrap=True, overflow="ellipsis", min_width=9)
        table.add_column("now", no_wrap=True, overflow="ellipsis", ratio=4)
        table.add_column("tokens", no_wrap=True, justify="right", min_width=6)
        table.add_column("time", no_wrap=True, justify="right", min_width=5)
        for lead, node in self._view.rows():
            table.add_row(*_cells(lead, node))
        if not self._what:
            return table
        self._spinner.update(text=Text(safe_line(self._what, 100), style="dim"))
        return Group(table, self._spinner)


def _cells(lead: str, node: Node) -> list[Text]:
    status = node.outcome or node.status
    now = node.doing if node.outcome is None else node.error
    tokens = node.tokens_in + node.tokens_out
    seconds = node.seconds
    return [
        Text.assemble((lead, "dim"), (safe_line(node.title, 60), "bold" if node.depth == 0 else "")),
        Text(safe_line(status), style=_STYLES.get(status, "")),
        Text(safe_line(now, 120), style="dim"),
        Text(f"{tokens:,}" if tokens else ""),
        Text(f"{seconds:.0f} s" if seconds is not None else ""),
    ]
