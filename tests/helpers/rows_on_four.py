"""Rows split among four simulated devices, compared with whole rows, and what the compiled program moves.

Run as a program, with the names of checks: the number of devices is fixed when JAX starts.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ling_jax import spec
from ling_jax.compile.hlo import Collective, read_work
from ling_jax.model.attention import kernel_attention, softmax_attention
from ling_jax.model.layers import LayerKind, layer, layer_spec, remat
from ling_jax.model.lightning import lightning, log_decays, state_from_earlier_ranks
from ling_jax.model.transformer import make_token_info
from ling_jax.parallel import context
from ling_jax.parallel.sharding import make_mesh, partition_spec, per_device
from pallas_kernels.lightning_attention import document_ids, lightning_attention
from pallas_kernels.lightning_attention.context import live_between
from pallas_kernels.softmax_attention import api, tpu, xla
from tests.conftest import golden_folder
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import tiny_config

LAYERS = 2


def check_official_numbers() -> None:
    """Lightning attention as a layer runs it, ranks of unequal and of zero tokens being equal ones with padding."""
    numbers = np.load(golden_folder() / "objectives" / "cp_fold.npz")
    lengths = numbers["rank_lengths"]
    places = np.concatenate([rank * lengths.max() + np.arange(n) for rank, n in enumerate(lengths)])

    def spread(x):
        wide = np.zeros((len(x), len(lengths) * lengths.max(), *x.shape[2:]), x.dtype)
        wide[:, places] = x
        return wide

    qkv, docs = (spread(numbers[name]) for name in "qkv"), spread(np.asarray(document_ids(numbers["segment_ids"])))

    def attend(q, k, v, docs, between):
        state = state_from_earlier_ranks(k, v, numbers["g"], docs, between)
        return (lightning_attention(q, k, v, jnp.asarray(numbers["g"]), initial_state=state, segment_ids=docs)[0],)

    tokens = ((len(docs), "batch"), (docs.shape[1], "tokens"))
    between = live_between(jnp.asarray(docs), len(lengths))
    with jax.set_mesh(make_mesh({"context": 4})):
        ranks = (tokens[0], (4, "tokens"))
        (out,) = quick_jit(per_device(attend, (*(tokens,) * 4, ranks), (tokens,)))(*qkv, docs, between)
    np.testing.assert_allclose(np.asarray(out)[:, places], numbers["out"], atol=1e-12)


def check_softmax() -> None:
    """Values and gradients; documents that end anywhere; blocks of queries smaller than a stretch."""
    xla.SCORES = 32  # stretches of 8 queries go in blocks of 4
    assert_softmax_equals_whole_rows(np.float64, 1e-12)


def check_softmax_kernels() -> None:
    """The same by the kernels of TPUs, interpreted; and whole rows, rows and heads on devices of their own."""
    api.attend_tpu, api.attend_gradients_tpu = (
        functools.partial(kernel, interpret=True) for kernel in (tpu.attend_tpu, tpu.attend_gradients_tpu)
    )
    api.uses_kernels = lambda *_, **__: True
    assert_softmax_equals_whole_rows(np.float32, 2e-6)
    rng = np.random.default_rng(0)
    shapes = ((4, 64, 8, 6), (4, 64, 2, 6), (4, 64, 2, 5))
    qkv = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    docs = random_documents(rng, 4)
    live = docs[..., None, None] > 0
    square = lambda attend: lambda *qkv: jnp.sum(jnp.where(live, attend(*qkv, docs, 0.3), 0) ** 2)  # noqa: E731
    wanted = quick_jit(jax.grad(square(softmax_attention), (0, 1, 2)))(*qkv)
    for sizes in ({"fsdp": 2, "tensor": 2}, {"tensor": 4}):  # two key heads do not split four ways
        with jax.set_mesh(make_mesh(sizes)):
            kernel = functools.partial(kernel_attention, interpret=True)
            found = quick_jit(jax.grad(square(kernel), (0, 1, 2)))(*qkv)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(sizes))


def random_documents(rng, rows: int):
    """[rows, 64]; documents end anywhere, padding between and behind them."""
    ids = [np.repeat(rng.integers(0, 4, 16), rng.integers(1, 8, 16))[:64] for _ in range(rows)]
    return np.asarray(document_ids(np.stack([np.pad(row, (0, 64 - len(row))) for row in ids])))


def assert_softmax_equals_whole_rows(dtype, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    q, d_out, latent, weights = (
        rng.normal(size=shape).astype(dtype) for shape in ((3, 64, 4, 6), (3, 64, 4, 5), (3, 64, 7), (7, 2, 11))
    )
    docs = random_documents(rng, 3)

    def expand(weights, latent):
        return tuple(jnp.split(jnp.einsum("BTR,RGK->BTGK", latent, weights), [6], axis=-1))

    def whole(weights, q, latent):
        return softmax_attention(q, *expand(weights, latent), docs, 0.3)

    def split(weights, q, latent):
        return context.attention(expand, weights, ((7, None), (2, None), (11, None)), q, latent, (), docs, 0.3)

    def values(form):
        out, pull = jax.vjp(form, weights, q, latent)
        live = docs[..., None, None] > 0
        return jnp.where(live, out, 0), *pull(jnp.where(live, d_out, 0))

    wanted = quick_jit(lambda: values(whole))()
    for sizes in ({"context": 4}, {"data": 1, "context": 2, "expert": 2}):
        with jax.set_mesh(make_mesh(sizes)):
            found = quick_jit(lambda: values(split))()
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=str(sizes))


def check_collectives() -> None:
    """Lightning attention: one gather of states forward and one scatter of their gradients backward, whatever is made
    again; the rest are sums of weights' gradients. No byte of a whole layer depends on the rows' length."""
    state = 2 * 2 * 8 * 8 * 4  # bytes of B · H · K · V
    gather = Collective("all-gather", ("context",), LAYERS, LAYERS * 3 * state)  # of three other ranks
    scatter = gather._replace(kind="reduce-scatter")
    for kind in ("full", "dots", "ffn"):
        forward, gradient = moved(4096, kind, False)
        assert forward == (gather,), (kind, forward)
        assert {c for c in gradient if c.kind != "all-reduce"} == {gather, scatter}, (kind, gradient)
    for whole_layer in (True, False):
        assert moved(4096, "full", whole_layer) == moved(65536, "full", whole_layer)


@functools.cache
def moved(length: int, kind: str, whole_layer: bool) -> list[tuple[Collective, ...]]:
    """The collectives of scanned Lightning layers, or of their attention alone, on rows of that length: of the forward
    pass, and of gradients by weights and inputs."""
    config = tiny_config(compute_dtype="float32", max_length=length, remat=kind)
    lightning_dense, mesh = LayerKind("lightning", "dense"), make_mesh({"context": 4})
    declared = spec.stack(layer_spec(config, lightning_dense), (LAYERS,), (None,))
    decays = jnp.asarray(log_decays(config)[:LAYERS], jnp.float32)

    def body(x_BTD, inputs, info):
        params, decay_H = inputs
        if whole_layer:
            return layer(params, x_BTD, {"log_decay": decay_H}, None, info, config, lightning_dense)[0], None
        return x_BTD + lightning(params["mixer"] | {"log_decay": decay_H}, x_BTD, info, None, config)[0], None

    def outputs(params, x_BTD, info):
        step = remat(functools.partial(body, info=info), config, scanned=True)
        return jax.lax.scan(step, x_BTD, (params, decays))[0]

    def total(*arguments):
        return jnp.sum(jnp.square(outputs(*arguments)))

    def array(dtype, *shape, axes=()):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition_spec(axes)))

    params = spec.tree_map(
        lambda leaf: array(jnp.float32, *leaf.shape, axes=leaf.axes if whole_layer else ()), declared
    )
    x_BTD = array(jnp.float32, 2, length, config.hidden_size, axes=("batch", "tokens"))
    with jax.set_mesh(mesh):
        info = placed_sequence(array(jnp.int32, 2, length, axes=("batch", "tokens")), config)
        lowered = (quick_jit(form).lower(params, x_BTD, info) for form in (outputs, jax.grad(total, (0, 1))))
        return [read_work(program.compile().as_text(), dict(mesh.shape)).collectives for program in lowered]


def placed_sequence(segment_ids, config):
    """`make_token_info` of rows, as ShapeDtypeStructs: it is made once, before all layers."""

    def make(ids):
        return make_token_info(ids, config, None, ids)

    placed = quick_jit(make).lower(segment_ids).compile().output_shardings
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, jax.eval_shape(make, segment_ids), placed)


CHECKS = {
    "official": check_official_numbers,
    "softmax": check_softmax,
    "softmax_kernels": check_softmax_kernels,
    "collectives": check_collectives,
}

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:]:
        CHECKS[name]()
        print(name)
