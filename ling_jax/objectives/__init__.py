"""Reinforcement-learning objectives as pure functions of log-probabilities (docs/objectives.md).

Every objective has one signature,

    (policy_logps, old_logps, behaviour_logps, advantages, mask, *, …) -> (loss, metrics)

of arrays [B, T], except advantages [B]. Log-probs are in nats: `policy` of the trained weights, `old` of the trainer's
weights before the first step on a batch, `behaviour` of the inference engine that sampled the tokens. `mask` is true
(or not 0) on loss tokens. Values at other positions, NaN and inf included, reach neither loss nor gradient. The loss is
-J, a scalar in at least float32, and only `policy_logps` gets a gradient. Log-probs and advantages of loss tokens must
be finite unless the objective says otherwise. A row without loss tokens contributes 0 and still counts; a batch without
loss tokens has loss 0. Objectives that do not use `behaviour_logps` accept None and otherwise use them for the mismatch
metrics only. `ling_jax.objectives.metrics` lists the metrics. `OBJECTIVES` has a record of each objective by name: its
loss, its options, and what a run has to know about it.
"""

from ling_jax.objectives.advantages import group_advantages as group_advantages
from ling_jax.objectives.grpo import grpo_loss as grpo_loss
from ling_jax.objectives.gspo import gspo_loss as gspo_loss
from ling_jax.objectives.icepop import icepop_loss as icepop_loss
from ling_jax.objectives.kpop import calibrate_phi as calibrate_phi
from ling_jax.objectives.kpop import kpop_loss as kpop_loss
from ling_jax.objectives.lpo import lpo_loss as lpo_loss
from ling_jax.objectives.objective import Objective as Objective
from ling_jax.objectives.reference_kl import reference_kl as reference_kl
from ling_jax.objectives.reverse_kl import reverse_kl_loss as reverse_kl_loss
from ling_jax.objectives.table import OBJECTIVES as OBJECTIVES
from ling_jax.objectives.table import effective_objective as effective_objective
from ling_jax.objectives.table import settings_of as settings_of
from ling_jax.objectives.tis import tis_loss as tis_loss
