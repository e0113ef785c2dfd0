"""An environment that can make nine tasks."""

import random
from types import SimpleNamespace

from ling_jax.envs import StepResult, Task


def _make(seed, difficulty):
    number = str(random.Random(seed).randrange(1, 10))
    asked = [{"role": "user", "content": number}]
    return Task("digit_names", difficulty, seed, asked, {"answer": number}, max_tokens=8, max_turns=1)


def _step(state, action):
    return state, StepResult((), {"outcome": 0.0}, True, False, None)


digit_names = SimpleNamespace(make_task=_make, reset=lambda task, seed: task, step=_step)
