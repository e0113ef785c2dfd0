"""Experts on meshes of eight simulated devices, compared with a dense form on one. Run as a program: the number of
devices is fixed when JAX starts."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.parallel import exchange, expert_chunks, experts
from ling_jax.parallel.experts import expert_parallel
from ling_jax.parallel.sharding import make_mesh
from tests.helpers.golden_numbers import quick_jit
from tests.parallel.test_experts import LOADS, dense, random_case

MESHES = [{"expert": 8}, {"data": 2, "expert": 4}, {"expert": 2, "context": 2, "tensor": 2}, {"fsdp": 2, "expert": 4}]
SHAPES = [(8 * 14, 3, 16), (8 * 190, 3, 16)]  # tokens, choices, experts; tokens that are sent one by one, and in units
ROWS, WIDTH, FFN = 8, 6, 4
EXACT = 1e-11


def with_gradients(function):
    def run(index, live, inputs, grad_MD):
        (value, more), pull = jax.vjp(functools.partial(function, index, live), *inputs)
        return value, more, pull((grad_MD, np.zeros(more.shape, jax.dtypes.float0)))

    return quick_jit(run)


def on_devices(most=None):
    def run(index, live, x_MD, weight_Mk, matrices):
        rows = lambda a: a.reshape(ROWS, -1, *a.shape[1:])  # noqa: E731
        y_BTD, drops = expert_parallel(*map(rows, (x_MD, weight_Mk, index, live)), matrices, most)
        return y_BTD.reshape(x_MD.shape), drops

    return with_gradients(run)


def on_one(index, live, x_MD, weight_Mk, matrices):
    return dense(index, len(matrices.gate), x_MD, jnp.where(live[:, None], weight_Mk, 0), matrices), jnp.array(0)


def documented(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What `jax.lax.ragged_all_to_all` promises, of collectives that CPUs have; what breaks its rules is NaN."""
    me, items = jax.lax.axis_index(axis_name), jnp.arange(len(operand))
    everyones = [jax.lax.all_gather(a, axis_name) for a in (operand, input_offsets, send_sizes, output_offsets)]
    rows, first, sizes, place = everyones[0], *(a[:, me] for a in everyones[1:])
    for sender in range(len(sizes)):
        to = jnp.where(items < sizes[sender], place[sender] + items, len(output))
        output = output.at[to].set(rows[sender][(first[sender] + items) % len(items)], mode="drop")
    legal = (sizes == recv_sizes).all() & (place + sizes <= len(output)).all()
    legal &= (input_offsets + send_sizes <= len(operand)).all()
    return jnp.where(legal, output, jnp.nan)


def check_loads(mesh_sizes, shape, runs) -> None:
    wanted_of = with_gradients(on_one)

    @given(seed=st.integers(0, 2**32 - 1), loads=st.sampled_from(LOADS), padding=st.sampled_from([0.0, 0.3, 1.0]))
    @settings(max_examples=25, deadline=None)
    def check(seed, loads, padding):
        index, inputs, grad_MD = random_case(seed, shape, loads, WIDTH, FFN)
        live = np.random.default_rng(seed).random(len(index)) >= padding
        wanted, _, gradients = jax.device_get(wanted_of(index, live, inputs, grad_MD))
        with jax.set_mesh(make_mesh(mesh_sizes)):
            found = [jax.device_get(run(index, live, inputs, grad_MD)) for run in runs]
        for y_MD, drops, grads in found:
            assert drops == 0
            for value, expected in zip(
                jax.tree.leaves((y_MD, grads)), jax.tree.leaves((wanted, gradients)), strict=True
            ):
                np.testing.assert_allclose(value, expected, rtol=0, atol=EXACT * max(1, np.abs(expected).max()))

    check()
    print("equal", mesh_sizes, shape, flush=True)


def check_drops() -> None:
    """Pairs of devices beyond `most` are left out and counted, and no others."""
    _, inputs, grad_MD = random_case(0, SHAPES[0], "uniform", WIDTH, FFN)
    index = np.tile([0, 2, 15], (len(grad_MD), 1)).astype(np.int32)  # devices 0, 1 and 7
    live = np.ones(len(index), bool)
    first_two = np.where(np.arange(3) < 2, inputs[1], 0)
    with jax.set_mesh(make_mesh(MESHES[0])):
        y_MD, drops, _ = on_devices(most=2)(index, live, inputs, grad_MD)
    wanted, _ = on_one(index, live, inputs[0], first_two, inputs[2])
    assert drops == len(index)
    np.testing.assert_allclose(y_MD, wanted, rtol=0, atol=EXACT * np.abs(wanted).max())
    print("counted", flush=True)


def check_cuda() -> None:
    """Lowered for GPUs on this machine, values and gradients exchange rows by the one operation."""
    index, inputs, grad_MD = random_case(0, SHAPES[1], "uniform", WIDTH, FFN)
    with jax.set_mesh(make_mesh(MESHES[0])), pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "platform", lambda: "gpu")
        traced = on_devices().trace(index, np.ones(len(index), bool), inputs, grad_MD)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    print(f"exchanges {text.count('call @_exchange')}, others {text.count('stablehlo.all_to_all')}")
    assert "@ragged_all_to_all(" in text


def as_elsewhere(run):
    """As on all devices but CPUs, with the exchange by its documentation."""

    def on_others(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            for module in (exchange, experts, expert_chunks):
                patch.setattr(module, "platform", lambda: "gpu")
            patch.setattr(jax.lax, "ragged_all_to_all", documented)
            return run(*arguments)

    return on_others


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jax.lax.empty = lambda shape, dtype: jnp.full(shape, jnp.nan, dtype)  # what it may hold
    match sys.argv[1:]:
        case ["drops"]:
            check_drops()
        case ["cuda"]:
            check_cuda()
        case ["loads"]:
            for sizes, shape in itertools.product(MESHES, SHAPES):
                check_loads(sizes, shape, [on_devices(), as_elsewhere(on_devices())])
