"""One interface for rules and models: merits and defects in [0, 1], or why an answer could not be judged."""

import zlib

import numpy as np
import pytest

from ling_jax.align.judges import RULES, Answer, Case, Judge
from ling_jax.align.judges.judgements import Judgements, Reply
from ling_jax.align.rubrics import RULE_RUBRICS
from ling_jax.rl.judge_config import Rubric

GOOD = "logical: merit 9 / defect 0"
POOR = "logical: merit 3 / defect 9"
RUBRICS = (Rubric(name="correct", weight=2.0), Rubric(name="logical", question="Does it follow?"))


def answer(text: str, outcome: float = 1.0) -> Answer:
    """Of one token a word; sentences end with a full stop."""
    words, ids, sentence = text.split(), [], 0
    for word in words:
        ids.append(sentence)
        sentence += word.endswith(".")
    sentences = [" ".join(w for w, i in zip(words, ids, strict=True) if i == number) for number in dict.fromkeys(ids)]
    tokens = [zlib.crc32(word.encode()) for word in words]
    return Answer(text, text, tokens, ids, sentences, outcome, True)


def model(reply) -> Judge:
    """`reply(prompt)` is what the model says."""
    ask = lambda questions: [reply(question.text) for question in questions]  # noqa: E731
    return Judge(Judgements(ask, model="judge-1", budget=1000))


def test_a_model_judges_the_rubrics_that_have_a_question_and_rules_the_others():
    judge = model(lambda prompt: Reply(GOOD if "because" in prompt else POOR))
    merits, defects, errors = judge(RUBRICS, "Why?", [answer("because"), answer("so", 0.0)])
    np.testing.assert_allclose(merits, [[1, 1], [0, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(defects, [[0, 0], [1, 1]])
    assert errors == ("", "") and merits.dtype == np.float32


def test_an_answer_without_a_verdict_has_no_scores_and_says_why():
    judge = model(lambda prompt: Reply(GOOD) if "because" in prompt else Reply("", "busy"))
    merits, defects, errors = judge(RUBRICS, "Why?", [answer("so"), answer("because")])
    assert np.isnan(merits[0]).all() and np.isnan(defects[0]).all() and np.isfinite(merits[1]).all()
    assert errors == ("busy", "")


def test_rules_compare_the_answers_that_were_judged():
    """An answer without a verdict is neither the shortest nor the longest of its group."""
    brief = (Rubric(name="brief"), Rubric(name="logical", question="Does it follow?"))
    judge = model(lambda prompt: Reply("", "busy") if "unjudged" in prompt else Reply(GOOD))
    judged = [answer("a b"), answer("a b c"), answer("a b c d")]
    alone = judge(brief, "Why?", judged)
    merits, defects, errors = judge(brief, "Why?", [*judged, answer("unjudged " * 20)])
    np.testing.assert_array_equal(merits[:3], alone.merits)
    np.testing.assert_array_equal(defects[:3], alone.defects)
    assert errors == ("", "", "", "busy") and np.isnan(merits[3]).all()


def test_all_cases_are_asked_at_once():
    calls = []

    def ask(questions):
        calls.append(len(questions))
        return [Reply(GOOD)] * len(questions)

    cases = [Case(f"{i}?", [answer(f"a{i}."), answer(f"b{i}.")]) for i in range(5)]
    judged = Judge(Judgements(ask, model="m", budget=99)).judge(RUBRICS, cases)
    assert calls == [10] and [len(found.errors) for found in judged] == [2] * 5


def test_rules_and_a_model_flag_redundant_sentences():
    text = "one two three four five. one two three four five. end."
    assert RULES.redundant_tokens([Case("?", [answer(text), answer("end.")])]) == [([5, 0], ["", ""])]
    judge = model(lambda prompt: Reply("redundant: 3." if "[3]" in prompt else "redundant: 9"))
    found = judge.redundant_tokens([Case("?", [answer(text), answer("a. b."), answer("one.")])])
    assert found[0][0] == [1, 0, 0] and found[0][1][::2] == ["", ""] and "rising numbers up to 2" in found[0][1][1]


ITEMS = (Rubric(name="items"),)
PROMPT = "Use at most 3 words. Mention snow. Be kind."


def test_items_are_counted_by_rules_where_there_is_no_model():
    merits, defects, _ = RULES(ITEMS, PROMPT, [answer("kind snow"), answer("snow falls on us"), answer("a b c d")])
    assert merits.T.tolist() == [[1, 0.5, 0]] and defects.T.tolist() == [[0, 0.5, 1]]
    merits, defects, _ = RULES(ITEMS, "Hello.", [answer("a")])
    assert (merits, defects) == ([[1]], [[0]]), "nothing was asked for that a rule can check"


def test_a_model_splits_the_instruction_and_judges_what_rules_cannot():
    def reply(prompt):
        if "Split the instruction" in prompt:
            return Reply("- at most 3 words\n- be kind")
        assert "item_1: be kind" in prompt and "item_0" not in prompt
        return Reply("item_1: merit 9 / defect 0") if "dear" in prompt else Reply("?")

    merits, defects, errors = model(reply)(ITEMS, "As above.", [answer("dear a b c"), answer("a")])
    assert merits[0] == 0.5 and defects[0] == 0.5 and np.isnan(merits[1]) and errors[0] == "" and "'?'" in errors[1]
    _, _, errors = model(lambda prompt: Reply("", "busy"))(ITEMS, "As above.", [answer("a"), answer("b")])
    assert errors == ("busy", "busy")


def test_a_rubric_that_nobody_judges_is_refused():
    with pytest.raises(ValueError, match=r"rubric 'style' has no question, and no rule has its name.*correct, shows"):
        RULES([Rubric(name="style")], "?", [answer("a")])
    with pytest.raises(ValueError, match=r"rubric 'logical' has a question, and there is no judge model: set judge"):
        RULES(RUBRICS, "?", [answer("a")])


def test_an_outcome_out_of_its_range_is_named():
    with pytest.raises(ValueError, match=r"merits\[1, 0\] is 1.5; expected a finite number from 0 to 1"):
        RULES(RULE_RUBRICS, "?", [answer("a"), answer("b", 1.5)])
