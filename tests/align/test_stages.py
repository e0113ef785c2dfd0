"""Fine-tuning and distillation, each shipped config through one real step or more."""

import dataclasses
import json
import shutil

import pytest

from configs.align import tiny_sft, tiny_shortest_correct, tiny_specialists
from ling_jax import data
from ling_jax.align import specialists
from ling_jax.align.records import converse
from ling_jax.align.sft import SftConfig, prepare_sft, tune
from ling_jax.align.specialists import DistillConfig, prepare_distillation
from ling_jax.checkpoint import save_hf
from ling_jax.checkpoint.folder import load_model, open_model
from ling_jax.envs.reasoning import running_sums
from ling_jax.run.loop import train
from ling_jax.train.config import from_dict
from tests.helpers.faults import assert_same_end, metrics_of
from tests.helpers.small_stage import write_stage

pytestmark = pytest.mark.usefixtures("compiled_once")

SUMS = {"environment": "running_sums", "difficulties": (1,), "count": 6}
ORDERINGS = {"environment": "ordering", "difficulties": (2,), "count": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_stage(folder)
    return folder


def small(config, *, steps):
    """A shipped config at the size of these tests; all of them share their programs."""
    config.data.sequence_length, config.train.batch_size, config.train.steps = 128, 4, steps
    config.optimizer.peak_lr, config.optimizer.warmup_steps, config.optimizer.weight_decay = 1e-2, 5, 0.0
    return config.to_dict()


def sft_config(start, *, steps=140) -> SftConfig:
    config = small(tiny_sft.get_config(), steps=steps)
    config |= {"start_from": str(start), "sources": (SUMS, ORDERINGS), "samples": 2}
    config["train"]["save_every"], config["data"]["held_out_fraction"] = 130, 0.4
    return from_dict(SftConfig, config)


def distil_config(shipped, teacher, *, temperature=0.3) -> DistillConfig:
    config = small(shipped.get_config(), steps=1)
    for settings, tasks in zip(config["teachers"], (SUMS, ORDERINGS), strict=False):
        settings |= {"model": str(teacher), "tasks": (tasks,)}
    config["sampling"] |= {"context": 128, "per_query": 2, "slots": 16, "temperature": temperature}
    return from_dict(DistillConfig, config | {"start_from": str(teacher)})


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory):
    """The workdir of a fine-tuning that has learnt a few answers by heart."""
    workdir = tmp_path_factory.mktemp("tuned")
    config = sft_config(start)
    tune(prepare_sft(config, workdir), samples=config.samples)
    return workdir


def test_fine_tuning_learns_answers(tuned):
    lines = metrics_of(tuned)
    assert lines[-1]["main_loss"] < 0.2 < 2 < lines[0]["main_loss"]
    assert all(0 < line["loss_tokens"] < line["tokens"] for line in lines)
    samples = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    for sample in samples:
        assert sample["prompt"].endswith("<role>ASSISTANT</role>") and sample["reference"].endswith("<|role_end|>")
        assert sample["tokens"] > 0 and sample["ended"] in ("end", "length")


def test_a_fine_tuned_model_is_one_for_conversations(start, tuned):
    assert open_model(tuned).is_chat and not open_model(start).is_chat


def test_a_template_that_ends_no_turn_or_reads_no_switch_is_refused_before_anything_is_written(start, tmp_path):
    folder = tmp_path / "start"
    shutil.copytree(start, folder)
    template = folder / "tokenizer" / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    config = sft_config(folder)
    with pytest.raises(ValueError, match=r"chat_template.jinja ends the assistant's turn with none of the end tokens"):
        prepare_sft(config, tmp_path / "run")
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|role_end|>{% endfor %}")
    with pytest.raises(ValueError, match=r"thinking is 'on', and the chat template of .* reads none of"):
        prepare_sft(dataclasses.replace(config, thinking="on"), tmp_path / "run")
    with pytest.raises(ValueError, match="thinking is 'no'"):
        dataclasses.replace(config, thinking="no")
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_the_weights_of_the_stage_before(start, tuned, tmp_path):
    from_run = train(prepare_sft(sft_config(tuned, steps=1), tmp_path / "run"))
    assert from_run["main_loss"] < 0.3
    assert load_model(tmp_path / "run").config == load_model(start).config

    stage = load_model(tuned)
    save_hf(stage.params, stage.config, tmp_path / "hf")
    data.save_tokenizer(stage.tokenizer, tmp_path / "hf")
    (tmp_path / "hf" / "LICENSE").write_text("MIT")
    from_hf = train(prepare_sft(sft_config(tmp_path / "hf", steps=1), tmp_path / "from_hf"))
    # Its config names no sizes of chunks, so that sums have another order.
    assert from_hf["main_loss"] == pytest.approx(from_run["main_loss"], rel=1e-4)
    assert (tmp_path / "from_hf" / "tokenizer" / "LICENSE").read_text() == "MIT"


def test_a_run_that_was_cut_short_ends_in_the_same_bits(start, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "140")
    train(prepare_sft(sft_config(start), tmp_path / "run"))
    assert_same_end(tuned, tmp_path / "run")


