"""The runs of the study of staleness: which there are, how each is made, and the grid that goes on where it was."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.flags import usage_errors
from launch.training import training_errors
from ling_jax import data, model
from ling_jax.align.records import ChatSource, records
from ling_jax.align.rewards import configured_reward
from ling_jax.align.sft import ChatRows, SftConfig, prepare_sft, tune
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.tool_calls import MARKUP
from ling_jax.checkpoint import orbax
from ling_jax.config import model_config
from ling_jax.data.json_lines import read_objects
from ling_jax.envs.sources import TaskSource
from ling_jax.files import read_object, write_json, write_json_lines
from ling_jax.objectives import effective_objective
from ling_jax.rl.config import LoopConfig as RLLoop
from ling_jax.rl.config import ObjectiveConfig, ObjectiveOptions, RLConfig, RolloutConfig, objective_settings
from ling_jax.rl.health import Unhealthy
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import prepare
from ling_jax.run.steps import TooManyNonfiniteSteps
from ling_jax.train.config import LoopConfig, OptimizerConfig

CONFIG = model_config(  # that of the demo after its migration
    "tiny-2.6", num_layers=4, layer_group_size=2, first_dense_layers=4, num_norm_groups=1, mtp_depth=0, max_length=512,
    init_std=0.04,
)  # fmt: skip
CONTEXT, MAX_TOKENS = 144, 88  # both tasks have the same sizes, and so the same programs
GROUP_SIZE, MICROBATCHES = 8, 8
RL_SEED = 200_000  # of the first task that a run may draw; fine-tuning has those before
TASKS = {"digit_sums": (3, 4, 5), "lookup": (2,)}  # environment -> difficulties
CORRECTIONS = {
    "none": ObjectiveConfig(name="grpo", allow_uncorrected=True),
    "tis": ObjectiveConfig(name="tis", options=ObjectiveOptions(cap=2.0)),
    "icepop": ObjectiveConfig(name="icepop", options=ObjectiveOptions(alpha=0.5, beta=5.0)),
    # phi and the cap are the demo's: PPO's clip range at a probability of one half (configs/demo/kpop.py).
    "kpop": ObjectiveConfig(name="kpop", options=ObjectiveOptions(phi=0.02, kappa="ratio", kappa_cap=2.0)),
}


@dataclasses.dataclass(frozen=True)
class Grid:
    tasks: tuple[str, ...] = tuple(TASKS)
    staleness: tuple[int, ...] = (0, 8)
    corrections: tuple[str, ...] = tuple(CORRECTIONS)
    seeds: tuple[int, ...] = (0, 1, 2)
    sft_steps: tuple[int, ...] = (260, 180)  # of each task: a start that solves 20 to 60 % (measured: 30 % and 39 %)
    peak_lrs: tuple[float, ...] = (5e-5, 2e-4)  # of each task: near rates that learnt at staleness 0
    steps: int = 48
    prompts: int = 8  # groups of a step
    eval_tasks: int = 256
    eval_every: int = 24
    save_every: int = 24


FULL = Grid()
QUICK_GRID = Grid(
    tasks=("digit_sums",), corrections=("kpop",), seeds=(0,), sft_steps=(4,), peak_lrs=(1e-4,), steps=2, prompts=1,
    eval_tasks=8, eval_every=1, save_every=1,
)  # fmt: skip


class Cell(NamedTuple):
    """One run of the grid."""

    task: str
    staleness: int
    correction: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.task}_{self.correction}_{self.staleness}_{self.seed}"


def cells_of(grid: Grid) -> list[Cell]:
    """All runs, one seed after the other, so that a study that is stopped has whole arms."""
    order = itertools.product(grid.seeds, grid.tasks, grid.staleness, grid.corrections)
    return [Cell(task, staleness, correction, seed) for seed, task, staleness, correction in order]


def note_grid(grid: Grid, folder: Path) -> None:
    """Writes grid.json. Raises ValueError where the folder holds the runs of another grid."""
    told, path = json.loads(json.dumps(dataclasses.asdict(grid) | {"formulas": formulas(grid)})), folder / "grid.json"
    if path.exists() and (found := read_object(path)) != told:
        other = ", ".join(name for name in told if found.get(name) != told[name])
        raise ValueError(f"{folder} holds runs of another grid, which differs in {other}; name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(told, path)


def formulas(grid: Grid) -> dict[str, str]:
    """{correction: what it maximises, with the values of its options}."""
    chosen = {name: CORRECTIONS[name] for name in grid.corrections}
    return {name: effective_objective(one.name, **objective_settings(one, GROUP_SIZE)) for name, one in chosen.items()}


def run_grid(grid: Grid, folder: Path) -> None:
    """The runs that have no line in results.jsonl yet, one after the other in this process."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for task, steps in zip(grid.tasks, grid.sft_steps, strict=True):
        make_start(task, steps, folder)
    results, cells = read_results(folder), cells_of(grid)
    done = {tuple(line[field] for field in Cell._fields) for line in results}
    left, begun = [cell for cell in cells if cell not in done], time.monotonic()
    for number, cell in enumerate(left, start=1):
        print(f"run {len(cells) - len(left) + number}/{len(cells)} {describe(cell)}", flush=True)
        started = time.monotonic()
        result = run_cell(cell, grid, folder)
        results.append(result)
        write_json_lines(results, folder / "results.jsonl")
        now = time.monotonic()
        eta = datetime.timedelta(seconds=round((now - begun) / number * (len(left) - number)))
        print(f"  {ending(result)}; {now - started:.0f} s, {eta} left", flush=True)
    print(f"done: {len(cells)} runs in {folder / 'results.jsonl'}; --report sums them up", flush=True)


