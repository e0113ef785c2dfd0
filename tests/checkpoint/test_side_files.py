"""What goes with a model besides its weights, and what a model made here gets."""

import json
import os
import stat

import jax
import pytest
from tokenizers import Tokenizer

from ling_jax import data
from ling_jax.chat.default_source import default_source
from ling_jax.chat.end_tokens import save_end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.checkpoint.folder import load_model, open_model
from ling_jax.checkpoint.side_files import copy_side_files, fill_in
from tests.helpers.tiny import random_params, tiny_config

CARRIED = {
    "generation_config.json": '{"eos_token_id": [254, 255], "temperature": 0.6}',
    "tokenizer_config.json": '{"chat_template": "{{ messages }}", "eos_token": "<|endoftext|>"}',
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "#version",
    "tokenizer.model": "sentencepiece",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "modeling_bailing_moe_v2_5.py": "import torch",
    "configuration_bailing_moe_v2_5.py": "pass",
    "preprocessor_config.json": "{}",
    "LICENSE": "MIT",
    "README.md": "---\nlicense: mit\n---\n# é",
    "figures/a.png": "png",
}
LEFT_OUT = (
    "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "a.gguf", "a.pt", "a.onnx", "original/params.json",
    "original/consolidated.00.pth", ".cache/huggingface/x.metadata", ".git/HEAD", ".gitattributes",
    "hf_quant_config.json", "quantize_config.json", "mtp/model.safetensors",
    "model.safetensors.crdownload", "__0_0.distcp", "checkpoint-500/trainer_state.json", "global_step5/latest",
    "checkpoints/notes.txt",
)  # fmt: skip


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CARRIED.get(name, "weights"), encoding="utf-8")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_all_files_but_weights_and_their_config_are_copied(tmp_path):
    fill(tmp_path / "source", [*CARRIED, *LEFT_OUT])
    copy_side_files(tmp_path / "source", tmp_path / "target" / "tokenizer")
    copy_side_files(tmp_path / "target" / "tokenizer", tmp_path / "back")
    for folder in (tmp_path / "target" / "tokenizer", tmp_path / "back"):
        assert files(folder) == CARRIED.keys()
        assert {name: (folder / name).read_text(encoding="utf-8") for name in CARRIED} == CARRIED


def test_links_are_copied_as_what_they_point_to(tmp_path):
    """The cache of Hugging Face is links; a link to a folder may lead anywhere, and one may lead nowhere."""
    fill(tmp_path / "blobs", ["LICENSE"])
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "LICENSE").symlink_to("../blobs/LICENSE")
    (tmp_path / "source" / "all").symlink_to("/")
    (tmp_path / "source" / "gone").symlink_to("../blobs/gone")
    copy_side_files(tmp_path / "source", tmp_path / "target")
    assert files(tmp_path / "target") == {"LICENSE"}
    assert not (tmp_path / "target" / "LICENSE").is_symlink()


def test_a_folder_is_not_copied_onto_itself(tmp_path):
    fill(tmp_path, ["LICENSE"])
    copy_side_files(tmp_path, tmp_path / "." / ".")
    copy_side_files(tmp_path / "missing", tmp_path)
    assert files(tmp_path) == {"LICENSE"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_exports_are_readable_as_the_umask_says(tmp_path, umask, mode):
    config = tiny_config(compute_dtype="float32")
    fill(tmp_path / "source", ["LICENSE"])
    before = os.umask(umask)
    try:
        save_hf(random_params(config, dtype="float32"), config, tmp_path / "out")
        copy_side_files(tmp_path / "source", tmp_path / "out")
        fill_in(tmp_path / "out", config, None, chat=False)
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert found == dict.fromkeys(("config.json", "model.safetensors", "LICENSE", "README.md"), mode)


# A model made here


@pytest.fixture(scope="module")
def made_here(tmp_path_factory) -> tuple:
    """(an export of a model without any file beside its tokenizer, the tokenizer)."""
    folder = tmp_path_factory.mktemp("made_here")
    tokenizer = data.train_bpe(["some words"], 263)
    config = tiny_config(compute_dtype="float32", vocab_size=263)
    save_hf(random_params(config, dtype="float32"), config, folder / "hf")
    data.save_tokenizer(tokenizer, folder / "hf")
    fill_in(folder / "hf", config, tokenizer, chat=True)
    return folder / "hf", tokenizer


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_model_made_here_gets_the_ids_of_its_tokenizer(made_here):
    folder, tokenizer = made_here
    end, start, turn = map(tokenizer.token_to_id, ("<|endoftext|>", "<|startoftext|>", "<|role_end|>"))
    found = read(folder / "config.json")
    assert [found[f"{name}_token_id"] for name in ("eos", "pad", "bos")] == [end, end, start]
    assert read(folder / "generation_config.json") == {
        "bos_token_id": start, "eos_token_id": [end, turn], "pad_token_id": end,
    }  # fmt: skip
    assert load_hf(folder)[1].vocab_size == 263


def test_a_model_made_here_gets_its_template(made_here):
    folder, _ = made_here
    found = read(folder / "tokenizer_config.json")
    assert found["chat_template"] == default_source()
    assert (found["eos_token"], found["pad_token"], found["bos_token"]) == (
        "<|endoftext|>", "<|endoftext|>", "<|startoftext|>",
    )  # fmt: skip
    assert open_model(folder).template == ChatTemplate(), "with all its options, not as a source without them"


def test_a_model_made_here_gets_a_card(made_here):
    folder, _ = made_here
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("BailingMoeV2_5ForCausalLM", "| layers | 4", "load_hf(", "License: not set"):
        assert said in card


def test_what_is_there_is_left_as_it_is(tmp_path):
    tokenizer, config = data.train_bpe(["some words"], 263), tiny_config(compute_dtype="float32", vocab_size=263)
    fill(tmp_path, CARRIED)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "pad_token_id": null, "x": [1]}')
    fill_in(tmp_path, config, tokenizer, chat=True)
    bos = tokenizer.token_to_id("<|startoftext|>")
    assert read(tmp_path / "config.json") == {"eos_token_id": 7, "pad_token_id": None, "x": [1], "bos_token_id": bos}
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in CARRIED} == CARRIED


