"""The whole way of the report at toy scale, in minutes on a laptop: `make demo`.

A Ling 2.0 base, its migration to a hybrid, a small model with experts and MTP, then fine-tuning, Evo-CoT with LPO,
shortest correct answers, an agentic specialist with GSPO, the two specialists in one model, preference alignment and
KPop, each by a program of this folder. From fine-tuning on, each stage's model answers the same held-out tasks. Ends
with a table, report.json and report.html. Started again, it continues where it was; `PRESET=quick make demo` leaves the
experts out, shows that everything else runs, and learns little.
"""

import contextlib
import hashlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from launch import demo_report
from launch.demo_rules import ON_TEXTS
from launch.flags import run_program, usage_errors
from launch.room import check_demo
from launch.sandboxed import ALLOW_UNSAFE, start_sandbox
from ling_jax import data, model
from ling_jax.align.records import ChatSource, record_of, records, texts, write_records
from ling_jax.chat.conversations import Record
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.tool_calls import MARKUP
from ling_jax.checkpoint import load_hf, orbax, save_hf
from ling_jax.checkpoint.folder import ModelFolder, open_model, save_texts
from ling_jax.checkpoint.side_files import fill_in
from ling_jax.envs import Task, environment
from ling_jax.envs.sources import TaskSource, held_out_tasks, tasks
from ling_jax.evaluate.report import write_results
from ling_jax.files import read_object, write_json
from ling_jax.paths import is_remote
from ling_jax.rl.atif import to_atif
from ling_jax.rl.collector import Collector
from ling_jax.rl.episode import Episode
from ling_jax.rl.evaluation import describe, play_tasks, summarise
from ling_jax.rl.reader import make_reader
from ling_jax.rl.trajectory import FAILED
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.workdir import lock, open_workdir, unlock
from ling_jax.sandbox import SandboxError
from ling_jax.spec import Params

WORKDIR = flags.DEFINE_string("workdir", None, "where the demo's files go; runs/demo, or runs/demo_quick, if not given")
PRESET = flags.DEFINE_enum("preset", os.environ.get("PRESET", "full"), ["full", "quick"], "how long it takes")

CONFIGS = Path(__file__).parents[1] / "configs" / "demo"
VOCABULARY = 512
CHATS = (  # what the tokenizer is made of, beside docstrings
    ChatSource(environment="digit_sums", difficulties=(3, 4), count=2_000),
    ChatSource(environment="lookup", difficulties=(2,), count=2_000),
    ChatSource(environment="search", difficulties=(1,), count=500),
)
MODULES = 100  # with docstrings
PRETRAINING = (
    ChatSource(environment="digit_sums", difficulties=(2, 3, 4), count=18_000, seed=100_000),
    ChatSource(environment="lookup", difficulties=(1, 2), count=6_000, seed=100_000),
    ChatSource(environment="search", difficulties=(1,), count=3_000, seed=100_000),
)
FUNCTIONS = {  # written as conversations whose code does not run
    "texts": TaskSource(environment="functions", difficulties=(1,), count=1_200, seed=100_000),
    "chats": TaskSource(environment="functions", difficulties=(1,), count=1_200, seed=10_000),
}
TASKS = {  # what every stage is asked: environment -> (difficulties, share of the preset's tasks)
    "digit_sums": ((3, 4, 5), 1.0), "lookup": ((2,), 1.0), "search": ((1,), 0.5),
    "functions": ((1,), 0.25),  # a sandbox takes some 25 ms for each
}  # fmt: skip
NO_SANDBOX = {  # overrides of the stages that run code: searches instead
    "agentic": {"tasks[2].environment": "search"},
    "specialists": {"teachers[1].tasks[2].environment": "search"},
}
CONTEXT, MOST_TOKENS = 160, 96  # of an answer to these
SLOTS = 256
SHOWN = 8  # trajectories of each environment and stage that are kept
STEP = 16 * 120  # tokens of a step of the first stages
FASTEST, SLOWEST = 0.9, 4.0  # times a stage's seconds: a faster machine, and two busy cores (measured)


class Stage(NamedTuple):
    name: str  # of its config and its folder
    program: str
    full: float  # seconds on two cores
    quick: float  # 0: left out


