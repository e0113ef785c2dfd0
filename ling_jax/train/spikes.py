"""Spikes: steps whose loss or gradient is far above those before them, which are skipped (`train.spike_sigmas`).

x is the loss of a step, or the logarithm of its gradient's norm before clipping, and h its values in the last
`train.spike_window` applied steps. The step is a spike where one of the two has

    x - median(h) > spike_sigmas · max(1.4826 · median |h - median(h)|, 0.02)

1.4826 times the median absolute deviation is the standard deviation of a normal distribution, and a few spikes in h
move neither median. The rule is that of OLMo-core's SkipStepOptimizer (6 standard deviations above the mean of 128
steps) with medians in place of means, our choice. No step is a spike before half the window is full. `MAX_IN_A_ROW`
spikes in a row mean that the level has changed: the next one is applied, and the history starts anew with it.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

MAX_IN_A_ROW = 10  # our choice: the number of steps that a lasting change costs
MIN_SIGMA = 0.02  # our choice: nats of the loss, 2 % of the norm
SIGMA_OF_DEVIATION = 1.4826


@flax.struct.dataclass
class SpikeHistory:
    values: jax.Array  # [2, N] float32, losses and logarithms of norms of the last applied steps in a ring, NaN if none
    count: jax.Array  # steps added to the ring since it was empty
    in_a_row: jax.Array  # spikes up to the last step
    skipped: jax.Array  # spikes since step 0
    sigmas: jax.Array  # infinity: no step is a spike. An array, so that one program serves all values


def empty_history(window: int) -> SpikeHistory:
    """The history of a run without steps, with sigmas of infinity: no step is a spike."""
    count, in_a_row, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))  # separate buffers, because all are donated
    values = jnp.full((2, window), jnp.nan, jnp.float32)
    return SpikeHistory(values, count, in_a_row, skipped, jnp.full((), jnp.inf))


def with_sigmas(history: SpikeHistory, sigmas: float) -> SpikeHistory:
    """The history with this `train.spike_sigmas`; 0: no step is a spike."""
    return history.replace(sigmas=jax.device_put(np.float32(sigmas or np.inf), history.sigmas.sharding))


def judge(
    history: SpikeHistory, loss: jax.Array, grad_norm: jax.Array, finite: jax.Array
) -> tuple[SpikeHistory, jax.Array]:
    """(the history after a step, whether the step is a spike), from scalars of the step.

    A step that is not `finite` leaves the history as it is.
    """
    window, found = history.values.shape[1], jnp.stack([loss, jnp.log(grad_norm)]).astype(jnp.float32)
    above = finite & (2 * history.count >= window) & _is_above(found, history)
    spike = above & (history.in_a_row < MAX_IN_A_ROW)
    restarts, applied = above & ~spike, finite & ~spike
    count = jnp.where(restarts, 0, history.count)
    values = jnp.where(restarts, jnp.nan, history.values)
    return history.replace(
        values=jnp.where(applied, values.at[:, count % window].set(found), values),
        count=count + applied,
        in_a_row=jnp.where(finite, jnp.where(spike, history.in_a_row + 1, 0), history.in_a_row),
        skipped=history.skipped + spike,
    ), spike


def _is_above(found, history: SpikeHistory) -> jax.Array:
    """Whether the loss or the log norm in `found` [2] is a spike."""
    filled = jnp.minimum(history.count, history.values.shape[1])
    middle = _median(history.values, filled)
    sigma = SIGMA_OF_DEVIATION * _median(jnp.abs(history.values - middle[:, None]), filled)
    return jnp.any(found - middle > history.sigmas * jnp.maximum(sigma, MIN_SIGMA))


def _median(values, filled) -> jax.Array:
    """The median [2] of the `filled` numbers in each row; NaN sorts after them."""
    ordered = jnp.sort(values, axis=1)
    return (ordered[:, (filled - 1) // 2] + ordered[:, filled // 2]) / 2
