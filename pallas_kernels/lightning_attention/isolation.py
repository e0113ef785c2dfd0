"""What is not finite stays in its document where matmuls run over several documents, and multiply it by the others' 0.

It is taken out before, and NaN is put where it would have come to; the same for gradients (our choice: they are NaN in
all of a document that has any, so that a sum over tokens tells).
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def isolated(attend, q, k, v, log_decay, state, docs):
    """attend(q, k, v, log_decay, state, docs) -> (out [B, T, H, V], final state), which adds up over documents.

    docs [B, T] of `document_ids`; q, k, v [B, T, H, …], log_decay a constant, state [B, H, K, V] of document 1 or
    None.
    """
    return _forward(attend, q, k, v, log_decay, state, docs)[0]


def _forward(attend, q, k, v, log_decay, state, docs):
    bad_BT = _bad(q, 2) | _bad(k, 2) | _bad(v, 2)
    bad_B = jnp.zeros(len(q), bool) if state is None else _bad(state, 1)
    clean = (*(_where(bad_BT, 0, x) for x in (q, k, v)), None if state is None else _where(bad_B, 0, state))
    (out, final), pull = jax.vjp(lambda q, k, v, state: attend(q, k, v, log_decay, state, docs), *clean)
    spoilt_BT = _behind(bad_BT, docs) | (bad_B[:, None] & (docs == 1))
    last_B = jnp.maximum(docs.max(axis=1), 1)
    spoilt_B = jnp.any(spoilt_BT & (docs == last_B[:, None]), axis=1) | (bad_B & ~jnp.any(docs == 1, axis=1))
    values = _where(spoilt_BT, jnp.nan, out), _where(spoilt_B, jnp.nan, final)
    return values, (pull, docs, last_B, spoilt_BT, spoilt_B)


def _backward(attend, kept, cotangents):
    pull, docs, last_B, spoilt_BT, spoilt_B = kept
    (d_out, bad_BT), (d_final, bad_B) = map(_sound, cotangents, (spoilt_BT, spoilt_B))
    *d_qkv, d_state = pull((d_out, d_final))
    spoilt_BN = jax.vmap(lambda bad_T, docs_T: jnp.zeros(len(docs_T) + 1, bool).at[docs_T].max(bad_T))(bad_BT, docs)
    spoilt_BN |= bad_B[:, None] & (jnp.arange(docs.shape[1] + 1) == last_B[:, None])
    spoilt_BT = jnp.take_along_axis(spoilt_BN, docs, axis=1) & (docs > 0)
    d_qkv = (_where(spoilt_BT, jnp.nan, x) for x in d_qkv)
    return *d_qkv, None, None if d_state is None else _where(spoilt_BN[:, 1], jnp.nan, d_state), None


def _sound(cotangent, spoilt):
    """(the cotangent with 0 where it is not finite or of no use, and where that is)."""
    if isinstance(cotangent, SymbolicZero):  # nearly always the state's
        return jnp.zeros(cotangent.shape, cotangent.dtype), spoilt
    bad = _bad(cotangent, spoilt.ndim) | spoilt
    return _where(bad, 0, cotangent), bad


def _differentiated(attend, *arguments):
    return _forward(
        attend, *jax.tree.map(lambda x: x.value, arguments, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    )


isolated.defvjp(_differentiated, _backward, symbolic_zeros=True)


def _bad(x, axes: int):
    """Whether anything behind the first axes is not finite."""
    return ~jnp.all(jnp.isfinite(x), axis=range(axes, x.ndim))


def _behind(bad_BT, docs_BT):
    """Tokens that have a bad one of their document at or before them."""
    place_T = jnp.arange(1, docs_BT.shape[1] + 1)
    begins_BT = docs_BT > jnp.pad(jax.lax.cummax(docs_BT, axis=1), ((0, 0), (1, 0)))[:, :-1]
    start_BT, bad_BT = (jax.lax.cummax(jnp.where(x, place_T, 0), axis=1) for x in (begins_BT, bad_BT & (docs_BT > 0)))
    return (docs_BT > 0) & (bad_BT >= jnp.maximum(start_BT, 1))


def _where(bad, value: float, x):
    return jnp.where(bad.reshape(*bad.shape, *(1,) * (x.ndim - bad.ndim)), jnp.asarray(value, x.dtype), x)