STAGES = (
    Stage("pretrain", "launch.pretrain", full=62, quick=16),
    Stage("migrate", "launch.migrate", full=62, quick=32),
    Stage("experts", "launch.pretrain", full=29, quick=0),
    Stage("sft", "launch.sft", full=47, quick=17),
    Stage("evo_cot", "launch.align", full=44, quick=14),
    Stage("shortest_correct", "launch.distill", full=27, quick=7),
    Stage("agentic", "launch.align", full=47, quick=10),
    Stage("specialists", "launch.distill", full=28, quick=10),
    Stage("preference", "launch.align", full=25, quick=6),
    Stage("kpop", "launch.rl", full=44, quick=12),
)
# Two layers, and few steps. Stages share compiled programs: of decoding, by one context; of distillation, by the rate
# and warm-up of fine-tuning; of the step of preference alignment, by Evo-CoT's rate.
FEW_ANSWERS = {"train.steps": 4, "teachers[0].tasks[0].count": 128, "sampling.context": 144}
FEW_ANSWERS |= {"optimizer.peak_lr": 2e-3, "optimizer.warmup_steps": 20}
FEW_ROLLOUTS = {"rollout.context": 144, "rollout.prompts_per_step": 8}
QUICK = {
    "pretrain": {"model.num_layers": 2, "model.first_dense_layers": 2, "model.init_std": 0.06}
    | {"train.steps": 60, "optimizer.peak_lr": 2e-3},
    "migrate": {"target.num_layers": 2, "target.first_dense_layers": 2, "seen_tokens": 60 * STEP}
    | {f"stages[{n}].tokens": steps * STEP for n, steps in enumerate((8, 4, 4, 8))},
    "sft": {"train.steps": 90, "optimizer.peak_lr": 2e-3} | {f"sources[{n}].count": 2_000 for n in (0, 2)},
    "evo_cot": {"train.steps": 2} | FEW_ROLLOUTS,
    "shortest_correct": FEW_ANSWERS,
    "agentic": {"train.steps": 2} | FEW_ROLLOUTS,
    "specialists": FEW_ANSWERS
    | {"sampling.per_query": 3},  # one of 100 answers with tools is right, and there must be some
    "preference": {"train.steps": 2, "optimizer.peak_lr": 2e-4} | FEW_ROLLOUTS,
    "kpop": {"train.steps": 2, "train.eval_tasks": 64, "rollout.slots": 64, "rollout.token_budget": 64 * 20}
    | FEW_ROLLOUTS,
}
FOLDERS = {"full": "runs/demo", "quick": "runs/demo_quick"}
HELD_OUT = {"full": 512, "quick": 64}  # tasks of an environment whose share is 1


def main() -> None:
    with usage_errors():
        if is_remote(WORKDIR.value or ""):
            raise ValueError(f"--workdir={WORKDIR.value}: the demo's folder is a local one")
        folder = open_workdir(WORKDIR.value or FOLDERS[PRESET.value])
        check_demo(PRESET.value, folder)
        held = lock(folder)
    try:
        with usage_errors():
            runs_code = begin(Path(folder))
        run(Path(folder), PRESET.value, runs_code)
    finally:
        unlock(folder, held)


def run(folder: Path, preset: str, runs_code: bool) -> None:
    use_compilation_cache()
    write_texts(folder)
    examiner = Examiner(folder, HELD_OUT[preset], [name for name in TASKS if runs_code or name != "functions"])
    stages = stages_of(preset)
    for number, stage in enumerate(stages):
        title(f"{number + 1} of {len(stages)}: {stage.name} ({time_left(read_times(folder), number, preset)})")
        overrides = QUICK.get(stage.name, {}) if preset == "quick" else {}
        run_stage(stage, folder, overrides | ({} if runs_code else NO_SANDBOX.get(stage.name, {})))
        if stage.name not in ON_TEXTS:  # which have never seen a conversation
            examiner.examine(stage.name)
    title("Export of the last model to the Hugging Face format, and back")
    print(round_trip(open_model(folder / STAGES[-1].name), folder / "hf"))
    title("What was learned")
    names = {"base": "pretrain", "hybrid": STAGES[-1].name}
    models = {kind: orbax.load_config(folder / name / "checkpoints")[0] for kind, name in names.items()}
    print(demo_report.write(folder, [stage.name for stage in stages], read_times(folder), models))
    print(ending(folder))


