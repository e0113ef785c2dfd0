"""How the memory of an engine is divided: states, one for each sequence, and pages of tokens.

A mesh splits both, and the slots, among its D = `num_shards("batch")` parts; each part has its own.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.messages import size_text
from ling_jax.model.cache import pool_spec
from ling_jax.model.token_info import PAGE_SIZE
from ling_jax.parallel.sharding import AnyMesh, abstract_arrays, num_shards

PARKED_SHARE = 0.25  # of what the slots leave, for the states of parked requests; our choice


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a budget holds. Page 0 of each part stays zero and belongs to no sequence."""

    slots: int  # of all parts
    states: int  # of a part: of requests in slots and of parked ones
    pages: int  # of a part
    state_bytes: int  # on a device; `tensor` splits states and the pages of GQA
    page_bytes: int
    max_length: int  # of the model
    parts: int = 1

    @property
    def max_tokens(self) -> int:
        """The longest context of a request."""
        return min(self.max_length, (self.pages - 1) * PAGE_SIZE)

    @property
    def max_pages(self) -> int:
        """Of the longest context."""
        return -(-self.max_tokens // PAGE_SIZE)

    @property
    def total_bytes(self) -> int:
        """Of states and pages on a device."""
        return self.states * self.state_bytes + self.pages * self.page_bytes

    def __str__(self) -> str:
        tokens = f"{self.pages - 1} pages of {PAGE_SIZE} tokens ({size_text(self.page_bytes)} each)"
        split = f" in {self.parts} parts; each has" if self.parts > 1 else ","
        return (
            f"engine: {self.slots} slots{split} {self.states} states ({size_text(self.state_bytes)} each), {tokens}, "
            f"{size_text(self.total_bytes)}; a request has at most {self.max_tokens} tokens"
        )


def check_mesh(mesh: AnyMesh | None, slots: int) -> int:
    """The parts of an engine on this mesh (None: one device). Raises ValueError where it cannot serve on it."""
    if mesh is None:
        return 1
    if wrong := [axis for axis in ("fsdp", "context") if mesh.shape[axis] > 1]:
        ways = mesh.shape[wrong[0]]
        why = {
            "fsdp": "it would gather every weight again for each token",
            "context": "a sequence's pages and its state belong to one device",
        }
        raise ValueError(
            f"an engine's mesh has {wrong[0]} {ways}, and {why[wrong[0]]}; set {wrong[0]} to 1 and data, expert or "
            f"tensor {ways} times as large (`engine_mesh` lays these out over a trainer's devices)"
        )
    if slots % (parts := num_shards("batch", mesh)):
        raise ValueError(
            f"slots is {slots}; the mesh has {parts} parts (data x expert), and each has as many: expected a multiple, "
            f"such as {-(-slots // parts) * parts}"
        )
    return parts


def plan_memory(config: ModelConfig, slots: int, memory_bytes: float, mesh: AnyMesh | None = None) -> MemoryPlan:
    """`memory_bytes` are of one device. Raises ValueError where they do not hold a page for each of its slots."""
    parts = check_mesh(mesh, slots)
    state, page = _bytes(config, mesh, states=1), _bytes(config, mesh, pages=1)
    of_part = slots // parts
    left = memory_bytes - of_part * state - (of_part + 1) * page
    if slots < 1 or left < 0:
        least = max(of_part, 1) * (state + page) + page
        raise ValueError(
            f"memory_bytes is {memory_bytes:.0f} and slots {slots}; expected at least 1 slot, and {least} bytes for "
            f"{max(of_part, 1)} (a state has {state} bytes, a page {page}): use `memory_for`"
        )
    parked = min(of_part, int(PARKED_SHARE * left / state)) if state else of_part
    pages = of_part + 1 + int((left - parked * state) / page)
    longest = 2 * of_part * -(-config.max_length // PAGE_SIZE) + 1  # more are never used
    return MemoryPlan(slots, of_part + parked, min(pages, longest), state, page, config.max_length, parts)


def memory_for(
    config: ModelConfig, *, slots: int, max_tokens: int, parked: int = 0, mesh: AnyMesh | None = None
) -> int:
    """Bytes with which `slots` requests of `max_tokens` tokens run at a time, and about `parked` more are kept.

    On a mesh they are bytes of each device. Raises ValueError on a mesh as `Engine` does.
    """
    parts = check_mesh(mesh, slots)
    slots, parked = slots // parts, -(-parked // parts)
    state, page = _bytes(config, mesh, states=1), _bytes(config, mesh, pages=1)
    pages = (slots + parked) * -(-max_tokens // PAGE_SIZE) + 1
    more = (pages - slots - 1) * page  # than the plan's least
    left = max(min(more / (1 - PARKED_SHARE), more + slots * state), parked * state / PARKED_SHARE)
    return slots * state + (slots + 1) * page + math.ceil(left)


def abstract_pool(config: ModelConfig, plan: MemoryPlan, mesh: AnyMesh) -> Any:
    """The arrays of the plan on a mesh, of shapes, dtypes and shardings alone."""
    return abstract_arrays(pool_spec(config, states=plan.parts * plan.states, pages=plan.parts * plan.pages), mesh)


def pool_places(config: ModelConfig, plan: MemoryPlan, mesh: jax.sharding.Mesh) -> Any:
    """Where programs take the pool from and leave it: its shardings, on TPUs with the layout in which layers use it.

    The compiler's own choice for arguments is another one, and every call would copy the pool twice.
    """
    abstract = abstract_pool(config, plan, mesh)
    if mesh.devices.flat[0].platform != "tpu":
        return jax.tree.map(lambda x: x.sharding, abstract)
    return jax.tree.map(lambda x: Format(Layout(tuple(range(x.ndim))), x.sharding), abstract)


def init_pool(config: ModelConfig, plan: MemoryPlan, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The arrays of the plan, all zero; without a mesh on the first device, as the weights are.

    Arrays without a place would compile twice. On a mesh each device makes its own part.
    """
    if mesh is not None:
        zeros = functools.partial(_zeros, abstract_pool(config, plan, mesh))
        return jax.jit(zeros, out_shardings=pool_places(config, plan, mesh))()
    pool = specs.init(jax.random.key(0), pool_spec(config, states=plan.states, pages=plan.pages))
    return jax.device_put(pool, jax.devices()[0])


def _zeros(abstract: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


class Part:
    """The free places of one part of the mesh."""

    def __init__(self, plan: MemoryPlan, number: int):
        of_part = plan.slots // plan.parts
        self.number, self.slots = number, range(number * of_part, (number + 1) * of_part)
        self.pages, self.states = Places(1, plan.pages), Places(0, plan.states)

    def rank(self, pages: int) -> tuple[bool, int, int]:
        """Lower is better for a sequence that needs so many pages: those that have them, then the emptiest."""
        return len(self.pages) < pages or not len(self.states), -len(self.pages), self.number


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


def _bytes(config: ModelConfig, mesh: AnyMesh | None, *, states: int = 0, pages: int = 0) -> int:
    """Of so many states and pages on a device that has them."""
    total = 0
    for leaf in specs.named_leaves(pool_spec(config, states=states, pages=pages)).values():
        split = 1 if mesh is None else math.prod(num_shards(axis, mesh) for axis in leaf.axes if axis != "batch")
        total += math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize // split
    return total
