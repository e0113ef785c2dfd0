"""What an engine has on devices: weights, pool and compiled programs. Numpy arrays of fixed sizes go in and come out.

All processes of a mesh call the same functions with the same arrays, in the same order (`engine.follow`).
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.engine.memory import MemoryPlan, abstract_pool, init_pool, memory_for, plan_memory, pool_places
from ling_jax.engine.reshard import reshard
from ling_jax.engine.schedule import Chunks, num_tiles
from ling_jax.engine.sequence import empty_slots
from ling_jax.engine.step import Outputs, Rows, Slots, chunks_step, read_chunks, run_tiles, tiles_step
from ling_jax.engine.weights import decoding_copy, digest, served_spec, serving_dtype
from ling_jax.parallel.exchange import compiler_options
from ling_jax.parallel.sharding import abstract_arrays


class Wanted(NamedTuple):
    """Which outputs of a step the host looks at beside tokens and log-probs."""

    experts: bool = False
    held: bool = False


class Device:
    """The engine's arrays on its mesh (None: the first device), and the programs that use them."""

    def __init__(self, config: ModelConfig, plan: MemoryPlan, mesh: jax.sharding.Mesh | None = None):
        self.config, self.plan, self.mesh = config, plan, mesh
        self.pool: Any = None  # made with the first weights
        self._params: Any = None
        self._next: Any = None  # weights that wait for `swap`
        on_one = run_tiles, read_chunks
        self._run_tiles, self._read_chunks = on_one if mesh is None else programs(config, plan, mesh)

    @property
    def has_weights(self) -> bool:
        """Whether weights are in use."""
        return self._params is not None

    def load(self, params: Any, version: int) -> str:
        """Copies weights and returns their digest; `swap` makes them those of the later steps.

        Raises ValueError as `serving_copy`, and then nothing has changed.
        """
        del version
        # On a mesh not with joined matrices: `tensor` would not split them by heads.
        one = self.mesh is None
        copy = decoding_copy(params, self.config) if one else reshard(params, self.config, self.mesh)
        told, self._next = digest(copy), copy
        return told

    def adopt(self, other: "Device") -> None:
        """Uses the weights of another one; arrays are not changed in place."""
        self._params, self._next = other._params, other._next
        if self.pool is None:
            self.pool = init_pool(self.config, self.plan, self.mesh)

    def swap(self) -> None:
        """The weights of the last `load` are in use from here on."""
        if self._next is None:
            raise RuntimeError("no weights wait for use: call load(params, version) first")
        self._params, self._next = self._next, None
        if self.pool is None:
            self.pool = init_pool(self.config, self.plan, self.mesh)

    def run_tiles(self, rows: np.ndarray, slots: Slots, tiles: np.ndarray, only_draws: bool, wanted: Wanted) -> Outputs:
        """`step.run_tiles`; of the outputs that are not wanted None."""
        outputs = self.start_tiles(rows, slots, tiles, only_draws)
        return Outputs(
            np.asarray(outputs.token),
            np.asarray(outputs.logp),
            experts=np.asarray(outputs.experts) if wanted.experts and outputs.experts is not None else None,
            held=np.asarray(outputs.held) if wanted.held else None,
        )

    def start_tiles(self, rows: np.ndarray, slots: Slots, tiles: np.ndarray, only_draws: bool) -> Outputs:
        """`run_tiles` without waiting for its outputs, which are arrays of all devices."""
        with self._scope():
            self.pool, outputs = self._run_tiles(self._params, self.pool, rows, slots, tiles, self.config, only_draws)
        return outputs

    def read_chunks(self, chunks: Chunks, table: np.ndarray) -> None:
        """`step.read_chunks` of these rows; `table` [S, n] has the pages of all slots."""
        with self._scope():
            self.pool, _ = self._read_chunks(
                self._params, self.pool, chunks.tokens, chunks.positions, table[chunks.slot], chunks.state, self.config
            )

    def _scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


@functools.lru_cache(maxsize=8)
def programs(config: ModelConfig, plan: MemoryPlan, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """`run_tiles` and `read_chunks` of a mesh: the pool stays split, the outputs are whole on every device."""
    pool, unspecified = pool_places(config, plan, mesh), None
    common = dict(donate_argnums=1, compiler_options=compiler_options(mesh))
    common["out_shardings"] = pool, NamedSharding(mesh, PartitionSpec())
    return (
        jax.jit(tiles_step, static_argnums=(5, 6), in_shardings=(unspecified, pool, *[unspecified] * 3), **common),
        jax.jit(chunks_step, static_argnums=6, in_shardings=(unspecified, pool, *[unspecified] * 4), **common),
    )


def abstract_weights(config: ModelConfig, mesh: jax.sharding.Mesh, spec: specs.Spec | None = None) -> Any:
    """Weights as the engine serves them on a mesh, as ShapeDtypeStructs; of `spec`, None: of `served_spec`."""
    spec = served_spec(config) if spec is None else spec
    return abstract_arrays(spec, mesh, lambda leaf: serving_dtype(leaf, config))


def lower_decode(config: ModelConfig, mesh: jax.sharding.Mesh, slots: int, max_tokens: int) -> jax.stages.Lowered:
    """Lowers the step of an engine in which every slot draws eight tokens, for devices that may be absent.

    The engine has memory for `slots` requests of `max_tokens` tokens. Raises ValueError on a mesh as `Engine` does.
    """
    plan = plan_memory(config, slots, memory_for(config, slots=slots, max_tokens=max_tokens, mesh=mesh), mesh)
    tiles = num_tiles(slots // plan.parts, slots // plan.parts, 0)
    whole = NamedSharding(mesh, PartitionSpec())

    def given(shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    table = jax.tree.map(lambda x: given(x.shape, x.dtype), empty_slots(slots, plan.max_pages))
    weights, pool = abstract_weights(config, mesh), abstract_pool(config, plan, mesh)
    with jax.set_mesh(mesh):
        step = programs(config, plan, mesh)[0]
        return step.lower(weights, pool, given((len(Rows._fields), tiles, slots)), table, given((2,)), config, True)
