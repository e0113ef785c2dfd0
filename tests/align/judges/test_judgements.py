"""What a judge model said is asked once, kept in a file, and bounded by a budget."""

import json

import pytest

from ling_jax.align.judges.forms import Numbers, Question
from ling_jax.align.judges.judgements import Judgement, Judgements, Reply, read_judgements

NONE = "redundant: none"


def question(text: str) -> Question:
    return Question(text, Numbers(2))


class Model:
    """It replies `replies[text]`, or none; and remembers what it was asked."""

    def __init__(self, **replies):
        self.replies, self.asked = replies, []

    def __call__(self, questions):
        self.asked += [q.text for q in questions]
        return [self.replies.get(q.text, Reply(NONE)) for q in questions]


def judgements(model, *, budget=100, **files) -> Judgements:
    return Judgements(model, model="judge-1", budget=budget, **files)


def said_in(file) -> dict[str, Judgement]:
    return {line.key: line for line in read_judgements(file)}


def test_the_same_question_is_asked_once_also_in_one_batch_and_after_a_failure():
    model = Model(b=Reply("", "busy"))
    judge = judgements(model)
    first = judge.ask([question("a"), question("b"), question("a")])
    assert [verdict.error for verdict in first] == ["", "busy", ""] and model.asked == ["a", "b"]
    assert judge.ask([question("b"), question("a")]) == [first[1], first[0]] and model.asked == ["a", "b"]


def test_a_reply_that_cannot_be_read_is_an_error_that_quotes_it():
    verdict = judgements(Model(a=Reply("2 and 1"))).ask([question("a")])[0]
    assert verdict.value is None and "'2 and 1'; expected 'redundant: none'" in verdict.error


def test_what_passes_the_budget_is_refused_and_stays_so(tmp_path):
    model, file = Model(), tmp_path / "judgements.jsonl"
    judge = judgements(model, budget=2, record=file)
    verdicts = judge.ask([question(text) for text in "abcd"])
    refused = "the budget of 2 questions is used up (judge.budget)"
    assert [verdict.error for verdict in verdicts] == ["", "", refused, refused] and model.asked == ["a", "b"]
    judge.accept()
    again = judgements(model, budget=3, record=file)  # the run goes on with another budget
    assert [v.error for v in again.ask([question(text) for text in "aced"])] == ["", refused, "", refused]
    assert model.asked == ["a", "b", "e"]


def test_a_run_goes_on_with_its_file_even_where_the_last_line_was_cut_off(tmp_path):
    file = tmp_path / "judgements.jsonl"
    judgements(Model(), record=file).ask([question("a"), question("b")])
    file.write_bytes(file.read_bytes()[:-9])
    model = Model()
    assert judgements(model, record=file).ask([question("a"), question("b")])[0].error == "" and model.asked == ["b"]
    assert [set(json.loads(line)) for line in file.read_text().splitlines()] == [set(Judgement._fields)] * 2


def test_failures_of_a_step_that_was_not_finished_are_asked_again(tmp_path):
    """Silence, nonsense and a spent budget; what was answered stays answered."""
    file, asked = tmp_path / "judgements.jsonl", [question(text) for text in "abcd"]
    ended = judgements(Model(b=Reply("", "busy"), c=Reply("?")), budget=3, record=file).ask(asked)
    assert [bool(verdict.error) for verdict in ended] == [False, True, True, True]
    model = Model()
    again = judgements(model, budget=4, record=file).ask(asked)
    assert not any(verdict.error for verdict in again) and model.asked == ["b", "c", "d"]
    assert judgements(None, known=said_in(file)).ask(asked) == again


def test_failures_that_entered_a_batch_stay_and_are_written_once(tmp_path):
    file, asked = tmp_path / "judgements.jsonl", [question("a"), question("b")]
    judge = judgements(Model(b=Reply("", "busy")), record=file)
    first = judge.ask(asked)
    judge.accept()
    assert judge.ask(asked) == first
    judge.accept()
    model = Model()
    assert judgements(model, record=file).ask(asked) == first and model.asked == []
    assert len(file.read_text().splitlines()) == 2


def test_a_replay_asks_nothing_and_says_the_same(tmp_path):
    file = tmp_path / "judgements.jsonl"
    asked = [question("a"), question("b"), question("c")]
    judge = judgements(Model(b=Reply("", "busy"), c=Reply("?")), record=file)
    said = judge.ask(asked)
    judge.accept()
    before = file.read_bytes()
    replayed = judgements(None, known=said_in(file))
    assert replayed.ask(asked[::-1]) == said[::-1] and file.read_bytes() == before
    assert "do not have it" in replayed.ask([question("d"), question("a")])[0].error


def test_what_is_known_costs_nothing_and_becomes_part_of_the_runs_own_file(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    judgements(Model(), step=7, record=old).ask([question("a")])
    model = Model()
    judge = judgements(model, budget=1, record=new, known=said_in(old))
    verdicts = judge.ask([question("a"), question("b")])
    assert [verdict.error for verdict in verdicts] == ["", ""] and model.asked == ["b"]
    assert [(line.asked, line.step) for line in read_judgements(new)] == [(False, 7), (True, None)]


def test_another_models_reply_is_not_taken(tmp_path):
    file = tmp_path / "judgements.jsonl"
    judgements(Model(), record=file).ask([question("a")])
    model = Model()
    Judgements(model, model="judge-2", budget=9, known=said_in(file)).ask([question("a")])
    assert model.asked == ["a"]


def test_a_judge_that_answers_nothing_three_times_in_a_row_ends_the_run():
    judge = judgements(Model(a=Reply("", "busy"), b=Reply("", "busy"), d=Reply("", "gone")))
    for text in "abc":  # the third is answered
        judge.ask([question(text)])
    judge.ask([question("a")])
    judge.ask([question("b")])
    with pytest.raises(OSError, match=r"'judge-1' answered none of its last questions, 3 times in a row.*: gone"):
        judge.ask([question("d")])


def test_a_file_that_holds_no_judgements_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no.jsonl does not exist; name the judgements.jsonl of a run"):
        read_judgements(tmp_path / "no.jsonl")
    file = tmp_path / "samples.jsonl"
    for line in ('{"key": "a", "text": 3, "error": "", "asked": true}', '{"key": "a", "text": "b", "error": ""}'):
        file.write_text(line + "\n")
        for read in (read_judgements, lambda file: judgements(Model(), record=file).ask([question("a")])):
            with pytest.raises(ValueError, match=r"samples.jsonl, line 1 is no judgement; expected an object with key"):
                read(file)
