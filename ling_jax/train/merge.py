"""WSM: a decayed learning rate by merging the checkpoints of a constant one (Ling 2.0 report §3.2.3)."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.messages import nearest
from ling_jax.spec import path_name

DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - np.sqrt(x),
}


def decay_weights(decay: str, k: int) -> np.ndarray:
    """w [k] float64: the factors of the k last updates under a decay, at x_i = i / (k + 1), i = 1 … k.

    "linear" 1 - x, "cosine" (1 + cos πx) / 2, "1-sqrt" 1 - √x. Linear gives the plain mean of the k + 1 checkpoints.
    Raises ValueError on another decay and on k < 0.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay is {decay!r}{nearest(str(decay), DECAYS)}; expected one of {', '.join(DECAYS)}")
    if k < 0:
        raise ValueError(f"k is {k}; it counts the updates after the first checkpoint, 0 or more")
    return DECAYS[decay](np.arange(1, k + 1) / (k + 1))


def merge_coefficients(weights: Sequence[float]) -> np.ndarray:
    """c [k + 1] float64 of the checkpoints θ_n … θ_{n+k}, for weights w [k] of the updates between them.

        Σ_j c_j θ_{n+j} = θ_n - Σ_i w_i u_i,   θ_{n+i} = θ_{n+i-1} - u_i
        c_0 = 1 - w_1, c_j = w_j - w_{j+1}, c_k = w_k

    They sum to 1. They are not negative where the weights fall from at most 1 to at least 0, as those of a decay do.
    Raises ValueError on weights that are not finite.
    """
    padded = np.concatenate([[1.0], np.asarray(weights, np.float64), [0.0]])
    if not np.isfinite(padded).all():
        raise ValueError(f"weights are {list(weights)}; expected finite numbers")
    return padded[:-1] - padded[1:]


def merge_checkpoints(checkpoints: Iterable[Any], coefficients: Sequence[float]) -> Any:
    """Σ_j coefficients[j] · checkpoints[j] of trees of parameters, oldest first; the result has their dtypes.

    Memory holds one checkpoint beside the running sum, if the iterable loads lazily. Sums are float64 for numpy leaves
    and at least float32 for jax arrays, which stay on their devices. Raises ValueError on coefficients that do not sum
    to 1, on another number of checkpoints, and on trees, shapes or dtypes that differ from the first checkpoint's or
    are no floating point numbers.
    """
    if len(coefficients) == 0 or not math.isclose(math.fsum(coefficients), 1, abs_tol=1e-6):
        raise ValueError(f"coefficients sum to {math.fsum(coefficients)}; a merge of weights needs a sum of 1")
    total, kinds, count = None, {}, 0
    # zip and enumerate would hold the last checkpoint while they fetch the next one.
    for checkpoint in checkpoints:
        if count == len(coefficients):
            raise ValueError(f"more checkpoints than the {count} coefficients; give one for each")
        kinds = kinds or _kinds(checkpoint)
        _check_same(kinds, checkpoint, f"checkpoint {count}")
        total = jax.tree.map(_zero, checkpoint) if total is None else total
        add = functools.partial(_add, coefficient=float(coefficients[count]))
        total = jax.tree.map(add, total, checkpoint)
        count += 1
        del checkpoint
    if count != len(coefficients):
        raise ValueError(f"{count} checkpoints for {len(coefficients)} coefficients; give one for each")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.astype(kinds[path_name(path)][1]), total)


def _kinds(tree) -> dict[str, tuple]:
    return {path_name(path): (x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check_same(expected: dict[str, tuple], tree, where: str) -> None:
    found = _kinds(tree)
    for name in expected.keys() ^ found.keys():
        raise ValueError(f"{where}: {name} is in only one of it and the first; merge checkpoints of one run")
    for name, (shape, dtype) in found.items():
        if (shape, dtype) != expected[name]:
            raise ValueError(
                f"{where}: {name} is {_kind_name(shape, dtype)}, the first's {_kind_name(*expected[name])}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{where}: {name} is {dtype}; merge parameters, which are floating point")


def _kind_name(shape, dtype) -> str:
    return f"{dtype}{list(shape)}"


def _zero(leaf):
    if isinstance(leaf, jax.Array):
        return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
    return np.zeros(leaf.shape, np.float64)


def _add(total, leaf, coefficient: float):
    """In place: a new sum beside the old one would be a third tree."""
    if isinstance(leaf, jax.Array):
        return _add_donated(total, leaf, coefficient)
    total += coefficient * leaf.astype(np.float64)
    return total


_add_donated = jax.jit(lambda total, leaf, c: total + c * leaf.astype(total.dtype), donate_argnums=0)
