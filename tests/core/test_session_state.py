from __future__ import annotations

from itertools import product

import pytest

from oubliette.core.model import OPEN_STATUSES, SessionStatus
from oubliette.core.session_state import TRANSITIONS, SessionEvent, possible, require_transition, transition
from oubliette.errors import OublietteError

ENDED = set(SessionStatus) - OPEN_STATUSES

# Every pair of status and event, said a second time by hand: letters are the first of the resulting status, `.` cannot
# happen. Statuses in the order starting running waiting paused idle | completed failed cancelled.
SHORT = {"s": "starting", "r": "running", "w": "waiting", "p": "paused", "i": "idle"}
SHORT |= {"C": "completed", "F": "failed", "X": "cancelled"}
EXPECTED = {
    "messaged": "srwps sss",
    "starting": "sssss ...",
    "turn_started": "rrrrr ...",
    "asked": ".wwp. ...",
    "answered": ".rrr. ...",
    "held": "pppp. ...",
    "released": "...r. ...",
    "settled": "iiiii ...",
    "completed": "CCCCC ...",
    "cancelled": "XXXXX ...",
    "broke": "FFFFF ...",
}


@pytest.mark.parametrize(("event", "status"), list(product(SessionEvent, SessionStatus)))
def test_every_pair_of_status_and_event_is_decided(event: SessionEvent, status: SessionStatus) -> None:
    letter = EXPECTED[event].replace(" ", "")[list(SessionStatus).index(status)]
    if letter == ".":
        assert not possible(status, event)
        with pytest.raises(OublietteError) as caught:
            transition(status, event)
        assert caught.value.code == "conflict"
    else:
        assert transition(status, event) == SHORT[letter]
        require_transition(status, transition(status, event))


def test_only_a_message_opens_a_session_that_has_ended() -> None:
    opened = {(old, event) for (old, event), new in TRANSITIONS.items() if old in ENDED and new in OPEN_STATUSES}
    assert opened == {(status, SessionEvent.MESSAGED) for status in ENDED}


def test_an_open_session_can_always_be_ended() -> None:
    for status in OPEN_STATUSES:
        for event in (SessionEvent.COMPLETED, SessionEvent.CANCELLED, SessionEvent.BROKE):
            assert transition(status, event) in ENDED


@pytest.mark.parametrize(("old", "new"), list(product(SessionStatus, SessionStatus)))
def test_a_step_is_allowed_exactly_when_some_event_makes_it(old: SessionStatus, new: SessionStatus) -> None:
    allowed = (old == new and old in OPEN_STATUSES) or any(
        possible(old, event) and transition(old, event) == new for event in SessionEvent
    )
    if allowed:
        require_transition(old, new)
    else:
        with pytest.raises(OublietteError):
            require_transition(old, new)