def describe(cell: Cell) -> str:
    return f"{cell.task}, staleness {cell.staleness}, correction {cell.correction}, seed {cell.seed}"


def ending(result: dict[str, Any]) -> str:
    """The line of a run that has ended."""
    masked = "" if result["masked"] is None else f", masked {result['masked']:.2%}"
    ended = f", ended by: {result['ended']}" if result["ended"] else ""
    return (
        f"accuracy {result['accuracy_before']:.1%} -> {result['accuracy']:.1%} of {result['n']}, tokens "
        f"{result['mean_age']:.2f} versions old in the mean and {result['max_age']} at most{masked}{ended}"
    )


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The lines of the runs that have ended."""
    path = folder / "results.jsonl"
    return [line for _, line in read_objects(path)] if path.exists() else []


def make_start(task: str, steps: int, folder: Path) -> None:
    """Fine-tunes a random model on the task's solutions, into start_TASK, unless that is done."""
    workdir, source = folder / f"start_{task}", source_of(task)
    if (workdir / "checkpoints" / str(steps)).exists():
        return
    if not (folder / "random" / "tokenizer").exists():
        orbax.save_params(folder / "random" / "checkpoints", model.init(jax.random.key(0), CONFIG), CONFIG)
        data.save_tokenizer(data.train_bpe(chat_texts(), CONFIG.vocab_size, words=MARKUP), folder / "random/tokenizer")
    config = SftConfig(
        start_from=str(folder / "random"),
        sources=(source,),
        data=ChatRows(sequence_length=CONTEXT),
        optimizer=OptimizerConfig(peak_lr=1.5e-3, warmup_steps=50),
        train=LoopConfig(steps=steps, batch_size=16, eval_batches=2, keep=1),
        samples=0,
    )
    print(f"fine-tuning on {task}: {steps} steps", flush=True)
    with usage_errors():
        run = prepare_sft(config, workdir)
    with training_errors(), logged(folder / f"start_{task}.log"):
        tune(run, samples=0)


def source_of(task: str) -> ChatSource:
    """Solved tasks to learn from, some steps of which are written twice."""
    planted = {"redundancy": 0.3, "most": 1}
    return ChatSource(environment=task, difficulties=TASKS[task], count=8_000, solution=planted)


def chat_texts() -> Iterator[str]:
    """Conversations of all tasks, as they are rendered, for the tokenizer."""
    for task in TASKS:
        for _, record in itertools.islice(records(source_of(task)), 1_000):
            pieces = ChatTemplate().render(record["messages"])
            yield "\n".join(piece.text for piece in pieces if not piece.special)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """A block whose output is added to a file."""
    with path.open("a") as file, contextlib.redirect_stdout(file):
        yield


