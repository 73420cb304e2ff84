"""One session as one task: it takes its queued turns one after another and hosts the tasks of its children."""

from __future__ import annotations

from functools import partial

import structlog
import trio

from oubliette.core.model import Json, Outcome, Reason, RequestRow, SessionRow, TurnRow
from oubliette.errors import OublietteError
from oubliette.session import units
from oubliette.session.deps import Deps
from oubliette.session.turn import TurnDriver
from oubliette.session.units import TurnEnd
from oubliette.store import sessions, turns
from oubliette.store.database import Tx

log = structlog.get_logger(__name__)

STUMBLE_SECONDS = 1.0
"""After a failure between turns (a full disk, say): how long until the next try."""


class Session:
    """The task of an open session. Made in the same breath as its row is known; ``run`` ends when the session does."""

    def __init__(self, deps: Deps, session_id: str) -> None:
        self.id = session_id
        self.finished = trio.Event()
        self.driver: TurnDriver | None = None
        self._deps = deps
        self._scope = trio.CancelScope()
        self._wake = trio.Event()
        self._resting = trio.Event()
        self._ending = False
        self._children: trio.Nursery | None = None
        self._early: list[Session] = []

    # --- from outside

    @property
    def takes_turns(self) -> bool:
        """Whether a message queued now will be taken by this task; one that is being ended takes none."""
        return not (self._ending or self.finished.is_set())

    def wake(self) -> None:
        """There may be something to do: a message was queued, or the session is being ended."""
        self._wake.set()

    def adopt(self, child: Session) -> None:
        """Run a child's task inside this one. No checkpoint."""
        if self._children is None:
            self._early.append(child)
        else:
            self._children.start_soon(child.run, name=f"session {child.id}")

    def stop_turn(self, outcome: Outcome, reason: Reason | None = None, *, kill: bool) -> bool:
        """Stop what runs now; the session stays. False when nothing runs."""
        if self.driver is None:
            return False
        self.driver.stop(outcome, reason, kill=kill)
        return True

    def begin_ending(self) -> bool:
        """Its rows say ``ending``: stop the turn and take no other; ``at_rest`` follows. False: no turn was running."""
        self._ending = True
        stopped = self.stop_turn(Outcome.CANCELLED, kill=True)
        self._wake.set()
        return stopped

    async def at_rest(self) -> None:
        """After ``begin_ending``: returns when no turn is driven any more."""
        await self._resting.wait()

    def cancel(self, why: str) -> None:
        """Stop driving, this one and its children; rows stay as they are."""
        self._scope.cancel(why)

    async def reply(self, request: RequestRow, resolution: Json) -> None:
        """Carry an answer to the agent, if it waits for it here."""
        if self.driver is not None:
            await self.driver.reply(request, resolution)

    # --- the task

    async def run(self) -> None:
        """Take turns until the session ends. Never raises but Cancelled: its failures are rows."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._children:
                    for child in self._early:
                        self.adopt(child)
                    self._early.clear()
                    await self._guarded_turns()
                    self._resting.set()
                    await trio.sleep_forever()
        finally:
            self._resting.set()
            self.finished.set()

    async def _guarded_turns(self) -> None:
        """``_turns`` until the session is being ended. What goes wrong between turns is this session's alone: it is
        tried again, and over when its rows are gone."""
        while True:
            try:
                await self._turns()
            except Exception as error:
                if isinstance(error, OublietteError) and error.code == "not_found":
                    log.warning("a session's rows are gone", session=self.id)
                    self.cancel("its rows are gone")
                else:
                    log.exception("a session stumbled", session=self.id)
            if self._ending:
                return
            await trio.sleep(STUMBLE_SECONDS)

    async def _turns(self) -> None:
        deps = self._deps
        resumed = await deps.store.read(partial(_running, session_id=self.id))
        if resumed is not None:
            await self._drive(TurnDriver(deps, *resumed), resume=True)
        while not self._ending:
            begun = await deps.store.write(
                partial(units.begin_turn, session_id=self.id, message_id=deps.message_id(), at=deps.now())
            )
            if begun is not None:
                await self._drive(TurnDriver(deps, *begun), resume=False)
                continue
            await self._wake.wait()
            self._wake = trio.Event()

    async def _drive(self, driver: TurnDriver, *, resume: bool) -> None:
        self.driver = driver
        if self._ending:
            driver.stop(Outcome.CANCELLED, kill=True)
        try:
            end = await driver.run(resume=resume)
        except Exception:
            log.exception("turn crashed", session=self.id, turn=driver.turn.turn)
            shown = OublietteError("The turn failed inside Oubliette.", hint="The daemon's log has the details.")
            end = TurnEnd(Outcome.FAILED, error=shown.as_json())
        finally:
            self.driver = None
        await self._deps.store.write(
            partial(units.finish_turn, session_id=self.id, number=driver.turn.turn, end=end, at=self._deps.now())
        )


def _running(tx: Tx, session_id: str) -> tuple[SessionRow, TurnRow] | None:
    turn = turns.running(tx, session_id)
    row = sessions.get(tx, session_id)
    return None if turn is None or row is None else (row, turn)
