"""The loss of an optimisation step: an objective by name, and a penalty to the reference."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.objectives import OBJECTIVES, Objective, calibrate_phi, reference_kl
from ling_jax.rl.batch import Batch
from ling_jax.rl.config import ObjectiveConfig, objective_settings

Metrics = dict[str, jax.Array]


class Whole(NamedTuple):
    """What the loss of a microbatch depends on beside its own rows."""

    counts: dict[str, jax.Array]  # {normaliser: how many of the whole batch a mean is over}
    phi: jax.Array | None  # calibrated on the whole batch


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, a sum over its microbatches: `loss(logps, entropies, microbatch, loss.whole(batch))`."""

    objective: Objective
    settings: Mapping[str, Any]  # the objective's keywords that are no arrays
    group_size: int
    reference_kl: float = 0.0  # weight of the penalty
    calibrate_phi: float = 0.0  # share of loss tokens that KPop's mask drops; 0: phi is that of `settings`

    def whole(self, batch: Batch) -> Whole:
        """The counts of a batch [B, T], and phi where it is calibrated, which needs `old_logps` in the batch."""
        groups = batch.valid.reshape(-1, self.group_size).any(axis=1)
        mask, phi = batch.mask[:, 1:], None
        if self.calibrate_phi:
            logps = (batch.old_logps[:, 1:], batch.behaviour_logps[:, 1:])
            phi = calibrate_phi(*logps, mask, self.calibrate_phi, symmetric=self.settings["symmetric"])
        return Whole({"rows": jnp.sum(batch.valid), "groups": jnp.sum(groups), "tokens": jnp.sum(mask)}, phi)

    def __call__(self, logps: jax.Array, entropies: jax.Array, rows: Batch, whole: Whole) -> tuple[jax.Array, Metrics]:
        """(the part of the batch's loss that `rows` make, metrics of these rows); log-probs, entropies [B, T - 1].

        An objective is a mean over all of its own rows. Its share turns that into a mean over the rows, groups or
        tokens of the whole batch that count.
        """
        normaliser = self.objective.normaliser(**self.settings)
        loss, metrics = self._objective(logps, entropies, rows, whole.phi)
        loss = self._share(normaliser, rows, whole) * loss
        if self.reference_kl:
            over, aggregate = ("tokens", "token_mean") if normaliser == "tokens" else ("rows", "seq_mean")
            arrays = (logps, rows.reference_logps[:, 1:], rows.mask[:, 1:])
            penalty, named = reference_kl(*arrays, coefficient=self.reference_kl, aggregate=aggregate)
            share = self._share(over, rows, whole)
            loss, metrics = loss + share * penalty, metrics | {name: share * kl for name, kl in named.items()}
        return loss, metrics if whole.phi is None else metrics | {"phi": whole.phi}

    def _objective(self, logps, entropies, rows: Batch, phi):
        """(loss, metrics) of the objective. No log-prob is of a first token, so all arrays begin with the second."""
        arrays = {"sentence_ids": rows.sentence_ids[:, 1:], "entropies": entropies}
        arrays |= {} if rows.teacher_logps is None else {"teacher_logps": rows.teacher_logps[:, 1:]}
        keywords = {name: array for name, array in arrays.items() if name in self.objective.keywords}
        keywords |= self.settings if phi is None else {**self.settings, "phi": phi}
        old, behaviour, mask = old_logps(logps, rows), rows.behaviour_logps[:, 1:], rows.mask[:, 1:]
        return self.objective.loss(logps, old, behaviour, rows.advantages, mask, **keywords)

    def _share(self, normaliser: str, rows: Batch, whole: Whole) -> jax.Array:
        """How many the objective's own mean over `rows` is over, as a share of those of the whole batch."""
        size = len(rows.valid)
        own = {"rows": size, "groups": size // self.group_size, "tokens": jnp.sum(rows.mask[:, 1:])}
        return own[normaliser] / jnp.maximum(whole.counts[normaliser], 1)


def make_loss(config: ObjectiveConfig, group_size: int) -> BatchLoss:
    """The loss of a run's config. Raises ValueError for an unknown objective or option."""
    settings = objective_settings(config, group_size)
    return BatchLoss(OBJECTIVES[config.name], settings, group_size, config.reference_kl, config.calibrate_phi)


def describe_loss(config: ObjectiveConfig, group_size: int) -> str:
    """What a run maximises, in one line."""
    settings = objective_settings(config, group_size)
    settings |= {"phi": "phi"} if config.calibrate_phi else {}
    line = f"{config.name}: {OBJECTIVES[config.name].description(**settings)}"
    if config.calibrate_phi:
        line += f", phi such that M = 0 for {config.calibrate_phi:.3g} of the tokens"
    return line + (f"; minus {config.reference_kl:g} KL(policy, start)" if config.reference_kl else "")


def old_logps(logps: jax.Array, rows: Batch) -> jax.Array:
    """[B, T - 1]: the old log-probs in the batch; without them those of the policy itself, whose ratio is then 1."""
    return jax.lax.stop_gradient(logps) if rows.old_logps is None else rows.old_logps[:, 1:]