def test_a_model_that_was_tuned_here_gets_the_template_that_its_source_lacked(tmp_path):
    """Its source declares no end of a turn either; what else the source says stays."""
    tokenizer, config = data.train_bpe(["some words"], 263), tiny_config(compute_dtype="float32", vocab_size=263)
    fill(tmp_path, ["generation_config.json"])
    (tmp_path / "config.json").write_text("{}")
    for chat in (False, True):
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "x": 1}')
        fill_in(tmp_path, config, tokenizer, chat=chat)
        template = {"chat_template": default_source()} if chat else {}
        assert read(tmp_path / "tokenizer_config.json") == {"eos_token": "<|endoftext|>", "x": 1} | template
    assert (tmp_path / "generation_config.json").read_text() == CARRIED["generation_config.json"]


def test_end_tokens_that_a_run_noted_get_the_other_ids(tmp_path):
    tokenizer, config = data.train_bpe(["some words"], 263), tiny_config(compute_dtype="float32", vocab_size=263)
    (tmp_path / "config.json").write_text("{}")
    save_end_ids([0, 2, 9], tmp_path)
    fill_in(tmp_path, config, tokenizer, chat=True)
    found = read(tmp_path / "generation_config.json")
    assert found == {"bos_token_id": tokenizer.token_to_id("<|startoftext|>"), "pad_token_id": 0} | {
        "eos_token_id": [0, 2, 9]
    }


def test_a_tokenizer_without_turns_gets_no_template(tmp_path):
    tokenizer = Tokenizer.from_str(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []}})
    )
    (tmp_path / "config.json").write_text("{}")
    fill_in(tmp_path, tiny_config(), tokenizer, chat=True)
    assert "chat_template" not in read(tmp_path / "tokenizer_config.json")
    assert read(tmp_path / "generation_config.json")["eos_token_id"] == [1]


def test_a_base_model_made_here_stays_one_for_raw_prompts(made_here, tmp_path):
    folder, tokenizer = made_here
    assert open_model(folder).is_chat
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    fill_in(tmp_path, load_hf(folder)[1], tokenizer, chat=False)
    assert read(tmp_path / "generation_config.json")["eos_token_id"] == [tokenizer.token_to_id("<|endoftext|>")]
    assert "chat_template" in read(tmp_path / "tokenizer_config.json") and not open_model(tmp_path).is_chat


# Tokenizers whose ids pass the embedding


def test_the_largest_id_is_compared_and_not_the_count(tmp_path):
    """Ids have gaps where tokens were taken out or added behind a padded vocabulary."""
    config = tiny_config(compute_dtype="float32", vocab_size=265)
    params = random_params(config, dtype="float32")
    save_hf(params, config, tmp_path / "hf")
    orbax.save_params(tmp_path / "run" / "checkpoints", jax.tree.map(jax.numpy.asarray, params), config)
    content = json.loads(data.train_bpe(["some words"], 263).to_str())
    for last, fits in ((264, True), (265, False)):
        content["model"]["vocab"]["far away"] = last
        for folder in (tmp_path / "hf", tmp_path / "run" / "tokenizer"):
            folder.mkdir(exist_ok=True)
            (folder / "tokenizer.json").write_text(json.dumps(content))
        for folder in (tmp_path / "hf", tmp_path / "run"):
            if fits:
                assert load_model(folder).config.vocab_size == 265
                continue
            with pytest.raises(ValueError, match=r"has ids up to 265 \('far away'\); the model's vocabulary is 265"):
                open_model(folder)
