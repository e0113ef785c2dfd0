"""The engine against a bare loop and PyTorch, in long contexts and under load; its log-probs made again.

python -m benchmarks.rollout --json_out=rollout.json [--quick]
"""

import dataclasses
import functools
import os
import sys

import jax
from absl import app, flags

from benchmarks.json_out import JSON_OUT
from benchmarks.models import HYBRID, demo_config
from benchmarks.report import Claim, Figure, check_json_out, finish
from benchmarks.rollout_soak import LOADS, SLOTS, host_growth, soak
from benchmarks.rollout_speed import PIECES, bare_loop_ratio, context_seconds, engine_of, exact_ratio, torch_ratio
from ling_jax import model
from ling_jax.config import ModelConfig, model_config
from ling_jax.engine.memory import MemoryPlan
from ling_jax.engine.schedule import PIECE
from ling_jax.model.token_info import PAGE_SIZE

QUICK = flags.DEFINE_bool("quick", False, "fewer requests and repetitions, and shorter contexts: about a minute")

THREADS, GROWTH_BATCH = 2, 8
DEMO = "the demo's hybrid (2 Lightning, 2 MLA layers), float32"
# The smallest hybrid: what the host does for a token does not depend on the model.
SMALL = dict(
    layer_group_size=2, num_layers=2, first_dense_layers=2, mtp_depth=0, hidden_size=32, num_heads=1, head_dim=16,
    num_norm_groups=1, rotary_dim=8, q_lora_rank=8, kv_lora_rank=8, nope_dim=8, rope_dim=8, v_dim=8, ffn_size=32,
    vocab_size=64, max_length=32768,
)  # fmt: skip


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    if hasattr(os, "sched_setaffinity"):  # as many threads for us as for the peer
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    quick, demo = QUICK.value, demo_config()
    params = init(demo)
    claims = [*bare_loop_claims(params, demo, quick), torch_claim(params, demo, quick), growth_claim(quick)]
    soak_claims, figures = under_load(params, demo, quick)
    claims += [*soak_claims, host_claim(quick)]
    figures += exact_figures(params, demo, quick)
    if not quick:
        figures.append(torch_figure())
    command = "python -m benchmarks.rollout" + (" --quick" if quick else "")
    sys.exit(finish(claims, command, JSON_OUT.value, figures=figures))


def init(config: ModelConfig):
    """Random parameters."""
    return jax.jit(functools.partial(model.init, config=config))(jax.random.key(0))


def bare_loop_claims(params, config: ModelConfig, quick: bool) -> list[Claim]:
    claims = []
    for batch, times in ((1, 40 if quick else 300), (8, 10 if quick else 60), (64, 2 if quick else 12)):
        ratio, words = bare_loop_ratio(params, config, batch, times)
        workload = f"{DEMO}, {PIECE * PIECES} tokens a request, one tile of all slots: {words}"
        claims.append(Claim(f"engine_over_bare_loop.batch{batch}", ratio, "x", ">=", 0.9, workload))
    return claims


def torch_claim(params, config: ModelConfig, quick: bool) -> Claim:
    ratio, words = torch_ratio(params, config, 8, times=4 if quick else 15)
    workload = f"{DEMO}, {PIECE * PIECES} tokens a request; {words}"
    return Claim("speedup_over_torch.demo_batch8", ratio, "x", ">=", 3, workload)


def torch_figure() -> Figure:
    config = model_config("tiny-2.6", **HYBRID)
    ratio, words = torch_ratio(init(config), config, 8, times=3)
    workload = f"110M parameters, 64 experts top-8, {PIECE * PIECES} tokens a request; {words}"
    return Figure("speedup_over_torch.110M_batch8", ratio, "x", workload)


def growth_claim(quick: bool) -> Claim:
    """Growth of the time of a token with its context, over that of a model of GQA layers alone."""
    contexts = (512, 8192 if quick else 32768)
    sizes = HYBRID | dict(first_dense_layers=8)  # experts take the same time in every context, and their noise is large
    hybrid = model_config("tiny-2.6", **sizes)
    softmax = model_config("tiny-2.6", **sizes, full_attention="gqa", num_kv_heads=2, layer_group_size=1)
    models = {"7 Lightning + 1 MLA": hybrid, "8 GQA": softmax}
    room = max(contexts) + 3 * PIECE
    engines = {name: engine_of(init(config), config, GROWTH_BATCH, room) for name, config in models.items()}
    growths, words = [], []
    for name, seconds in context_seconds(engines, contexts, times=2 if quick else 5).items():
        short, long = (seconds[context] / PIECE for context in contexts)
        growths.append(long - short)
        size = request_bytes(engines[name].plan, max(contexts)) / 1e6
        words.append(f"{name}: {1e3 * short:.2f} to {1e3 * long:.2f} ms a token, {size:.2f} MB a request")
    workload = (
        f"width 512, 8 heads (2 of keys in GQA), {GROWTH_BATCH} requests, contexts of {contexts[0]} and "
        f"{contexts[1]} tokens; {'; '.join(words)}"
    )
    return Claim("decode_growth_over_softmax", growths[0] / growths[1], "x", "<=", 0.167, workload)


def request_bytes(plan: MemoryPlan, tokens: int) -> int:
    """Of a request's state and pages."""
    return plan.state_bytes + -(-tokens // PAGE_SIZE) * plan.page_bytes


def under_load(params, config: ModelConfig, quick: bool) -> tuple[list[Claim], list[Figure]]:
    count = 300 if quick else 2000
    found = soak(params, dataclasses.replace(config, max_length=1024), count)  # the demo's 512 hold prompts, too
    if found.answered != count:
        raise SystemExit(f"{found.answered} of {count} requests were answered in full")
    workload = (
        f"{DEMO}, tiles of 64 rows, {count} requests of lognormal lengths (mean 64, at most 512), {SLOTS} slots; all "
        f"answered; {found.tokens_per_second:.0f} tokens/s; {found.memory}"
    )
    again = f"{found.scored} of these requests, some of them paused and resumed, scored alone"
    claims = [
        Claim("score_difference", found.score_difference, "nats", "<=", 0, again),
        Claim("compilations_after_warmup", found.compilations, "", "<=", 0, f"{workload}; {LOADS} loads of weights"),
        Claim("slots_busy", found.slots_busy, "", ">=", 0.85, workload),
    ]
    return claims, [Figure("load_seconds", found.load_seconds, "s", f"a copy of the weights and one step; {DEMO}")]


def host_claim(quick: bool) -> Claim:
    config = model_config("tiny-2.6", **SMALL)
    ratio, words = host_growth(init(config), config, 4096 if quick else 32768)
    workload = f"a model of {SMALL['num_layers']} layers of width {SMALL['hidden_size']}; {words}"
    return Claim("host_seconds_growth_32k", ratio, "x", "<=", 1.2, workload)


def exact_figures(params, config: ModelConfig, quick: bool) -> list[Figure]:
    """The cost of tiles of 64 rows."""
    figures = []
    for batch, times in ((1, 3), (8, 3), (64, 2), (256, 2)):
        if quick and batch > 64:
            continue
        ratio, words = exact_ratio(params, config, batch, times if quick else 3 * times)
        figures.append(Figure(f"exact_over_not_exact.batch{batch}", ratio, "x of time", f"{DEMO}: {words}"))
    return figures


if __name__ == "__main__":
    app.run(main)
