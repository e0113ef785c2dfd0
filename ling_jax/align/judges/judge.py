"""The judge: rubrics by rules and by a model, redundant sentences, and the items of an instruction."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ling_jax.align.judges import rules
from ling_jax.align.judges.cases import Answer, Case, Judged
from ling_jax.align.judges.forms import ask_all_scores, ask_items, ask_redundant, ask_scores
from ling_jax.align.judges.items import check_of, split_items
from ling_jax.align.judges.judgements import Judgements
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
        replies = iter(self._ask([q for case in cases for q in ask_all_scores(asked, case)]) if asked else ())
        items = self._judge_items(cases) if any(rubric.name == ITEMS for rubric in rubrics) else [None] * len(cases)
        found = []
        for case, judged_items in zip(cases, items, strict=True):
            verdicts = [next(replies) for _ in case.answers] if asked else []
            found.append(_joined(rubrics, asked, case, verdicts, judged_items))
        return found

    def redundant_tokens(self, cases: Sequence[Case]) -> list[tuple[list[int], list[str]]]:
        """([G] tokens in redundant sentences, [G] errors) of each case: by the model, or by `rewards.flag_repeats`.

        An answer of one sentence has none. Where there is an error the number is 0.
        """
        if self.model is None:
            return [([a.repeated for a in case.answers], [""] * len(case.answers)) for case in cases]
        several = [(case.prompt, a) for case in cases for a in case.answers if len(a.sentences) > 1]
        verdicts = iter(self._ask([ask_redundant(prompt, answer.sentences) for prompt, answer in several]))
        return [_flagged_tokens(case, verdicts) for case in cases]

    def _judge_items(self, cases: Sequence[Case]) -> list[Judged]:
        """[G, 1] shares of the items of each prompt's instruction that are kept, and broken."""
        split = [(split_items(case.prompt), "") for case in cases]
        if self.model is not None:
            found = self._ask([ask_items(case.prompt) for case in cases])
            split = [(verdict.value or [], verdict.error) for verdict in found]
        return [self._keeps_items(case, items, error) for case, (items, error) in zip(cases, split, strict=True)]

    def _keeps_items(self, case: Case, items: Sequence[str], error: str) -> Judged:
        size, checks = len(case.answers), [check for check in map(check_of, items) if check]
        kept = np.array([[check(answer.text) for check in checks] for answer in case.answers], np.float32)
        merits, defects, errors = kept.reshape(size, -1), 1 - kept.reshape(size, -1), [error] * size
        others = [Rubric(name=f"item_{i}", question=text) for i, text in enumerate(items) if not check_of(text)]
        if others and self.model is not None:
            verdicts = self._ask([ask_scores(others, case.prompt, answer.text) for answer in case.answers])
            scores = np.array([v.value or np.full((len(others), 2), np.nan) for v in verdicts], np.float32)
            merits, defects = np.hstack([merits, scores[..., 0]]), np.hstack([defects, scores[..., 1]])
            errors = [error or verdict.error for verdict in verdicts]
        if not merits.shape[1]:  # nothing was asked for that can be checked
            return Judged(np.ones((size, 1), np.float32), np.zeros((size, 1), np.float32), tuple(errors))
        return Judged(merits.mean(axis=1, keepdims=True), defects.mean(axis=1, keepdims=True), tuple(errors))

    def _ask(self, questions):
        return self.model.ask(questions)


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
    scores = np.full((size, len(asked), 2), np.nan)
    for row, verdict in enumerate(verdicts):
        if not verdict.error:
            scores[row] = verdict.value
    errors = [verdict.error for verdict in verdicts] or [""] * size
    columns = {rubric.name: scores[:, i].T for i, rubric in enumerate(asked)}
    if items is not None:
        columns[ITEMS] = (items.merits[:, 0], items.defects[:, 0])
        errors = [error or other for error, other in zip(errors, items.errors, strict=True)]
    for rubric in rubrics:
        if not rubric.question and rubric.name != ITEMS:
            columns[rubric.name] = rules.RULES[rubric.name](case.answers)
    merits, defects = (np.stack([columns[r.name][side] for r in rubrics], axis=1) for side in (0, 1))
    failed = np.array([bool(error) for error in errors])
    check_reward(merits[~failed], 0, 1, "merits")
    check_reward(defects[~failed], 0, 1, "defects")
    merits[failed] = defects[failed] = np.nan
    return Judged(merits.astype(np.float32), defects.astype(np.float32), tuple(errors))


def _flagged_tokens(case: Case, verdicts) -> tuple[list[int], list[str]]:
    counts, errors = [], []
    for answer in case.answers:
        verdict = next(verdicts) if len(answer.sentences) > 1 else None
        errors.append(verdict.error if verdict else "")
        flags = verdict.value if verdict and not verdict.error else [False] * len(answer.sentences)
        counts.append(count_flagged(flags, answer.sentence_ids))
    return counts, errors
