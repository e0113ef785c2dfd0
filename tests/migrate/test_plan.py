"""A whole migration of a small random model."""

import dataclasses
import json
import random
import shutil

import jax
import numpy as np
import pytest

from ling_jax import spec
from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.checkpoint.folder import load_model, open_model
from ling_jax.data import save_tokenizer
from ling_jax.engine import Request
from ling_jax.engine.generate import engine_for, generate
from ling_jax.messages import size_text
from ling_jax.migrate.config import MTP_SCHEMES, Stage, matches
from ling_jax.migrate.dry_run import as_text, dry_run
from ling_jax.migrate.plan import open_converted, prepare_plan, source_facts
from ling_jax.migrate.run import read_report, run_plan, with_mtp_modules
from ling_jax.model import forward
from ling_jax.run.workdir import unlock
from ling_jax.sums import DamagedFile
from ling_jax.train.merge import merge_checkpoints
from tests.helpers.damage import DAMAGES, damage
from tests.helpers.faults import final_state
from tests.helpers.small_migration import BOTH, WHOLE, small_config, source_config, target_config, write_source
from tests.helpers.small_run import write_corpus
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import assert_trees_equal, tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")


SIZES = {"dense": {}, "experts and MTP": WHOLE}


@pytest.fixture(scope="module", params=["dense", pytest.param("experts and MTP", marks=pytest.mark.slow)])
def config(request, tmp_path_factory):
    """A migration of a random model."""
    folder = tmp_path_factory.mktemp("from")
    write_source(folder / "source", **SIZES[request.param])
    (folder / "source" / "tokenizer" / "LICENSE").write_text("MIT")
    write_corpus(folder / "corpus", 40)
    return small_config(folder / "source", folder / "corpus", target=target_config(**SIZES[request.param]))


@pytest.fixture(scope="module")
def migrated(config, tmp_path_factory):
    """(plan, reports)."""
    plan = prepare_plan(config, tmp_path_factory.mktemp("plan"))
    return plan, run_plan(plan)


def stages(plan):
    """(number, folder, model before its training, model after) of those that train."""
    for number, stage in enumerate(plan.config.stages):
        if stage.trains:
            start = plan.folder(number) / "converted" if plan.converts(number) else plan.result(number - 1)
            yield number, plan.folder(number), load_model(start).params, load_model(plan.folder(number)).params


def test_every_stage_reports(migrated):
    plan, reports = migrated
    assert [r["stage"] for r in reports] == ["linear_warmup", "partial", "mla_warmup", "mid_1", "merge"]
    for report in reports:
        assert all(np.isfinite(report[name]) for name in ("loss_before", "loss_after"))
    layers = [[(layer["layer"], layer["from"], layer["to"]) for layer in r.get("layers", [])] for r in reports]
    source = plan.source.config
    lightning = [layer for layer in range(source.num_layers) if layer % 2 == 0]
    softmax = [layer for layer in range(source.num_layers + source.mtp_depth) if layer not in lightning]
    assert layers[0] == [(layer, "gqa", "lightning") for layer in lightning]
    assert layers[1] == [(layer, "gqa", "gqa") for layer in softmax]
    assert layers[2] == [(layer, "gqa", "mla") for layer in softmax]
    assert all(layer["output_error"] > 0 for r in reports for layer in r.get("layers", []))
    assert all(0 < layer[name] <= 1 for layer in reports[2]["layers"] for name in ("rope", "latent", "query"))
    assert reports[3]["tokens"] == 5 * 128 and reports[3]["ended"] == "budget"
    assert [r["sequence_length"] for r in reports] == [32, 32, 32, 64, 64]
    assert reports[3]["loss_converted"] != reports[3]["loss_before"]  # of rope's new theta
    assert reports[1]["loss_before"] == reports[0]["loss_after"]
    assert read_report(plan.folder(4) / "report.json") == reports[4]


