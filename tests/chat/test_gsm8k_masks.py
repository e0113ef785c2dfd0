"""Loss masks of five GSM8K chats against numbers counted by hand.

How they were counted: the tokenizer has no merges, so a byte of text is a token, and so is each special token. Bytes
are the letters of each word, plus the blanks between words, plus the line's newline; ’ and − take three bytes, × two.
"""

import json

import numpy as np
import pytest

from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.data.tokenizer import train_bpe

TOKENIZER = train_bpe([""], 263)
# <role>SYSTEM</role> is 1 + 6 + 1 tokens, "detailed thinking off" 8 + 1 + 8 + 1 + 3, its end 1.
SYSTEM = 8 + 21 + 1
HUMAN, END, ASSISTANT = 1 + 5 + 1, 1, 1 + 9 + 1
# line of the file: (the question's first word, its bytes, bytes of each line of the answer)
COUNTED = {
    0: ("Natalia", 125 + 30, [48, 71, 7]),  # 31 words
    1: ("Weng", 94 + 19, [49, 60, 7]),
    1999: ("John's", 97 + 22, [45, 11, 6, 11, 6]),  # Sarah’s is 9 bytes
    2304: ("Amy's", 104 + 23, [48, 32, 7]),  # "3 × $1" is 8 bytes, "$100 − $3" 12
    5955: ("John", 54 + 15, [38, 42, 7]),  # two blanks behind "hours."
}


@pytest.fixture(scope="module")
def records(data):
    return [json.loads(line) for line in (data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("number", COUNTED)
def test_loss_is_on_the_answer_and_its_end_alone(records, number):
    first_word, question, answer = COUNTED[number]
    record = records[number]
    assert record["question"].split()[0] == first_word, f"record {number} is another one than was counted"
    messages = [{"role": "user", "content": record["question"]}, {"role": "assistant", "content": record["answer"]}]
    ids, mask = encode(TOKENIZER, ChatTemplate().render(messages))
    start = SYSTEM + HUMAN + question + END + ASSISTANT
    length = sum(answer) + END
    assert sum(mask) == length
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(start, start + length))
    assert len(mask) == len(ids) == start + length, "nothing follows the answer"
    assert ids[-1] == TOKENIZER.token_to_id("<|role_end|>")
    assert TOKENIZER.decode(ids[start:-1], skip_special_tokens=False) == record["answer"]


def test_every_answer_of_a_longer_chat_carries_loss(records):
    """Two questions in one chat: both answers with their ends, and nothing between them."""
    messages = [
        {"role": role, "content": records[number][field]}
        for number in (0, 5955)
        for role, field in (("user", "question"), ("assistant", "answer"))
    ]
    _, mask = encode(TOKENIZER, ChatTemplate().render(messages))
    first = SYSTEM + HUMAN + 155 + END + ASSISTANT
    second = first + 126 + END + HUMAN + 69 + END + ASSISTANT
    wanted = [*range(first, first + 127), *range(second, second + 88)]
    assert np.flatnonzero(mask).tolist() == wanted and len(mask) == wanted[-1] + 1
