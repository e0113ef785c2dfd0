"""A model and its training on meshes of eight simulated devices, compared with one device. Run as a program: the number
of devices is fixed when JAX starts."""

import sys
import tempfile

import jax
import numpy as np
from jax.sharding import NamedSharding

from ling_jax import model, spec
from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.evaluate.scoring import next_token_logps
from ling_jax.model import model_spec
from ling_jax.parallel.embedding import look_up
from ling_jax.parallel.sharding import batch_sharding, make_mesh, partition_spec, shardings
from ling_jax.train import create_state, make_train_step
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import state_of
from ling_jax.train.state import abstract_state
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"expert": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "fsdp": 4},
    {"data": 2, "expert": 2, "tensor": 2},
    {"context": 8},
    {"data": 2, "context": 4},
    {"fsdp": 2, "expert": 2, "context": 2},
    {"expert": 2, "context": 2, "tensor": 2},
]
SAVED, RESTORED = MESHES[4], (MESHES[5], MESHES[6], MESHES[0], MESHES[9])
# float64 shows a wrong sum; float32 is what is promised: 1e-5 of the loss, 1e-4 of each leaf's norm.
TOLERANCES = {"float64": (1e-12, 1e-11), "float32": (1e-5, 1e-4)}


def batch_of(config):
    """Rows of one document, of two, of many that end anywhere, with padding on both sides, and of padding alone."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 32))
    segment_ids = np.ones((8, 32), int)
    segment_ids[1:3, 13:] = 2
    segment_ids[4, 18:] = segment_ids[5] = segment_ids[6, :7] = 0
    segment_ids[7] = np.repeat([3, 1, 3, 0, 2], [3, 9, 4, 7, 9])
    positions = np.tile(np.arange(32), (8, 1))
    return dict(tokens=tokens, labels=tokens, segment_ids=segment_ids, positions=positions)


def check_model(family: str, dtype: str) -> None:
    config = tiny_config(family, num_heads=4, num_kv_heads=4, mtp_depth=1, compute_dtype=dtype)
    params, batch = random_params(config, dtype=dtype), batch_of(config)
    total = lambda params, tokens, labels, more: model.loss(params, tokens, labels, config, **more)[0]  # noqa: E731
    step = quick_jit(jax.value_and_grad(total))
    split = lambda batch: (batch["tokens"], batch["labels"], {k: batch[k] for k in ("segment_ids", "positions")})  # noqa: E731
    wanted, wanted_grads = jax.device_get(step(params, *split(batch)))
    wanted_grads = spec.named_leaves(wanted_grads)
    for sizes in MESHES:
        mesh = make_mesh(sizes)
        placed = jax.device_put(params, shardings(model_spec(config), mesh))
        with jax.set_mesh(mesh):
            found, grads = jax.device_get(step(placed, *split(jax.device_put(batch, batch_sharding(mesh)))))
        relative, of_norm = TOLERANCES[dtype]
        np.testing.assert_allclose(found, wanted, rtol=relative)
        for name, grad in spec.named_leaves(grads).items():
            error = np.linalg.norm(grad - wanted_grads[name])
            assert error <= of_norm * np.linalg.norm(wanted_grads[name]), (sizes, name, error)
        print("equal", family, dtype, sizes, flush=True)


def check_logps() -> None:
    """Log-probabilities of the next token, and their gradient by the head, on rows that are split."""
    config = tiny_config(num_heads=4, compute_dtype="float64")
    params, batch = random_params(config), batch_of(config)
    tokens, segment_ids = batch["tokens"], batch["segment_ids"]
    mask = np.random.default_rng(1).normal(size=tokens.shape)

    def weighted(head, params, *rows):
        logps_BT = next_token_logps(params | {"head": head}, *rows, config)
        return (logps_BT * mask).sum(), logps_BT

    step = quick_jit(jax.value_and_grad(weighted, has_aux=True))
    (_, wanted), wanted_grad = jax.device_get(step(params["head"], params, tokens, segment_ids))
    for sizes in MESHES[7:9]:
        mesh = make_mesh(sizes)
        placed = jax.device_put(params, shardings(model_spec(config), mesh))
        rows = jax.device_put((tokens, segment_ids), batch_sharding(mesh))
        with jax.set_mesh(mesh):
            (_, found), grad = jax.device_get(step(placed["head"], placed, *rows))
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(grad, wanted_grad, rtol=1e-10, atol=1e-12)
        print("equal log-probabilities", sizes, flush=True)


def check_lookup() -> None:
    """The embedding and its gradient, for tokens that are few beside the vocabulary and for many."""
    rng = np.random.default_rng(0)
    table_WD = rng.normal(size=(512, 16))
    for sizes in MESHES:
        mesh = make_mesh(sizes)
        for rows, length in ((8, 64), (8, 8), (1, 8)):
            tokens, weights = rng.integers(0, 512, (rows, length)), rng.normal(size=(rows, length, 16))
            weighted = lambda table, tokens, weights: (look_up(table, tokens, np.float64) * weights).sum()  # noqa: E731
            with jax.set_mesh(mesh):
                placed = jax.device_put(table_WD, NamedSharding(mesh, partition_spec(("vocab", "embed"))))
                found = jax.jit(look_up, static_argnums=2)(placed, tokens, np.float64)
                grad = jax.jit(jax.grad(weighted))(placed, tokens, weights)
            np.testing.assert_array_equal(found, table_WD[tokens])
            wanted = np.zeros_like(table_WD)
            np.add.at(wanted, tokens, weights)
            np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-12)
        print("equal", sizes, flush=True)


def check_restore() -> None:
    """Saved on one mesh and restored on others, a training step gives the same state and loss."""
    config = tiny_config(num_heads=4, mtp_depth=1, compute_dtype="float64")
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=1), 10, model_spec(config))
    trainable, batch = spec.trainable(model_spec(config)), batch_of(config)
    step = quick_jit(make_train_step(config, optimizer, router_bias_rate=1e-3))
    with tempfile.TemporaryDirectory() as folder:
        saved = None
        for sizes in (SAVED, *RESTORED):
            mesh = make_mesh(sizes)
            abstract = wide(abstract_state(config, optimizer, mesh, spike_window=None))
            with jax.set_mesh(mesh), orbax.open_manager(folder, keep=1) as manager:
                if saved is None:
                    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
                    state = jax.device_put(create_state(random_params(config), optimizer, trainable), placed)
                    state, _ = step(state, jax.device_put(batch, batch_sharding(mesh)))
                    orbax.save(manager, 1, state, config)
                    manager.wait_until_finished()
                restored = orbax.restore(manager, abstract)
                for array, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
                    assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim)
                after, metrics = step(restored, jax.device_put(batch, batch_sharding(mesh)))
            after, loss = jax.device_get((after, metrics["loss"]))
            saved = saved or (after, loss)
            np.testing.assert_allclose(loss, saved[1], rtol=1e-12)
            for found, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(saved[0]), strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
            print("restored onto", sizes, flush=True)


def check_start() -> None:
    """A stored model on any mesh: every device holds its part of the very values, as float32, from either format."""
    config = tiny_config(num_heads=4, mtp_depth=1)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2), 10, model_spec(config))
    stored = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), random_params(config, dtype="float32"))
    with tempfile.TemporaryDirectory() as folder:
        save_hf(stored, config, f"{folder}/hf")
        orbax.save_params(f"{folder}/checkpoints", jax.tree.map(jax.numpy.asarray, stored), config)
        for sizes in (MESHES[4], MESHES[9]):
            mesh = make_mesh(sizes)
            abstract = abstract_state(config, optimizer, mesh)
            for params in (load_hf(f"{folder}/hf")[0], orbax.load_params(f"{folder}/checkpoints", mesh=mesh)[0]):
                state = state_of(params, config, optimizer, abstract)
                for array, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
                    assert array.dtype == wanted.dtype and array.sharding.is_equivalent_to(wanted.sharding, array.ndim)
                for name, leaf in spec.named_leaves(stored).items():
                    np.testing.assert_array_equal(spec.named_leaves(state.params)[name], leaf.astype(np.float32), name)
            print("started on", sizes, flush=True)


def wide(state):
    """Parameters and moments in float64, as `random_params` makes them."""

    def leaf(x):
        dtype = np.float64 if x.dtype == np.float32 else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return jax.tree.map(leaf, state)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    match sys.argv[1:]:
        case ["restore"]:
            check_restore()
        case ["start"]:
            check_start()
        case ["logps"]:
            check_logps()
        case ["lookup"]:
            check_lookup()
        case [family, dtype]:
            check_model(family, dtype)
