"""Whatever happens around a request, its tokens and log-probs are those of the request alone, bit for bit."""

import dataclasses
import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax.engine import Request
from tests.helpers.engine_oracle import Oracle
from tests.helpers.engines import END, check_places, model_of, poison, prompt_of, small_engine, withhold
from tests.helpers.tiny import FAMILIES

FAST = ("2.6", "2.0")


@dataclasses.dataclass
class Turn:
    """Requests and their events."""

    tokens: list[int]
    max_new_tokens: int
    drawn: list = dataclasses.field(default_factory=list)  # (token, log-prob, version)
    finish_reason: str | None = None


@functools.cache
def oracles(family):
    config, params, other = model_of(family)
    return Oracle(params, config, row=3), Oracle(other, config, row=60)


class Schedule:
    """An engine under a list of actions, and the history of every request."""

    def __init__(self, family, prefill_tokens, pages, states):
        self.family, self.engine = family, small_engine(family, prefill_tokens=prefill_tokens)
        withhold(self.engine, pages=pages, states=states)
        self.turns: dict[int, list[Turn]] = {}
        self.requests, self.asleep, self.version = {}, [], 0
        self.prompt_logps = {}

    def submit(self, a, b):
        id = len(self.requests)
        request = Request(
            id, prompt_of(a, 1 + a % 16), 1 + b % 10, seed=a, stop_ids=(END, 1 + a % 3),
            priority=b % 3, temperature=(1.0, 0.7, 0.0)[a % 3],
            top_p=(1.0, 0.9)[b % 2], min_new_tokens=a % 4, prompt_logprobs=b % 4 == 0,
        )  # fmt: skip
        self.requests[id], self.turns[id] = request, [Turn(list(request.tokens), request.max_new_tokens)]
        self.engine.submit(request)

    def extend(self, a, b):
        if parked := [id for id, turns in self.turns.items() if turns[-1].finish_reason in ("stop", "length")]:
            id = parked[a % len(parked)]
            if len(self.turns[id]) < 3 and id in self.engine._sequences:
                turn = Turn(prompt_of(b, 1 + b % 5), 1 + a % 5)
                self.engine.extend(id, turn.tokens, turn.max_new_tokens)
                self.turns[id].append(turn)

    def cancel(self, a, _):
        if ids := list(self.engine._sequences):
            self.engine.cancel(ids[a % len(ids)])

    def pause(self, a, _):
        if ids := list(self.engine._sequences):
            self.asleep.append(self.engine.pause(ids[a % len(ids)]))

    def resume(self, *_):
        if self.asleep:
            self.engine.resume(self.asleep.pop(0))

    def swap(self, *_):
        self.version += 1
        self.engine.load(model_of(self.family)[1 + self.version % 2], self.version)

    def step(self):
        poison(self.engine)
        for event in self.engine.step():
            turn = self.turns[event.id][-1]
            assert event.first == sum(len(turn.drawn) for turn in self.turns[event.id]) and not event.error
            turn.drawn += [(*pair, event.version) for pair in zip(event.tokens, event.logps, strict=True)]
            turn.finish_reason = event.finish_reason
            if event.prompt_logps:
                assert event.id not in self.prompt_logps  # they come once
                self.prompt_logps[event.id] = event.prompt_logps, event.version
        check_places(self.engine)

    def check(self, id):
        request, context, number = self.requests[id], [], 0
        for turn in self.turns[id]:
            context, first = context + turn.tokens, number
            runs = [[]]
            for draw in turn.drawn:
                if runs[-1] and runs[-1][-1][2] != draw[2]:
                    runs.append([])
                runs[-1].append(draw)
            for run in runs if turn.drawn else []:
                tokens, logps, _ = self.oracle(run[0][2]).go_on(request, context, number, len(run), first)
                assert (tokens, logps) == ([token for token, *_ in run], [logp for _, logp, _ in run])
                context, number = context + tokens, number + len(tokens)
            if turn.finish_reason in ("stop", "length"):
                stopped = turn.drawn[-1][0] in request.stop_ids
                assert turn.finish_reason == ("stop" if stopped else "length")
                assert stopped or len(turn.drawn) == turn.max_new_tokens
        if id in self.prompt_logps:
            logps, version = self.prompt_logps[id]
            assert list(logps) == self.oracle(version).go_on(request, request.tokens, 0, 1)[2]

    def oracle(self, version):
        return oracles(self.family)[version % 2]


ACTIONS = ("submit", "submit", "submit", "extend", "extend", "cancel", "pause", "resume", "swap")
schedules = given(
    actions=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99), st.integers(0, 99), st.integers(0, 2)), max_size=25
    ),
    prefill_tokens=st.sampled_from([1, 5, 16, 60]),
    pages=st.sampled_from([0, 15, 20]),  # of 23; the longest context has 3
    states=st.integers(0, 4),
)


def run(family, actions, prefill_tokens, pages, states):
    schedule = Schedule(family, prefill_tokens, pages, states)
    for action, a, b, steps in [("submit", 7, 4, 0), ("submit", 9, 11, 1), *actions]:
        getattr(schedule, action)(a, b)
        for _ in range(steps):
            schedule.step()
    while schedule.asleep:
        schedule.resume()
    for _ in range(1000):
        if not schedule.engine.busy:
            break
        schedule.step()
    for id, turns in schedule.turns.items():
        assert turns[-1].finish_reason is not None
        schedule.check(id)


def families(*quick):
    return [family if family in quick else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


@pytest.mark.parametrize("family", families(*FAST))
@schedules
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_request_is_as_if_alone(family, actions, prefill_tokens, pages, states):
    run(family, actions, prefill_tokens, pages, states)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@schedules
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_request_is_as_if_alone_in_many_schedules(family, actions, prefill_tokens, pages, states):
    run(family, actions, prefill_tokens, pages, states)
