"""Generation: one engine for every token, whose log-probs can be made again (docs/engine.md)."""

from ling_jax.engine.engine import EXACT_TILE as EXACT_TILE
from ling_jax.engine.engine import Engine as Engine
from ling_jax.engine.memory import memory_for as memory_for
from ling_jax.engine.request import Event as Event
from ling_jax.engine.request import Request as Request
from ling_jax.engine.request import Snapshot as Snapshot
from ling_jax.engine.score import score as score
