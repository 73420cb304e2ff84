"""The terminal's screen: what is final scrolls away above, what is going on stays in the last lines."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from oubliette.cli.render import Style
from oubliette.safe_text import safe_line, safe_text

_STYLES: dict[Style, str] = {"plain": "", "dim": "dim", "good": "green", "bad": "red", "head": "bold"}
REFRESHES_PER_SECOND = 12
PREVIEW_LINES = 12


class LiveScreen:
    """Draws with rich. Nothing given to it is ever read as markup: only ``Text`` made of safe text is printed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(markup=False, emoji=False, highlight=False)
        self._what = "starting"
        self._since = time.monotonic()
        self._spinner = Spinner("dots")
        self._previews: dict[str, str] = {}
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def line(self, text: str, style: Style = "plain") -> None:
        self._console.print(Text(safe_text(text), style=_STYLES[style]))

    def working(self, what: str, *, tell: bool = False) -> None:
        if what != self._what:
            self._what, self._since = what, time.monotonic()

    def preview(self, part: str, text: str) -> None:
        self._previews[part] = self._previews.get(part, "") + text

    def settled(self, part: str) -> None:
        if self._previews.pop(part, None) is not None:
            self._live.refresh()  # or the next line would be drawn above the old preview once more

    def close(self) -> None:
        self._previews.clear()
        self._what = ""
        self._live.stop()

    def _picture(self) -> RenderableType:
        """The last lines: the text as it is being written, then the spinner."""
        shown: list[RenderableType] = []
        for text in list(self._previews.values())[-1:]:
            newest = safe_text(text[-4000:]).splitlines()[-PREVIEW_LINES:]
            shown.append(Text("\n".join(newest)))
        if self._what:
            seconds = time.monotonic() - self._since
            self._spinner.update(text=Text(f"{safe_line(self._what, 100)}… {seconds:.0f} s", style="dim"))
            shown.append(self._spinner)
        return Group(*shown)