def test_damage_of_a_conversion_or_a_report_is_named(migrated, tmp_path):
    plan, _ = migrated
    for seed, kind in enumerate(DAMAGES):
        folder = shutil.copytree(plan.folder(0) / "converted", tmp_path / kind)
        open_converted(folder)
        (folder / ".sums.json").rename(tmp_path / ".sums.json")  # damaged below
        changed = damage(kind, folder, random.Random(seed))
        (tmp_path / ".sums.json").rename(folder / ".sums.json")
        with pytest.raises(DamagedFile, match=r"and the same command converts again$") as error:
            open_converted(folder)
        assert any(str(path) in str(error.value) for path in changed)
    with pytest.raises(DamagedFile, match=r"sums\.json has changed since it was written"):
        (folder / ".sums.json").write_bytes(
            (folder / ".sums.json").read_bytes().replace(b'"bytes": ', b'"bytes": 1', 1)
        )
        open_converted(folder)
    report = tmp_path / "report.json"
    report.write_bytes((plan.folder(0) / "report.json").read_bytes().replace(b"linear", b"lineaR", 1))
    with pytest.raises(
        DamagedFile, match=r"report\.json has changed .*; remove it, and the same command makes it again"
    ):
        read_report(report)


def test_all_files_beside_the_tokenizer_go_from_stage_to_stage(migrated):
    plan, _ = migrated
    for number in range(5):
        assert (plan.folder(number) / "tokenizer" / "LICENSE").read_text() == "MIT"
        assert not plan.converts(number) or (plan.folder(number) / "converted" / "LICENSE").exists()


def test_frozen_means_frozen(migrated):
    """Every bit of every leaf outside the set, experts' biases too."""
    for number, folder, before, after in stages(migrated[0]):
        patterns, moved = migrated[0].config.stages[number].trains, set()
        before, after = spec.named_leaves(before), spec.named_leaves(after)
        for name, leaf in after.items():
            old = np.asarray(before[name], np.float32)
            if np.asarray(leaf).tobytes() != old.tobytes():
                moved.add(name)
        assert moved and all(matches(name, patterns) for name in moved), (folder, moved)
        assert all(name in moved for name in after if matches(name, patterns) and "bias" not in name), folder


def test_frozen_leaves_have_no_optimiser_state(migrated):
    for number, folder, _, after in stages(migrated[0]):
        patterns = migrated[0].config.stages[number].trains
        for moment in ("mu", "nu"):
            held = {n.split(f"/{moment}/")[1] for n in final_state(folder) if f"opt_state/{moment}/" in n}
            wanted = {n for n in spec.named_leaves(after) if matches(n, patterns) and not n.endswith("expert_bias")}
            assert held == wanted, folder


def test_the_merge_is_the_mean_of_the_last_checkpoints(migrated):
    """Of those that are evenly spaced: that of the last step is nearer to the one before."""
    plan, _ = migrated
    assert {path.name for path in (plan.folder(3) / "checkpoints").glob("[0-9]*")} == {"2", "4", "5"}
    last = [orbax.load_params(plan.folder(3) / "checkpoints", step)[0] for step in (2, 4)]
    assert_trees_equal(load_model(plan.folder(4)).params, merge_checkpoints(iter(last), [0.5, 0.5]))


