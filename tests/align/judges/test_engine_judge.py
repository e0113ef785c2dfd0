"""A model of this project as judge: whatever its weights, its replies are in the form."""

import pytest

from ling_jax.align.judges.engine import EngineJudge
from ling_jax.align.judges.forms import Lines, Numbers, Question, Scores
from ling_jax.checkpoint.folder import open_model
from tests.helpers.small_stage import write_judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return open_model(write_judge(tmp_path_factory.mktemp("judge"), max_length=256))


QUESTIONS = [
    Question("How good is it?", Scores(("logical", "concise"))),
    Question("Which are redundant?", Numbers(12)),
    Question("And here?", Numbers(3)),
    Question("x" * 300, Numbers(3)),
]


def test_replies_are_in_the_form_and_do_not_depend_on_each_other(folder):
    judge = EngineJudge(folder, 80)
    together = judge(QUESTIONS)
    for question, reply in zip(QUESTIONS[:3], together, strict=False):
        assert not reply.error and question.form.parse(reply.text)
    assert "tokens of question and 80 of reply pass the judge's context" in together[3].error
    assert [judge([question])[0] for question in QUESTIONS] == together


def test_a_reply_that_is_cut_off_and_one_without_a_form_are_no_guesses(folder):
    judge = EngineJudge(folder, 9)
    scores, items = judge([QUESTIONS[0], Question("Split it.", Lines())])
    assert scores.error == "the judge's reply passes judge.max_tokens, 9" and scores.text == ""
    assert items.error or isinstance(items.text, str)


def test_the_models_choice_is_the_number(folder):
    """Two weights, two verdicts: the form leaves the numbers to the model."""
    replies = EngineJudge(folder, 80)([Question(f"How good is answer {i}?", Scores(("a", "b", "c"))) for i in range(8)])
    assert len({reply.text for reply in replies}) > 1
