"""RL's step on meshes of eight simulated devices, compared with one device. Run as a program: the number of devices is
fixed when JAX starts.

    python -m tests.helpers.rl_on_eight every_objective | every_mesh | every_family
"""

import dataclasses
import sys

import jax
import numpy as np

from ling_jax import spec
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.recorded_experts import check_experts, empty_experts
from ling_jax.objectives import OBJECTIVES
from ling_jax.parallel.sharding import make_mesh
from ling_jax.rl.answers import Answer
from ling_jax.rl.batch import Layout, abstract_batch, layout_for, on_mesh, pack
from ling_jax.rl.config import ObjectiveConfig
from ling_jax.rl.loss import make_loss
from ling_jax.rl.step import make_rl_step, make_scorer, trainable
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import lower_step, state_of
from ling_jax.train.state import abstract_state
from tests.helpers.eight_devices import MESHES
from tests.helpers.tiny import random_params, tiny_config

LENGTH, GROUP = 64, 2
FLOATS = ("old_logps", "reference_logps", "reference_weights", "teacher_logps")
MIXED = {"fsdp": 2, "expert": 2, "context": 2}


def random_answers(config: ModelConfig) -> list[Answer]:
    """19 answers of 5 to 40 tokens in groups of two, one alone in its group; every second has recorded experts."""
    rng, answers = np.random.default_rng(0), []
    of_experts = np.random.default_rng(1)
    for i in range(19):
        size = int(rng.integers(5, 41))
        mask = np.arange(size) >= 3
        logps = np.where(mask, -rng.exponential(2.0, size), 0).astype(np.float32)

        def near(logps=logps, mask=mask, size=size):
            return np.where(mask, logps + rng.normal(0, 0.2, size), 0).astype(np.float32)

        answers.append(
            Answer(
                group=i // GROUP,
                advantage=float(rng.normal()),
                tokens=rng.integers(0, config.vocab_size, size).astype(np.int32),
                mask=mask,
                behaviour_logps=logps,
                ages=np.where(mask, rng.integers(0, 3, size), 0).astype(np.int32),
                sentence_ids=np.where(mask, np.arange(size) // 4, -1).astype(np.int32),
                old_logps=near(),
                reference_logps=near(),
                teacher_logps=near(),
                experts=random_experts(of_experts, size - 1, config) if i % 2 else None,
            )
        )
    return answers


def random_experts(rng: np.random.Generator, tokens: int, config: ModelConfig) -> np.ndarray:
    """[tokens, L, k] of which each is possible, for two experts of a token and two groups."""
    empty = empty_experts(1, tokens, config)[0]
    scores = rng.random((*empty.shape[:2], config.num_experts))
    experts = np.argsort(scores, axis=-1)[..., : config.top_k].astype(empty.dtype)
    check_experts(experts, config)
    return experts


def stepped(config, name: str, mesh: jax.sharding.Mesh, layout: Layout) -> tuple[dict, dict, np.ndarray]:
    """(metrics, the optimiser's means of gradients, scores [M, R, T]) after a step on the mesh."""
    spec_of = model_spec(config)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 10, spec_of)
    loss = make_loss(ObjectiveConfig(name=name, reference_kl=0.1), GROUP)
    abstract = abstract_state(config, optimizer, mesh, trainable(config), spike_window=None)
    # A scale that makes the policy's ratios to the old log-probs neither 0 nor infinite.
    params = random_params(config, dtype="float32", std=0.1)
    state = state_of(params, config, optimizer, abstract, trainable(config))
    batch = pack(random_answers(config), layout, loss.normaliser, loss.reference_normaliser, FLOATS, config)
    placed, wanted = on_mesh(batch, mesh), abstract_batch(layout, mesh, FLOATS, replays=config)
    with jax.set_mesh(mesh):
        scores = np.asarray(jax.jit(make_scorer(config))(state.params, placed))
    step = lower_step(make_rl_step(config, optimizer, loss), abstract, wanted, mesh).compile()
    after, metrics = step(state, placed)
    return jax.device_get(metrics), spec.named_leaves(jax.device_get(after.opt_state.mu)), scores


def compare(config, name: str, sizes: dict[str, int]) -> None:
    """On one device each answer has a row of its own; on the mesh they are packed."""
    one = make_mesh({"data": 1}, jax.devices()[:1])
    wanted, wanted_mu, _ = stepped(config, name, one, Layout(1, 19, LENGTH))
    mesh = make_mesh(sizes)
    layout = layout_for(19, 2, LENGTH, mesh)
    found, mu, scores = stepped(config, name, mesh, layout)
    _, _, wanted_scores = stepped(config, name, one, layout)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
    for metric, value in wanted.items():
        np.testing.assert_allclose(found[metric], value, rtol=1e-3, atol=1e-5, err_msg=f"{sizes} {metric}")
    for leaf, mean in mu.items():
        error = np.linalg.norm(mean - wanted_mu[leaf])
        assert error <= 1e-4 * np.linalg.norm(wanted_mu[leaf]), (sizes, leaf, error)
    print("equal", name, sizes, flush=True)


def small(family: str = "2.6"):
    config = tiny_config(family, num_heads=4, num_kv_heads=4, mtp_depth=1, compute_dtype="float32", remat="full")
    return dataclasses.replace(config, vocab_size=64)


def main() -> None:
    if sys.argv[1] == "every_objective":
        for name in OBJECTIVES:
            compare(small(), name, MIXED)
    elif sys.argv[1] == "every_mesh":
        for sizes in MESHES:
            compare(small(), "kpop", sizes)
    else:
        for family in ("2.0", "linear-2.0"):
            compare(small(family), "kpop", {"fsdp": 2, "expert": 2, "tensor": 2})


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
