"""The sessions of a server: whose calls belong together, what each of them was asked and what it drew."""

import collections
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ling_jax.engine.request import Request
from ling_jax.messages import nearest
from ling_jax.rl.trajectory import BRANCHES, SAMPLES
from ling_jax.serve.asked import Asked, Earlier
from ling_jax.serve.calls import CUT, Call, branch_count, chosen, sample
from ling_jax.serve.choice import Choice, Delta, answer_of, joined, version_runs
from ling_jax.serve.errors import ApiError
from ling_jax.serve.rule import Rule

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MAX_BYTES = 512 << 20  # of all recorded calls; our choice
CALL_BYTES, DRAWN_BYTES = 1024, 16  # of a call besides its tokens and messages; of a drawn token with its text


@dataclasses.dataclass(eq=False)
class Session:
    """The calls of one program, in the order in which they ended."""

    name: str
    rule: Rule | None = None  # how its answers are drawn, whatever it asks; None: as it asks
    calls: list[Call] = dataclasses.field(default_factory=list)
    pending: int = 0  # answers under way
    begun: int = 0  # answers that a rule counts
    drawn: int = 0  # tokens, of answers under way too
    size: int = 0  # bytes of the recorded calls
    ended: bool = False  # it was deleted, or its episode is over
    used: float = dataclasses.field(default_factory=time.monotonic)  # when a call came, began or ended last
    _prompts: collections.Counter[bytes] = dataclasses.field(default_factory=collections.Counter)  # asked so far

    def earlier(self) -> Earlier:
        """What it has now."""
        return Earlier(tuple(self.calls), self.rule, self.drawn)

    def begin(self, asked: Asked) -> Asked:
        """What is asked, as the rule has it if there is one. Raises ApiError where the rule allows no more answers."""
        if self.rule is None or asked.is_score:
            return asked
        count = sum(request.max_new_tokens > 0 for request in asked.requests)
        if count:
            self.rule.check(self.begun, self.drawn, count)
        self.begun += count
        return dataclasses.replace(asked, requests=[self._ruled(request) for request in asked.requests])

    def _ruled(self, request: Request) -> Request:
        assert self.rule is not None
        if not request.max_new_tokens:
            return request
        prompt = np.asarray(request.tokens, np.int32).tobytes()
        self._prompts[prompt] += 1
        return self.rule.request(request, prompt, self._prompts[prompt] - 1)

    def move(self, count: int) -> None:
        """So many answers more are under way, or fewer."""
        self.pending += count
        self.used = time.monotonic()

    def note(self, choice: Choice, delta: Delta) -> None:
        """Notes what an answer has drawn, and records it where that is its end."""
        if not choice.asked.is_score:  # tokens that were drawn by force are nobody's answer
            self.drawn += len(delta.tokens)
        if delta.finish:
            self._record(choice)

    def leave(self, choices: Sequence[Choice]) -> None:
        """Records what answers have drawn that did not come to their end."""
        for choice in choices:
            if choice.deltas and not choice.deltas[-1].finish:
                self._record(choice)

    def _record(self, choice: Choice) -> None:
        if not choice.asked.is_score and any(delta.tokens for delta in choice.deltas):
            call = call_of(choice)
            self.calls.append(call)
            self.size += call.size


