import json

import pytest
from tokenizers import Tokenizer

from ling_jax import data
from ling_jax.chat.conversations import tokenize_conversations
from ling_jax.chat.end_tokens import check_turns_end, declared_end_ids, end_ids, save_end_ids, token_texts
from ling_jax.chat.folder_template import FolderTemplate, load_template
from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.data.packing import open_documents
from ling_jax.data.tokenizer import EOS, SPECIAL_TOKENS
from tests.helpers.official_forms import FORMS

TOKENIZER = data.train_bpe([], 280, words=("</s>", "[END]"))
ROLE_END = TOKENIZER.token_to_id("<|role_end|>")


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def declared(folder, config=(), tokenizer=TOKENIZER, vocab_size=280):
    return declared_end_ids(dict(config), folder, tokenizer, vocab_size)


def test_end_tokens_are_the_union_of_all_that_the_files_declare(tmp_path):
    assert declared(tmp_path) == set()
    write(
        tmp_path,
        generation_config={"eos_token_id": [11, 12], "temperature": 1},
        tokenizer_config={"eos_token": {"content": "</s>", "lstrip": False}},
        special_tokens_map={"eos_token": "[END]"},
    )
    named = {TOKENIZER.token_to_id("</s>"), TOKENIZER.token_to_id("[END]")}
    assert declared(tmp_path, {"eos_token_id": 10}) == {10, 11, 12} | named
    known = {TOKENIZER.token_to_id(EOS), ROLE_END}
    assert end_ids(TOKENIZER, declared(tmp_path)) == {11, 12} | named | known
    assert declared(tmp_path, {"eos_token_id": None}) == {11, 12} | named
    write(tmp_path, tokenizer_config={"eos_token": "never heard of"}, special_tokens_map={"eos_token": None})
    assert declared(tmp_path) == {11, 12}


def test_saved_end_tokens_are_declared_again(tmp_path):
    write(tmp_path, generation_config={"eos_token_id": 2, "temperature": 0.6})
    save_end_ids({3, 1}, tmp_path)
    assert declared(tmp_path) == {1, 3}
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("value", [280, -1, True, "5", 1.5, float("nan"), [1, None], [[1]], {"id": 1}])
def test_an_end_token_that_is_none_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match=r"^config\.json: eos_token_id is .*; expected the id of a token, below 280"):
        declared(tmp_path, {"eos_token_id": value})
    write(tmp_path, generation_config={"eos_token_id": value})
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is "):
        declared(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000])
def test_a_file_that_is_no_object_is_refused_by_name(tmp_path, text):
    for name in ("generation_config", "tokenizer_config", "special_tokens_map"):
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{name}.json is "):
            declared(tmp_path)
        file.unlink()


def without_ends():
    stored = json.loads(data.train_bpe([], 263).to_str())
    names = {"<|endoftext|>": "<a>", "<|role_end|>": "<b>"}
    for token in stored["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = stored["model"]["vocab"]
    stored["model"]["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    return Tokenizer.from_str(json.dumps(stored))


def test_a_tokenizer_without_our_end_tokens_needs_a_declared_one():
    assert end_ids(without_ends(), {5}) == {5} and token_texts(without_ends(), {300, 0}) == ["<a>"]
    with pytest.raises(ValueError, match=r"nothing ends a text: .* add eos_token_id to generation_config.json"):
        end_ids(without_ends())


def test_conversations_are_learnt_with_a_tokenizer_without_our_end_tokens(tmp_path):
    records = [("r", {"messages": TALK})]
    template = FolderTemplate(LINES, "folder", end_tokens=("<b>",), special_tokens=("<b>",))
    options = dict(source="", digest="", longest=300, held_out_fraction=0.0)
    with pytest.raises(ValueError, match=r"no token '<.endoftext.>'"):
        tokenize_conversations(records, without_ends(), template, tmp_path / "out", **options)
    meta = tokenize_conversations(records, without_ends(), template, tmp_path / "out", padding=2, **options)
    assert meta["eos_id"] == open_documents(tmp_path / "out" / "train").eos_id == 2


LINES = """{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}[END]{% endif %}
{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
TALK = [{"role": role, "content": content} for role, content in (("user", "a"), ("assistant", "b"), ("user", "c"))] + [
    {"role": "assistant", "content": "d"}
]


def lines_template(folder):
    (folder / "chat_template.jinja").write_text(LINES)
    return load_template(folder, SPECIAL_TOKENS, ["[END]"])


def test_what_stands_behind_the_end_of_a_turn_is_not_trained_and_belongs_to_what_follows(tmp_path):
    pieces = lines_template(tmp_path).render(TALK)
    told = [(piece.text, piece.trained) for piece in pieces]
    assert told == [
        ("user: a\nassistant: ", False), ("b", True), ("[END]", True), ("\nuser: c\nassistant: ", False), ("d", True),
        ("[END]", True), ("\n", False),
    ]  # fmt: skip
    ids, mask = encode(TOKENIZER, pieces)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert TOKENIZER.decode(trained) == "b[END]d[END]"


def test_a_template_that_ends_no_turn_is_refused(tmp_path):
    lines = lines_template(tmp_path)
    check_turns_end(lines, TOKENIZER, {TOKENIZER.token_to_id("[END]")})
    for template, ends in ((lines, {ROLE_END}), (ChatTemplate(), {TOKENIZER.token_to_id("</s>")})):
        with pytest.raises(ValueError, match=r"ends the assistant's turn with none of the end tokens .*never to stop"):
            check_turns_end(template, TOKENIZER, ends)
    for template in (ChatTemplate(), *(FolderTemplate(form, "folder") for form in FORMS.values())):
        check_turns_end(template, TOKENIZER, {ROLE_END})
