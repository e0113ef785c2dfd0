"""The recipes of fine-tuning and reinforcement learning for pods suit their models and devices."""

import dataclasses
import importlib
import math
import re

import pytest

from launch.compile_config import read_wanted
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import abstract_mesh
from ling_jax.rl.config import RLConfig
from ling_jax.rl.step import trainable
from ling_jax.rl.updates import layouts
from ling_jax.train.config import check_sequence_length
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import device_rows
from ling_jax.train.state import abstract_state, state_bytes
from pallas_kernels.chips import CHIPS

RECIPES = {  # config: (chip, devices, tokens of a device in a microbatch)
    "align.ling_2_6_1t_sft": ("v5p", 1024, 4096),
    "align.ling_2_6_flash_sft": ("v6e", 256, 8192),
    "rl.ling_2_6_1t_lpo": ("v5p", 1024, 4096),
    "rl.ling_2_6_flash_lpo": ("v6e", 256, 8192),
    "rl.ring_2_6_1t": ("v5p", 1024, 4096),
    "rl.ring_2_6_flash": ("v6e", 256, 8192),
}


@pytest.fixture(params=RECIPES)
def recipe(request):
    """(name, config and model as `launch.compile` reads them, mesh)."""
    values = importlib.import_module(f"configs.{request.param}").get_config().to_dict()
    wanted = read_wanted(values, "")
    return request.param, wanted, abstract_mesh(**dataclasses.asdict(wanted.config.mesh))


def test_a_recipe_splits_its_model_into_a_quarter_of_a_devices_memory(recipe):
    name, (config, model, _), mesh = recipe
    chip, devices, _ = RECIPES[name]
    assert mesh.size == devices
    if isinstance(config, RLConfig):
        optimizer = make_optimizer(config.optimizer, config.max_updates, model_spec(model))
        state = abstract_state(model, optimizer, mesh, trainable(model), spike_window=None)
    else:
        state = abstract_state(model, make_optimizer(config.optimizer, config.train.steps, model_spec(model)), mesh)
    assert 0 < state_bytes(state) < 0.25 * CHIPS[chip].hbm_bytes


def test_a_recipes_rows_fill_its_microbatches_and_devices(recipe):
    name, (config, model, _), mesh = recipe
    _, devices, tokens = RECIPES[name]
    if isinstance(config, RLConfig):
        layout, _ = layouts(config, mesh)
        rows, of_a_microbatch, length = config.rows // config.train.updates_per_batch, layout.rows, layout.length
    else:
        rows, length = config.train.batch_size, config.data.sequence_length
        of_a_microbatch = device_rows(rows, config.train.microbatches, mesh) // config.train.microbatches
    check_sequence_length(length, model)
    assert length % (2 * mesh.shape["context"]) == 0
    assert of_a_microbatch * config.train.microbatches == rows  # no row of padding
    assert of_a_microbatch * length == tokens * devices


def test_a_recipe_is_compiled_by_the_command_that_it_gives(recipe):
    name, (config, _, _), mesh = recipe
    command = re.search(r"python -m launch\.compile (.*)", importlib.import_module(f"configs.{name}").__doc__)[1]
    chip, shape = re.search(r"--topology=(\w+):([\dx]+)", command).groups()
    assert (chip, math.prod(map(int, shape.split("x")))) == (RECIPES[name][0], mesh.size)
    assert f"--config=configs/{name.replace('.', '/')}.py " in command
    assert ("--program=rl" in command) == isinstance(config, RLConfig)


@pytest.mark.parametrize("size", ["1t", "flash"])
def test_lpo_has_the_numbers_of_the_reports(size):
    """And the several steps a batch that its docstring offers."""
    values = importlib.import_module(f"configs.rl.ling_2_6_{size}_lpo").get_config()
    config = read_wanted(values.to_dict(), "").config
    assert (config.objective.name, config.objective.options.clip, config.rollout.group_size) == ("lpo", 0.03, 8)
    assert (config.train.updates_per_batch, config.rollout.max_staleness) == (1, 0)
    values.train.update(updates_per_batch=4, microbatches=8)
    assert read_wanted(values.to_dict(), "").config.max_updates == 4 * config.train.steps
