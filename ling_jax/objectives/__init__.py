"""Reinforcement-learning objectives as pure functions of log-probabilities (docs/objectives.md).

Every objective has one signature,

    (policy_logps, old_logps, behaviour_logps, advantages, mask, *, …) -> (loss, metrics)

of arrays [B, T] but advantages [B]; `policy` is what is trained, `old` the trainer's weights before the step, and
`behaviour` what sampled the tokens, as recorded by the inference engine. `mask` is true (or not 0) on tokens that
carry loss. What stands at other positions, NaN and inf too, reaches neither loss nor gradient. The loss is -J, in at
least float32, and only `policy_logps` gets a gradient; log-probs and advantages of loss tokens must be finite, except
where an objective says more. A row without loss tokens adds 0 and is still counted, a batch without has loss 0. An
objective that needs no behaviour log-probs takes None, and uses them for the mismatch metrics alone. Metrics are listed
in `ling_jax.objectives.metrics`.
"""

from ling_jax.objectives.advantages import group_advantages as group_advantages
from ling_jax.objectives.describe import effective_objective as effective_objective
from ling_jax.objectives.grpo import grpo_loss as grpo_loss
from ling_jax.objectives.gspo import gspo_loss as gspo_loss
from ling_jax.objectives.icepop import icepop_loss as icepop_loss
from ling_jax.objectives.kpop import calibrate_phi as calibrate_phi
from ling_jax.objectives.kpop import kpop_loss as kpop_loss
from ling_jax.objectives.lpo import lpo_loss as lpo_loss
from ling_jax.objectives.reference_kl import reference_kl as reference_kl
from ling_jax.objectives.tis import tis_loss as tis_loss
