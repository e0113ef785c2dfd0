"""AdamW on what gradients train, and its schedules."""

import jax
import optax

from ling_jax.spec import path_name
from ling_jax.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant ("wsm", report §2.3.1) or a cosine to `final_lr_fraction` at `steps`."""
    warmup = optax.linear_schedule(config.peak_lr / max(config.warmup_steps, 1), config.peak_lr, config.warmup_steps)
    if config.schedule == "wsm":
        after = optax.constant_schedule(config.peak_lr)
    else:
        decay_steps = max(steps - config.warmup_steps, 1)
        after = optax.cosine_decay_schedule(config.peak_lr, decay_steps, config.final_lr_fraction)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decayed(params):
    """Tree of bools: weight decay applies to matrices, not to norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path_name(path).endswith(("norm", "bias")), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipped AdamW. Its state has leaves only where the tree it is given has (None elsewhere)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
