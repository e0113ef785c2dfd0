import dataclasses
import json

import numpy as np
import pytest

from ling_jax import data
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint.folder import Loaded
from ling_jax.evaluate.choice import choice_results, encode_choices, read_questions
from tests.helpers.official_forms import LING_2_6
from tests.helpers.tiny import tiny_config

TOKENIZER = data.train_bpe(["some words of a text"], 270)
LOADED = Loaded(None, tiny_config(vocab_size=300), TOKENIZER, ChatTemplate())
RECORDS = [
    ("line 1", {"prompt": "ab", "choices": [" yes", " certainly not"], "answer": 1, "id": "first"}),
    ("line 2", {"messages": [{"role": "user", "content": "cd"}], "choices": ["a", "b", "日"], "answer": 0}),
]


def test_a_choice_follows_its_prompt_and_is_scored_alone():
    choices = encode_choices(LOADED, RECORDS)
    assert [choice.question for choice in choices] == [0, 0, 1, 1, 1]
    texts = [TOKENIZER.decode(choice.prompt + choice.tokens) for choice in choices]
    assert texts[:2] == ["ab yes", "ab certainly not"]
    assert texts[4].endswith("ASSISTANT日") and "cd" in texts[4] and choices[4].prompt == choices[2].prompt
    # Log-probabilities by hand: -10 on the prompt, which must not count, then what the choice gets a token.
    each = {0: -1.0, 1: -0.5, 2: -3.0, 3: -2.0, 4: -1.5}
    logps = {
        i: np.array([-10.0] * (len(choice.prompt) - 1) + [each[i]] * len(choice.tokens), np.float32)
        for i, choice in enumerate(choices)
    }
    samples, (accuracy, per_byte) = choice_results(RECORDS, choices, logps)
    assert samples[0]["id"] == "first" and samples[1]["id"] == 1
    sizes = [len(choice.tokens) for choice in choices]
    assert samples[0]["scores"] == [-1.0 * sizes[0], -0.5 * sizes[1]]
    assert samples[0]["scores_per_byte"] == [-1.0 * sizes[0] / 4, -0.5 * sizes[1] / 14]
    assert (samples[0]["chosen"], samples[0]["chosen_per_byte"]) == (0, 1), "the longer one wins by bytes"
    # "日" has three tokens of a byte each: -4.5 in all, -1.5 a byte.
    assert samples[1]["scores"] == [-3.0, -2.0, -4.5] and samples[1]["scores_per_byte"] == [-3.0, -2.0, -1.5]
    assert (samples[1]["chosen"], samples[1]["chosen_per_byte"]) == (1, 2)
    assert (accuracy.value, per_byte.value) == (0.0, 0.5) and accuracy.n == per_byte.n == 2
    np.testing.assert_allclose(per_byte.interval, (0.0945, 0.9055), atol=5e-5)  # Wilson of 1 in 2


def test_a_choice_is_not_scored_as_reasoning():
    template = FolderTemplate(LING_2_6, "FOLDER")
    thinks = dataclasses.replace(LOADED, template=template, config=tiny_config(vocab_size=300, max_length=400))
    for record in RECORDS:
        with pytest.raises(ValueError, match=r"line \d: the prompt ends with <think>, and a choice .* --thinking=off"):
            encode_choices(thinks, [record])
    assert len(encode_choices(dataclasses.replace(thinks, template=with_thinking(template, "off")), RECORDS)) == 5


def test_choices_beyond_the_context_are_an_error():
    short = dataclasses.replace(LOADED, config=tiny_config(vocab_size=300, max_length=8))
    with pytest.raises(ValueError, match=r"line 1: prompt of 2 tokens and choices\[1\] of \d+ pass the model"):
        encode_choices(short, RECORDS[:1])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "choice": ["b", "c"], "answer": 0}, "has no field 'choices', did you mean 'choice'?"),
        ({"prompt": "a", "choices": ["b", "c"]}, "has no field 'answer'"),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "choices is ['b']; expected a list of at least 2 texts"),
        ({"prompt": "a", "choices": ["b", ""], "answer": 0}, "choices[1] is ''; expected text"),
        ({"prompt": "a", "choices": ["b", "b"], "answer": 0}, "choices[1] is 'b' again"),
        ({"prompt": "a", "choices": ["b", "\ud800"], "answer": 0}, "choices[1] holds half a surrogate pair"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "answer is 2; expected the index of a choice, 0 to 1"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": True}, "answer is True; expected the index"),
        ({"choices": ["b", "c"], "answer": 0}, "expected an object with one of 'prompt' and 'messages'"),
        ([1], "is a JSON list; expected an object"),
    ],
)
def test_bad_questions_are_named_with_file_and_line(tmp_path, record, message):
    good = json.dumps({"prompt": "a\u2028b", "choices": ["b", "c"], "answer": 0}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_text(f"{good}\n\n{json.dumps(record)}\n")
    with pytest.raises(ValueError) as error:
        read_questions(tmp_path / "q.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/q.jsonl, line 3") and message in str(error.value)


def test_a_file_without_questions_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"q.jsonl holds no question"):
        read_questions(tmp_path / "q.jsonl")
