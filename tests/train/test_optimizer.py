import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ling_jax.spec import Leaf, ones
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import learning_rate, make_optimizer

CONFIG = OptimizerConfig(peak_lr=1e-2, schedule="cosine", warmup_steps=3, weight_decay=0.1, clip_norm=1.0)
STEPS = 8
SHAPES = {"head": (4, 3), "final_norm": (4,), "frozen": None}
SPEC = {
    "head": Leaf((4, 3), (None, None), ones, role="head"),
    "final_norm": Leaf((4,), (None,), ones, role="norm"),
    "frozen": Leaf((2,), (None,), ones),
}
DECAYS = {"head": True, "final_norm": False, "frozen": None}


def trees(scale: float):
    rng = np.random.default_rng(0)
    draw = lambda shape: None if shape is None else jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]


@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["under the clip", "over the clip"])
def test_steps_are_those_of_optax(scale):
    ours, theirs = (
        make_optimizer(CONFIG, STEPS, SPEC),
        optax.chain(
            optax.clip_by_global_norm(CONFIG.clip_norm),
            optax.scale_by_adam(CONFIG.b1, CONFIG.b2, CONFIG.eps),
            optax.add_decayed_weights(CONFIG.weight_decay, DECAYS),
            optax.scale_by_learning_rate(learning_rate(CONFIG, STEPS)),
        ),
    )
    ends = []
    for optimizer in (ours, theirs):
        params = trees(1.0)[0]
        state = optimizer.init(params)
        for grads in trees(scale):
            updates, state = jax.jit(optimizer.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), *ends)


def test_a_step_not_taken_changes_nothing():
    optimizer = make_optimizer(CONFIG, STEPS, SPEC)
    params, grads = trees(1.0)[:2]
    _, state = optimizer.update(grads, optimizer.init(params), params)
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, after = jax.jit(optimizer.update)(broken, state, params, good=False)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert all(not np.any(update) for update in jax.tree.leaves(updates))
