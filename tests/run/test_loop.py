import dataclasses
import json
import random
import shutil
import time

import pytest

from ling_jax import data
from ling_jax.checkpoint import manifest, orbax
from ling_jax.checkpoint.steps import resume_step
from ling_jax.config import model_config
from ling_jax.config_dicts import differences
from ling_jax.run import progress, stage
from ling_jax.run.loop import prepare, train
from ling_jax.run.metrics import drop_lines_from
from ling_jax.run.steps import TooManyNonfiniteSteps
from ling_jax.run.workdir import read_config, unlock
from ling_jax.sums import checks
from ling_jax.train.config import RESUMABLE, Source
from tests.helpers.damage import DAMAGES, damage, files_below
from tests.helpers.faults import assert_same_end, final_state, metrics_of
from tests.helpers.small_run import small_config
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """(workdir, last line) of a run in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(prepare(small_config(corpus), workdir))


def test_a_run_leaves_what_its_report_names(whole):
    workdir, last = whole
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 9, 11]
    assert last == lines[-1] and lines[-1]["eval_loss"] < lines[0]["main_loss"]
    assert all(line["drops"] == 0 and line["tokens_per_second"] > 0 for line in lines if "mfu" in line)
    assert {"host_memory_gb", "host_memory_growth_gb"} <= lines[1].keys() and lines[1]["host_memory_gb"] > 0.05
    assert {"grad_norm/lightning", "update_norm/experts", "load_max_over_mean", "mtp_loss_0"} <= lines[0].keys()
    assert sorted(folder.name for folder in (workdir / "checkpoints").iterdir()) == ["12", "9"]  # `keep` is 2
    assert any((workdir / "tensorboard").iterdir())
    record = manifest.read(workdir / "checkpoints" / "12")["meta"]["run"]
    assert record["data"] == {"step": 12, "rows": 48} and record["config"]["train"]["batch_size"] == 4
    events = f"tensorboard/{next((workdir / 'tensorboard').iterdir()).name}"
    assert record["logs"].keys() == {"metrics.jsonl", events} and record["texts"].keys() == {"tokenizer/tokenizer.json"}
    params, config = orbax.load_params(workdir / "checkpoints")
    assert config == small_config("anywhere").model
    assert data.load_tokenizer(workdir / "tokenizer").get_vocab_size() <= config.vocab_size == params["embed"].shape[0]


def test_resume_is_bit_exact(whole, corpus, tmp_path):
    for steps in (5, 12):
        train(prepare(small_config(corpus, steps=steps, eval_every=1), tmp_path))
    evaluated = {line["step"]: line["eval_loss"] for line in metrics_of(tmp_path)}
    wanted = {line["step"]: line["eval_loss"] for line in metrics_of(whole[0]) if "eval_loss" in line}
    assert wanted == {step: evaluated[step] for step in wanted}
    wanted, found = final_state(whole[0]), final_state(tmp_path)
    assert {name: x.tobytes() for name, x in wanted.items()} == {name: x.tobytes() for name, x in found.items()}


def test_a_run_goes_on_from_the_newest_whole_checkpoint(whole, corpus, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    damage("flip", tmp_path / "run" / "checkpoints" / "12", random.Random(0))
    train(prepare(small_config(corpus), tmp_path / "run"))
    warnings = capsys.readouterr().err.splitlines()
    assert any("WARNING: DAMAGED CHECKPOINT" in line and "checkpoint 9 is read" in line for line in warnings)
    assert (tmp_path / "run" / "checkpoints" / "12.damaged").is_dir()
    assert_same_end(whole[0], tmp_path / "run")


def goes_on_damaged(whole, corpus, workdir, seed, names, capsys, *, trains: bool) -> str:
    """Starts a copy of a run again after one damage of the files that it reads; returns what was damaged and what came.

    Nothing is silent: an error or a warning names what is damaged, or the run ends as if nothing had happened. Steps
    that a damaged checkpoint has lost are computed again only where it `trains`.
    """
    rng = random.Random(seed)
    shutil.copytree(whole[0], workdir)
    files = [workdir / name for name in sorted(files_below(workdir)) if name.startswith(names)]
    kind = rng.choice(sorted(DAMAGES))
    changed = DAMAGES[kind](files, rng)
    told = f"seed {seed}: {kind} {', '.join(str(path.relative_to(workdir)) for path in changed)}"
    capsys.readouterr()
    try:
        run = prepare(small_config(corpus), workdir)
        if not trains and any("checkpoints" in path.parts for path in changed):
            unlock(run.workdir, run.lock)
            assert resume_step(workdir / "checkpoints") == 9, told
            err = capsys.readouterr().err
            assert any(path.name in err for path in changed), told
            return f"{told}: {err}"
        train(run)
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1 or "holds another run" in str(error), told
        assert any(str(path.parent) in str(error) for path in changed) or str(workdir) in str(error), told
        return f"{told}: {error}"
    err = capsys.readouterr().err
    if "WARNING" in err:
        assert any(path.name in err for path in changed), told
        if "DAMAGED LOG" in err or "DAMAGED FILE" in err:
            return f"{told}: {err}"
    assert_same_end(whole[0], workdir)
    return f"{told}: the same end; {err}"


READ = ("checkpoints/12/", "config.json", "data/", "metrics.jsonl", "tensorboard/", "tokenizer/")


def test_no_damage_changes_a_run_in_silence(whole, corpus, tmp_path, capsys):
    for seed in range(20):
        goes_on_damaged(whole, corpus, tmp_path / str(seed), seed, READ, capsys, trains=False)


@pytest.mark.slow
def test_no_damage_of_two_hundred_changes_a_run_in_silence(whole, corpus, tmp_path, capsys):
    for seed in range(200):
        told = goes_on_damaged(whole, corpus, tmp_path / "run", seed, READ, capsys, trains=seed % 10 == 0)
        with capsys.disabled():
            print(told, flush=True)
        shutil.rmtree(tmp_path / "run")


def test_a_finished_run_does_nothing_more(whole, corpus, capsys):
    assert train(prepare(small_config(corpus), whole[0])) == {}
    assert "raise train.steps" in capsys.readouterr().out


def test_the_report_names_sizes_and_places(whole, corpus, capsys):
    train(prepare(small_config(corpus), whole[0]))
    out = capsys.readouterr().out
    for text in (
        "parameters",
        "of optimizer state on each device",
        "FLOP a token",
        "mesh data=1",
        "checkpoints/",
        str(whole[0]),
    ):
        assert text in out


def test_another_run_in_the_workdir_is_named_field_by_field(whole, corpus):
    config = small_config(corpus, seed=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=32))
    with pytest.raises(ValueError, match="holds another run") as error:
        prepare(config, whole[0])
    assert "model.hidden_size: 16 in the workdir, 32 now" in str(error.value)
    assert "train.seed: 0 in the workdir, 1 now" in str(error.value)


def test_logging_saving_and_length_may_change(corpus):
    config = small_config(corpus)
    changes = dict(log_every=5, save_every=9, keep=3, steps=13, eval_batches=1, eval_every=7, max_nonfinite_steps=2)
    assert not differences(
        config, dataclasses.replace(config, train=dataclasses.replace(config.train, **changes)), RESUMABLE
    )
    assert not differences(
        config, dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=4)), RESUMABLE
    )
    assert differences(
        config, dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8)), RESUMABLE
    )


def test_a_field_that_an_older_config_lacks_has_its_default(whole, corpus):
    written = read_config(whole[0] / "config.json")
    config = small_config(corpus)
    assert not differences(written, config, RESUMABLE)
    for lacks in (("train", "router_bias_rate"), ("optimizer", "weight_decay"), ("model", "z_loss_weight")):
        older = read_config(whole[0] / "config.json")
        del older[lacks[0]][lacks[1]]
        assert not differences(older, config, RESUMABLE)
    del written["train"]["router_bias_rate"]
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, router_bias_rate=0.5))
    assert differences(written, changed, RESUMABLE) == ["train.router_bias_rate: 0.001 in the workdir, 0.5 now"]
    renamed = {"max_bad_steps" if name == "max_nonfinite_steps" else name: x for name, x in written["train"].items()}
    assert not differences(written | {"train": renamed}, config, RESUMABLE)


def test_before_the_first_checkpoint_any_config_may_take_over(corpus, tmp_path):
    config = small_config(corpus)
    first = prepare(config, tmp_path)
    unlock(tmp_path, first.lock)
    changed = with_data(
        dataclasses.replace(config, model=tiny_config(num_layers=3, vocab_size=300)), held_out_fraction=0.5
    )
    run = prepare(changed, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_layers"] == 3
    assert run.corpus.train_tokens < first.corpus.train_tokens


def test_checkpoints_without_a_config_are_refused_if_strict(whole, corpus, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    monkeypatch.setattr(checks, "strict", True)
    with pytest.raises(ValueError, match=r"holds checkpoints but no config\.json"):
        prepare(small_config(corpus), tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        prepare(small_config(corpus), tmp_path / "run")


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_config_is_replaced_by_what_the_checkpoint_notes(whole, corpus, tmp_path, capsys, damage):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = path.read_text()
    path.write_text(
        {"cut": content[:100], "changed": content.replace('"log_every": 2', '"log_every": 3')}.get(damage, "")
    )
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=r"train\.seed: 0 in the workdir, 1 now"):
        prepare(small_config(corpus, seed=1), tmp_path / "run")
    assert "WARNING: DAMAGED FILE: " in (err := capsys.readouterr().err) and "config.json" in err
    run = prepare(small_config(corpus), tmp_path / "run")
    unlock(run.workdir, run.lock)
    assert path.read_text() == content and "checkpoint 12 notes" in capsys.readouterr().err


NO_LINE = {"brackets": b"[" * 200_000, "depth": b'{"a":' * 900 + b"{}" + b"}" * 900, "number": b"7", "bytes": b"\xff"}


@pytest.mark.parametrize("content", NO_LINE.values(), ids=NO_LINE)
def test_a_line_of_metrics_that_is_none_is_named(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 has no step"):
        drop_lines_from(tmp_path / "metrics.jsonl", 12)


def test_a_workdir_of_the_wrong_kind_is_named(corpus, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    for workdir, message in (
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "run", "is not a folder"),
        ("", "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(small_config(corpus), workdir)


@pytest.mark.parametrize("name", ["data", "checkpoints", "tokenizer"])
def test_a_link_to_another_runs_folder_is_refused_and_nothing_there_is_removed(whole, corpus, tmp_path, name):
    shutil.copytree(whole[0], tmp_path / "other")
    there = files_below(tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "other" / name)
    with pytest.raises(ValueError, match=f"run/{name} is a link to .*/other/{name}, outside of the workdir; remove"):
        prepare(with_data(small_config(corpus), held_out_fraction=0.5), tmp_path / "run")
    assert files_below(tmp_path / "other") == there


def test_the_workdir_itself_may_be_a_link(corpus, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run = prepare(small_config(corpus), tmp_path / "run")
    unlock(run.workdir, run.lock)
    assert {"config.json", "data", "tokenizer"} <= {path.name for path in (tmp_path / "disk").iterdir()}


def test_a_corpus_with_files_of_others_is_not_replaced(corpus, tmp_path):
    run = prepare(small_config(corpus), tmp_path)
    unlock(run.workdir, run.lock)
    notes = tmp_path / "data" / "0_text" / "train" / "notes.txt"
    notes.write_text("mine")
    there = files_below(tmp_path / "data")
    with pytest.raises(ValueError, match=r"0_text is to be replaced by another .*notes\.txt is no file of one"):
        prepare(with_data(small_config(corpus), held_out_fraction=0.5), tmp_path)
    assert files_below(tmp_path / "data") == there


def test_a_foreign_folder_with_a_meta_json_is_not_replaced(corpus, tmp_path):
    (tmp_path / "data" / "0_text").mkdir(parents=True)
    (tmp_path / "data" / "0_text" / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match=r"(0_text holds another corpus|data is not of a run)"):
        prepare(small_config(corpus), tmp_path)
    assert (tmp_path / "data" / "0_text" / "meta.json").read_text() == "{}"


def test_a_home_folder_is_found(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = prepare(small_config(corpus), "~/run")
    assert {"config.json", "data", "tokenizer"} <= {path.name for path in (tmp_path / "run").iterdir()}
    unlock(run.workdir, run.lock)


class Clock:
    """The real time, and what was added to it."""

    added, time = 0, staticmethod(time.time)

    def perf_counter(self):
        return time.perf_counter() + self.added


def test_evaluations_are_not_in_the_speed(corpus, tmp_path):
    """An evaluation of an hour stands beside steps of some milliseconds."""
    run, clock = prepare(small_config(corpus, steps=40, log_every=10, eval_every=10, save_every=100), tmp_path), Clock()

    def slow(*arguments):
        clock.added += 3600
        return float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        patch.setattr(stage, "eval_loss", slow)
        train(run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "mfu" in line]
    assert len(speeds) == 4 and min(speeds) > 10 * 128 / 3600
    assert lines[-1]["eval_loss"] == "nan"  # JSON has no such number


def test_the_learning_rate_of_each_step_is_told(whole):
    rates = [line["learning_rate"] for line in metrics_of(whole[0])]
    assert rates[4:] == pytest.approx([1e-2] * 8)
    assert rates[:4] == pytest.approx([2.5e-3, 4.375e-3, 6.25e-3, 8.125e-3])


def test_a_cosine_keeps_its_end(corpus):
    config = small_config(corpus)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule="cosine"))
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=13))
    assert differences(config, longer, RESUMABLE) == ["train.steps: 12 in the workdir, 13 now"]


def test_a_loss_that_is_not_finite_is_reported_and_ends_the_run(corpus, tmp_path, capsys):
    config = small_config(corpus, max_nonfinite_steps=3)
    config = dataclasses.replace(
        config,
        model=tiny_config(num_layers=1, vocab_size=300),  # a program of its own, so a small one
        optimizer=dataclasses.replace(config.optimizer, peak_lr=1e30),
    )
    with pytest.raises(TooManyNonfiniteSteps, match=r"steps until step \d had a loss or gradient that is not finite"):
        train(prepare(config, tmp_path))
    out = capsys.readouterr().out
    assert "nonfinite step=2/12 loss=" in out and "grad_norm=nan: not applied" in out
    assert "rows 4 to 7 of the mixture with data.seed 0" in out
    bad = [line["step"] for line in metrics_of(tmp_path) if line["nonfinite"]]
    state = final_state(tmp_path)
    assert state["skipped_steps"] == len(bad) >= 3 and state["step"] == bad[-1] + 1
    assert all((abs(x) < float("inf")).all() for name, x in state.items() if not name.startswith("spikes/"))
    with pytest.raises(TooManyNonfiniteSteps):  # as long as the limit is what it is
        train(prepare(config, tmp_path))


@pytest.mark.slow
def test_a_trace_shows_the_parts_of_the_model(corpus, tmp_path):
    train(prepare(small_config(corpus, steps=6, profile_step=2), tmp_path), profile=True)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    for scope in (b"lightning", b"mla", b"router", b"experts", b"mtp_0", b"loss", b"optimizer"):
        assert scope in content, scope


def test_two_sources_are_mixed_and_both_held_out(corpus, tmp_path):
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps({"text": f"document {i} " * 20}) for i in range(20)))
    config = small_config(corpus, steps=2)
    sources = (*config.data.sources, Source(kind="jsonl", path=str(tmp_path / "other.jsonl"), weight=3.0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    run = prepare(config, tmp_path / "run")
    assert len(run.corpus.held_out) == 2
    assert train(run)["eval_loss"] > 0


def with_data(config, **fields):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


BAD = {
    "an empty corpus": (lambda c, d: with_data(c, sources=(Source(kind="text", path=str(d)),)), "empty corpus"),
    "no such path": (lambda c, d: with_data(c, sources=(Source(kind="text", path=f"{d}/x"),)), "does not exist"),
    "no such tokenizer": (lambda c, d: with_data(c, tokenizer=f"{d}/x"), "does not exist; name a tokenizer.json"),
    "a mesh of more devices": (
        lambda c, d: dataclasses.replace(c, mesh=dataclasses.replace(c.mesh, data=1, fsdp=64)),
        "does not fill",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_before_anything_is_written(name, corpus, tmp_path):
    change, message = BAD[name]
    (tmp_path / "folder").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(change(small_config(corpus), tmp_path / "folder"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_no_memory_holds_is_refused_before_anything_is_written(corpus, tmp_path):
    config = dataclasses.replace(small_config(corpus), model=model_config("ling-2.6-1t"))
    with pytest.raises(
        ValueError, match=r"not enough memory: parameters and optimizer take 1230\d\.\d GB of every device, which has"
    ):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(corpus, tmp_path):
    data.save_tokenizer(data.train_bpe([*dir(str), *dir(dataclasses)], 310), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"has ids up to 309 and model\.vocab_size is 300"):
        prepare(with_data(small_config(corpus), tokenizer=str(tmp_path / "tokenizer")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
