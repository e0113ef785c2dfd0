"""The TPU's softmax attention against JAX's own, splash attention, as the TPU's compiler says.

python -m benchmarks.softmax --json_out=softmax.json    (needs libtpu: pip install -e '.[tpu]'; five minutes)

Attention of MLA, [B, T, H, dim] in bfloat16, with gradients and without. Every query sees every key, so that in both no
block has a mask and none is skipped: what a block costs. Cycles are the sum over a program of the larger of an
operation's cycles and its time in HBM. Claims are named `what.chip`.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from unittest import mock

import jax
from absl import app
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from benchmarks.json_out import JSON_OUT
from benchmarks.report import Claim, check_json_out, check_tpu_compiler, finish
from pallas_kernels.chips import CHIPS
from pallas_kernels.softmax_attention import softmax_attention_tpu, tpu_backward, tpu_forward
from pallas_kernels.static_cost import static_cost

LENGTH, HEADS, KEY_DIM, VALUE_DIM = 4096, 16, 192, 128
SCALE = KEY_DIM**-0.5
ARGUMENTS = {
    name: ((1, LENGTH, HEADS, dim), "bfloat16")
    for name, dim in (("q", KEY_DIM), ("k", KEY_DIM), ("v", VALUE_DIM), ("d_out", VALUE_DIM))
}
# Of their own best blocks: 512, and 1024 with 512 or 1024 keys at a time, were tried.
PEERS_BLOCK, PEERS_KEYS = 1024, 1024
BARS = {"forward": 1.0, "gradients": 1.5}


# ---------------------------------------------------------------- what is compiled


def every_block(_blocks, _keys):
    """`tpu_forward.when_visible` where all is seen."""
    return lambda function: function(True)


def ours(q, k, v):
    return softmax_attention_tpu(q, k, v, None, SCALE)


def splash(q, k, v):
    block = PEERS_BLOCK
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=PEERS_KEYS, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=PEERS_KEYS, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((LENGTH, LENGTH))] * HEADS)
    attend = splash_attention_kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    heads_first = lambda x: x.swapaxes(1, 2)  # noqa: E731
    return heads_first(jax.vmap(attend)(*map(heads_first, (q * SCALE, k, v))))


FORMS = {"ours": ours, "splash": splash}


@contextlib.contextmanager
def all_seen():
    with (
        mock.patch.object(tpu_forward, "when_visible", every_block),
        mock.patch.object(tpu_backward, "when_visible", every_block),
    ):
        yield


@all_seen()
def forward(q, k, v, *, form: str):
    return FORMS[form](q, k, v)


@all_seen()
def gradients(q, k, v, d_out, *, form: str):
    out, pull = jax.vjp(FORMS[form], q, k, v)
    return out, pull(d_out)


# ---------------------------------------------------------------- claims


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    check_tpu_compiler()
    claims = [claim for chip in ("v5p", "v6e") for claim in chip_claims(chip)]
    sys.exit(finish(claims, "python -m benchmarks.softmax", JSON_OUT.value))


def chip_claims(chip: str) -> Iterator[Claim]:
    """Splash attention's cycles over ours; and what of the matrix units' peak our products are, which is printed."""
    for what, products in (("forward", KEY_DIM + VALUE_DIM), ("gradients", 4 * KEY_DIM + 3 * VALUE_DIM)):
        arguments = {name: x for name, x in ARGUMENTS.items() if what == "gradients" or name != "d_out"}
        cost = functools.partial(static_cost, f"benchmarks.softmax:{what}", arguments, chip)
        mine, peers = (cost(static={"form": form}) for form in FORMS)
        kernels = sum(kernel.bound_cycles for kernel in mine.kernels)
        share = 2 * HEADS * LENGTH**2 * products / CHIPS[chip].flops_per_cycle / kernels
        print(f"softmax_{what}.{chip:<10} {share:.2f} of the matrix units' peak in the kernels", flush=True)
        workload = f"T {LENGTH}, {HEADS} heads, all seen: {mine.bound_cycles} and {peers.bound_cycles} cycles"
        ratio = peers.bound_cycles / mine.bound_cycles
        yield Claim(f"softmax_{what}.{chip}", ratio, "x splash", ">=", BARS[what], workload)


if __name__ == "__main__":
    app.run(main)