def stages_of(preset: str) -> list[Stage]:
    return [stage for stage in STAGES if getattr(stage, preset)]


def ending(folder: Path) -> str:
    """The last lines: where the page is, and what to do next; green on a terminal."""
    done = f"done: every stage ran. Open {folder}/report.html in a browser; report.json has the same numbers."
    last = folder / STAGES[-1].name
    commands = {
        "talk to the last model": f"python -m launch.generate --model={last} --chat",
        "export it": f"python -m launch.port --source={last} --target=exported",
        "compare LPO, the length term and the focal reward with what they replace": "python -m benchmarks.alignment "
        f"--workdir={folder}",
        "train on your own texts": "python -m launch.pretrain --config=configs/pretrain/tiny_2_6.py "
        "--workdir=runs/own --data=FOLDER",
    }
    green, plain = ("\033[32m", "\033[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    return "\n".join([f"\n{green}{done}{plain}", *(f"next: {command}  # {what}" for what, command in commands.items())])


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def can_run_code() -> bool:
    """Whether this machine has a sandbox for what a model writes; says what becomes of the demo without one."""
    try:
        start_sandbox(["functions"])
    except SandboxError as error:
        print(f"{error}\nwithout a sandbox the demo runs no code: functions are learnt from texts alone", flush=True)
        return False
    return True


def write_texts(folder: Path) -> None:
    """Writes what is missing: functions.jsonl to fine-tune on, tasks.jsonl to pre-train on, and the tokenizer."""
    if not (path := folder / "functions.jsonl").exists():
        write_records(map(reference, tasks(FUNCTIONS["chats"])), path)
    if not (path := folder / "tasks.jsonl").exists():
        print(f"writing tasks and solutions into {path}", flush=True)
        solved = (record for source in PRETRAINING for _, record in records(source))
        write_records(texts(itertools.chain(solved, map(reference, tasks(FUNCTIONS["texts"])))), path)
    if not (folder / "tokenizer").exists():
        english = itertools.islice(data.documents(data.PythonDocstrings()), MODULES)
        tokenizer = data.train_bpe([*chat_texts(), *english], VOCABULARY, words=MARKUP)
        data.save_tokenizer(tokenizer, folder / "tokenizer")


def begin(folder: Path) -> bool:
    """Whether this demo runs code, which stays as it was when it began; texts.json has that and which tasks it is of.

    Raises ValueError where the folder has a demo with other tasks, and SandboxError where the demo ran code and the
    machine cannot any more.
    """
    now = digest([repr(CHATS), repr(PRETRAINING), repr(FUNCTIONS), VOCABULARY, MODULES])
    noted = read_if_there(folder / "texts.json")
    begun = any((folder / name).exists() for name in ("functions.jsonl", "tasks.jsonl", "tokenizer"))
    if begun and noted.get("digest") != now:
        raise ValueError(f"{folder} has a demo with other tasks: remove it, or name another folder with --workdir")
    if not begun:
        runs_code = can_run_code()
        write_json({"digest": now, "runs_code": runs_code}, folder / "texts.json")
        return runs_code
    if noted["runs_code"]:
        start_sandbox(["functions"])
    else:
        print("this demo began without a sandbox, and runs no code", flush=True)
    return noted["runs_code"]


def digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def chat_texts() -> Iterator[str]:
    """Conversations about the tasks, as they are rendered; special tokens aside."""
    found = (record for source in CHATS for _, record in records(source))
    for record in itertools.chain(found, map(reference, tasks(FUNCTIONS["chats"]))):
        pieces = ChatTemplate().render(record["messages"])
        yield "\n".join(piece.text for piece in pieces if not piece.special)


def reference(task: Task) -> Record:
    """The conversation of a task of one turn: what it asks, and its solution, which is not run."""
    (turn,) = environment(task.environment).solution(task)
    return record_of(task, [*task.messages, {"role": "assistant", "content": turn}])


def run_stage(stage: Stage, folder: Path, overrides: Mapping[str, Any]) -> None:
    """Runs the stage's program until it is complete; what ends the program ends the demo."""
    last = end_of(stage, folder, overrides)
    # A last checkpoint is not all: what is written after it may be missing if the program was killed.
    ended = read_if_there(folder / "complete.json")
    # A stage of another config is not complete: its program refuses the folder.
    config = digest([load_config(stage.name, Path("demo")).to_dict(), overrides])  # the folder may have been moved
    now = {"last": str(last.relative_to(folder)), "config": config}
    if ended.pop(stage.name, None) == now and last.exists():
        print(f"complete: {last} is there")
        return
    write_json(ended, folder / "complete.json")
    if not (folder / stage.name).exists():
        forget(stage, folder)
    config = f"{CONFIGS / stage.name}.py:{folder}"
    command = [sys.executable, "-m", stage.program, f"--config={config}", f"--workdir={folder / stage.name}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    command += ["--allow_unsafe_sandbox"] if stage.name in NO_SANDBOX and ALLOW_UNSAFE.value else []
    print(shlex.join(command), flush=True)
    with timed(folder, stage.name):
        code = run_to_end(command)
    if code:
        hint = "" if code == 2 else "; the same command continues from there"
        print(f"\n{stage.name} ended with exit code {code}{hint}", flush=True)
        sys.exit(code)
    write_json(ended | {stage.name: now}, folder / "complete.json")


def forget(stage: Stage, folder: Path) -> None:
    """Removes what was measured of an earlier model of the stage, and names the stages that were made from it."""
    shutil.rmtree(folder / "evaluation" / stage.name, ignore_errors=True)
    times, of_stage = read_times(folder), (stage.name, f"evaluation of {stage.name}")
    write_json({name: seconds for name, seconds in times.items() if name not in of_stage}, folder / "times.json")
    after = [*(other.name for other in STAGES[STAGES.index(stage) + 1 :]), "alignment"]  # of benchmarks.alignment
    later = [name for name in after if (folder / name).exists()]
    if later:
        print(f"{', '.join(later)} come from an earlier {stage.name}; remove their folders to make them again")


def end_of(stage: Stage, folder: Path, overrides: Mapping[str, Any]) -> Path:
    """Of what a complete stage has written, the last that says how far it got."""
    config = load_config(stage.name, folder)
    if stage.program == "launch.migrate":
        return folder / stage.name / f"{len(config.stages) - 1}_{config.stages[-1]['name']}" / "report.json"
    return folder / stage.name / "checkpoints" / str(overrides.get("train.steps") or config.train.steps)


def load_config(name: str, folder: Path):
    return importlib.import_module(f"configs.demo.{name}").get_config(str(folder))


def run_to_end(command: list[str]) -> int:
    """The exit code of a program that gets our SIGTERM. Ctrl-C reaches it from the terminal, as it reaches us."""
    with subprocess.Popen(command) as program:
        pass_on = lambda number, frame: program.send_signal(number)  # noqa: E731
        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            code = program.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def timed(folder: Path, name: str) -> Iterator[None]:
    """Adds to times.json, {stage: seconds}, what the block takes."""
    begun = time.monotonic()
    try:
        yield
    finally:
        times = read_times(folder)
        times[name] = times.get(name, 0.0) + time.monotonic() - begun
        write_json(times, folder / "times.json")


def read_times(folder: Path) -> dict[str, float]:
    return read_if_there(folder / "times.json")


def read_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def remaining(times: Mapping[str, float], number: int, preset: str) -> float:
    """Seconds to the end, as fast as this machine was so far."""
    stages = stages_of(preset)
    expected = [getattr(stage, preset) for stage in stages]
    done, planned = sum(times.get(stage.name, 0.0) for stage in stages[:number]), sum(expected[:number])
    return sum(expected[number:]) * (done / planned if done else 1.0)


def time_left(times: Mapping[str, float], number: int, preset: str) -> str:
    """The same in words: a range over machines, until a stage has shown how fast this one is."""
    minutes = remaining(times, number, preset) / 60
    if any(stage.name in times for stage in stages_of(preset)[:number]):
        whole = max(1, round(minutes))
        return f"about {whole} minute{'s' if whole > 1 else ''} to the end"
    return f"{minutes * FASTEST:.0f} to {minutes * SLOWEST:.0f} minutes to the end, by the machine"


class Examiner:
    """Asks every stage's model the same held-out tasks; one compiled program serves all."""

    def __init__(self, folder: Path, count: int, environments: Sequence[str]):
        self.folder = folder
        asked = {name: held_out_tasks(name, TASKS[name][0], round(TASKS[name][1] * count)) for name in environments}
        self.tasks = [task for of_one in asked.values() for task in of_one]
        self.shown = {task.id for of_one in asked.values() for task in of_one[:SHOWN]}
        self.collector: Collector | None = None

    def examine(self, stage: str) -> None:
        """Writes evaluation/STAGE (a line per task, a summary, some trajectories), where what is there is not of this
        model and tasks."""
        model = open_model(self.folder / stage)
        about = {"stage": stage, "step": model.step, "tasks": len(self.tasks)}
        if (there := self.folder / "evaluation" / stage).exists():
            summary = read_if_there(there / "summary.json")
            if all(summary.get(key) == value for key, value in about.items()):
                return
            shutil.rmtree(there)
        loaded = model.load()
        if self.collector is None:
            reader = make_reader(loaded, context=CONTEXT, max_tokens=MOST_TOKENS)
            self.collector = Collector(loaded.config, reader, SLOTS, temperature=0.0, row_tile=None)
        print(f"{stage}: the model answers {len(self.tasks)} held-out tasks", flush=True)
        with timed(self.folder, f"evaluation of {stage}"):
            episodes = self.play(loaded.params)
        shown = [episode for episode in episodes if episode.task.id in self.shown]
        trajectories = [to_atif(episode, self.collector.reader, stage=stage) for episode in shown]
        answers = [describe(episode) for episode in episodes]
        answers = [answer | _told_by(task, answer) for task, answer in zip(self.tasks, answers, strict=True)]
        metrics = summarise(answers)
        write_results(self.folder / "evaluation" / stage, answers, metrics, about, trajectories)
        for metric in metrics:
            print(f"  {metric.name:<32} {metric.value:.4g}  [{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]")

    def play(self, params: Params) -> list[Episode]:
        """An episode of each task. Functions come last, on a slot each: when a sandbox is done changes no other answer.

        Exits where the sandbox failed; the same command then asks again.
        """
        parts = [[task for task in self.tasks if (task.environment == "functions") == last] for last in (False, True)]
        episodes = [episode for part in parts if part for episode in play_tasks(self.collector, params, part)]
        if failed := [episode for episode in episodes if episode.trajectory.status in FAILED]:
            print(f"{len(failed)} answers could not be judged; the same command asks again", flush=True)
            sys.exit(1)
        return episodes


def _told_by(task: Task, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the report shows beside an answer: the right one, and calls more than were needed."""
    calls = answer["rewards"].get("superfluous_calls", 0.0)
    expected = task.hidden["answer" if "answer" in task.hidden else "solution"]
    return {"expected": expected, "superfluous_calls": calls}


def round_trip(stage: ModelFolder, folder: Path) -> str:
    """Exports, reads back, and compares tensors and logits; raises where anything differs."""
    params, config = stage.params(), stage.config
    shutil.rmtree(folder, ignore_errors=True)
    save_hf(params, config, folder)
    save_texts(stage, folder, chat=stage.is_chat)
    fill_in(folder, config, stage.tokenizer, chat=stage.is_chat)
    back, back_config = load_hf(folder)
    forward = jax.jit(model.forward, static_argnums=2)
    tokens = np.arange(64, dtype=np.int32)[None] % config.vocab_size
    logits = [forward(p, tokens, c).logits for p, c in ((params, config), (back, back_config))]
    for array, other in zip(jax.tree.leaves((params, logits[0])), jax.tree.leaves((back, logits[1])), strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{len(jax.tree.leaves(params))} arrays and the logits are bit-equal; {size / 1e6:.1f} MB in {folder}"


if __name__ == "__main__":
    run_program(main)
