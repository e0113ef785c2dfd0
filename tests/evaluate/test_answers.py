import json

import numpy as np
import pytest

from ling_jax.engine.text import Completion
from ling_jax.evaluate import answers
from ling_jax.evaluate.answers import (
    Verdict,
    answer_results,
    exact_match,
    load_verifier,
    read_tasks,
    same_answer,
    verify,
)
from ling_jax.rewards import AnswerChecker
from ling_jax.rewards import answer as answer_module


def results(scores, records=None, ks=()):
    """Of prompts x samples; None is a verifier that failed."""
    verdicts = [Verdict(score, "" if score is not None else "KeyError: 'x'") for row in scores for score in row]
    completions = [Completion(str(i), [i], [-0.5], "end") for i in range(len(verdicts))]
    records = records or [(f"line {i}", {"prompt": "p"}) for i in range(len(scores))]
    samples, metrics = answer_results(records, range(7, 7 + len(verdicts)), completions, verdicts, ks)
    return samples, {metric.name: metric for metric in metrics}


def test_greedy_accuracy_has_the_interval_of_independent_trials():
    _, metrics = results([[1.0]] * 81 + [[0.0]] * 182)
    assert metrics.keys() == {"accuracy", "verifier_errors"}
    assert metrics["accuracy"].value == pytest.approx(81 / 263) and metrics["accuracy"].n == 263
    np.testing.assert_allclose(metrics["accuracy"].interval, (0.2553, 0.3662), atol=5e-5)  # Newcombe 1998, table I


def test_samples_of_a_prompt_are_one_cluster_and_pass_at_k_counts_prompts():
    _, metrics = results([[1, 1, 1, 1]] * 10 + [[0, 0, 0, 1]] * 10 + [[0, 0, 0.9, 0]] * 20, ks=[4])
    accuracy, passed, every = metrics["accuracy"], metrics["pass@4"], metrics["pass^4"]
    assert accuracy.value == pytest.approx((40 + 10 + 20 * 0.9) / 160) and accuracy.n == 160
    assert passed.value == 0.5 and passed.n == 40, "0.9 is no pass"
    assert every.value == 0.25 and every.n == 40
    np.testing.assert_allclose(passed.interval, (0.3520, 0.6480), atol=5e-5)  # Wilson of 20 in 40
    low, high = accuracy.interval
    assert high - low > 0.19, "wider than the 0.15 of 160 independent trials"


def test_failed_verifiers_are_counted_and_left_out_and_never_wrong():
    samples, metrics = results([[1, None], [1, 1], [None, None], [0, 0]], ks=[2])
    assert metrics["verifier_errors"].value == 3 and metrics["verifier_errors"].n == 8
    assert metrics["accuracy"].value == pytest.approx(3 / 5) and metrics["accuracy"].n == 5
    assert metrics["pass@2"].value == 0.5 and metrics["pass@2"].n == 2, "only prompts all of whose samples have a score"
    assert [sample["score"] for sample in samples] == [1, None, 1, 1, None, None, 0, 0]
    assert samples[1]["error"] == "KeyError: 'x'" and samples[0]["error"] == ""
    _, metrics = results([[None], [None]])
    assert metrics["accuracy"].value is None and metrics["accuracy"].n == 0 and metrics["verifier_errors"].value == 2


def test_samples_say_which_record_and_seed_they_are_of():
    records = [("line 1", {"prompt": "p", "id": "x7"}), ("line 2", {"prompt": "q"})]
    samples, _ = results([[1, 0], [0, 1]], records)
    assert [(s["id"], s["sample"], s["seed"]) for s in samples] == [("x7", 0, 7), ("x7", 1, 8), (1, 0, 9), (1, 1, 10)]


def raises(text, record):
    return record["no such field"]


def exits(text, record):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("verifier", "verdict"),
    [
        (lambda text, record: text == "yes", Verdict(1.0, "")),
        (lambda text, record: np.bool_(False), Verdict(0.0, "")),
        (lambda text, record: np.float32(0.5), Verdict(0.5, "")),
        (raises, Verdict(None, "KeyError: 'no such field'")),
        (exits, Verdict(None, "SystemExit: 3")),
        (lambda text, record: None, Verdict(None, "returned None; expected a bool or a number from 0 to 1")),
        (lambda text, record: float("nan"), Verdict(None, "returned nan; expected a bool or a number from 0 to 1")),
        (lambda text, record: 2, Verdict(None, "returned 2; expected a bool or a number from 0 to 1")),
    ],
)
def test_verifiers_return_a_bool_or_a_number_from_0_to_1(verifier, verdict):
    assert verify(verifier, "yes", {}) == verdict


def test_answers_are_compared_by_what_they_mean(monkeypatch, tmp_path):
    record = {"answer": "2*9=18\n#### 18"}
    assert same_answer("so \\boxed{18 \\text{ cm}}", record) and not same_answer("#### 17 or 18", record)
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": 18}) + "\n" + json.dumps({"prompt": "p", "answer": " "}))
    with pytest.raises(ValueError, match="line 2: answer is ' '; expected the right answer"):
        read_tasks(path, same_answer)
    monkeypatch.setattr(answer_module, "WORKER", tmp_path / "absent.py")
    checker = AnswerChecker()
    monkeypatch.setattr(answers, "shared_checker", lambda: checker)
    verdict = verify(same_answer, "\\boxed{1+x}", {"answer": "x+1"})
    assert verdict.score is None and "did not start" in verdict.error


def test_the_default_compares_texts():
    assert exact_match(" 42\n", {"answer": "42 "}) and not exact_match("42.", {"answer": "42"})


def test_verifiers_are_found_by_name():
    assert load_verifier("ling_jax.evaluate.answers:exact_match") is exact_match
    for name, message in {
        "exact_match": "expected module:name",
        "no_such_module:f": "there is no module no_such_module; expected no_such_module.py in the current folder",
        "ling_jax.evaluate.answers:exact_mach": "has no 'exact_mach', did you mean 'exact_match'?",
    }.items():
        with pytest.raises(ValueError) as error:
            load_verifier(name)
        assert message in str(error.value)


def test_bad_tasks_are_named_with_file_and_line(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": 4}')
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 2: answer is 4; expected text"):
        read_tasks(path, exact_match)
    assert [record["answer"] for _, record in read_tasks(path, raises)] == ["b", 4]
    path.write_text(json.dumps({"prompt": "a", "anser": 4}))
    with pytest.raises(ValueError, match=r"line 1 has no field 'answer', did you mean 'anser'?"):
        read_tasks(path, raises)
