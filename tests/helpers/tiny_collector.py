"""Collectors of a tiny random model that ends its turns often, so that environments have much to do."""

from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.envs import environment
from ling_jax.rl.collector import Collector
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.reader import Reader
from tests.helpers.rl_run import MODEL, tokenizer
from tests.helpers.tiny import random_params

PARAMS = random_params(MODEL, dtype="float32", std=0.2)
SLOTS = 16
READER = Reader(tokenizer(), ChatTemplate(), frozenset(range(7, 60)) | end_ids(tokenizer()), 500)


def tiny_collector(*, version=0, **fields) -> Collector:
    """All are of the same sizes, and share their compiled programs."""
    collector = Collector(MODEL, READER, SLOTS, **fields)
    collector.load(PARAMS, version)
    return collector


def begin(count: int, name="running_sums", difficulty=2, first=0) -> list[Episode]:
    """Fresh episodes of one task."""
    task = environment(name).make_task(0, difficulty)
    return READER.begin_all([EpisodeRequest(i, 0, task, seed=i) for i in range(first, first + count)])
