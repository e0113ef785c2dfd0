"""GSM8K as questions: every gold answer is right, and what is systematically wrong is not."""

import random

import pytest

from ling_jax.envs import parse_action
from ling_jax.envs.reasoning import questions

FORMS = ("{}", "#### {}", "\\boxed{{{}}}", "So the answer is\n#### {}", "<answer>{}</answer>")
WRONG = {  # kinds of mistakes: of the right number to a wrong one
    "one more": lambda n, rng: n + 1,
    "one less": lambda n, rng: n - 1,
    "ten times": lambda n, rng: 10 * n,
    "a tenth": lambda n, rng: n / 10,
    "half": lambda n, rng: n / 2,
    "negated": lambda n, rng: -n,
    "a half more": lambda n, rng: n + 0.5,
    "another number": lambda n, rng: rng.randrange(1, 10_000),
    "a hundredth more": lambda n, rng: n + 0.01,
    "digits turned": lambda n, rng: int(str(int(abs(n)))[::-1]),
}


def outcome(task, text):
    return questions.step(questions.reset(task, 0), parse_action(text))[1].rewards["outcome"]


def all_tasks(data):
    found = questions.read_questions(str(data / "gsm8k/train.jsonl"))
    return sorted((*found.training, *found.held_out), key=lambda task: task.seed)


def mistakes(tasks, count):
    """(task, kind, text) of answers whose value is not the right one."""
    rng, made = random.Random(0), []
    while len(made) < count:
        task, kind = rng.choice(tasks), list(WRONG)[len(made) % len(WRONG)]
        right = float(task.hidden["answer"].replace(",", ""))
        wrong = WRONG[kind](right, rng)
        if wrong != right:
            written = str(int(wrong)) if wrong == int(wrong) else f"{wrong:.12g}"
            made.append((task, kind, rng.choice(FORMS).format(written)))
    return made


def test_a_hundred_gold_answers_are_right_and_mistakes_are_not(data):
    tasks = all_tasks(data)
    for task in tasks[::75]:
        assert outcome(task, questions.solution(task)[0]) == 1, task.seed
    for task, kind, text in mistakes(tasks, 100):
        assert outcome(task, text) == 0, (task.seed, kind, text)


@pytest.mark.slow
def test_all_gold_answers_are_right_and_a_thousand_mistakes_are_not(data):
    tasks = all_tasks(data)
    accepted = sum(outcome(task, questions.solution(task)[0]) for task in tasks)
    alone = sum(outcome(task, f"\\boxed{{{task.hidden['answer']}}}") for task in tasks)
    wrong = mistakes(tasks, 1000)
    rejected = sum(outcome(task, text) == 0 for task, _, text in wrong)
    print(
        f"\nGSM8K: {accepted:.0f} worked and {alone:.0f} bare of {len(tasks)} gold answers, {rejected} of 1000 rejected"
    )
    assert accepted == alone == len(tasks) == 7473
    assert [(task.seed, kind, text) for task, kind, text in wrong if outcome(task, text)] == []
