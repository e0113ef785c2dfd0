"""A user's view of the public surface, which `make lint` type-checks against the annotations; it is never run."""

import jax
import jax.numpy as jnp
import numpy as np

import ling_jax
from ling_jax.config import ModelConfig, model_config
from ling_jax.evaluate.statistics import bootstrap_ratio_interval, effective_count, wilson_interval
from ling_jax.migrate.gqa_to_lightning import hybrid_config
from ling_jax.model import Cache, forward, forward_with_cache, init, init_cache, layer_plan, loss, model_spec
from ling_jax.objectives import effective_objective, group_advantages, kpop_loss, lpo_loss
from ling_jax.parallel.sharding import batch_sharding, make_mesh, shardings
from ling_jax.rewards import AnswerChecker, evo_cot_rewards, extract_answer, focal_reward, process_reward
from ling_jax.spec import Params, Spec, abstract, count
from pallas_kernels.grouped_matmul import grouped_matmul_reference
from pallas_kernels.lightning_attention import document_ids, lightning_attention
from pallas_kernels.softmax_attention import softmax_attention_reference


def model(tokens: np.ndarray) -> tuple[jax.Array, Cache]:
    config: ModelConfig = model_config("tiny-2.6", max_length=128)
    params: Params = init(jax.random.key(0), config)
    logits: jax.Array = forward(params, tokens, config, segment_ids=np.ones_like(tokens)).logits
    value, metrics = loss(params, tokens, tokens, config)
    total: jax.Array = value + metrics["main"] + logits.sum()
    cache: Cache = init_cache(config, len(tokens), 64)
    _, _, cache = forward_with_cache(params, tokens, config, cache)
    return total, cache


def sizes() -> tuple[int, int]:
    config = hybrid_config(model_config("tiny-2.0"), layer_group_size=4, num_norm_groups=1)
    spec: Spec = model_spec(config)
    mesh: jax.sharding.Mesh = make_mesh({"fsdp": -1})
    jax.device_put(abstract(spec), shardings(spec, mesh))
    batch_sharding(mesh)
    return count(spec), sum(segment.repeats for segment in layer_plan(config))


def objectives(logps: jax.Array, rewards: np.ndarray) -> jax.Array:
    advantages: jax.Array = group_advantages(rewards).reshape(-1)
    mask = np.ones(logps.shape, bool)
    value, metrics = kpop_loss(logps, logps, logps, advantages, mask, phi=0.1)
    other, _ = lpo_loss(logps, logps, None, advantages, mask, sentence_ids=jnp.zeros(logps.shape, int), group_size=4)
    print(effective_objective("grpo"), metrics["masked_fraction"])
    return value + other


def rewards(texts: list[str]) -> tuple[float | None, np.ndarray, str | None]:
    with AnswerChecker(workers=2) as checker:
        verdict: float | None = checker.check(texts[0], "18").reward
    total: np.ndarray = evo_cot_rewards(texts, [10, 20], [1, 0], [0, 3]).total
    focal: jax.Array = focal_reward(np.ones((2, 3)), np.zeros((2, 3)), np.ones(3)).rewards
    calls = process_reward([], [{"name": "add", "arguments": {"a": 1}}], format_ok=True).total
    return verdict, total + np.asarray(focal) + calls, extract_answer(texts[0])


def intervals(scores: list[float], counts: list[int]) -> tuple[float, float] | None:
    low, high = wilson_interval(0.5, effective_count(scores, counts))
    return bootstrap_ratio_interval(scores, counts) or (low, high)


def kernels(q: jax.Array, ids: np.ndarray) -> jax.Array:
    docs: jax.Array = document_ids(ids)
    out, state = lightning_attention(q, q, q, -np.ones(q.shape[2], np.float32), segment_ids=ids)
    softmax: jax.Array = softmax_attention_reference(q, q, q, docs, q.shape[-1] ** -0.5)
    rows = grouped_matmul_reference(q[0, 0], state[0], jnp.ones(q.shape[2], int))
    return out + softmax + rows.sum() + len(ling_jax.SUBMODULES)