def test_the_end_is_the_target_and_goes_to_hugging_face_and_back(migrated, tmp_path):
    plan, _ = migrated
    loaded = load_model(plan.result(4))
    assert loaded.config == plan.config.target
    save_hf(loaded.params, loaded.config, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["BailingMoeV2_5ForCausalLM"]
    params, config = load_hf(tmp_path / "hf")
    assert_trees_equal(params, loaded.params)
    engine = engine_for(params, config, [[1, 2, 3]], max_new_tokens=5)
    (answer,) = generate(engine, [Request(0, [1, 2, 3], 5, seed=0, temperature=0.0)])
    read = forward(loaded.params, np.array([[1, 2, 3, *answer.tokens[:4]]]), loaded.config)
    assert answer.tokens == read.logits[0, 2:].argmax(axis=-1).tolist()


def test_a_finished_migration_does_nothing_more(migrated, config, capsys):
    plan, reports = migrated
    assert run_plan(prepare_plan(config, plan.workdir)) == reports
    assert capsys.readouterr().out.count("done") == 5


def test_another_migration_in_the_workdir_is_named(migrated, config):
    config = dataclasses.replace(config, conversion=dataclasses.replace(config.conversion, pca="real"))
    with pytest.raises(ValueError, match=r"holds another migration.*\n.*conversion.pca: 'complex' in the workdir"):
        prepare_plan(config, migrated[0].workdir)


def test_a_source_that_is_trained_on_stays_what_it_was(source, tmp_path, monkeypatch):
    """Until the first stage is done, a restart takes the checkpoint that it began with."""
    params, model = orbax.load_params(source[0] / "checkpoints")
    save_tokenizer(load_model(source[0]).tokenizer, tmp_path / "base/tokenizer")

    def save(step):
        with orbax.open_manager(tmp_path / "base/checkpoints", keep=2) as manager:
            orbax.save(manager, step, {"params": params}, model)

    save(3)
    config = small_config(tmp_path / "base", source[1])
    config = dataclasses.replace(config, stages=(Stage(name="wide", form="linear"),))
    monkeypatch.setattr("ling_jax.migrate.run.measure", lambda model, *_: float(model.step or 0))
    with monkeypatch.context() as patch:
        patch.setattr("ling_jax.migrate.run.convert_model", _failing(lambda *_: [], 1))
        with pytest.raises(KeyboardInterrupt):
            run_plan(prepare_plan(config, tmp_path / "plan"))
    save(5)
    (report,) = run_plan(prepare_plan(config, tmp_path / "plan"))
    assert report["loss_before"] == 3
    assert prepare_plan(config, tmp_path / "other").source.step == 5


def test_a_store_is_no_workdir_of_a_migration(source):
    with pytest.raises(ValueError, match="gs://bucket/plan is no local folder"):
        prepare_plan(small_config(*source), "gs://bucket/plan")


def test_a_mesh_that_a_stage_cannot_use_is_refused_with_one_that_it_can(source, tmp_path):
    devices = jax.device_count()
    config = with_part(small_config(*source), "mesh", data=1, fsdp=3 * devices)
    message = rf"stages\[0\] \(linear_warmup\): mesh .* does not fill {devices} devices; .*; on .* could use"
    with pytest.raises(ValueError, match=f"{message} --config.mesh.fsdp={devices}$"):
        prepare_plan(config, tmp_path / "plan")


def test_sources_that_differ_in_their_weights_have_other_facts(source, tmp_path):
    """What hosts compare, which may have a copy each."""
    for name, scale in (("one", 1), ("copy", 1), ("other", 2)):
        params, config = orbax.load_params(source[0] / "checkpoints")
        save_hf(jax.tree.map(lambda x, scale=scale: scale * x, params), config, tmp_path / name)
        save_tokenizer(load_model(source[0]).tokenizer, tmp_path / name)
    one, copy, other = (source_facts(open_model(tmp_path / name)) for name in ("one", "copy", "other"))
    assert one == copy
    assert {name for name in one if one[name] != other[name]} == {"source.model.safetensors"}
    of_run = source_facts(open_model(source[0]))
    assert {"source.manifest.json", "source.metadata", "source.tokenizer"} <= of_run.keys()


def test_the_chat_template_of_the_source_stays(source, tmp_path, monkeypatch):
    shutil.copytree(source[0], tmp_path / "base")
    (tmp_path / "base/tokenizer/chat_template.jinja").write_text("{{ messages[0].content }}, as the base says it")
    monkeypatch.setattr("ling_jax.migrate.run.measure", lambda *_: 1.0)
    config = small_config(tmp_path / "base", source[1])
    config = dataclasses.replace(config, stages=(Stage(name="wide", form="linear"), *config.stages[:1]))
    plan = prepare_plan(config, tmp_path / "plan")
    run_plan(plan)
    assert plan.source.template.source.endswith("as the base says it")
    assert [plan.opened(number).template for number in range(2)] == [plan.source.template] * 2


@pytest.mark.slow
def test_a_source_without_mtp_gets_it_where_all_of_it_is_trained(tmp_path):
    """As released Ling 2.0 models; the stages before know nothing of it."""
    write_source(tmp_path / "source", **WHOLE | dict(mtp_depth=0))
    write_corpus(tmp_path / "corpus", 40)
    config = small_config(tmp_path / "source", tmp_path / "corpus", target=target_config(**WHOLE))
    plan = prepare_plan(config, tmp_path / "plan")
    run_plan(plan)
    assert ["mtp" in load_model(plan.result(number)).params for number in range(5)] == [False] * 3 + [True] * 2
    merged = load_model(plan.result(4))
    assert merged.config == config.target
    drawn = with_mtp_modules({}, config.target, seed=config.train.seed)
    for name, leaf in spec.named_leaves(drawn).items():
        assert name.endswith("bias") or (np.asarray(leaf) != spec.named_leaves(merged.params)[name]).any(), name


def test_a_models_folder_is_no_workdir(source, tmp_path):
    """Its config.json would be overwritten, without which a Hugging Face folder is lost."""
    save_hf(*orbax.load_params(source[0] / "checkpoints"), tmp_path)
    save_tokenizer(load_model(source[0]).tokenizer, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a model \(\*\.safetensors\); name another workdir"):
        prepare_plan(small_config(tmp_path, source[1]), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_migration_ends_in_the_same_bits(migrated, config, tmp_path, monkeypatch):
    """Interrupted in each of the things that a stage does."""
    import ling_jax.migrate.run as module

    for name, nth in (("convert_model", 1), ("measure", 2), ("train", 2), ("convert_model", 1), ("_merge", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _failing(getattr(module, name), nth))
            with pytest.raises(KeyboardInterrupt):
                run_plan(prepare_plan(config, tmp_path))
    plan = prepare_plan(config, tmp_path)
    reports = run_plan(plan)
    without = lambda report: {name: value for name, value in report.items() if name != "seconds"}  # noqa: E731
    assert list(map(without, reports)) == list(map(without, migrated[1]))
    for number in range(5):
        assert_trees_equal(load_model(plan.result(number)).params, load_model(migrated[0].result(number)).params)


def _failing(function, nth):
    calls = []

    def wrapped(*arguments, **options):
        calls.append(1)
        result = function(*arguments, **options)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return result

    return wrapped


def test_a_stage_ends_when_it_has_recovered(config, tmp_path, monkeypatch):
    """A bar that any loss meets is met at the first evaluation; started again, the stage stays as it was."""
    monkeypatch.setattr("ling_jax.migrate.run.RECOVERED", 10.0)
    config = dataclasses.replace(config, stages=config.stages[:1])
    plan = prepare_plan(config, tmp_path)
    (report,) = run_plan(plan)
    assert (report["ended"], report["steps"]) == ("recovered", 2)
    (plan.folder(0) / "report.json").unlink()
    (again,) = run_plan(prepare_plan(config, tmp_path))
    assert again["curve"] == report["curve"] and again["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", MTP_SCHEMES)
def test_three_mtp_depths_are_trained_beside_a_frozen_trunk(tmp_path, scheme):
    write_source(tmp_path / "source", **WHOLE)
    write_corpus(tmp_path / "corpus", 40)
    config = small_config(tmp_path / "source", tmp_path / "corpus", target=target_config(**WHOLE))
    stages = (
        Stage(name="all_at_once", form="mla"),
        Stage(name="speculation", form="mla", mtp=scheme, trains=("mtp/*",), tokens=256),
    )
    plan = prepare_plan(dataclasses.replace(config, stages=stages), tmp_path / "plan")
    reports = run_plan(plan)
    assert [layer["to"] for layer in reports[0]["layers"]] == ["lightning", "mla", "lightning", "mla", "mla"]
    before, after = (load_model(plan.result(number)) for number in (0, 1))
    assert after.config.mtp_predictions == 3
    assert after.params["mtp"]["embed_norm"].shape[0] == (3 if scheme == "separate" else 1)
    old, new = (spec.named_leaves(loaded.params) for loaded in (before, after))
    for name in old:
        if not name.startswith("mtp/"):
            np.testing.assert_array_equal(np.asarray(old[name]), np.asarray(new[name]), err_msg=name)
    save_hf(after.params, after.config, tmp_path / "hf")
    assert load_hf(tmp_path / "hf")[1].mtp_predictions == 3


def with_stage(config, number, **fields):
    stages = list(config.stages)
    stages[number] = dataclasses.replace(stages[number], **fields)
    return dataclasses.replace(config, stages=tuple(stages))


def with_part(config, part, **fields):
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})


REFUSED = [
    (lambda c: with_part(c, "target", kv_lora_rank=17), "kv_lora_rank is 17; the source's layers have rank 16, the la"),
    (lambda c: with_part(c, "target", hidden_size=32), "target.hidden_size is 32, the source's 16"),
    (lambda c: with_part(c, "target", layer_group_size=9), "none of the 2 layers would become a Lightning layer"),
    (lambda c: with_stage(c, 2, trains=("*/mixer/kv_c",)), r"\(mla_warmup\): trains: .* matches none of the"),
    (lambda c: with_part(c, "conversion", calibration_tokens=10), "10 calibration tokens; ranks of 12"),
    (lambda c: with_part(c, "conversion", calibration_tokens=10**8), "calibration_tokens is 100000000; the data has"),
    (lambda c: with_stage(c, 1, form="gqa"), "forms come in the order"),
    (lambda c: with_stage(c, 0, form="lineer"), "form is 'lineer', did you mean 'linear'"),
    (lambda c: with_stage(c, 3, mtp="shared"), "the source has 0 MTP modules; it is made from one"),
    (lambda c: with_stage(c, 2, mtp="shared"), "a stage that trains and converts nothing may give it"),
    (lambda c: with_stage(c, 3, sequence_length=96), "whole rows of it"),
    (lambda c: with_part(c, "target", max_length=63), r"\(mid_1\): data.sequence_length is 64; the model's context"),
    (lambda c: dataclasses.replace(c, source="nowhere"), "nowhere holds neither"),
    (lambda c: with_stage(c, 4, merges=3), r"merges is 3; 5 steps of the stage before, with .* 2, leave 2 checkpoints"),
    (lambda c: merged_behind(c, 3), "may end before it has them"),
    (lambda c: merged_behind(c, 2), "form is 'mla'; it merges checkpoints of the stage before, whose is 'fused'"),
    (lambda c: with_stage(c, 4, merges=-1), r"\(merge\): merges is -1; it must not be negative"),
    (lambda c: with_stage(c, 0, peak_lr=-1.0), r"\(linear_warmup\): peak_lr is -1.0; it must not be negative"),
    (lambda c: with_stage(c, 0, warmup_steps=-2), "warmup_steps is -2; it must not be negative, but for -1"),
    (lambda c: with_stage(c, 3, context=0), r"\(mid_1\): context is 0; it must be positive"),
    (lambda c: with_stage(c, 1, name="merge"), "'merge' is the name of two"),
    (lambda c: with_stage(with_part(c, "mesh", fsdp=3), 3, context=3), "cannot be split among 3 ranks"),
    (lambda c: with_stage(c, 3, context=2), r"\(mid_1\): context is 2; it divides mesh.fsdp, which is 1"),
    (lambda c: with_stage(c, 3, long_share=0.0), "long_share is 0.0; it must be above 0"),
    (lambda c: with_stage(c, 4, recovers=True), "recovers ends a training, and the stage trains nothing"),
    (lambda c: with_stage(c, 3, recovers=True), "in rows of 32 tokens; its own rows have 64"),
    (lambda c: long_first(c), "in rows of 32 tokens; the first stage's rows have 64"),
    (lambda c: with_part(c, "data", sequence_length=0), "data.sequence_length is 0; it must be positive"),
    (lambda c: with_source(c, weight=-1.0), r"data.sources\[0\].weight is -1.0; it must be positive"),
    (lambda c: with_source(c, kind="txt"), r"data.sources\[0\]: source kind 'txt' is unknown, did you mean 'text'"),
]


def with_source(config, **fields):
    return with_part(config, "data", sources=(dataclasses.replace(config.data.sources[0], **fields),))


def merged_behind(config, count):
    """A merge that would convert too, behind so many stages."""
    merge = Stage(name="merge", form="mla", merges=1)
    return dataclasses.replace(config, stages=(*config.stages[:count], merge))


def long_first(config):
    first = Stage(name="long", form="gqa", trains=("*",), tokens=128, sequence_length=64)
    return dataclasses.replace(config, stages=(first, *config.stages[:1]))


@pytest.mark.parametrize("change,message", REFUSED)
def test_invalid_migrations_are_refused_before_work(source, tmp_path, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        plan = prepare_plan(change(small_config(*source)), tmp_path / "refused")
        unlock(plan.workdir, plan.lock)
    assert not (tmp_path / "refused" / "0_linear_warmup").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(a source's folder, a corpus)."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder / "source")
    write_corpus(folder / "corpus", 40)
    return folder / "source", folder / "corpus"


def test_a_hybrid_is_refused_as_a_source(source, tmp_path):
    write_stage(tmp_path / "hybrid", tiny_config("linear-2.0", **BOTH))
    config = small_config(tmp_path / "hybrid", source[1], target=target_config(init_std=0.02))
    with pytest.raises(ValueError, match="it is a hybrid or MLA already"):
        prepare_plan(config, tmp_path / "plan")


@pytest.mark.parametrize(
    "form,layer,message",
    [
        ("fused", 1, "layer 1: calibration: the mean square of q of head 0 is nan"),
        ("linear", 0, "layer 0: its output on held-out tokens holds NaN or infinity before conversion"),
    ],
)
def test_nan_is_named_with_its_layer(source, tmp_path, form, layer, message):
    params, model = orbax.load_params(source[0] / "checkpoints")
    segment = params["segments"]["0"]["0_gqa_dense"]
    segment["mixer_norm"] = segment["mixer_norm"].at[layer].set(np.nan)
    orbax.save_params(tmp_path / "nan/checkpoints", params, model)
    save_tokenizer(load_model(source[0]).tokenizer, tmp_path / "nan/tokenizer")
    config = small_config(tmp_path / "nan", source[1])
    config = dataclasses.replace(config, stages=(Stage(name="first", form=form),))
    with pytest.raises(ValueError, match=message):
        run_plan(prepare_plan(config, tmp_path / "plan"))
    assert not list((tmp_path / "plan/0_first").glob("*converted*"))


def test_new_weights_are_drawn_as_the_target_says(source, tmp_path, monkeypatch):
    """The target's `init_std`, which is what a migration's config names, not the source's."""
    monkeypatch.setattr("ling_jax.migrate.run.measure", lambda *_: 1.0)
    config = small_config(*source, target=target_config(init_std=0.5))
    config = dataclasses.replace(config, stages=(Stage(name="wide", form="linear"),))
    plan = prepare_plan(config, tmp_path)
    run_plan(plan)
    gates = [x for name, x in spec.named_leaves(load_model(plan.result(0)).params).items() if name.endswith("/gate")]
    drawn = np.concatenate([np.asarray(gate).ravel() for gate in gates if gate.ndim == 5])
    assert np.std(drawn) == pytest.approx(0.5, rel=0.1)


def test_the_dry_run_has_the_sizes_of_the_run(migrated):
    plan, reports = migrated
    records = dry_run(plan.config, plan.source.config)
    for record, report in zip(records, reports, strict=True):
        if "steps" in report:
            assert record["trained_parameters"] == report["trained_parameters"]
            assert record["tokens"] >= report["tokens"]
        if report.get("ended") == "budget":
            saved = list((plan.workdir / record["stage"] / "checkpoints").glob("[0-9]*"))
            assert record["checkpoints"] == len(saved)
        assert sum(record["converts"].values()) == len(report.get("layers", []))
    lightning = plan.source.config.num_layers // 2
    assert f"converts  {lightning} layers gqa -> lightning" in as_text(records)
    assert [record["rope_theta"] for record in records] == [1e4] * 3 + [6e4] * 2


def test_a_stage_that_only_converts_takes_its_disk_once():
    config = small_config("source", "corpus")
    config = dataclasses.replace(config, stages=(Stage(name="once", form="mla"),))
    (record,) = dry_run(config, source_config())
    assert as_text([record]).endswith(f", {size_text(4 * record['parameters'])} of disk")
