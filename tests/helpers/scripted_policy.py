"""An engine whose policy says what a script has, so that an episode's turns are known."""

from types import SimpleNamespace

import pytest

from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.engine import Event
from ling_jax.rl import collector
from ling_jax.rl.collector import Collector, play
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.reader import Reader
from tests.helpers.rl_run import tokenizer

CONTEXT = 1200
END = next(iter(end_ids(tokenizer()) - {tokenizer().token_to_id("<|endoftext|>")}))
SCRIPTS: dict[int, list[int]] = {}  # by the seeds of requests


def reader(**fields) -> Reader:
    whole = dict(tokenizer=tokenizer(), template=ChatTemplate(), end_ids=end_ids(tokenizer()), context=CONTEXT)
    return Reader(**(whole | fields))


def tokens_of(text: str) -> list[int]:
    return tokenizer().encode(text).ids


def begin(task, *, seed=0, id=0, **fields) -> Episode:
    """A fresh episode."""
    (episode,) = reader(**fields).begin_all([EpisodeRequest(id, 0, task, seed=seed)])
    return episode


def write_script(seed: int, turns) -> None:
    SCRIPTS[seed] = [token for turn in turns for token in [*tokens_of(turn), END]]


def use_scripts(patch: pytest.MonkeyPatch) -> None:
    """Collectors have scripted engines from now on."""
    patch.setattr(collector, "Engine", Scripted)
    patch.setattr(collector, "memory_for", lambda *_, **__: 0)


def play_script(task, turns, *, seed=0, **fields) -> Episode:
    """The episode of a policy that says these turns; scripts are in use."""
    write_script(seed, turns)
    with Collector(None, reader(**fields), 2) as scripted:
        scripted.load(None, version=3)
        (episode,) = play(scripted, [begin(task, seed=seed, **fields)])
    return episode


class Scripted:
    """An engine whose requests say what SCRIPTS has under their seed; 7 tokens a piece."""

    fingerprint, version, occupied = "scripted", 0, (0, 0)

    def __init__(self, config, *, slots, memory_bytes, row_tile, prefill_tokens, mesh):
        self.rows = {}

    @property
    def busy(self):
        return any(row.live for row in self.rows.values())

    @property
    def ids(self):
        return self.rows.keys()

    def close(self):
        """No other process follows."""

    def prepare(self, params, version):
        self.prepared = version
        return "digest"

    def commit(self):
        self.version = self.prepared

    def resume(self, snapshot):
        request = snapshot.request
        assert request.id not in self.rows
        self.rows[request.id] = SimpleNamespace(
            script=SCRIPTS[request.seed][snapshot.drawn :],
            left=snapshot.limit - snapshot.drawn,
            ends=request.stop_ids,
            live=snapshot.finish_reason is None,
        )

    def extend(self, id, tokens, max_new_tokens):
        self.rows[id].left, self.rows[id].live = max_new_tokens, True

    def release(self, id):
        del self.rows[id]

    def step(self):
        return [self._event(id, row) for id, row in self.rows.items() if row.live]

    def _event(self, id, row):
        ends = [i for i, token in enumerate(row.script) if token in row.ends]
        count = min(7, row.left, *(i + 1 for i in ends[:1]))
        new, row.script, row.left = row.script[:count], row.script[count:], row.left - count
        reason = "stop" if new[-1] in row.ends else "length" if row.left == 0 else None
        row.live = reason is None
        return Event(id, 0, tuple(new), (-0.5,) * count, self.version, reason)
