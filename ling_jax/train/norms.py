"""Norms of gradients and updates by group of parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from ling_jax.spec import Leaf, Spec, named_leaves, path_name

GROUPS = {
    "embed": "embed", "head": "head", "norm": "norms", "experts": "experts",
    "router": "router", "router_bias": "router",
}  # fmt: skip


def parameter_group(path: str, leaf: Leaf) -> str:
    """The group of a parameter in reports: embed, head, mtp, lightning, mla, gqa, experts, router, dense or norms."""
    parts = path.split("/")
    if parts[0] == "mtp":
        return "mtp"
    if leaf.role in GROUPS:
        return GROUPS[leaf.role]
    return parts[2].split("_")[1] if parts[3] == "mixer" else "dense"


def group_norms(name: str, tree: Any, spec: Spec) -> dict[str, jax.Array]:
    """{"name/group": Euclidean norm of the group's leaves}; `tree` has None in place of some leaves of the spec."""
    leaves, squares = named_leaves(spec), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        group = f"{name}/{parameter_group(path_name(path), leaves[path_name(path)])}"
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf))
    return {group: jnp.sqrt(square) for group, square in squares.items()}
