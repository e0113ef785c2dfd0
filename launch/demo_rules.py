"""What the demo checks of the report: rules for the verdicts, which were fixed before the numbers were seen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ling_jax.evaluate.statistics import Z95

Answers = Sequence[Mapping[str, Any]]  # lines of a stage's samples.jsonl or metrics.jsonl
MAX_MISMATCH = 1e-5  # between log-probs as they were sampled and as the trainer computes them
MISMATCH = "mismatch_same_version/max"
ON_TEXTS = ("pretrain", "migrate", "experts")  # stages that learn plain texts; the others learn answers
KPOP_ENDS = ("longer sums before kpop", "longer sums after kpop")  # held-out tasks of the kind that it trains on
MARGIN = 0.05  # of accuracy that "keeps" may cost
TITLES = {
    "pretrain": "A Ling 2.0 base on English and on tasks",
    "migrate": "Migration to Lightning and MLA layers",
    "experts": "A small model with experts and MTP",
    "sft": "Supervised fine-tuning on conversations",
    "evo_cot": "Evo-CoT with LPO",
    "shortest_correct": "Distillation of shortest correct answers",
    "agentic": "The agentic specialist, with GSPO",
    "specialists": "Two specialists in one model",
    "preference": "Preference alignment with the focal reward",
    "kpop": "KPop, generation beside learning",
}


class Expected(NamedTuple):
    """What the report says of two models' answers to the same tasks."""

    name: str
    report_ref: str
    kind: str  # "raises", "lowers" or "keeps", by `RULES`
    what: str  # field of an answer
    environment: str
    before: str  # stages, the two ends of KPop, or runs of benchmarks.alignment
    after: str
    why: str  # the likely reason where it is not seen at this size


OPPOSITE = (
    "the opposite was measured: the stage moved its model the other way, and one seed does not say whether the method, "
    "its rate or its few steps are the cause"
)
FEW_STEPS = "the stage has few steps, or the model before it already solves most of these tasks"
SHORT_ALREADY = "the answers before are almost as short as right answers can be"
NO_ROOM = "a model of this size has little room for two skills, and the stage has few steps"
EXPECTED = (
    Expected("LPO raises accuracy", "Ling 2.6 §3.1.2", "raises", "outcome", "digit_sums", "sft", "evo_cot", FEW_STEPS),
    Expected("Evo-CoT shortens answers", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums", "sft", "evo_cot",
             SHORT_ALREADY),
    Expected("Shortest correct answers are shorter", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums", "evo_cot",
             "shortest_correct", SHORT_ALREADY + ", because Evo-CoT has shortened them; benchmarks.alignment starts "
             "from the long answers of fine-tuning"),
    Expected("Shortest correct answers stay right", "Ling 2.6 §3.1.2", "keeps", "outcome", "digit_sums", "evo_cot",
             "shortest_correct", "the stage learns from few answers, of its own model"),
    Expected("Agentic GSPO raises accuracy", "Ling 2.6 §3.1.2", "raises", "outcome", "lookup", "sft", "agentic",
             FEW_STEPS),
    Expected("Agentic GSPO saves calls", "Ling 2.6 §3.1.2", "lowers", "superfluous_calls", "lookup", "sft", "agentic",
             "few answers of a group differ in their calls, so few steps reward fewer of them"),
    Expected("Agentic GSPO raises accuracy of searches", "Ling 2.6 §3.1.2", "raises", "outcome", "search", "sft",
             "agentic", FEW_STEPS),
    Expected("Agentic GSPO raises accuracy of functions", "Ling 2.6 §3.1.2", "raises", "outcome", "functions", "sft",
             "agentic", FEW_STEPS + "; few tasks say little of a small change"),
    Expected("Merging keeps the sums", "Ling 2.6 §3.1", "keeps", "outcome", "digit_sums", "shortest_correct",
             "specialists", NO_ROOM),
    Expected("Merging keeps the tools", "Ling 2.6 §3.1", "keeps", "outcome", "lookup", "agentic", "specialists",
             NO_ROOM),
    Expected("Merging keeps the searches", "Ling 2.6 §3.1", "keeps", "outcome", "search", "agentic", "specialists",
             NO_ROOM),
    Expected("Merging keeps the functions", "Ling 2.6 §3.1", "keeps", "outcome", "functions", "agentic", "specialists",
             NO_ROOM),
    Expected("Preference alignment keeps accuracy", "Ling 2.6 §3.1.3", "keeps", "outcome", "digit_sums", "specialists",
             "preference", "four of the five rubrics reward form, and the focal reward favours the unsaturated ones"),
    Expected("KPop raises accuracy with stale samples", "Ling 2.6 §3.2.3", "raises", "outcome", "digit_sums",
             *KPOP_ENDS, "the stage has few steps"),
    Expected("KPop keeps the shorter sums", "Ling 2.6 §3.2.3", "keeps", "outcome", "digit_sums", "preference", "kpop",
             "half of the stage's sums are longer, and a model of this size has little room"),
)  # fmt: skip
# Of benchmarks.alignment. In these runs one update is made of each batch, so all ratios are 1 and no clip acts: LPO
# counts all tokens of a group alike, GRPO and GSPO all answers.
SAME_RATIOS = (
    "one update is made of each batch, so no clip acts, and the objectives differ in their token weights alone"
)
COMPARED = (
    Expected("LPO is more accurate than GRPO", "Ling 2.0 §4.2.2", "raises", "outcome", "digit_sums", "grpo", "evo_cot",
             SAME_RATIOS),
    Expected("LPO is more accurate than GSPO", "Ling 2.0 §4.2.2", "raises", "outcome", "digit_sums", "gspo", "evo_cot",
             SAME_RATIOS),
    Expected("Evo-CoT's length term shortens answers", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums",
             "without_length", "evo_cot", "the redundancy term shortens the same answers"),
    Expected("Evo-CoT's length term costs no accuracy", "Ling 2.6 §3.1.2", "keeps", "outcome", "digit_sums",
             "without_length", "evo_cot", "short answers leave out steps that this model needs"),
    Expected("Shortest correct answers shorten long ones", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums", "sft",
             "shortest_from_sft", "the stage has few steps"),
    Expected("Shortest correct answers keep long ones right", "Ling 2.6 §3.1.2", "keeps", "outcome", "digit_sums",
             "sft", "shortest_from_sft", "the stage learns from few answers, of its own model"),
    Expected("The focal reward shortens more than fixed weights", "Ling 2.6 §3.1.3", "lowers", "tokens", "digit_sums",
             "fixed_weights", "preference", SHORT_ALREADY),
    Expected("The focal reward costs no accuracy", "Ling 2.6 §3.1.3", "keeps", "outcome", "digit_sums",
             "fixed_weights", "preference", "it moves weight from right answers to brief ones once most are right"),
)  # fmt: skip
RULES = {
    "raises": "the 95 % interval of the mean difference, task by task, is above 0",
    "lowers": "the 95 % interval of the mean difference, task by task, is below 0",
    "keeps": f"the 95 % interval of the mean difference, task by task, is above {-MARGIN:g}",
}
ROUNDING = (
    "Sampling reads one token at a time and training whole rows, so the same sums are taken in other orders. In "
    "float32 both then differ from float64 in the last bits, most for tokens of middling probability."
)
TIES = "two experts that score alike to the last bit change places between sampling and training."
MASKS = (
    "the mask acts on stale tokens of middling probability, and most tokens of these sums are nearly certain: they are "
    "copied, or follow from the form"
)