def test_a_teachers_shortest_right_answers_are_learnt(tuned, tmp_path, monkeypatch):
    config = distil_config(tiny_shortest_correct, tuned)
    run = prepare_distillation(config, tmp_path)
    (path,) = (tmp_path / "data").glob("answers_0_*.jsonl")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    figures = json.loads(path.with_suffix(".json").read_text())
    assert figures["kept"] == len(answers) > 0 and figures["queries"] == 6 and figures["answers"] == 12
    assert figures["tokens_correct"] >= figures["tokens_shortest"] >= figures["tokens_pruned"] > 0
    for answer in answers:
        task = running_sums.make_task(answer["seed"], answer["difficulty"])
        assert converse(task, [answer["messages"][-1]["content"]])[1] == 1
    assert "loss_tokens" in train(run)

    monkeypatch.setattr(specialists, "shortest_correct", None)  # what is there is not asked for again
    tune(prepare_distillation(config, tmp_path), samples=0)
    with pytest.raises(TypeError):
        prepare_distillation(distil_config(tiny_shortest_correct, tuned, temperature=0.5), tmp_path / "other")


def test_a_run_that_goes_on_takes_the_models_that_it_began_with(tuned, tmp_path, monkeypatch):
    teacher, workdir = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(tuned, teacher)
    shutil.move(teacher / "checkpoints" / "140", tmp_path / "later")
    config = distil_config(tiny_shortest_correct, teacher)
    train(prepare_distillation(config, workdir))
    assert json.loads((workdir / "origins.json").read_text()) == {str(teacher): 130}
    shutil.move(tmp_path / "later", teacher / "checkpoints" / "140")
    monkeypatch.setattr(specialists, "shortest_correct", None)  # another checkpoint's answers would be asked for
    train(prepare_distillation(config, workdir))
    assert json.loads((workdir / "origins.json").read_text()) == {str(teacher): 130}


def test_samples_are_those_of_the_newest_checkpoint(start, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    tune(prepare_sft(sft_config(start, steps=141), tmp_path / "run"), samples=2)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [141, 141]


def test_a_folders_chat_template_goes_with_the_model(start, tmp_path):
    """From stage to stage; a copy of it elsewhere asks for no other tokens."""
    folder, workdir = tmp_path / "start", tmp_path / "run"
    shutil.copytree(start, folder)
    turn = "<role>{{ m.role }}</role>{{ m.content }}<|role_end|>"
    opening = "{% if add_generation_prompt %}<role>assistant</role>{% endif %}"
    (folder / "tokenizer" / "chat_template.jinja").write_text(f"{{% for m in messages %}}{turn}{{% endfor %}}{opening}")
    for steps in (1, 2):
        train(prepare_sft(sft_config(folder, steps=steps), workdir))
        assert load_model(workdir).template == load_model(folder).template
        pieces = load_model(workdir).template.render([{"role": "user", "content": "hi"}])
        assert "".join(piece.text for piece in pieces) == "<role>user</role>hi<|role_end|>"


def test_specialists_are_merged(tuned, tmp_path):
    run = prepare_distillation(distil_config(tiny_specialists, tuned), tmp_path)
    assert len(list((tmp_path / "data").glob("answers_*.jsonl"))) == 2
    first = [path.read_text().splitlines()[0] for path in (tmp_path / "data").glob("answers_*.jsonl")]
    said = {json.loads(line)["environment"] for line in first}
    assert said == {"running_sums", "ordering"}
    assert train(run)["main_loss"] < 1


def test_a_teacher_that_is_never_right_is_named(start, tmp_path):
    with pytest.raises(ValueError, match="has 0 right answers of 12 and none to learn from"):
        prepare_distillation(distil_config(tiny_shortest_correct, start), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_from": "nowhere"}, "nowhere holds neither checkpoints/"),
        ({"sources": ()}, "sources is empty"),
        ({"samples": -1}, "samples is -1"),
        ({"data": {"sequence_length": 8192}}, "data.sequence_length is 8192; the model's context"),
        ({"data": {"sequence_length": 128, "too_long": "cut"}}, "data.too_long is 'cut'; it is one of drop, error"),
        ({"data": {"sequence_length": 128, "held_out_fraction": 0.0}}, "data.held_out_fraction is 0.0"),
        ({"start": "x"}, "config.start is unknown, did you mean 'start_from'"),
    ],
)
def test_a_fine_tuning_that_cannot_run_is_refused_before_it_writes(fields, message, start, tmp_path):
    config = tiny_sft.get_config().to_dict() | {"start_from": str(start), "sources": (SUMS,)} | fields
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare_sft(from_dict(SftConfig, config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teachers": ()}, "teachers is empty"),
        ({"teachers": ({"model": "x", "tasks": ()},)}, r"teachers\[0\].tasks is empty"),
        ({"teachers": ({"model": "x", "tasks": (SUMS | {"count": 0},)},)}, r"teachers\[0\].tasks\[0\]: count is 0"),
        ({"teachers": ({"model": "x", "tasks": (SUMS,), "weight": -1.0},)}, r"teachers\[0\].weight is -1.0"),
        ({"sampling": {"context": 128, "per_query": 0}}, "sampling.per_query is 0; it must be at least 1"),
        ({"sampling": {"context": 8192}}, "sampling.context is 8192; the context of .* is 512"),
        ({"sampling": {"context": 64}}, "has a prompt of .* tokens"),
    ],
)
def test_a_distillation_that_cannot_run_is_refused_before_it_writes(fields, message, start, tmp_path):
    config = tiny_shortest_correct.get_config().to_dict() | {"start_from": str(start)}
    config["teachers"] = ({"model": str(start), "tasks": (SUMS,)},)
    with pytest.raises(ValueError, match=message):
        prepare_distillation(from_dict(DistillConfig, config | fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