class Sessions:
    """All sessions, the one whose last call began or ended longest ago first.

    Where there are more than `limit`, or more than 512 MiB, the first ones leave; those with a call under way stay, and
    the last one. With `is_open` False only those that `open` has added may be used, and none leaves by itself.
    """

    def __init__(self, limit: int = 256, *, is_open: bool = True):
        self.limit, self.is_open = limit, is_open
        self._sessions: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def open(self, session: Session) -> None:
        """Adds a session."""
        self._sessions[session.name] = session

    def of(self, name: str | None) -> Session | None:
        """The session of a call that came, a new one where the name is new; None without a name.

        A new one is stored by `keep` alone, so that a call that is refused before leaves nothing. Raises ApiError.
        """
        if name is None:
            if not self.is_open:
                raise ApiError(404, "calls here belong to an episode: base_url ends in /sessions/NAME/v1")
            return None
        check_name(name)
        session = self._sessions.get(name)
        if session is None:
            self._check_room(name)
            return Session(name)
        session.used = time.monotonic()
        if session.size >= MAX_BYTES:
            raise ApiError(409, f"session {name!r} has recorded {session.size} bytes, the most there may be; end it")
        return session

    def keep(self, session: Session) -> Session:
        """Stores the session of a call that begins; the one to record it in.

        That is another one where a call of the same name has begun meanwhile. One that was deleted meanwhile is not
        stored again. Raises ApiError 404 where its episode is over.
        """
        if self.is_open:
            return session if session.ended else self._sessions.setdefault(session.name, session)
        if session.ended:
            self._check_room(session.name)
        return session

    def move(self, session: Session, count: int) -> None:
        """So many answers of a session more are under way, or fewer; others may have to leave."""
        session.move(count)
        if self.is_open:
            if self._sessions.get(session.name) is session:
                self._sessions.move_to_end(session.name)
            self._shrink()

    def find(self, name: str) -> Session:
        """Raises ApiError 404 where there is none of this name."""
        check_name(name)
        if name not in self._sessions:
            raise ApiError(404, f"there is no session {name!r}; one that was idle for long has left", "name")
        return self._sessions[name]

    def remove(self, name: str) -> None:
        """Forgets a session; the answers of calls under way are lost with it. Raises as `find`."""
        self.find(name)
        self.discard(name)

    def discard(self, name: str) -> None:
        """`remove` of one that may have left."""
        if (session := self._sessions.pop(name, None)) is not None:
            session.ended = True

    def _shrink(self) -> None:
        """Lets sessions go that are too many, or too large together."""
        total = sum(session.size for session in self)
        for session in list(self)[:-1]:
            if len(self._sessions) <= self.limit and total <= MAX_BYTES:
                return
            if not session.pending:
                total -= session.size
                del self._sessions[session.name]

    def _check_room(self, name: str) -> None:
        if not self.is_open:
            raise ApiError(404, f"there is no session {name!r}, or its episode has ended")
        if not self.limit:
            raise ApiError(404, "this server records no sessions: start it with --max_sessions")


def check_name(name: str) -> None:
    """Raises ApiError 400 on what is no plain name."""
    if not NAME.fullmatch(name):
        expected = "1 to 128 letters, digits, '.', '_' and '-', the first one a letter or a digit"
        raise ApiError(400, f"the session's name is {name[:200]!r}; expected {expected}", "session")


def call_of(choice: Choice) -> Call:
    """What a choice has drawn so far, as a call that has ended."""
    deltas, chat, prompt = choice.deltas, choice.asked.chat, choice.request.tokens
    drawn = joined(deltas, "tokens")
    messages: Sequence[dict[str, Any]] = () if chat is None else [*chat.messages, answer_of(deltas)]
    return Call(
        prompt=np.asarray(prompt, np.int32),
        drawn=np.asarray(drawn, np.int32),
        logps=np.asarray(joined(deltas, "logps"), np.float32),
        runs=[(version, count) for version, count in version_runs(deltas)],
        finish_reason=deltas[-1].finish or CUT,
        known=choice.asked.known,
        size=CALL_BYTES + 4 * len(prompt) + DRAWN_BYTES * len(drawn) + _share(choice),
        messages=messages,
        chat=chat,
    )


def _share(choice: Choice) -> int:
    """Bytes of the conversation, which the answers to one request share."""
    chat = choice.asked.chat
    return 0 if chat is None else chat.size // choice.asked.n


def listed(session: Session, calls: Sequence[Call] | None = None) -> dict[str, Any]:
    """The line of a session in the list, with these calls or those that it has."""
    calls = list(session.calls) if calls is None else calls
    counts = {"calls": len(calls), "branches": branch_count(calls), "drawn_tokens": sum(len(c.drawn) for c in calls)}
    return {"name": session.name, **counts, "pending": session.pending}


def exported(session: Session, samples: str, branches: str) -> dict[str, Any]:
    """The samples of a session as JSON. Raises ApiError 400 on an unknown choice, 409 where versions fall."""
    for name, value, known in (("samples", samples, SAMPLES), ("branches", branches, BRANCHES)):
        if value not in known:
            message = f"{name} is {value[:200]!r}{nearest(value, known)}; expected {' or '.join(known)}"
            raise ApiError(400, message, name)
    calls = list(session.calls)
    found = [_sample(calls, chain, session.name) for chain in chosen(calls, samples, branches)]
    return listed(session, calls) | {"samples": found}


def _sample(calls: Sequence[Call], chain: Sequence[int], name: str) -> dict[str, Any]:
    try:
        trajectory = sample(calls, chain, name)
    except ValueError as error:
        raise ApiError(409, f"session {name!r}: {error}") from None
    last = calls[chain[-1]]
    return {
        "calls": list(chain),
        "prompt_token_ids": list(trajectory.prompt_ids),
        "token_ids": trajectory.completion_ids.tolist(),
        "turns": [list(turn) for turn in trajectory.turns],
        "logprobs": trajectory.behaviour_logps.tolist(),
        "weight_versions": [list(run) for run in trajectory.runs],
        "finish_reason": last.finish_reason,
        "messages": list(last.messages),
    }
