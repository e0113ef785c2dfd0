"""Isolation of documents: NaN and infinity stay in their document although matmuls cover several (0 · NaN is NaN).

Non-finite values are removed first, and NaN is written to the tokens of the document that they would reach. Gradients
are treated alike; one non-finite value makes the gradients of its whole document NaN (our choice: sums show it).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def isolated(
    attend: Callable[..., tuple[jax.Array, jax.Array]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    state: jax.Array | None,
    docs: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`attend(q, k, v, log_decay, state, docs)` -> (out [B, T, H, V], final state), with documents isolated.

    q, k, v [B, T, H, …]; docs [B, T] from `document_ids`; state [B, H, K, V] of document 1 or None; log_decay is a
    constant. `attend` must treat documents independently for finite values.
    """
    return _forward(attend, q, k, v, log_decay, state, docs)[0]


def _forward(attend, q, k, v, log_decay, state, docs):
    bad_BT = _bad(q, 2) | _bad(k, 2) | _bad(v, 2)
    bad_B = jnp.zeros(len(q), bool) if state is None else _bad(state, 1)
    clean = (*(_where(bad_BT, 0, x) for x in (q, k, v)), None if state is None else _where(bad_B, 0, state))
    (out, final), pull = jax.vjp(lambda q, k, v, state: attend(q, k, v, log_decay, state, docs), *clean)
    poisoned_BT = _behind(bad_BT, docs) | (bad_B[:, None] & (docs == 1))
    last_B = jnp.maximum(docs.max(axis=1), 1)
    poisoned_B = jnp.any(poisoned_BT & (docs == last_B[:, None]), axis=1) | (bad_B & ~jnp.any(docs == 1, axis=1))
    values = _where(poisoned_BT, jnp.nan, out), _where(poisoned_B, jnp.nan, final)
    return values, (pull, docs, last_B, poisoned_BT, poisoned_B)


def _backward(attend, kept, cotangents):
    pull, docs, last_B, poisoned_BT, poisoned_B = kept
    (d_out, bad_BT), (d_final, bad_B) = map(_sound, cotangents, (poisoned_BT, poisoned_B))
    *d_qkv, d_state = pull((d_out, d_final))
    poisoned_BN = jax.vmap(lambda bad_T, docs_T: jnp.zeros(len(docs_T) + 1, bool).at[docs_T].max(bad_T))(bad_BT, docs)
    poisoned_BN |= bad_B[:, None] & (jnp.arange(docs.shape[1] + 1) == last_B[:, None])
    poisoned_BT = jnp.take_along_axis(poisoned_BN, docs, axis=1) & (docs > 0)
    d_qkv = (_where(poisoned_BT, jnp.nan, x) for x in d_qkv)
    return *d_qkv, None, None if d_state is None else _where(poisoned_BN[:, 1], jnp.nan, d_state), None


def _sound(cotangent, poisoned):
    """(the cotangent with zeros at non-finite and poisoned entries, the mask of these entries)."""
    if isinstance(cotangent, SymbolicZero):  # usually the state's
        return jnp.zeros(cotangent.shape, cotangent.dtype), poisoned
    bad = _bad(cotangent, poisoned.ndim) | poisoned
    return _where(bad, 0, cotangent), bad


def _differentiated(attend, *arguments):
    return _forward(
        attend, *jax.tree.map(lambda x: x.value, arguments, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    )


isolated.defvjp(_differentiated, _backward, symbolic_zeros=True)


def _bad(x, axes: int):
    """Whether any value over the axes after the first `axes` is not finite."""
    return ~jnp.all(jnp.isfinite(x), axis=range(axes, x.ndim))


def _behind(bad_BT, docs_BT):
    """[B, T]: whether the token or an earlier one of its document is bad."""
    place_T = jnp.arange(1, docs_BT.shape[1] + 1)
    begins_BT = docs_BT > jnp.pad(jax.lax.cummax(docs_BT, axis=1), ((0, 0), (1, 0)))[:, :-1]
    start_BT, bad_BT = (jax.lax.cummax(jnp.where(x, place_T, 0), axis=1) for x in (begins_BT, bad_BT & (docs_BT > 0)))
    return (docs_BT > 0) & (bad_BT >= jnp.maximum(start_BT, 1))


def _where(bad, value: float, x):
    return jnp.where(bad.reshape(*bad.shape, *(1,) * (x.ndim - bad.ndim)), jnp.asarray(value, x.dtype), x)
