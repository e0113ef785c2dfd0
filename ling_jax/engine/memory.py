"""How the memory of an engine is divided: states, one for each sequence, and pages of tokens."""

import dataclasses
import math
from typing import Any

import jax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.messages import size_text
from ling_jax.model.cache import pool_spec
from ling_jax.model.token_info import PAGE_SIZE

PARKED_SHARE = 0.25  # of what the slots leave, for the states of parked requests; our choice


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a budget holds. Page 0 stays zero and belongs to no sequence."""

    slots: int
    states: int  # of requests in slots and of parked ones
    pages: int
    state_bytes: int
    page_bytes: int
    max_length: int  # of the model

    @property
    def max_tokens(self) -> int:
        """The longest context of a request."""
        return min(self.max_length, (self.pages - 1) * PAGE_SIZE)

    @property
    def total_bytes(self) -> int:
        """Of states and pages."""
        return self.states * self.state_bytes + self.pages * self.page_bytes

    def __str__(self) -> str:
        tokens = f"{self.pages - 1} pages of {PAGE_SIZE} tokens ({size_text(self.page_bytes)} each)"
        return (
            f"engine: {self.slots} slots, {self.states} states ({size_text(self.state_bytes)} each), {tokens}, "
            f"{size_text(self.total_bytes)}; a request has at most {self.max_tokens} tokens"
        )


def plan_memory(config: ModelConfig, slots: int, memory_bytes: float) -> MemoryPlan:
    """Raises ValueError where the budget does not hold a page for each slot."""
    state, page = _bytes(config, states=1, pages=0), _bytes(config, states=0, pages=1)
    left = memory_bytes - slots * state - (slots + 1) * page
    if slots < 1 or left < 0:
        least = max(slots, 1) * (state + page) + page
        raise ValueError(
            f"memory_bytes is {memory_bytes:.0f} and slots {slots}; expected at least 1 slot, and {least} bytes for "
            f"{max(slots, 1)} (a state has {state} bytes, a page {page}): use `memory_for`"
        )
    parked = min(slots, int(PARKED_SHARE * left / state)) if state else slots
    pages = slots + 1 + int((left - parked * state) / page)
    longest = 2 * slots * -(-config.max_length // PAGE_SIZE) + 1  # more are never used
    return MemoryPlan(slots, slots + parked, min(pages, longest), state, page, config.max_length)


def memory_for(config: ModelConfig, *, slots: int, max_tokens: int, parked: int = 0) -> int:
    """Bytes with which `slots` requests of `max_tokens` tokens run at a time, and about `parked` more are kept."""
    state, page = _bytes(config, states=1, pages=0), _bytes(config, states=0, pages=1)
    pages = (slots + parked) * -(-max_tokens // PAGE_SIZE) + 1
    more = (pages - slots - 1) * page  # than the plan's least
    left = max(min(more / (1 - PARKED_SHARE), more + slots * state), parked * state / PARKED_SHARE)
    return slots * state + (slots + 1) * page + math.ceil(left)


def init_pool(config: ModelConfig, plan: MemoryPlan) -> Any:
    """The arrays of the plan, all zero, on the first device as the weights: arrays without a place compile twice."""
    pool = specs.init(jax.random.key(0), pool_spec(config, states=plan.states, pages=plan.pages))
    return jax.device_put(pool, jax.devices()[0])


class Places:
    """Numbers of states or pages that are handed out and come back."""

    def __init__(self, first: int, count: int):
        self._free = list(range(count - 1, first - 1, -1))  # the lowest number goes first

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free place; IndexError where there is none."""
        return self._free.pop()

    def give_back(self, places: list[int]) -> None:
        """The places are free again."""
        self._free += reversed(places)


def _bytes(config: ModelConfig, *, states: int, pages: int) -> int:
    leaves = jax.tree.leaves(specs.abstract(pool_spec(config, states=states, pages=pages)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
