"""What is read beside the weights: end tokens, and whether a model is for conversations."""

import json

import pytest

from ling_jax import data
from ling_jax.checkpoint import save_hf
from ling_jax.checkpoint.folder import open_model, save_texts
from tests.helpers.official_forms import LING_2_6
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(vocab_size=300, num_layers=1, first_dense_layers=1)
TOKENIZER = data.train_bpe([], 263)
EOS, ROLE_END = map(TOKENIZER.token_to_id, ("<|endoftext|>", "<|role_end|>"))


@pytest.fixture
def folder(tmp_path):
    save_hf(random_params(CONFIG), CONFIG, tmp_path / "hf")
    data.save_tokenizer(TOKENIZER, tmp_path / "hf")
    return tmp_path / "hf"


def change(file, **fields):
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | fields))


def test_a_base_folder_has_the_known_end_tokens_and_is_not_for_conversations(folder):
    model = open_model(folder)
    assert model.end_ids == {EOS, ROLE_END} and not model.is_chat
    change(folder / "config.json", eos_token_id=EOS)
    assert not open_model(folder).is_chat


def test_declared_end_tokens_end_texts_and_the_end_of_a_turn_marks_a_chat_model(folder):
    change(folder / "config.json", eos_token_id=[EOS, 270])
    change(folder / "generation_config.json", eos_token_id=ROLE_END)
    model = open_model(folder)
    assert model.end_ids == {EOS, ROLE_END, 270} and model.is_chat


def test_a_folder_with_a_template_is_for_conversations_and_its_eos_token_ends_turns(folder):
    change(folder / "tokenizer_config.json", chat_template=LING_2_6, eos_token="a")
    model = open_model(folder)
    assert model.is_chat and TOKENIZER.token_to_id("a") in model.end_ids and "a" in model.template.end_tokens


@pytest.mark.parametrize(("file", "value"), [("config.json", 300), ("generation_config.json", True)])
def test_an_end_token_out_of_the_vocabulary_is_refused(folder, file, value):
    change(folder / file, eos_token_id=value)
    with pytest.raises(ValueError, match=f"{file}: eos_token_id is {value}; expected the id of a token, below 300"):
        open_model(folder)


def test_a_stage_that_learns_conversations_leaves_a_model_for_conversations(folder, tmp_path):
    write_stage(tmp_path / "base")
    base = open_model(tmp_path / "base")
    assert not base.is_chat
    save_texts(base, tmp_path / "base" / "tokenizer", chat=False)
    assert not open_model(tmp_path / "base").is_chat
    save_texts(base, tmp_path / "base" / "tokenizer", chat=True)
    chat = open_model(tmp_path / "base")
    assert chat.is_chat and chat.end_ids == base.end_ids

    change(folder / "tokenizer_config.json", chat_template=LING_2_6, eos_token="a")
    save_texts(open_model(folder), tmp_path / "base" / "tokenizer", chat=False)
    again = open_model(tmp_path / "base")
    assert again.template == open_model(folder).template and TOKENIZER.token_to_id("a") in again.end_ids
