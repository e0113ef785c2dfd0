"""The chunked form equals the recurrence and the official numbers, for every length, chunk, decay and packing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.lightning_attention import document_ids, lightning_attention, lightning_attention_flat
from tests.helpers.kernel_laws import assert_a_row_of_padding_keeps_its_state, assert_it_stays_in_its_document

BACKENDS = ("reference", "xla")


def load(golden, name):
    return dict(np.load(golden / "ops" / f"lightning_{name}.npz"))


def random_inputs(seed, batch, length, heads=2, key_dim=4, value_dim=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, batch, length, heads, key_dim)).astype(dtype)
    v = rng.normal(size=(batch, length, heads, value_dim)).astype(dtype)
    log_decay = -np.geomspace(0.9, 0.003, heads).astype(dtype)
    return q, k, v, log_decay


def random_segments(seed, batch, length):
    """Ids in any order, repeated ids and padding anywhere, runs of all lengths."""
    rng = np.random.default_rng(seed)
    rows = [np.repeat(rng.integers(0, 3, length), rng.integers(1, 7, length))[:length] for _ in range(batch)]
    return np.stack(rows).astype(np.int32)


@pytest.mark.parametrize("log_decay", [-2.5e-6, -3e-5, -7.7e-4])
def test_thousands_of_single_tokens_keep_slow_decays(log_decay):
    """A rounded decay, multiplied as often, is off by up to 1e-4; sums of 4,000 terms by 1e-6."""
    ones = jnp.ones((1, 4000, 1, 1), jnp.float32)
    log_decay = np.float32([log_decay])
    _, state = lightning_attention(ones, ones, ones, log_decay, chunk_size=1)
    exact = np.exp(log_decay.astype(np.float64) * np.arange(4000)).sum()
    assert float(state[0, 0, 0, 0]) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize(("backend", "chunk_size"), [("reference", None), ("xla", 16), ("xla", 64), ("xla", 512)])
@pytest.mark.parametrize("name", ["plain", "init", "segments", "strongdecay"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_official_numbers(golden, x64, name, chunk_size, backend, dtype):
    data = load(golden, name)
    q, k, v, g, d_out, d_state = (jnp.asarray(data[n], dtype) for n in ("q", "k", "v", "g", "d_out", "d_final_state"))
    state = jnp.asarray(data["initial_state"], dtype) if "initial_state" in data else None
    attend = functools.partial(
        lightning_attention, segment_ids=data.get("segment_ids"), backend=backend, chunk_size=chunk_size
    )

    def loss(q, k, v, state):
        out, final = attend(q, k, v, g, initial_state=state)
        return jnp.sum(out * d_out) + jnp.sum(final * d_state), (out, final)

    wanted = (0, 1, 2) if state is None else (0, 1, 2, 3)
    grads, (out, final) = jax.jit(jax.grad(loss, wanted, has_aux=True))(q, k, v, state)
    tolerance = 1e-9 if dtype == "float64" else 5e-5  # float32 over sums of up to 260 terms of size ~40
    names = ("out", "final_state", "dq", "dk", "dv", "d_initial_state")
    for label, value in zip(names, (out, final, *grads), strict=False):
        expected = data[label]
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()), err_msg=label
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "tpu_interpret") for name in ("plain", "init", "segments", "strongdecay")]
    + [(name, "gpu_interpret") for name in ("plain", "init", "segments")],  # strongdecay has heads of 8: 16 at least
)
def test_official_numbers_in_the_kernels(golden, name, backend):
    test_official_numbers(golden, None, name, None, backend, "float32")


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_official_varlen(golden, x64, backend):
    data = load(golden, "varlen")
    ends = data["cu_seqlens"]
    for row, (start, stop) in enumerate(itertools.pairwise(ends)):
        q, k, v = (jnp.asarray(data[n][:, start:stop], "float64") for n in "qkv")
        initial = data["initial_state"][row : row + 1] if "initial_state" in data else None
        out, final = lightning_attention(q, k, v, data["g"], initial_state=initial, backend=backend)
        np.testing.assert_allclose(out, data["out"][:, start:stop], atol=1e-9)
        np.testing.assert_allclose(final[0], data["final_state"][row], atol=1e-9)


attend = jax.jit(lightning_attention, static_argnames=("backend", "chunk_size"))
SEEDS = st.integers(0, 2**31)


# Few lengths and chunks, many contents: a new shape is a new compilation.
@settings(max_examples=60)
@given(
    seed=SEEDS,
    length=st.sampled_from([1, 13, 32]),
    chunk_size=st.sampled_from([1, 5, 8, 64]),
    initial=st.booleans(),
)
def test_chunks_equal_recurrence_on_packed_rows(seed, length, chunk_size, initial):
    q, k, v, log_decay = random_inputs(seed, 2, length)
    segment_ids = random_segments(seed, 2, length)
    state = np.random.default_rng(seed).normal(size=(2, 2, 4, 3)).astype(np.float32) if initial else None
    options = dict(initial_state=state, segment_ids=segment_ids)
    expected = attend(q, k, v, log_decay, backend="reference", **options)
    found = attend(q, k, v, log_decay, backend="xla", chunk_size=chunk_size, **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("at", [1, 8, 11, 29])
def test_state_carries_over_a_split(at):
    q, k, v, log_decay = random_inputs(at, 1, 30)
    whole, final = attend(q, k, v, log_decay, chunk_size=8)
    head, state = attend(q[:, :at], k[:, :at], v[:, :at], log_decay, chunk_size=8)
    tail, last = attend(q[:, at:], k[:, at:], v[:, at:], log_decay, initial_state=state, chunk_size=8)
    np.testing.assert_allclose(jnp.concatenate([head, tail], 1), whole, atol=2e-5)
    np.testing.assert_allclose(last, final, atol=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_document(backend, bad):
    assert_it_stays_in_its_document(backend, bad, (100, 40, 249))


@pytest.mark.parametrize("where", ["q at padding", "initial_state", "d_out", "d_final"])
def test_values_that_are_not_finite_stay_in_their_document(where):
    """Documents 1, 2 and, after padding, 3; each of two tokens: (1, 1), (2, 2), (0, 0), (3, 3)."""
    q, k, v, log_decay = random_inputs(0, 1, 8)
    state, d_final = np.random.default_rng(1).normal(size=(2, 1, 2, 4, 3)).astype(np.float32)
    d_out, nan = v[::-1].copy(), np.full((1, 2, 4, 3), np.nan, np.float32)
    ids = np.int32([[1, 1, 2, 2, 0, 0, 3, 3]])

    @jax.jit
    def run(q, state, d_out, d_final):
        call = lambda q, state: lightning_attention(q, k, v, log_decay, initial_state=state, segment_ids=ids)  # noqa: E731
        values, pull = jax.vjp(call, q, state)
        return *values, *pull((d_out, d_final))

    sound, broken = (
        run(q, state, d_out, d_final),
        {
            "q at padding": lambda: run(jnp.asarray(q).at[:, 4].set(jnp.nan), state, d_out, d_final),
            "initial_state": lambda: run(q, nan, d_out, d_final),
            "d_out": lambda: run(q, state, jnp.asarray(d_out).at[:, 3].set(jnp.nan), d_final),
            "d_final": lambda: run(q, state, d_out, nan),
        }[where](),
    )
    poisoned = {  # tokens of out, the final state, tokens of dq, the gradient of the state
        "q at padding": ([], False, [], False),
        "initial_state": ([0, 1], False, [0, 1], True),
        "d_out": ([], False, [2, 3], False),
        "d_final": ([], False, [6, 7], False),
    }[where]
    for a, b, own in zip(broken, sound, poisoned, strict=True):
        if isinstance(own, bool):
            np.testing.assert_array_equal(a, np.full_like(b, np.nan) if own else b)
            continue
        assert np.isnan(a[:, own]).all()
        np.testing.assert_array_equal(np.delete(a, own, axis=1), np.delete(b, own, axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_padding_keeps_its_state(backend):
    assert_a_row_of_padding_keeps_its_state(backend, 197)


def test_flat_layout_is_the_same():
    q, k, v, log_decay = random_inputs(0, 2, 9)
    out, state = lightning_attention(q, k, v, log_decay)
    flat = [x.reshape(2, 9, -1) for x in (q, k, v)]
    flat_out, flat_state = lightning_attention_flat(*flat, log_decay, num_heads=2)
    np.testing.assert_array_equal(flat_out, out.reshape(2, 9, -1))
    np.testing.assert_array_equal(flat_state, state)


def test_no_gradient_reaches_the_decay():
    q, k, v, log_decay = random_inputs(0, 1, 9)
    grad = jax.grad(lambda g: lightning_attention(q, k, v, g)[0].sum())(jnp.asarray(log_decay))
    np.testing.assert_array_equal(grad, 0)


def compiled(length, **options):
    q, k, v, log_decay = random_inputs(0, 1, length, heads=2, key_dim=16, value_dim=16)
    return jax.jit(functools.partial(lightning_attention, **options)).lower(q, k, v, log_decay).compile()


def test_memory_is_linear_in_length():
    """Four times the tokens, at most 4.2 times the scratch: a T x T array would be 16 times."""
    small, large = (compiled(n, chunk_size=64).memory_analysis().temp_size_in_bytes for n in (2048, 8192))
    assert large <= 4.2 * small


def test_documents_are_runs():
    ids = np.array([[3, 3, 0, 3, 1, 1, 3, 0]])
    np.testing.assert_array_equal(document_ids(ids), [[1, 1, 0, 2, 3, 3, 4, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=np.zeros((1, 4, 2, 5))), "k is"),
        (dict(log_decay=np.zeros(3)), r"log_decay is \(3,\); expected \(2,\)"),
        (dict(initial_state=np.zeros((1, 2, 3, 3))), "initial_state is"),
        (dict(segment_ids=np.zeros((1, 5), int)), "segment_ids is"),
        (dict(backend="cuda"), "backend is 'cuda'; it is one of reference, xla"),
        (dict(q=np.zeros((1, 4, 2, 4), int)), "q is int64; expected a floating dtype"),
        (dict(segment_ids=np.zeros((1, 4))), "segment_ids is float"),
        (dict(chunk_size=0), "chunk_size is 0"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    q, k, v, log_decay = random_inputs(0, 1, 4)
    arguments = dict(q=q, k=k, v=v, log_decay=log_decay) | change
    with pytest.raises(ValueError, match=message):
        lightning_attention(**arguments)
