"""The loss of an optimisation step: an objective by name, and a penalty to the reference."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ling_jax.objectives import OBJECTIVES, Objective, calibrate_phi, reference_kl
from ling_jax.objectives.objective import Normaliser
from ling_jax.rl.batch import Batch
from ling_jax.rl.config import ObjectiveConfig, objective_settings

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, a sum over its parts: each token has its weight in the mean over the whole batch."""

    objective: Objective
    settings: Mapping[str, Any]  # the objective's keywords that are no arrays
    reference_kl: float = 0.0  # weight of the penalty
    calibrate_phi: float = 0.0  # share of loss tokens that KPop's mask drops; 0: phi is that of `settings`

    @property
    def normaliser(self) -> Normaliser:
        """What the objective is a mean over."""
        return self.objective.normaliser(**self.settings)

    @property
    def reference_normaliser(self) -> Normaliser | None:
        """What the penalty to the reference is a mean over; None without one."""
        if not self.reference_kl:
            return None
        return "tokens" if self.normaliser == "tokens" else "rows"

    def phi(self, batch: Batch) -> jax.Array | None:
        """phi where it is calibrated, on the whole batch, which then has `old_logps`."""
        if not self.calibrate_phi:
            return None
        rows = batch.rows
        arrays = (rows.old_logps, rows.behaviour_logps, rows.mask)
        return calibrate_phi(*arrays, self.calibrate_phi, symmetric=self.settings["symmetric"])

    def __call__(
        self, logps: jax.Array, entropies: jax.Array, rows: Batch, phi: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """(the part of the batch's loss that these rows [R, T] make, metrics of these rows)."""
        loss, metrics = self._objective(logps, entropies, rows, phi)
        if self.reference_kl:
            arrays = (logps, rows.reference_logps, rows.mask)
            penalty, named = reference_kl(*arrays, coefficient=self.reference_kl, weights=rows.reference_weights)
            loss, metrics = loss + penalty, metrics | named
        return loss, metrics if phi is None else metrics | {"phi": phi}

    def _objective(self, logps, entropies, rows: Batch, phi) -> tuple[jax.Array, Metrics]:
        arrays = {"sentence_ids": rows.sentence_ids, "answer_ids": rows.segment_ids, "entropies": entropies}
        arrays |= {"teacher_logps": rows.teacher_logps, "weights": rows.weights}
        keywords = {name: array for name, array in arrays.items() if name in self.objective.keywords}
        keywords |= self.settings if phi is None else {**self.settings, "phi": phi}
        old = old_logps(logps, rows)
        return self.objective.loss(logps, old, rows.behaviour_logps, rows.advantages, rows.mask, **keywords)


def make_loss(config: ObjectiveConfig, group_size: int) -> BatchLoss:
    """The loss of a run's config. Raises ValueError for an unknown objective or option."""
    settings = objective_settings(config, group_size)
    return BatchLoss(OBJECTIVES[config.name], settings, config.reference_kl, config.calibrate_phi)


def describe_loss(config: ObjectiveConfig, group_size: int) -> str:
    """What a run maximises, in one line."""
    settings = objective_settings(config, group_size)
    settings |= {"phi": "phi"} if config.calibrate_phi else {}
    line = f"{config.name}: {OBJECTIVES[config.name].description(**settings)}"
    if config.calibrate_phi:
        line += f", phi such that M = 0 for {config.calibrate_phi:.3g} of the tokens"
    return line + (f"; minus {config.reference_kl:g} KL(policy, start)" if config.reference_kl else "")


def old_logps(logps: jax.Array, rows: Batch) -> jax.Array:
    """[R, T]: the old log-probs in the batch; without them those of the policy itself, whose ratio is then 1."""
    return jax.lax.stop_gradient(logps) if rows.old_logps is None else rows.old_logps
