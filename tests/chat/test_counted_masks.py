"""Loss masks of five chats against numbers counted by hand.

How they were counted: the tokenizer has no merges, so a byte of text is a token, and so is each special token. Bytes
are the letters of each word, plus the blanks between words, plus the line's newline; ’ and − take three bytes, × two.
"""

import numpy as np
import pytest

from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.data.tokenizer import train_bpe

TOKENIZER = train_bpe([""], 263)
# <role>SYSTEM</role> is 1 + 6 + 1 tokens, "detailed thinking off" 8 + 1 + 8 + 1 + 3, its end 1.
SYSTEM = 8 + 21 + 1
HUMAN, END, ASSISTANT = 1 + 5 + 1, 1, 1 + 9 + 1
# (question, its bytes: words + blanks, answer, bytes of each of its lines)
COUNTED = [
    ("Two cats, how many legs?", 20 + 4, "2 * 4 = 8 legs.\n#### 8", [16, 6]),
    ("Ann’s 3 eggs cost $6; one egg?", 26 + 6, "$6 / 3 = $2\n#### 2", [12, 6]),  # Ann’s is 7 bytes
    ("3 boxes of 5 pens?", 14 + 4, "3 × 5 = 15 pens\n#### 15", [17, 7]),  # "3 × 5" is 6 bytes
    ("What is 9 − 4?", 12 + 4, "It is 5.", [8]),  # "9 − 4?" is 8 bytes
    ("Say two lines.", 12 + 2, "One.  \n\nTwo.", [7, 1, 4]),  # two blanks behind "One.", then an empty line
]


@pytest.mark.parametrize(("question", "question_bytes", "answer", "answer_bytes"), COUNTED)
def test_loss_is_on_the_answer_and_its_end_alone(question, question_bytes, answer, answer_bytes):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, mask = encode(TOKENIZER, ChatTemplate().render(messages))
    start = SYSTEM + HUMAN + question_bytes + END + ASSISTANT
    length = sum(answer_bytes) + END
    assert sum(mask) == length
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(start, start + length))
    assert len(mask) == len(ids) == start + length, "nothing follows the answer"
    assert ids[-1] == TOKENIZER.token_to_id("<|role_end|>")
    assert TOKENIZER.decode(ids[start:-1], skip_special_tokens=False) == answer


def test_every_answer_of_a_longer_chat_carries_loss():
    """Two questions in one chat: both answers with their ends, and nothing between them."""
    messages = [
        {"role": role, "content": content}
        for question, _, answer, _ in (COUNTED[0], COUNTED[2])
        for role, content in (("user", question), ("assistant", answer))
    ]
    _, mask = encode(TOKENIZER, ChatTemplate().render(messages))
    first = SYSTEM + HUMAN + 24 + END + ASSISTANT
    second = first + 22 + END + HUMAN + 18 + END + ASSISTANT
    wanted = [*range(first, first + 23), *range(second, second + 25)]
    assert np.flatnonzero(mask).tolist() == wanted and len(mask) == wanted[-1] + 1
