"""Checks that every stage can use the mesh on the present devices, with a mesh that would do where one cannot."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from ling_jax.config import ModelConfig
from ling_jax.migrate.config import MigrateConfig, stage_length, stage_mesh
from ling_jax.model import model_spec
from ling_jax.parallel.context import check_rows
from ling_jax.parallel.sharding import MESH_AXES, abstract_mesh, all_sizes, make_mesh, shardings, slices_of
from ling_jax.train.config import MeshConfig


def check_meshes(config: MigrateConfig, models: Sequence[ModelConfig]) -> None:
    """Raises ValueError with the first stage that cannot use the mesh: the axis, why, and the nearest usable mesh."""
    for number, model in enumerate(models):
        try:
            mesh = make_mesh(dataclasses.asdict(stage_mesh(config, config.stages[number])))
            check_rows(stage_length(config, config.stages[number]), mesh.shape["context"])
            shardings(model_spec(model), mesh)
        except ValueError as error:
            stage = f"stages[{number}] ({config.stages[number].name})"
            raise ValueError(f"{stage}: {error}; {_advice(config, models)}") from None


def _advice(config: MigrateConfig, models: Sequence[ModelConfig]) -> str:
    devices = jax.device_count()
    for mesh in _nearest_first(config.mesh, devices):
        if mesh.data % slices_of(jax.devices()) == 0 and _fits(config, models, mesh):
            changed = [
                (axis, getattr(mesh, axis)) for axis in MESH_AXES if getattr(mesh, axis) != getattr(config.mesh, axis)
            ]
            flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in changed)
            return f"on {devices} devices all stages could use {flags}"
    return f"no mesh of {devices} devices suits all stages; take another number of them"


def _nearest_first(mesh: MeshConfig, devices: int) -> list[MeshConfig]:
    """All meshes of so many devices, those first whose sizes differ by the smallest factors.

    Of equal ones those that split rows and heads less come first, and those that split the batch more.
    """
    sizes = dataclasses.asdict(mesh)
    known = math.prod(size for size in sizes.values() if size > 0)
    wanted = {axis: size if size > 0 else max(1, devices // known) for axis, size in sizes.items()}

    def order(found: dict[str, int]) -> tuple[float, ...]:
        distance = sum(abs(math.log(found[axis] / wanted[axis])) for axis in sizes)
        return round(distance, 6), found["context"], found["tensor"], -found["data"]

    return [MeshConfig(**found) for found in sorted(all_sizes(devices), key=order)]


def _fits(config: MigrateConfig, models: Sequence[ModelConfig], mesh: MeshConfig) -> bool:
    """Whether all stages can use a mesh without -1."""
    try:
        config = dataclasses.replace(config, mesh=mesh)  # checks that stages can split its fsdp for their rows
        for stage, model in zip(config.stages, models, strict=True):
            sizes = dataclasses.asdict(stage_mesh(config, stage))
            check_rows(stage_length(config, stage), sizes["context"])
            shardings(model_spec(model), abstract_mesh(**sizes))
    except ValueError:
        return False
    return True
