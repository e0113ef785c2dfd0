"""Continued pre-training: runs that begin with a model that is there."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs.pretrain import continue_tiny
from ling_jax import data, model, spec
from ling_jax.checkpoint import orbax, save_hf
from ling_jax.checkpoint.folder import load_model
from ling_jax.config import Yarn
from ling_jax.evaluate.scoring import next_token_logps
from ling_jax.run import loop
from ling_jax.run.loop import prepare, train
from ling_jax.run.workdir import unlock
from ling_jax.train.config import ModelChanges, from_dict, to_config_dict
from tests.helpers.faults import assert_same_end
from tests.helpers.refusals import run_each
from tests.helpers.small_run import small_config, write_corpus
from tests.helpers.tiny import assert_trees_equal, tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")

# Small, since most of the time goes into compiling it.
MODEL = tiny_config(num_layers=1, first_dense_layers=1, vocab_size=300, mtp_depth=1, init_std=0.1)
WITHOUT_MTP = ModelChanges(mtp_loss_weight=0.0)
TEMPLATE = "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}<|role_end|>{% endfor %}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A corpus and a random model in bfloat16, as a Hugging Face folder (`hf`) and as a workdir (`ported`)."""
    folder = tmp_path_factory.mktemp("start")
    write_corpus(folder / "corpus")
    params = jax.tree.map(lambda x: np.asarray(x, ml_dtypes.bfloat16), model.init(jax.random.key(1), MODEL))
    tokenizer = data.train_bpe([(folder / "corpus" / "00.txt").read_text()], 290)
    save_hf(params, MODEL, folder / "hf")
    orbax.save_params(folder / "ported" / "checkpoints", jax.tree.map(jnp.asarray, params), MODEL)
    for beside in (folder / "hf", folder / "ported" / "tokenizer"):
        data.save_tokenizer(tokenizer, beside)
        (beside / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def config_from(start, name="hf", model=WITHOUT_MTP, tokenizer="", **fields):
    config = small_config(start / "corpus", **dict(steps=4, save_every=2, eval_every=2) | fields)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))
    return dataclasses.replace(config, model=model, start_from=str(start / name))


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The workdir of a run in one go from the Hugging Face folder."""
    workdir = tmp_path_factory.mktemp("whole")
    train(prepare(config_from(start), workdir))
    return workdir


@pytest.mark.parametrize("name", ["hf", "ported"])
def test_a_run_begins_with_the_stored_parameters_as_float32(name, start, tmp_path):
    run = prepare(config_from(start, name), tmp_path)
    state = loop._first_state(run)
    unlock(run.workdir, run.lock)
    stored = spec.named_leaves(load_model(start / name).params)
    for path, leaf in spec.named_leaves(state.params).items():
        assert leaf.dtype == np.float32, path
        np.testing.assert_array_equal(leaf, np.asarray(stored[path], np.float32), err_msg=path)
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_the_first_loss_is_what_the_stored_model_has_on_these_rows(whole, start):
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    run = prepare(config_from(start), whole)
    unlock(run.workdir, run.lock)
    batches = data.batches(run.corpus.train, batch_size=4, start_step=0, stop_step=1, part=np.arange(4))
    rows = next(iter(batches))[1]
    stored = load_model(start / "hf")
    logps = np.asarray(next_token_logps(stored.params, rows["tokens"], rows["segment_ids"], stored.config))[:, :-1]
    segments = rows["segment_ids"]
    predicted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert first["loss_tokens"] == predicted.sum()
    # float32 master weights of bfloat16 values, and sums in another order.
    assert first["main_loss"] == pytest.approx(-logps[predicted].mean(), rel=1e-5)


def test_a_run_that_goes_on_needs_its_start_no_more_and_ends_in_the_same_bits(whole, start, tmp_path):
    shutil.copytree(start / "hf", tmp_path / "moved")
    config = dataclasses.replace(config_from(start), start_from=str(tmp_path / "moved"))
    train(prepare(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), tmp_path / "run"))
    shutil.rmtree(tmp_path / "moved")
    train(prepare(config, tmp_path / "run"))
    assert_same_end(whole, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "origins.json").read_text()) == {str(tmp_path / "moved"): None}


def test_mtp_whose_loss_has_no_weight_is_as_it_was_stored(whole, start):
    found, stored = load_model(whole).params, load_model(start / "hf").params
    assert_trees_equal(found["mtp"], jax.tree.map(lambda leaf: leaf.astype(np.float32), stored["mtp"]))
    assert not np.array_equal(found["head"], stored["head"])


def test_another_start_is_another_run(whole, start):
    with pytest.raises(ValueError, match=r"holds another run.*\n  start_from: '.*hf' in the workdir, '.*ported' now"):
        prepare(config_from(start, "ported"), whole)


def test_a_run_without_a_start_goes_on_in_a_workdir_from_before_there_were_any(start, tmp_path):
    config = small_config(start / "corpus", steps=1)
    unlock(tmp_path, prepare(config, tmp_path).lock)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["start_from"], fields["crc32c"]  # versions before wrote neither
    path.write_text(json.dumps(fields))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    unlock(tmp_path, prepare(config, tmp_path).lock)


def test_the_tokenizer_and_the_template_are_the_models(whole, start):
    found, stored = load_model(whole), load_model(start / "hf")
    assert found.tokenizer.to_str() == stored.tokenizer.to_str()
    assert found.template.source == TEMPLATE


def test_what_shapes_no_parameter_is_the_configs_and_said(start, tmp_path, capsys):
    yarn = Yarn(factor=2.0, original_length=512)
    changes = ModelChanges(max_length=1024, rope_theta=6e6, rope_scaling=yarn, mtp_loss_weight=0.0, loss_chunk=16)
    run = prepare(config_from(start, model=changes), tmp_path)
    unlock(run.workdir, run.lock)
    wanted = dict(max_length=1024, rope_theta=6e6, rope_scaling=yarn, mtp_loss_weight=0.0, loss_chunk=16)
    assert run.model == dataclasses.replace(load_model(start / "hf").config, **wanted)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["max_length"] == 1024
    out = capsys.readouterr().out
    assert "max_length is 1024 (there 512), rope_theta is 6e+06 (there 10000)" in out


def test_a_whole_model_in_the_config_must_be_the_stored_one(start, tmp_path):
    stored = load_model(start / "hf").config
    run = prepare(config_from(start, model=dataclasses.replace(stored, remat="full", init_std=0.5)), tmp_path)
    unlock(run.workdir, run.lock)
    assert run.model == dataclasses.replace(stored, remat="full")
    for other, told in (
        (dataclasses.replace(stored, top_k=1, mtp_depth=0), "model.top_k is 1, there 2; model.mtp_depth is 0, there 1"),
        (tiny_config("2.0", vocab_size=300), "model.num_layers is 3, there 1; .* more"),
    ):
        with pytest.raises(ValueError, match=f"is another one than that of .*hf: .*{told}"):
            prepare(config_from(start, model=other), tmp_path / "other")


def test_a_config_may_name_the_models_own_tokenizer_and_no_other(start, tmp_path):
    run = prepare(config_from(start, tokenizer=str(start / "hf")), tmp_path / "run")
    unlock(run.workdir, run.lock)
    data.save_tokenizer(data.train_bpe(["another"], 263), tmp_path / "other")
    with pytest.raises(ValueError, match=r"data\.tokenizer is .*other, and .*hf was trained with another one"):
        prepare(config_from(start, tokenizer=str(tmp_path / "other")), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", ["hf", "ported"])
def test_a_config_names_the_tokenizer_of_a_model_that_has_none(name, start, tmp_path):
    shutil.copytree(start / name, tmp_path / name)
    own = tmp_path / name / ("tokenizer.json" if name == "hf" else "tokenizer/tokenizer.json")
    named = own.rename(tmp_path / "named.json")
    config = dataclasses.replace(config_from(start), start_from=str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        prepare(config, tmp_path / "refused")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(named)))
    run = prepare(config, tmp_path / "run")
    unlock(run.workdir, run.lock)
    assert run.corpus.tokenizer.to_str() == load_model(start / name).tokenizer.to_str()
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("damage", [lambda meta: shutil.rmtree(meta), lambda meta: (meta / "metadata").write_text("{")])
def test_a_half_written_workdir_is_named(start, tmp_path, damage):
    shutil.copytree(start / "ported", tmp_path / "half")
    damage(tmp_path / "half" / "checkpoints" / "0" / "meta")
    config = dataclasses.replace(config_from(start), start_from=str(tmp_path / "half"))
    with pytest.raises(ValueError, match=r"half/checkpoints/0/meta") as error:
        prepare(config, tmp_path / "refused")
    assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()


def test_a_config_of_changes_is_read_back(start):
    config = config_from(start, model=ModelChanges(max_length=64, rope_scaling=Yarn(2.0, 64)))
    assert from_dict(type(config), to_config_dict(config).to_dict()) == config
    assert from_dict(type(config), continue_tiny.get_config().to_dict()).model == ModelChanges()


def test_starts_that_cannot_be_are_one_line_and_exit_code_2(start, tmp_path):
    (tmp_path / "partial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "config.py").write_text(
        "from ling_jax.train.config import *\n"
        "from tests.helpers.small_run import small_config\n"
        "def get_config():\n"
        f"    config = small_config({str(start / 'corpus')!r})\n"
        "    return to_config_dict(dataclasses.replace(config, model=ModelChanges(), start_from=START))\n"
        f"START = {str(start / 'hf')!r}\n"
    )
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").touch()
    flags = {
        f"--config.start_from={tmp_path}/nowhere": "nowhere holds neither checkpoints/",
        f"--config.start_from={tmp_path}/file": "file holds neither checkpoints/",
        f"--config.start_from={tmp_path}/partial": "partial/checkpoints holds no checkpoint",
        f"--config.start_from={tmp_path}/hf": "config.json is missing",
        "--config.start_from=": "start_from is empty",
        "--config.data.sequence_length=1024": "the model's context, model.max_length, is 512",
        "--config.model.loss_chunk=0": "loss_chunk is 0; it must be at least 1",
        "--config.model.remat=some": "remat is 'some'; it is one of",
        "--config.model.rope_scaling.factor=2.0": "config.model.rope_scaling.original_length is",
        "--config.model.hidden_size=3": "config.model has no field 'hidden_size'",
        f"--workdir={start / 'hf'}": "holds a model (*.safetensors); name another workdir",
    }
    where = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    for (flag, message), done in zip(
        flags.items(), run_each("launch.pretrain", [[*where, flag] for flag in flags]), strict=True
    ):
        assert done.returncode == 2, f"{flag}: {done}"
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, f"{flag}: {done.stderr}"
    assert not (tmp_path / "run").exists()
