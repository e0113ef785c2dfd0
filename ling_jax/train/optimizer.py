"""AdamW on the trainable parameters, and its learning rate schedules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ling_jax.spec import Spec, tree_map
from ling_jax.train.config import OptimizerConfig


class AdamState(NamedTuple):
    count: jax.Array  # steps taken
    mu: Any  # mean of gradients
    nu: Any  # mean of their squares


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then a constant rate ("wsm", report §2.3.1) or a cosine to `final_lr_fraction` at `steps`."""
    warmup = optax.linear_schedule(config.peak_lr / max(config.warmup_steps, 1), config.peak_lr, config.warmup_steps)
    if config.schedule == "wsm":
        after = optax.constant_schedule(config.peak_lr)
    else:
        decay_steps = max(steps - config.warmup_steps, 1)
        after = optax.cosine_decay_schedule(config.peak_lr, decay_steps, config.final_lr_fraction)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int, spec: Spec) -> optax.GradientTransformationExtraArgs:
    """Clipped AdamW with the numbers of optax's, for parameters of `spec`; weight decay applies to its matrices.

    Its state is an AdamState, with None where the tree of parameters has None. `update(grads, state, params,
    good=False)` takes no step: its updates are 0 and it returns the state unchanged.
    """
    c, rate = config, learning_rate(config, steps)
    is_matrix = tree_map(lambda leaf: leaf.is_matrix, spec)

    def init(params) -> AdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))  # two trees: each is donated
        return AdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(grads, state: AdamState, params, *, good=True):
        scale = jnp.minimum(1, c.clip_norm / optax.tree.norm(grads))
        count = state.count + jnp.asarray(good, jnp.int32)

        def mean(old, new, decay):
            return jnp.where(good, decay * old + (1 - decay) * new, old)

        mu = jax.tree.map(lambda m, g: mean(m, scale * g, c.b1), state.mu, grads)
        nu = jax.tree.map(lambda v, g: mean(v, jnp.square(scale * g), c.b2), state.nu, grads)
        # Without this barrier the compiler computes both means twice, the second time from copies of the old ones.
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        mu_scale, nu_scale = (1 / (1 - decay ** count.astype(scale.dtype)) for decay in (c.b1, c.b2))

        def moved(m, v, p, decays):
            step = mu_scale * m / (jnp.sqrt(nu_scale * v) + c.eps) + (c.weight_decay * p if decays else 0)
            return jnp.where(good, -rate(state.count) * step, 0).astype(p.dtype)

        decays = jax.tree.map(
            lambda m, decays: None if m is None else decays, mu, is_matrix, is_leaf=lambda m: m is None
        )
        return jax.tree.map(moved, mu, nu, params, decays), AdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
