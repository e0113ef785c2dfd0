"""The judge: rubrics by rules and by a model, redundant sentences, and the items of an instruction."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from ling_jax.align.judges import rules
from ling_jax.align.judges.cases import Answer, Case, Judged
from ling_jax.align.judges.forms import ask_items, ask_redundant, ask_scores
from ling_jax.align.judges.items import check_of, split_items
from ling_jax.align.judges.judgements import Judgements, Verdict
from ling_jax.rewards import check_reward, count_flagged
from ling_jax.rl.judge_config import Rubric

ITEMS = "items"  # the rubric of an instruction's item rules
RULE_NAMES = (*rules.RULES, ITEMS)


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """`judge(rubrics, prompt, answers)` finds merits and defects; without a model by rules alone."""

    model: Judgements | None = None

    def __call__(self, rubrics: Sequence[Rubric], prompt: str, answers: Sequence[Answer]) -> Judged:
        """Of the answers to one prompt. Raises ValueError on a rubric that it cannot judge, OSError as `Judgements`."""
        return self.judge(rubrics, [Case(prompt, answers)])[0]

    def judge(self, rubrics: Sequence[Rubric], cases: Sequence[Case]) -> list[Judged]:
        """Of the answers to each prompt; a model gets all its questions at once."""
        check_judged_by(rubrics, self.model is not None)
        asked = [rubric for rubric in rubrics if rubric.question]
        texts = [[answer.text for answer in case.answers] for case in cases]
        replies = self._ask_scores([asked] * len(cases), cases, texts)
        items = self._judge_items(cases) if any(rubric.name == ITEMS for rubric in rubrics) else [None] * len(cases)
        columns = zip(cases, replies, items, strict=True)
        return [_joined(rubrics, asked, case, verdicts, judged_items) for case, verdicts, judged_items in columns]

    def redundant_tokens(self, cases: Sequence[Case]) -> list[tuple[list[int], list[str]]]:
        """([G] tokens in redundant sentences, [G] errors) of each case: by the model, or by `rewards.flag_repeats`.

        An answer of one sentence has none. Where there is an error the number is 0.
        """
        if self.model is None:
            return [([a.repeated for a in case.answers], [""] * len(case.answers)) for case in cases]
        several = [(case.prompt, a) for case in cases for a in case.answers if len(a.sentences) > 1]
        verdicts = iter(self.model.ask([ask_redundant(prompt, answer.sentences) for prompt, answer in several]))
        return [_flagged_tokens(case, verdicts) for case in cases]

    def accept(self) -> None:
        """What was found has entered a batch: a run that goes on asks nothing of it again, failures included."""
        if self.model is not None:
            self.model.accept()

    def _judge_items(self, cases: Sequence[Case]) -> list[Judged]:
        """[G, 1] shares of the items of each prompt's instruction that are kept, and broken."""
        if self.model is None:
            return [_item_scores(case, split_items(case.prompt)) for case in cases]
        split = self.model.ask([ask_items(case.prompt) for case in cases])
        asked = [_unchecked(verdict.value or ()) for verdict in split]
        replies = self._ask_scores(asked, cases, [[answer.final for answer in case.answers] for case in cases])
        return [
            _item_scores(case, verdict.value or (), verdict.error, scores)
            for case, verdict, scores in zip(cases, split, replies, strict=True)
        ]

    def _ask_scores(
        self, rubrics: Sequence[Sequence[Rubric]], cases: Sequence[Case], texts: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """The verdicts on the texts of each case's answers by the rubrics of this case; [] where it has none."""
        counts = [len(case.answers) if own else 0 for own, case in zip(rubrics, cases, strict=True)]
        questions = [
            ask_scores(own, case.prompt, text)
            for own, case, answers in zip(rubrics, cases, texts, strict=True)
            for text in (answers if own else ())
        ]
        verdicts = iter(self.model.ask(questions) if questions else ())
        return [list(itertools.islice(verdicts, count)) for count in counts]


RULES = Judge()


def check_judged_by(rubrics: Sequence[Rubric], has_model: bool) -> None:
    """Raises ValueError on a rubric that neither a rule nor a model judges."""
    for rubric in rubrics:
        if not rubric.question and rubric.name not in RULE_NAMES:
            raise ValueError(
                f"rubric {rubric.name!r} has no question, and no rule has its name: give it a question, or take one of "
                f"{', '.join(RULE_NAMES)}"
            )
        if rubric.question and not has_model:
            raise ValueError(f"rubric {rubric.name!r} has a question, and there is no judge model: set judge.kind")


def _joined(rubrics, asked, case: Case, verdicts, items: Judged | None) -> Judged:
    """The scores of all rubrics of one prompt's answers, in the order of the rubrics."""
    size = len(case.answers)
    scores = _stacked(verdicts, size, len(asked))
    errors = [verdict.error for verdict in verdicts] or [""] * size
    columns = {rubric.name: scores[:, i].T for i, rubric in enumerate(asked)}
    if items is not None:
        columns[ITEMS] = (items.merits[:, 0], items.defects[:, 0])
        errors = [error or other for error, other in zip(errors, items.errors, strict=True)]
    rows = [i for i, error in enumerate(errors) if not error]
    for rubric in rubrics:
        if not rubric.question and rubric.name != ITEMS:
            columns[rubric.name] = _by_rule(rubric.name, case.answers, rows)
    merits, defects = (np.stack([columns[r.name][side] for r in rubrics], axis=1) for side in (0, 1))
    check_reward(merits[rows], 0, 1, "merits")
    check_reward(defects[rows], 0, 1, "defects")
    failed = [bool(error) for error in errors]
    merits[failed] = defects[failed] = np.nan
    return Judged(merits.astype(np.float32), defects.astype(np.float32), tuple(errors))


def _by_rule(name: str, answers: Sequence[Answer], rows: Sequence[int]) -> np.ndarray:
    """[2, G] merits and defects, compared among the answers of these rows; NaN elsewhere."""
    scores = np.full((2, len(answers)), np.nan)
    if rows:
        scores[:, rows] = rules.RULES[name]([answers[i] for i in rows])
    return scores


def _item_scores(case: Case, items: Sequence[str], error: str = "", verdicts: Sequence[Verdict] = ()) -> Judged:
    """[G, 1] by the rules of the items that have one, and by the verdicts on the others; 1 and 0 without any item."""
    size, checks = len(case.answers), [check for check in map(check_of, items) if check]
    kept = np.array([[check(answer.final) for check in checks] for answer in case.answers], np.float64)
    scores = np.stack([kept, 1 - kept], axis=-1).reshape(size, len(checks), 2)
    if verdicts:
        scores = np.hstack([scores, _stacked(verdicts, size, len(_unchecked(items)))])
    if not scores.shape[1]:
        scores = np.tile([1.0, 0.0], (size, 1, 1))
    merits, defects = np.moveaxis(scores.mean(axis=1, keepdims=True), -1, 0)
    return Judged(merits, defects, tuple(error or v.error for v in verdicts) or (error,) * size)


def _unchecked(items: Sequence[str]) -> list[Rubric]:
    """The items that no rule checks, as questions to a model."""
    return [Rubric(name=f"item_{i}", question=item) for i, item in enumerate(items) if not check_of(item)]


def _stacked(verdicts: Sequence[Verdict], size: int, count: int) -> np.ndarray:
    """[G, K, 2] scores; NaN where a verdict is an error, or there is none."""
    scores = np.full((size, count, 2), np.nan)
    for row, verdict in enumerate(verdicts):
        if not verdict.error:
            scores[row] = verdict.value
    return scores


def _flagged_tokens(case: Case, verdicts) -> tuple[list[int], list[str]]:
    counts, errors = [], []
    for answer in case.answers:
        verdict = next(verdicts) if len(answer.sentences) > 1 else None
        errors.append(verdict.error if verdict else "")
        flags = verdict.value if verdict and not verdict.error else [False] * len(answer.sentences)
        counts.append(count_flagged(flags, answer.sentence_ids))
    return counts, errors
