"""Alignment without one of its pieces: LPO, Evo-CoT's length term, shortest correct answers, the focal reward.

    python -m benchmarks.alignment --workdir=runs/demo [--json_out=alignment.json]

It starts from the models of a demo that has run (`make demo`), changes one thing in the stage's config, trains as long
as the stage did and asks the same held-out tasks. Rules and likely reasons stand in `launch.demo_rules`, with one seed
and n for each finding. The runs stay in WORKDIR/alignment and go on where they were. The demo's report takes up their
findings when the demo is started again.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections.config_flags import config_path

from benchmarks.json_out import JSON_OUT
from benchmarks.report import Claim, Finding, check_json_out, finish
from launch import demo
from launch.demo_report import COMPARISONS, read_lines, stage_metrics
from launch.demo_rules import COMPARED, agreement, finding
from launch.flags import run_program, usage_errors
from launch.training import training_errors
from ling_jax.align.evo_cot import evo_cot_shaped
from ling_jax.align.judges import RULES, case_of
from ling_jax.align.preference import rubric_rewards, weights_of
from ling_jax.align.rewards import named_reward
from ling_jax.align.rubrics import RULE_RUBRICS
from ling_jax.align.sft import tune
from ling_jax.align.specialists import DistillConfig, prepare_distillation
from ling_jax.rewards import shape
from ling_jax.rl import loop
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode
from ling_jax.rl.prepare import prepare
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards, of_each_group
from ling_jax.run.workdir import lock, open_workdir, unlock
from ling_jax.train.config import from_dict


class Variant(NamedTuple):
    name: str  # of its folder, and in `launch.demo_rules.COMPARED`
    stage: str  # of the demo, whose config it has but for `change`
    change: Callable[[Any, Path], None]  # of the config, given the demo's folder
    reward: Reward | None = None  # in the place of the one that the config names


def with_objective(name: str) -> Callable[[Any, Path], None]:
    def change(config, folder: Path) -> None:
        config.objective.name = name

    return change


def from_sft(config, folder: Path) -> None:
    """Student and teacher are the fine-tuned model, whose answers are long."""
    config.start_from = f"{folder}/sft"
    config.teachers = tuple(dict(teacher) | {"model": f"{folder}/sft"} for teacher in config.teachers)


def unchanged(config, folder: Path) -> None:
    """The reward alone is another."""


def without_length(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """Evo-CoT's reward but for its length term."""
    answers = case_of(episodes, reader).answers
    parts = evo_cot_shaped(answers, [answer.repeated for answer in answers]).parts
    return Rewards(shape(parts["accuracy"], parts["format"] + parts["redundancy"]), parts)


def fixed_weights(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """The rubrics of preference alignment, with their weights in every step."""
    judged = RULES(RULE_RUBRICS, *case_of(episodes, reader))
    weights = weights_of(RULE_RUBRICS)
    scores = (judged.merits - judged.defects) @ weights / weights.sum()
    return rubric_rewards(episodes, judged, RULE_RUBRICS, scores)


VARIANTS = (
    Variant("grpo", "evo_cot", with_objective("grpo")),
    Variant("gspo", "evo_cot", with_objective("gspo")),
    Variant("without_length", "evo_cot", unchanged, Reward(of_each_group(without_length), -0.7, 1.0)),
    Variant("shortest_from_sft", "shortest_correct", from_sft),
    Variant("fixed_weights", "preference", unchanged, Reward(of_each_group(fixed_weights), -0.9, 1)),
)


def main() -> None:
    check_json_out(JSON_OUT.value)
    preset = demo.PRESET.value
    with usage_errors():
        folder = Path(open_workdir(demo.WORKDIR.value or demo.FOLDERS[preset]))
        check_demo(folder)
        held = lock(folder)
    try:
        for variant in VARIANTS:
            train(variant, folder, preset)
        examine(folder, preset)
        claims, findings = results(folder)
        command = f"python -m benchmarks.alignment --workdir={shlex.quote(str(folder))}"
        code = finish(claims, command, str(folder / COMPARISONS), findings)
        if JSON_OUT.value:
            shutil.copyfile(folder / COMPARISONS, JSON_OUT.value)
    finally:
        unlock(folder, held)
    sys.exit(code)


def check_demo(folder: Path) -> None:
    """Raises ValueError where the folder holds no demo that has run to its end."""
    if not (folder / "report.json").exists():
        raise ValueError(
            f"{folder} has no report.json: the comparisons start from the models of a demo that has ended; run "
            f"`python -m launch.demo --workdir={folder}` first, or name another --workdir"
        )


def train(variant: Variant, folder: Path, preset: str) -> None:
    """Trains it unless that is done."""
    config, workdir = changed_config(variant, folder, preset), folder / "alignment" / variant.name
    demo.title(f"{variant.stage} of the demo, changed: {variant.name}")
    if (workdir / "checkpoints" / str(config.train.steps)).exists():
        print(f"complete: {workdir} is there", flush=True)
        return
    if isinstance(config, DistillConfig):
        with usage_errors():
            run = prepare_distillation(config, workdir)
        with training_errors():
            tune(run, samples=config.samples)
        return
    with usage_errors():
        run = prepare(config, variant.reward or named_reward(config.reward), workdir)
    with training_errors():
        loop.train(run)


def changed_config(variant: Variant, folder: Path, preset: str) -> RLConfig | DistillConfig:
    """The stage's config of the preset, with the variant's change."""
    config = demo.load_config(variant.stage, folder)
    for field, value in demo.QUICK[variant.stage].items() if preset == "quick" else ():
        config_path.set_value(field, config, value)
    variant.change(config, folder)
    return from_dict(DistillConfig if "sampling" in config else RLConfig, config.to_dict())


def examine(folder: Path, preset: str) -> None:
    examiner = demo.Examiner(folder / "alignment", demo.HELD_OUT[preset], ["digit_sums"])
    for variant in VARIANTS:
        demo.title(f"{variant.name} answers the held-out tasks")
        examiner.examine(variant.name)


def results(folder: Path) -> tuple[list[Claim], list[Finding]]:
    """By the rules of `launch.demo_rules`, of the answers that the demo and the comparisons wrote."""
    found = [*folder.glob("evaluation/*/samples.jsonl"), *folder.glob("alignment/evaluation/*/samples.jsonl")]
    answers = {path.parent.name: read_lines(path) for path in found}
    claim = agreement({variant.name: stage_metrics(folder / "alignment" / variant.name) for variant in VARIANTS})
    workload = f"{claim['name']}; {claim['why']}"
    claims = [Claim("alignment_logprob_difference", claim["value"], "nats", "<=", claim["bar"], workload)]
    return claims, [as_finding(finding(expected, answers)) for expected in COMPARED]


def as_finding(found: Mapping[str, Any]) -> Finding:
    fields = {name: found[name] for name in ("name", "report_ref", "value", "n", "rule", "verdict", "why")}
    return Finding(**fields, ci95=tuple(found["ci95"]), seeds=[0])


if __name__ == "__main__":
    run_program(main)
