"""Promises of the tokenizer: any text comes back, special tokens are only what a caller makes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ling_jax.data.tokenizer import (
    EOS,
    SPECIAL_TOKENS,
    encode_documents,
    eos_id,
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    train_bpe,
)
from ling_jax.files import replacing

NAMES = [a + b + c for a in "pqrs" for b in "aeiou" for c in "lmn"]
TEXTS = [f"def function_{name}(x):\n    return x + {i}  # größer\n" for i, name in enumerate(NAMES[:50])]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 300)


def test_special_tokens_come_first_and_all_bytes_are_there(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert eos_id(tokenizer) == 0
    assert tokenizer.get_vocab_size() == 300


def test_digits_are_tokens_of_their_own(tokenizer):
    digits = [tokenizer.token_to_id(digit) for digit in "4096"]
    (ids,) = encode_documents(tokenizer, ["4096+x4096"])
    assert ids.tolist() == [*digits, tokenizer.token_to_id("+"), tokenizer.token_to_id("x"), *digits]


def test_words_are_tokens_wherever_they_stand():
    tokenizer = train_bpe(TEXTS, 300, words=["<tool_call>", "</tool_call>"])
    assert tokenizer.get_vocab_size() == 300
    (ids,) = encode_documents(tokenizer, ["a<tool_call>b</tool_call>\n"])
    opened, closed = (tokenizer.token_to_id(word) for word in ("<tool_call>", "</tool_call>"))
    assert {opened, closed} == {298, 299} and ids[1] == opened and ids[3] == closed and len(ids) == 5
    assert tokenizer.decode(ids.tolist()) == "a<tool_call>b</tool_call>\n"
    with pytest.raises(ValueError, match="and 40 words are 303"):
        train_bpe(TEXTS, 302, words=[f"<{i}>" for i in range(40)])


def test_training_is_deterministic(tokenizer):
    assert tokenizer_digest(train_bpe(iter(TEXTS), 300)) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(train_bpe(TEXTS, 290)) != tokenizer_digest(tokenizer)


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"vocab_size is 262; special tokens, the 256 bytes and 0 words are 263"):
        train_bpe(TEXTS, 262)
    assert train_bpe(TEXTS, 263).get_vocab_size() == 263


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert ids.dtype == np.uint32 and ids.max(initial=0) < tokenizer.get_vocab_size()


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_document_cannot_spell_a_special_token(tokenizer, token):
    text = f"a{token} {token}b{token}"
    (ids,) = encode_documents(tokenizer, [text])
    assert ids.min() >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(ids.tolist()) == text
    # The caller's tokenizer still knows it.
    assert tokenizer.encode(text).ids.count(tokenizer.token_to_id(token)) == 3


def test_encoding_streams_in_order(tokenizer, monkeypatch):
    monkeypatch.setattr("ling_jax.data.tokenizer.BATCH_CHARACTERS", 100)
    taken = []
    encoded = encode_documents(tokenizer, (taken.append(i) or text for i, text in enumerate(TEXTS)))
    assert tokenizer.decode(next(encoded).tolist()) == TEXTS[0]
    assert len(taken) < 5
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == TEXTS[1:]


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    for where in (path, path.parent, str(path.parent)):
        assert tokenizer_digest(load_tokenizer(where)) == tokenizer_digest(tokenizer)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/tokenizer\.json does not exist; name a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer of the `tokenizers` library"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_eos_is_an_error():
    with pytest.raises(ValueError, match=r"no token '<\|endoftext\|>'"):
        eos_id(Tokenizer(models.BPE()))
    assert EOS == "<|endoftext|>"


def test_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]