def config_of(cell: Cell, grid: Grid, folder: Path) -> RLConfig:
    """One engine and the trainer in turns. With staleness, all batches that may be under way are, and none is paused
    by a budget: each version ends with a full batch."""
    batch = grid.prompts * GROUP_SIZE
    rate = dict(zip(grid.tasks, grid.peak_lrs, strict=True))[cell.task]
    stale = dict(token_budget=10**6, max_staleness=cell.staleness, max_retention=cell.staleness)
    return RLConfig(
        start_from=str(folder / f"start_{cell.task}"),
        tasks=(TaskSource(environment=cell.task, difficulties=TASKS[cell.task], count=10_000, seed=RL_SEED),),
        reward="outcome",
        objective=CORRECTIONS[cell.correction],
        optimizer=OptimizerConfig(
            peak_lr=rate,
            warmup_steps=0,
            b2=0.999,
            weight_decay=0.01,
        ),
        rollout=RolloutConfig(
            context=CONTEXT,
            max_tokens=MAX_TOKENS,
            slots=(cell.staleness + 1) * batch,
            group_size=GROUP_SIZE,
            prompts_per_step=grid.prompts,
            **(stale if cell.staleness else {}),
        ),
        train=RLLoop(
            steps=grid.steps,
            seed=cell.seed,
            microbatches=MICROBATCHES,
            eval_tasks=grid.eval_tasks,
            eval_every=grid.eval_every,
            save_every=grid.save_every,
            keep=1,
            max_mismatch=1e-3,
        ),
    )


def run_cell(cell: Cell, grid: Grid, folder: Path) -> dict[str, Any]:
    """Trains to the end, or until the numbers or the health of the run are bad; its result."""
    config, workdir, ended = config_of(cell, grid, folder), folder / "runs" / cell.name, ""
    (folder / "logs").mkdir(exist_ok=True)
    with training_errors(), logged(folder / "logs" / f"{cell.name}.txt"):
        try:
            train(prepare(config, configured_reward(config, workdir), workdir))
        except (TooManyNonfiniteSteps, Unhealthy) as error:
            ended = str(error)
    return result_of(cell, workdir, ended)


def result_of(cell: Cell, workdir: Path, ended: str) -> dict[str, Any]:
    """A line of results.jsonl. `outcomes` has a digit for each held-out task, 1 where the answer is right."""
    steps = [line for _, line in read_objects(workdir / "metrics.jsonl")]
    evaluations = sorted((workdir / "evaluation").iterdir())
    before, after = outcomes_of(evaluations[0]), outcomes_of(evaluations[-1])
    masked = "truncated_fraction" if cell.correction == "tis" else "masked_fraction"
    return cell._asdict() | {
        "accuracy_before": accuracy(before),
        "accuracy": accuracy(after),
        "n": len(after),
        "steps": len(steps),
        "samples": sum(line["answers"] for line in steps),
        "mean_age": mean_of(steps, "staleness/mean"),
        "max_age": max(line["staleness/max"] for line in steps),
        "masked": mean_of(steps, masked) if masked in steps[0] else None,
        "mismatch": mean_of(steps, "mismatch/mean"),
        "mismatch_same_version": max(line["mismatch_same_version/max"] for line in steps),
        "seconds": round(sum(line["generate_seconds"] + line["train_seconds"] for line in steps), 1),
        "ended": ended,
        "outcomes_before": before,
        "outcomes": after,
    }


def outcomes_of(evaluation: Path) -> str:
    return "".join(str(int(line["outcome"])) for _, line in read_objects(evaluation / "samples.jsonl"))


def accuracy(outcomes: str) -> float:
    return outcomes.count("1") / len(outcomes)


def mean_of(steps: Sequence[dict[str, Any]], name: str) -> float:
    """Over the tokens that were learnt from."""
    weights = [line["loss_tokens"] for line in steps]
    return float(np.average([line[name] for line in steps], weights=weights)) if any(weights) else 0.0
