"""A tiny model, prompts and requests for an engine."""

from ling_jax.engine import Request
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(compute_dtype="float32", remat="none", vocab_size=263)
PARAMS = random_params(CONFIG, dtype="float32", std=0.2)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


def requests(prompts=PROMPTS, count=33, **sampling) -> list[Request]:
    return [Request(i, prompt, count, seed=i, **sampling) for i, prompt in enumerate(prompts)]
