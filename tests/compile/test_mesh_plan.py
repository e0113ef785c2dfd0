"""The plan's winner is the best of all meshes, and it compiles no more than it has to."""

import dataclasses

import jax
import pytest

from configs.pretrain import tiny_2_6
from ling_jax.compile.plan import as_text as plan_text
from ling_jax.compile.plan import plan
from ling_jax.train.config import PretrainConfig, from_dict
from pallas_kernels.chips import CHIPS


def small_config(**changes):
    config = from_dict(PretrainConfig, tiny_2_6.get_config().to_dict())
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


class Compiler:
    """Stands in for minutes of compilation: bounds and memory from a formula, and what it was asked."""

    def __init__(self, seconds, memory=lambda config: 1e9):
        self.seconds, self.memory, self.asked = seconds, memory, []

    def __call__(self, config):
        self.asked.append(config)
        needed, seconds = self.memory(config), self.seconds(config)
        return {
            "fits": needed <= 16e9, "hbm_peak_bytes": needed, "hbm_fraction": needed / 16e9, "limiting_term": "hbm",
            "step_seconds_bound": seconds, "seconds": {"compute": seconds / 2, "hbm": seconds},
        }  # fmt: skip


def mesh_of(tried):
    return tuple(dataclasses.asdict(tried.config.mesh).values())


def test_every_legal_mesh_is_searched_and_the_best_comes_first():
    compiler = Compiler(lambda config: 1.0 + abs(config.mesh.fsdp - 4) + abs(config.mesh.expert - 2))
    tried = plan(small_config(), 8, CHIPS["v5e"], compiler)
    assert dataclasses.asdict(tried[0].config.mesh) == dict(data=1, fsdp=4, expert=2, context=1, tensor=1)
    # Eight devices on four axes, of which 4 heads and their norm groups take 4 at the most.
    assert len({mesh_of(t) for t in tried}) == len(tried) == 19
    assert "the first wins: its hbm takes longest" in plan_text(tried)


def test_meshes_that_cannot_win_are_not_compiled():
    compiler = Compiler(lambda config: 1e-9)  # less than any lower bound
    tried = plan(small_config(), 8, CHIPS["v5e"], compiler)
    assert len(compiler.asked) == 1
    assert all("no step takes less than" in t.reason for t in tried[1:])


def test_recomputation_comes_before_more_microbatches_only_where_it_must():
    """What fits is full recomputation of half the rows."""

    def memory(config):
        return (12e9 if config.model.remat == "full" else 20e9) * (1 if config.train.microbatches > 1 else 2)

    compiler = Compiler(lambda config: 1.0, memory)
    tried = plan(small_config(batch_size=16), 8, CHIPS["v5e"], compiler)
    assert tried[0].config.model.remat == "full" and tried[0].config.train.microbatches > 1
    steps = [(c.model.remat, c.train.microbatches) for c in compiler.asked if c.mesh == tried[0].config.mesh]
    assert [remat for remat, _ in steps] == sorted(
        (remat for remat, _ in steps), key=["none", "dots", "ffn", "full"].index
    )


def test_a_model_that_fits_no_mesh_is_reported_as_too_large():
    tried = plan(small_config(), 8, CHIPS["v5e"], Compiler(lambda config: 1.0, lambda config: 17e9))
    assert tried[0].fields is None
    assert "nothing fits: more devices, shorter rows" in plan_text(tried)


def test_a_mesh_that_the_compiler_fails_on_is_reported_and_the_search_continues():
    def seconds(config):
        if config.mesh.expert == 8 or (config.mesh.data == 8 and config.model.remat == "none"):
            raise jax.errors.JaxRuntimeError("INTERNAL: mask_aggregator.cc:1\nmore")
        return 1.0

    tried = plan(small_config(), 8, CHIPS["v5e"], Compiler(seconds))
    assert len(tried) == 19 and tried[0].fields
    failed = [t for t in tried if not t.fields]
    assert [(t.config.mesh.expert, t.reason) for t in failed] == [
        (8, "the compiler fails: INTERNAL: mask_aggregator.cc:1")
    ]
    assert [t.config.model.remat for t in tried if t.config.mesh.data == 8] == ["dots"]


def test_a_compiler_failure_is_not_reported_as_a_model_that_is_too_large():
    def seconds(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    text = plan_text(plan(small_config(), 8, CHIPS["v5e"], Compiler(seconds)))
    assert "no step was compiled: the compiler fails on 19 of 19 meshes" in text


@pytest.mark.parametrize("context", [0, -1, 3])
def test_a_context_that_does_not_divide_the_devices_is_named(context):
    config = small_config()
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, context=context))
    with pytest.raises(ValueError, match=f"mesh.context is {context}; .* must divide 8 devices"):
        plan(config, 8, CHIPS["v5e"], Compiler(lambda config: 1.0))


def test_more_devices_than_a_batch_has_rows_are_refused():
    with pytest.raises(ValueError, match="no mesh of 4096 devices splits this model and its 8 rows"):
        plan(small_config(), 4096, CHIPS["v5e"], Compiler(lambda config: 1.0))