def finding(expected: Expected, answers: Mapping[str, Answers]) -> dict[str, Any]:
    """The mean difference of two models' answers to the same tasks, and its verdict."""
    name, ref, kind, what, environment, before, after, why = expected
    first, then = (
        np.array([answer[what] for answer in answers[stage] if answer["environment"] == environment], np.float64)
        for stage in (before, after)
    )
    change = then - first
    mean, half = float(change.mean()), float(Z95 * change.std(ddof=1) / np.sqrt(len(change)))
    low, high = mean - half, mean + half
    seen = {"raises": low > 0, "lowers": high < 0, "keeps": low > -MARGIN}[kind]
    reversed_ = {"raises": high < 0, "lowers": low > 0, "keeps": False}[kind]  # "keeps" has the reason of a loss
    to_lose = kind != "keeps" or first.mean() > MARGIN
    verdict = ("reproduced" if seen else "not seen") if to_lose else "not testable here"
    return {
        "name": name,
        "report_ref": ref,
        "value": mean,
        "ci95": [low, high],
        "n": len(change),
        "seeds": 1,
        "rule": f"{what} of {environment}, {before} -> {after}: {RULES[kind]}",
        "verdict": verdict,
        "why": "" if verdict != "not seen" else OPPOSITE if reversed_ else why,
    }


def masked(kpop: Answers) -> dict[str, Any]:
    """The share of tokens that KPop's mask took away, over the steps that had stale ones."""
    stale = [line["masked_fraction"] for line in kpop if line.get("staleness/max", 0) > 0]
    mean = float(np.mean(stale)) if stale else None
    half = float(Z95 * np.std(stale, ddof=1) / np.sqrt(len(stale))) if len(stale) > 1 else None
    return {
        "name": "KPop masks 22 to 34 % of tokens",
        "report_ref": "Ling 2.6 §3.2.3, figure 7",
        "value": mean,
        "ci95": None if half is None else [mean - half, mean + half],
        "n": len(stale),
        "seeds": 1,
        "rule": "mean masked fraction of steps with stale tokens, from 0.22 to 0.34",
        "verdict": (verdict := _in_range(mean, 0.22, 0.34)),
        "why": MASKS if verdict == "not seen" else "",
    }


def _in_range(mean: float | None, low: float, high: float) -> str:
    if mean is None:
        return "not testable here"
    return "reproduced" if low <= mean <= high else "not seen"


def agreement(metrics: Mapping[str, Answers]) -> dict[str, Any]:
    """The largest difference of any step between log-probs as sampled and as recomputed, same weights."""
    found = [line for lines in metrics.values() for line in lines if MISMATCH in line]
    worst = max((line[MISMATCH] for line in found), default=0.0)
    tokens, far = (sum(line.get(f"mismatch_same_version/{name}", 0) for line in found) for name in ("tokens", "far"))
    name = f"sampled and recomputed log-probs differ by at most, over {len(found)} steps"
    ties = f" {far} of {tokens} tokens differ by more than 1e-4: {TIES}" if far else ""
    claim = {"name": name, "value": worst, "bar": MAX_MISMATCH, "why": ROUNDING + ties, "tokens": tokens, "far": far}
    return claim | {"holds": bool(found) and worst <= MAX_MISMATCH}
