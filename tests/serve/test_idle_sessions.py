"""Which sessions leave, and what becomes of a call that is being rendered meanwhile."""

import numpy as np
import pytest

from ling_jax.serve.calls import Call
from ling_jax.serve.errors import ApiError
from ling_jax.serve.recorded import Session, Sessions

CALL = Call(np.array([1], np.int32), np.array([2], np.int32), np.zeros(1, np.float32), [(0, 1)], "stop", 0)


def names(sessions: Sessions) -> list[str]:
    return [session.name for session in sessions]


def begin(sessions: Sessions, session: Session) -> Session:
    session = sessions.keep(session)
    sessions.move(session, 1)
    return session


def called(sessions: Sessions, name: str) -> Session:
    """The session after one more call."""
    session = begin(sessions, sessions.of(name))
    session.calls.append(CALL)
    sessions.move(session, -1)
    return session


def test_a_call_that_is_only_asked_keeps_nothing_and_pushes_nothing_out():
    sessions = Sessions(1)
    called(sessions, "one")
    sessions.of("two")
    assert names(sessions) == ["one"]


def test_a_session_that_left_while_its_next_call_was_rendered_is_kept_with_its_calls():
    sessions = Sessions(2)
    called(sessions, "one")
    asked = sessions.of("one")
    called(sessions, "two")
    called(sessions, "three")
    assert names(sessions) == ["two", "three"]
    assert begin(sessions, asked).calls == [CALL] and names(sessions) == ["three", "one"]


def test_first_calls_that_were_asked_at_once_are_of_one_session():
    sessions = Sessions(2)
    asked = [sessions.of("one"), sessions.of("one")]
    begun = [begin(sessions, session) for session in asked]
    assert begun[0] is begun[1] and begun[0].pending == 2 and names(sessions) == ["one"]


def test_the_session_whose_call_ended_longest_ago_leaves():
    sessions = Sessions(2)
    slow = begin(sessions, sessions.of("slow"))
    called(sessions, "quick")
    sessions.move(slow, -1)
    called(sessions, "new")
    assert names(sessions) == ["slow", "new"]


def test_sessions_with_a_call_under_way_stay():
    sessions = Sessions(1)
    first, second = (begin(sessions, sessions.of(name)) for name in ("first", "second"))
    assert names(sessions) == ["first", "second"]
    sessions.move(second, -1)
    assert names(sessions) == ["first", "second"]  # the newest stays, too
    sessions.move(first, -1)
    assert names(sessions) == ["first"]


def test_a_session_that_was_deleted_while_its_call_was_rendered_is_not_kept_again():
    sessions = Sessions(2)
    called(sessions, "one")
    asked = sessions.of("one")
    sessions.remove("one")
    begin(sessions, asked)
    assert names(sessions) == []
    assert called(sessions, "one").calls == [CALL]


def test_a_call_whose_episode_ended_while_it_was_rendered_is_refused():
    sessions = Sessions(2, is_open=False)
    sessions.open(Session("one"))
    asked = sessions.of("one")
    sessions.discard("one")
    with pytest.raises(ApiError, match="its episode has ended"):
        sessions.keep(asked)
