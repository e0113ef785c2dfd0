"""The plans of configs/migrate, as far as they go without weights."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from ling_jax.config import Yarn, model_config
from ling_jax.config_dicts import differences
from ling_jax.migrate.config import MTP_SCHEMES, MigrateConfig, matches, stage_models, stage_run, trainable_mask
from ling_jax.migrate.convert import form_config
from ling_jax.migrate.dry_run import dry_run
from ling_jax.migrate.plan import RESUMABLE
from ling_jax.migrate.stages import migration
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import abstract_mesh, num_shards, shardings
from ling_jax.spec import named_leaves
from ling_jax.train.config import PretrainConfig, from_dict

CONFIGS = Path(__file__).parents[2] / "configs"
SOURCES = {"tiny": "tiny-2.0", "mini": "ling-mini-2.0", "flash": "ling-flash-2.0", "1t": "ling-1t"}


def load(name: str, kind=MigrateConfig, folder="migrate"):
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", CONFIGS / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(kind, module.get_config().to_dict())


@pytest.mark.parametrize("name", SOURCES)
def test_a_plan_ends_with_its_target(name):
    config = load(name)
    source = model_config(SOURCES[name], mtp_depth=config.target.mtp_depth)
    assert stage_models(config, source)[-1] == config.target
    records = dry_run(config, source)
    assert [r["form"] for r in records[:4]] == ["linear", "fused", "mla", "mla"]
    # expert's part of a mesh splits the rows of every stage; what is left of a step at 256K is few of them
    assert all(r["batch_size"] % config.mesh.expert == 0 for r in records)
    if name != "tiny":
        assert sum(r["tokens"] for r in records) == pytest.approx(9.6e12, rel=1e-3)  # report §2.3
        assert [r["sequence_length"] for r in records[4:]] == [32768, 32768, 262144, 262144]


@pytest.mark.parametrize(("name", "devices"), [("mini", 64), ("flash", 256), ("1t", 1024)])
def test_every_stage_splits_over_the_pod_with_as_many_tokens_a_device(name, devices):
    config = load(name)
    models = stage_models(config, model_config(SOURCES[name], mtp_depth=config.target.mtp_depth))
    for number, model in enumerate(models):
        run = stage_run(config, number, model)
        mesh = abstract_mesh(**dataclasses.asdict(run.mesh))
        shardings(model_spec(model), mesh)
        assert mesh.size == devices
        rows, spare = divmod(run.train.batch_size, run.train.microbatches * num_shards("batch", mesh))
        assert rows and not spare, run.stage.name
        tokens = rows * run.data.sequence_length // num_shards("tokens", mesh)
        assert tokens == config.train.batch_size * 4096 // (config.train.microbatches * devices)


def test_a_migration_goes_on_with_other_devices_for_a_row():
    config = load("1t")
    fewer = dataclasses.replace(config.stages[4], context=4)
    changed = dataclasses.replace(config, stages=(*config.stages[:4], fewer, *config.stages[5:]))
    assert not differences(config, changed, RESUMABLE)
    fewer = dataclasses.replace(fewer, tokens=1)
    changed = dataclasses.replace(config, stages=(*config.stages[:4], fewer, *config.stages[5:]))
    assert differences(config, changed, RESUMABLE) == ["stages.4.tokens: 250000000000 in the workdir, 1 now"]


def test_the_dry_run_of_the_1t_has_the_known_sizes():
    config = load("1t")
    first, partial, mla, continued, *_ = dry_run(config, model_config("ling-1t", mtp_depth=1))
    assert first["converts"] == {"gqa -> lightning": 70}
    assert partial["converts"] == {"gqa QK-norm fused": 11} and mla["converts"] == {"gqa -> mla": 11}  # 10 and MTP
    assert continued["parameters"] == pytest.approx(1012.23e9 + 13.18e9, rel=1e-4)  # docs/architecture.md §13
    # a master weight of 4 bytes and two moments of what is trained
    assert first["state_bytes"] == 4 * first["parameters"] + 8 * first["trained_parameters"]
    heads = 70 * (3 * 8192 * 64 * 128 + 2 * 128)
    assert first["trained_parameters"] == heads


def test_trained_sets_are_what_the_report_names():
    config = load("tiny")
    source = model_config("tiny-2.0")
    wanted = [
        ({"q", "k", "v", "q_norm", "k_norm"}, set()),
        ({"q", "k", "v", "q_norm", "k_norm", "gate", "norm"}, {"q", "k", "v"}),
        (set(), {"q_a", "q_a_norm", "q_b", "kv_a", "kv_a_norm", "kv_b"}),
    ]
    for stage, model, (lightning, softmax) in zip(config.stages, stage_models(config, source), wanted, strict=False):
        chosen = [name for name, keep in named_leaves(trainable_mask(model, stage.trains)).items() if keep]
        assert all("/mixer/" in name for name in chosen)
        assert {name.split("/")[-1] for name in chosen if "_lightning_" in name} == lightning
        assert {name.split("/")[-1] for name in chosen if "_lightning_" not in name} == softmax


def test_released_sources_have_no_mtp_and_the_target_gets_it():
    config = load("1t")
    models = stage_models(config, model_config("ling-1t"))
    assert [model.mtp_depth for model in models] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert models[-1] == config.target
    with pytest.raises(ValueError, match=r"target\.mtp_depth is 1, the source has no MTP, and no stage trains"):
        stage_models(dataclasses.replace(config, stages=config.stages[:3]), model_config("ling-1t"))
    without = dataclasses.replace(config, target=dataclasses.replace(config.target, mtp_depth=0))
    assert stage_models(without, model_config("ling-1t"))[-1] == without.target


def test_mtp_that_no_loss_trains_is_not_drawn_and_is_no_stage_of_its_own():
    config = load("1t")
    target = dataclasses.replace(config.target, mtp_loss_weight=0.0)
    with pytest.raises(
        ValueError, match=r"no stage trains all of it, as trains=\('\*',\) does where target.mtp_loss_we"
    ):
        stage_models(dataclasses.replace(config, target=target), model_config("ling-1t"))
    with pytest.raises(ValueError, match=r"trains is \('mtp/\*',\); gradients train none of that"):
        trainable_mask(target, ("mtp/*",))


@pytest.mark.parametrize("mtp_depth", [0, 1])
def test_queries_without_a_rank_are_warmed_up_too(mtp_depth):
    target = model_config("tiny-2.6", q_lora_rank=None, mtp_depth=mtp_depth)
    tokens = dict(linear=1, partial=1, mla=1, continued=1)
    config = dataclasses.replace(load("tiny"), target=target, stages=migration(target, **tokens))
    model = stage_models(config, model_config("tiny-2.0", mtp_depth=mtp_depth))[2]
    names = {name for name, keep in named_leaves(trainable_mask(model, config.stages[2].trains)).items() if keep}
    assert {name.split("/")[-1] for name in names} == {"q", "kv_a", "kv_a_norm", "kv_b"}
    assert not any("_lightning_" in name for name in names)
    assert any(name.startswith("mtp/") for name in names) == bool(mtp_depth)


def test_the_tiny_plan_trains_on_what_its_base_has_not_seen():
    base, config = load("tiny_2_0", PretrainConfig, "pretrain"), load("tiny")
    assert config.data == base.data
    assert config.seen_tokens == base.train.steps * base.train.batch_size * base.data.sequence_length


def test_a_gate_may_be_trained_from_the_first_step():
    names = named_leaves(model_spec(form_config(model_config("tiny-2.0"), model_config("tiny-2.6"), "linear")))
    tokens = dict(linear=1, partial=1, mla=1, continued=1)
    first = lambda gate: migration(model_config("tiny-2.6"), **tokens, gate=gate)[0].trains  # noqa: E731
    plain, gated = ({name for name in names if matches(name, first(gate))} for gate in (False, True))
    assert {name.split("/", 3)[3] for name in gated - plain} == {"mixer/gate", "mixer/norm"}


def test_yarn_is_not_changed_on_the_way():
    target = model_config("tiny-2.6", rope_scaling=Yarn(2.0, 128))
    with pytest.raises(ValueError, match=r"target\.rope_scaling is Yarn.*, the source's None"):
        form_config(model_config("tiny-2.0"), target, "mla")


@pytest.mark.parametrize("scheme", MTP_SCHEMES)
def test_three_depths_are_predicted_from_one(scheme):
    config = load("tiny")
    stages = list(config.stages)
    stages[3] = dataclasses.replace(stages[3], mtp=scheme)
    models = stage_models(dataclasses.replace(config, stages=tuple(stages)), model_config("tiny-2.0"))
    assert [model.mtp_predictions for model in models] == [1, 1, 1, 3, 3, 3]
