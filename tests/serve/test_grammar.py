"""Texts of random allowed tokens follow the grammar."""

import json

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.server_bodies import SCHEMA
from ling_jax import data
from ling_jax.chat.tool_calls import CALL, END_CALL, END_THINK, THINK, parse_either
from ling_jax.engine.adjusted import allowed_tokens
from ling_jax.serve.grammar import Grammars

VOCAB, END = 300, 0  # more logits than tokens


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_bpe(["some words, and some more words"], 280)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCAB, {END, 2})


def text_of(tokenizer, allowed, seed: int, *, prefer: str = "") -> str:
    """The text of random tokens until an end; a special token of the name `prefer` is taken where it may come."""
    rng, drawn, wanted = np.random.default_rng(seed), [], tokenizer.token_to_id(prefer) if prefer else None
    for _ in range(500):
        may = allowed_tokens(allowed(drawn), VOCAB)
        assert may.any() and not may[len(tokenizer.get_vocab()) :].any()
        may_end = bool(may[END])
        if may_end:
            return tokenizer.decode(drawn, skip_special_tokens=False)
        drawn.append(wanted if wanted is not None and may[wanted] else int(rng.choice(np.flatnonzero(may))))
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(5))
def test_json_follows_its_schema(tokenizer, grammars, seed):
    answer = grammars.json_answer(SCHEMA, "")
    jsonschema.validate(json.loads(text_of(tokenizer, answer(), seed)), SCHEMA)


@pytest.mark.parametrize("seed", range(5))
def test_reasoning_may_come_before(tokenizer, grammars, seed):
    begun = text_of(tokenizer, grammars.json_answer(SCHEMA, "begun")(), seed, prefer=END_THINK)
    reasoning, mark, content = begun.partition(END_THINK)
    assert mark and THINK not in reasoning
    jsonschema.validate(json.loads(content), SCHEMA)
    maybe = grammars.json_answer(SCHEMA, "maybe")
    jsonschema.validate(json.loads(text_of(tokenizer, maybe(), seed, prefer="none of them")), SCHEMA)
    assert maybe()([tokenizer.token_to_id(THINK)]).any()


@pytest.mark.parametrize("seed", range(5))
def test_calls_are_those_of_the_tools(tokenizer, grammars, seed):
    text = text_of(tokenizer, grammars.tool_calls({"f": SCHEMA, "g.h": {"maxProperties": 0}}, "", many=True)(), seed)
    parsed = parse_either(text)
    assert parsed.tool_calls and not parsed.errors and not parsed.content.strip()
    for call in parsed.tool_calls:
        assert call["name"] in ("f", "g.h")
        if call["name"] == "f":
            jsonschema.validate(call["arguments"], SCHEMA)


@pytest.mark.parametrize("add", [Tokenizer.add_tokens, Tokenizer.add_special_tokens])
def test_calls_begin_and_end_with_their_marks_where_these_are_tokens(tokenizer, add):
    """A trained tokenizer has them as ordinary added tokens, which the library still takes for special ones."""
    own = Tokenizer.from_str(tokenizer.to_str())
    add(own, [CALL, END_CALL])
    calls = Grammars(own, VOCAB, {END, 2}).tool_calls({"f": SCHEMA}, "", many=False)
    for seed in range(3):
        text = text_of(own, calls(), seed)
        assert own.encode(text).ids[0] == own.token_to_id(CALL) and text.endswith(END_CALL)
        jsonschema.validate(parse_either(text).tool_calls[0]["arguments"], SCHEMA)


def test_each_answer_has_a_mask_of_its_own(tokenizer, grammars):
    answer = grammars.json_answer({"const": "xy"}, "")
    first, second = answer(), answer()
    ids = tokenizer.encode('"x').ids
    behind, start = first(ids).copy(), second([]).copy()
    assert (behind != start).any() and (answer()([]) == start).all()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strange"}, "Invalid type: strange"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"$ref": "http://elsewhere/x"}, "not present in a registry"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
        ({"x-guidance": {}}, "x-guidance is an option"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(grammars, schema, reason):
    with pytest.raises(ValueError) as raised:
        grammars.json_answer(schema, "")
    assert reason in str(raised.value) and "\n" not in str(raised.value)
