"""The training step on a CPU against the machine's own limits.

python -m benchmarks.train_step --json_out=train_step.json
"""

import importlib.util
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.json_out import JSON_OUT
from benchmarks.lightning_cpu import measure_lightning
from benchmarks.models import HYBRID
from benchmarks.report import Claim, best_seconds, best_seconds_donated, check_json_out, finish
from ling_jax import model, spec
from ling_jax.config import ModelConfig, model_config
from ling_jax.model import model_spec
from ling_jax.model.flops import flops_per_token
from ling_jax.parallel.experts import Experts, experts_ffn, plan_dispatch
from ling_jax.run.speed import matmul_flops
from ling_jax.train import create_state, make_train_step
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer

QUICK = flags.DEFINE_bool("quick", False, "fewer repetitions")

LENGTH, ROWS, PEER_THREADS = 1024, 2, 2


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    if hasattr(os, "sched_setaffinity"):  # as many threads for us as for the peer
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PEER_THREADS])
    times = 2 if QUICK.value else 5
    # The small ones first: what a whole step leaves of the heap disturbs them.
    claims = [moe_vs_useful_flops(times), *lightning_claims(times), decode_growth(times), *train_step_claims(times)]
    command = "python -m benchmarks.train_step" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value))


def train_step_claims(times: int) -> list[Claim]:
    config = model_config("tiny-2.6", **HYBRID)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 100, model_spec(config))
    trainable = spec.trainable(model_spec(config))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    peer = torch_step_seconds(tokens, config, times)
    params = jax.jit(lambda key: model.init(key, config))(jax.random.key(0))
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    batch = dict(tokens=tokens, labels=tokens, segment_ids=np.ones_like(tokens), positions=positions)
    step = jax.jit(make_train_step(config, optimizer, router_bias_rate=1e-3), donate_argnums=0)
    state = create_state(params, optimizer, trainable)
    best = best_seconds_donated(lambda state: step(state, batch)[0], state, times)
    peak = matmul_flops(2048, jnp.float32)  # beside the step: machines are noisy
    flops = flops_per_token(config, LENGTH) * tokens.size
    size = spec.count(model_spec(config)) / 1e6
    workload = f"{size:.0f}M parameters, {ROWS} x {LENGTH} tokens, 64 experts top-8, float32, {best:.2f} s a step"
    versus = f"{workload}; eager PyTorch {peer:.2f} s, {PEER_THREADS} threads each"
    return [
        Claim("mfu_of_measured_peak", flops / best / peak, "", ">=", 0.25, workload),
        Claim("speed_vs_torch", peer / best, "x", ">=", 1.5, versus),
    ]


def torch_step_seconds(tokens, config: ModelConfig, times: int) -> float:
    """The best step of the PyTorch peer, in a process of its own: its threads would go on beside ours."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("speed_vs_torch needs PyTorch: pip install -e '.[bench]'")
    command = [sys.executable, "-m", "benchmarks.torch_peer", str(times), str(PEER_THREADS)]
    peer = subprocess.run(command, input=pickle.dumps((config, tokens)), stdout=subprocess.PIPE, check=True)
    return float(peer.stdout)


def moe_vs_useful_flops(times: int) -> Claim:
    """The worst of three loads: time of forward + backward over that of its useful FLOPs at the matmul peak."""
    tokens, choices, count, width, ffn = 2048, 8, 64, 512, 128
    rng = np.random.default_rng(0)
    shapes = ((count, width, ffn), (count, width, ffn), (count, ffn, width))
    matrices = Experts(*(jnp.asarray(0.05 * rng.normal(size=shape), jnp.float32) for shape in shapes))
    x_MD = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)
    weight_Mk = jnp.full((tokens, choices), 1 / choices)

    def total(x_MD, weight_Mk, matrices, index):
        return jnp.sum(experts_ffn(x_MD, weight_Mk, matrices, plan_dispatch(index, count)) ** 2)

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    shares = {"uniform": np.ones(count), "zipf": 1 / np.arange(1, count + 1)}
    noise = rng.gumbel(size=(tokens, count))
    loads = {name: np.argsort(-(np.log(share) + noise), axis=1)[:, :choices] for name, share in shares.items()}
    loads["all on one"] = np.tile(np.arange(choices), (tokens, 1))
    useful = 3 * 2 * tokens * choices * 3 * width * ffn
    peak, best = 0.0, dict.fromkeys(loads, np.inf)
    for _ in range(2 * times):  # in turn: the machine's speed drifts
        peak = max(peak, matmul_flops(2048, jnp.float32))
        for name, index in loads.items():
            seconds = best_seconds(step, x_MD, weight_Mk, matrices, jnp.asarray(index, jnp.int32), times=1)
            best[name] = min(best[name], seconds)
    ratios = {name: seconds * peak / useful for name, seconds in best.items()}
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    workload = f"{tokens} tokens, {count} experts top-{choices} of {width} x {ffn}: {told}"
    return Claim("moe_vs_useful_flops", max(ratios.values()), "x", "<=", 2.0, workload)


def lightning_claims(times: int) -> list[Claim]:
    found = measure_lightning(times)
    return [
        Claim("lightning_flatness", found.flatness, "x", "<=", 1.15, f"{found.workload}: T 8192 over T 512"),
        Claim("lightning_vs_matmul_peak", found.versus_peak, "x", "<=", 2.0, f"{found.workload}, T 512"),
    ]


def decode_growth(times: int) -> Claim:
    """Growth of the time of a token from 512 to 32,768 tokens of context, over that of an all-softmax model."""
    hybrid = model_config("tiny-2.6", **HYBRID)
    softmax = model_config("tiny-2.6", **HYBRID, layer_group_size=1)
    growth = [decode_seconds(config, 32768, times) - decode_seconds(config, 512, times) for config in (hybrid, softmax)]
    return Claim("decode_growth", growth[0] / growth[1], "x", "<=", 0.17, "batch 8, 8 layers, 7 Lightning + 1 MLA")


def decode_seconds(config: ModelConfig, context: int, times: int) -> float:
    params = jax.jit(lambda key: model.init(key, config))(jax.random.key(0))
    cache = model.init_cache(config, 8, context + 32).replace(length=jnp.full(8, context, jnp.int32), empty=False)
    step = jax.jit(
        lambda params, token, cache: model.forward_with_cache(params, token, config, cache)[::2], donate_argnums=2
    )
    token = jnp.zeros((8, 1), jnp.int32)
    return best_seconds_donated(lambda cache: step(params, token, cache)[1], cache, 4 * times)


if __name__ == "__main__":
    app.run(main)
