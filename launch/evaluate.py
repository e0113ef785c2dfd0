"""Evaluates a model.

    python -m launch.evaluate --model=runs/demo/pretrain --task=perplexity --data=books/
    python -m launch.evaluate --model=FOLDER --task=choice --data=questions.jsonl --out=results/choice
    python -m launch.evaluate --model=FOLDER --task=generate --data=tasks.jsonl --verifier=my_rewards:is_correct \
        --samples=8 --k=1,4,8 --temperature=0.7 --out=results/tasks
    python -m launch.evaluate --model=FOLDER --task=needle --lengths=1024,4096 --max_new_tokens=32 --out=results/needle
    python -m launch.evaluate --model=FOLDER --task=environment --environment=lookup --difficulties=1,2 --samples=8 \
        --k=1,8 --temperature=0.7 --out=results/lookup

`--model` is a run's workdir or a Hugging Face folder with its tokenizer.json. `--data` is
- for perplexity: text, JSON lines or parquet with a field `text`, or a folder of one of them;
- for choice: JSON lines {"prompt": text or "messages": [...], "choices": [text, ...], "answer": index from 0}; a choice
  follows its prompt as it is, so it usually begins with a space;
- for generate: JSON lines {"prompt" or "messages", "answer": ...}; `verifier(text, record)` gives a bool or a number
  from 0 to 1 (ling_jax.evaluate.answers:same_answer compares numbers, units and mathematics by what they mean).
With --samples=N, pass@k is the chance that one of k answers is right, and pass^k that all are, from all N of them.
environment needs no data, but for questions a file of {"question", "answer"}: the first --count held-out tasks of an
environment, in as many turns as it takes.
needle needs no data: a code hidden in texts of --lengths tokens at --depths, --needles of each; a table says how often
it is found.
A model that is tuned for conversations takes `prompt` as a user's message, or with `--raw` as plain text; a line says
which. Where the prompt opens reasoning, the verifier gets the answer with <think> in front.
With --endpoint=URL a server answers the prompts of generate (docs/serving.md), --batch_size at a time; --model is the
name that it serves, and OPENAI_API_KEY has its key. Samples then have no tokens and log-probs.
A table goes to standard output. `--out` gets samples.jsonl, a line for each sample, and summary.json; of environments
also trajectories.jsonl, which launch.view shows.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from launch.flags import check_sampling, define_checks, define_thinking, run_program, usage_errors
from launch.sandboxed import start_sandbox
from ling_jax.chat.template import opened_reasoning
from ling_jax.chat.thinking import CHOICES, check_thinking, with_thinking
from ling_jax.checkpoint.folder import Loaded, load_model
from ling_jax.engine import Request
from ling_jax.engine.generate import engine_for
from ling_jax.engine.prompts import prompt_report
from ling_jax.engine.text import Completion
from ling_jax.envs import NAMES
from ling_jax.envs import Task as EnvironmentTask
from ling_jax.envs.coding import integrity
from ling_jax.envs.sources import TaskSource, check_files, check_tasks, held_out_of
from ling_jax.evaluate.answers import (
    Verdict,
    Verifier,
    answer_results,
    answers,
    distinct,
    encode_tasks,
    load_verifier,
    read_tasks,
    verify,
)
from ling_jax.evaluate.choice import choice_results, encode_choices, read_questions
from ling_jax.evaluate.endpoint import Endpoint, EndpointError, endpoint_answers
from ling_jax.evaluate.needle import (
    Needle,
    check_table,
    default_lengths,
    finds_code,
    heat_map,
    make_needles,
    needle_metrics,
    needle_record,
)
from ling_jax.evaluate.pass_rates import check_ks
from ling_jax.evaluate.perplexity import encode_texts, perplexity_results, read_texts, windows
from ling_jax.evaluate.report import Metric, check_new_folder, table, with_progress, write_results
from ling_jax.evaluate.scoring import next_token_logps, score_rows
from ling_jax.rl.atif import to_atif
from ling_jax.rl.collector import Collector
from ling_jax.rl.episode import EpisodeRequest
from ling_jax.rl.evaluation import describe, play_tasks, summarise
from ling_jax.rl.reader import Reader, make_reader
from ling_jax.rl.trajectory import FAILED

define_checks()
MODEL = flags.DEFINE_string(
    "model", None, "a run's workdir or a Hugging Face folder; with --endpoint the name of a served model", required=True
)
ENDPOINT = flags.DEFINE_string("endpoint", "", "generate: URL of a server, such as http://127.0.0.1:8000/v1")
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")
TASK = flags.DEFINE_enum(
    "task", None, ["perplexity", "choice", "generate", "environment", "needle"], "what to evaluate", required=True
)
DATA = flags.DEFINE_string("data", None, "the task's file or folder; environment and needle have none, but questions")
OUT = flags.DEFINE_string("out", None, "a new folder for samples.jsonl and summary.json")
BATCH = flags.DEFINE_integer("batch_size", 8, "rows at once", lower_bound=1)
WINDOW = flags.DEFINE_integer("window", None, "perplexity: tokens of a window; the model's context if not given")
VERIFIER = flags.DEFINE_string("verifier", "ling_jax.evaluate.answers:exact_match", "generate: module:function")
SAMPLES = flags.DEFINE_integer("samples", 1, "answers to each prompt or task", lower_bound=1)
K = flags.DEFINE_list("k", [], "k of pass@k and pass^k, such as 1,4; --samples if not given")
NEW = flags.DEFINE_integer(
    "max_new_tokens",
    128,
    "of each answer; environment: of all turns, as the task says if not given",
    lower_bound=1,
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token", lower_bound=0.0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "generate, needle: draws from the likeliest that have this much", 0.0, 1.0)
SEED = flags.DEFINE_integer("seed", 0, "of the first answer; the next ones count up", lower_bound=0)
STOP = flags.DEFINE_multi_string("stop", [], "generate, needle: text that ends an answer; may be given several times")
RAW = flags.DEFINE_bool("raw", False, "choice, generate, needle: prompts as they are, without the chat template")
ENVIRONMENT = flags.DEFINE_string("environment", None, "environment: which one, such as lookup or questions")
DIFFICULTIES = flags.DEFINE_list("difficulties", [], "environment: of the tasks, in turn; questions has none")
COUNT = flags.DEFINE_integer("count", 64, "environment: tasks", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", None, "environment: tokens of a conversation; the model's if not given")
LENGTHS = flags.DEFINE_list("lengths", [], "needle: tokens of prompts; powers of two from 256 if not given")
DEPTHS = flags.DEFINE_list("depths", ["0", "0.25", "0.5", "0.75", "1"], "needle: share of the text before the code")
NEEDLES = flags.DEFINE_integer("needles", 8, "needle: tasks of each length and depth", lower_bound=1)
THINKING, EFFORT = define_thinking()
SAMPLING = (SAMPLES, K, NEW, TEMPERATURE, SEED, THINKING, EFFORT)
KEY_VARIABLE = "OPENAI_API_KEY"  # environment variable with the key of --endpoint
SETTINGS = {  # flags that change the numbers of a task
    "perplexity": (WINDOW,),
    "choice": (RAW, THINKING, EFFORT),
    "generate": (VERIFIER, TOP_P, STOP, RAW, *SAMPLING),
    "environment": (ENVIRONMENT, DIFFICULTIES, COUNT, CONTEXT, *SAMPLING),
    "needle": (LENGTHS, DEPTHS, NEEDLES, TOP_P, STOP, RAW, *SAMPLING),
}


Records = list[tuple[str, dict[str, Any]]]
Results = tuple[list[dict], list[Metric]] | tuple[list[dict], list[Metric], list[dict]]  # (samples, metrics, ATIF)


class Task(NamedTuple):
    read: Callable[[], Any]  # the input, before the model is loaded
    encode: Callable[[Loaded, Any], Any]  # the input as tokens; both raise ValueError on wrong input
    measure: Callable[[Loaded, Any, Any], Results]
    has_prompts: Callable[[Any], bool] = lambda inputs: any("prompt" in record for _, record in inputs)


def main() -> None:
    task = TASKS[TASK.value]
    with usage_errors():
        check_flags()
        if OUT.value:
            check_new_folder(OUT.value)
        inputs = task.read()
        measure = of_endpoint(inputs) if ENDPOINT.value else of_model(task, inputs)
    try:
        samples, metrics, *trajectories = measure()
    except (FloatingPointError, EndpointError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    print(table(metrics), flush=True)
    if OUT.value:
        settings = {flag.name: flag.value for flag in SETTINGS[TASK.value]}
        about = {
            "model": MODEL.value,
            "endpoint": ENDPOINT.value,
            "step": STEP.value,
            "task": TASK.value,
            "data": DATA.value,
            "settings": settings,
        }
        with usage_errors():
            write_results(OUT.value, samples, metrics, about, *trajectories)


def of_model(task: Task, inputs: Any) -> Callable[[], Results]:
    """What measures the model of --model, which it loads."""
    model = load_model(MODEL.value, step=STEP.value)
    model = dataclasses.replace(model, template=with_thinking(model.template, THINKING.value, EFFORT.value))
    encoded = task.encode(model, inputs)
    if task.has_prompts(inputs):
        print(prompt_report(model, raw=RAW.value), flush=True)
    model = dataclasses.replace(model, params=jax.device_put(model.params))  # once, not with every batch
    return lambda: task.measure(model, inputs, encoded)


def of_endpoint(records: Records) -> Callable[[], Results]:
    """What measures the served model of --endpoint, which it asks whether it is there."""
    endpoint = Endpoint(ENDPOINT.value, MODEL.value, os.environ.get(KEY_VARIABLE, ""))
    endpoint.check()
    verifier = load_verifier(VERIFIER.value)
    return lambda: measure_endpoint(endpoint, records, verifier)


def check_flags() -> None:
    """Raises ValueError on flags of another task and on values that their types allow."""
    if ENDPOINT.value and (TASK.value != "generate" or STEP.value is not None):
        raise ValueError("--endpoint is for --task=generate, without --step: the server has loaded its model")
    known = {flag.name for flag in SETTINGS[TASK.value]}
    for task, settings in SETTINGS.items():
        for flag in settings:
            if flag.present and flag.name not in known:
                raise ValueError(f"--{flag.name} is of --task={task}; remove it, or --task={TASK.value}")
    if TASK.value == "needle" and DATA.value:
        raise ValueError("--task=needle makes its own texts: remove --data")
    if TASK.value not in ("needle", "environment") and not DATA.value:
        raise ValueError(f"--data is missing: --task={TASK.value} needs its file or folder")
    check_thinking(THINKING.value, EFFORT.value)
    if WINDOW.value is not None and WINDOW.value < 2:
        raise ValueError(f"--window is {WINDOW.value}; a window needs at least 2 tokens to predict one")
    check_sampling(TEMPERATURE.value, TOP_P.value, STOP.value)
    if SAMPLES.value > 1 and not TEMPERATURE.value:
        raise ValueError(f"--samples={SAMPLES.value} at temperature 0 would all be the same; give --temperature")
    check_ks(ks(), SAMPLES.value)


def ks() -> list[int]:
    """The numbers of --k; --samples where it is not given."""
    return _numbers(K, int) or ([SAMPLES.value] if SAMPLES.value > 1 else [])


def _numbers(flag: flags.FlagHolder, kind: type) -> list:
    """The numbers of a flag with commas. Raises ValueError that names what is none."""
    try:
        return [kind(text) for text in flag.value]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{flag.name}={','.join(flag.value)}; expected {wanted} with commas between them") from None


def encode_perplexity(model: Loaded, texts: list[str]) -> tuple[list, list]:
    """(documents, their windows) as tokens."""
    if (WINDOW.value or 0) > model.config.max_length:
        raise ValueError(f"--window is {WINDOW.value}; the model's context is {model.config.max_length} tokens")
    documents = encode_texts(model.tokenizer, texts)
    return documents, list(windows(documents, WINDOW.value or model.config.max_length))


def measure_perplexity(model: Loaded, texts: list[str], encoded: tuple[list, list]) -> Results:
    """(samples, metrics) of windows."""
    documents, parts = encoded
    logps = score(model, [part.tokens for part in parts], "windows")
    return perplexity_results(documents, parts, logps)


def measure_choice(model: Loaded, records: Records, choices: list) -> Results:
    """(samples, metrics) of questions."""
    logps = score(model, [choice.prompt + choice.tokens for choice in choices], "choices")
    return choice_results(records, choices, logps)


def score(model: Loaded, rows: Sequence[Sequence[int]], what: str) -> dict[int, Any]:
    """{number of a row: log-probabilities of its tokens}; `what` names rows in the progress."""
    scored = score_rows(model.params, model.config, rows, BATCH.value)
    logps = dict(with_progress(scored, what, len(rows)))
    print(f"evaluate: programs compiled={next_token_logps._cache_size()}", flush=True)
    return logps


def encode_generate(model: Loaded, records: Records) -> list[list[int]]:
    """The tokens of each prompt."""
    answer_seeds(len(records) * SAMPLES.value)
    return encode_tasks(model, records, NEW.value, raw=RAW.value)


def measure_generate(model: Loaded, records: Records, prompts: list[list[int]]) -> Results:
    """(samples, metrics) of generated answers."""
    completions, verdicts = sample_answers(model, records, prompts, load_verifier(VERIFIER.value))
    return answer_results(records, answer_seeds(len(verdicts)), completions, verdicts, ks())


def measure_endpoint(endpoint: Endpoint, records: Records, verifier: Verifier) -> Results:
    """(samples, metrics) of answers that a server generates."""
    each, seeds = SAMPLES.value, answer_seeds(len(records) * SAMPLES.value)
    asked = [record for _, record in records for _ in range(each)]
    sampling = dict(max_tokens=NEW.value, temperature=TEMPERATURE.value, top_p=TOP_P.value, stop=STOP.value or None)
    sampling |= {"reasoning_effort": EFFORT.value} if EFFORT.value else {}
    if (thinking := CHOICES[THINKING.value]) is not None:
        sampling["chat_template_kwargs"] = {"enable_thinking": thinking}
    answered = endpoint_answers(endpoint, asked, seeds, raw=RAW.value, parallel=BATCH.value, **sampling)
    completions, verdicts = [], []
    for i, completion in enumerate(with_progress(([answer] for answer in answered), "answers", len(asked))):
        completions.append(completion)
        verdicts.append(verify(verifier, completion.text, asked[i]))
    return answer_results(records, seeds, completions, verdicts, ks())


def read_table() -> tuple[list[int], list[float]]:
    """(lengths, depths) of the flags."""
    lengths, depths = _numbers(LENGTHS, int), _numbers(DEPTHS, float)
    check_table(lengths, depths)
    return lengths, depths


def encode_needles(model: Loaded, asked: tuple[list[int], list[float]]) -> list[Needle]:
    """The tasks of the table."""
    answer_seeds(len(asked[1]) * max(1, len(asked[0])) * NEEDLES.value * SAMPLES.value)
    lengths = asked[0] or default_lengths(model.config.max_length, NEW.value)
    return make_needles(
        model, lengths, asked[1], NEEDLES.value, max_new_tokens=NEW.value, seed=SEED.value, raw=RAW.value
    )


def measure_needles(model: Loaded, asked: tuple[list[int], list[float]], needles: list[Needle]) -> Results:
    """(samples, metrics) of the table, which it prints."""
    del asked
    records = [("needle", needle_record(needle, i % NEEDLES.value)) for i, needle in enumerate(needles)]
    completions, verdicts = sample_answers(model, records, [needle.prompt for needle in needles], finds_code)
    samples, metrics = answer_results(records, answer_seeds(len(verdicts)), completions, verdicts, ks())
    print(f"found, in per cent\n{heat_map(needles, verdicts)}", flush=True)
    return samples, metrics + needle_metrics(needles, verdicts)


def sample_answers(
    model: Loaded, records: Records, prompts: list[list[int]], verifier: Verifier
) -> tuple[list[Completion], list[Verdict]]:
    """(answers, verdicts), --samples for each prompt, next to each other."""
    each = SAMPLES.value
    repeated = [prompt for prompt in prompts for _ in range(each)]
    sampling = dict(max_new_tokens=NEW.value, temperature=TEMPERATURE.value, top_p=TOP_P.value)
    stop_ids = sorted(model.end_ids)
    requests = [
        Request(i, prompt, seed=seed, stop_ids=stop_ids, **sampling)
        for i, (prompt, seed) in enumerate(zip(repeated, answer_seeds(len(repeated)), strict=True))
    ]
    engine = engine_for(model.params, model.config, prompts, max_new_tokens=NEW.value, slots=BATCH.value)
    completions, verdicts = [], []
    stream = ([completion] for completion in answers(engine, model.tokenizer, requests, STOP.value))
    for i, completion in enumerate(with_progress(stream, "answers", len(repeated))):
        completions.append(completion)
        text = opened_reasoning(model.tokenizer, repeated[i]) + completion.text
        verdicts.append(verify(verifier, text, records[i // each][1]))
    return completions, verdicts


def answer_seeds(count: int) -> range:
    """A seed for each answer, from --seed on."""
    seeds = range(SEED.value, SEED.value + count)
    if seeds.stop > 2**32:
        raise ValueError(f"--seed={SEED.value}: with one for each answer, seeds pass 2^32 - 1; name a smaller one")
    return seeds


def read_environment() -> TaskSource:
    """The tasks of the flags, checked."""
    if not ENVIRONMENT.value:
        raise ValueError(f"--environment is missing; there are {', '.join(NAMES)}")
    difficulties, path = tuple(_numbers(DIFFICULTIES, int)), DATA.value or ""
    count = 0 if path else COUNT.value
    source = TaskSource(environment=ENVIRONMENT.value, difficulties=difficulties, count=count, path=path)
    check_tasks(source, "tasks")
    check_files([source], "tasks")
    start_sandbox([source.environment])
    if not held_out_of(source, 1):
        raise ValueError(f"{path} has no held-out question, which one in eight is by its text: add questions")
    return source


def encode_environment(model: Loaded, source: TaskSource) -> tuple[Reader, list[EnvironmentTask]]:
    """(reader, held-out tasks), which fit the context."""
    context = CONTEXT.value or model.config.max_length
    reader = make_reader(model, context=context, max_tokens=NEW.value if NEW.present else 0)
    found = held_out_of(source, COUNT.value)
    reader.begin_all([EpisodeRequest(i, i, task, seed=0) for i, task in enumerate(found)])
    answer_seeds(len(found) * SAMPLES.value)
    return reader, found


def measure_environment(model: Loaded, source: TaskSource, encoded: tuple[Reader, list[EnvironmentTask]]) -> Results:
    """(samples, metrics, trajectories) of episodes."""
    del source
    reader, tasks = encoded
    each, seed = SAMPLES.value, SEED.value
    with Collector(model.config, reader, BATCH.value, temperature=TEMPERATURE.value, row_tile=None) as collector:
        episodes = play_tasks(collector, model.params, tasks, samples=each, seed=seed)
    records = [describe(episode) for episode in episodes]
    failed = Metric("failed", sum(record["status"] in FAILED for record in records), None, len(records), "answers")
    metrics = summarise(records, samples=each, ks=ks())
    metrics += [distinct([task.id for task in tasks]), failed]
    print(integrity.report_text(integrity.report(map(integrity.record_of, records))), flush=True)
    return records, metrics, [to_atif(episode, reader, model=MODEL.value) for episode in episodes]


TASKS = {
    "perplexity": Task(
        lambda: read_texts(DATA.value), encode_perplexity, measure_perplexity, has_prompts=lambda texts: False
    ),
    "choice": Task(
        lambda: read_questions(DATA.value),
        lambda model, records: encode_choices(model, records, raw=RAW.value),
        measure_choice,
    ),
    "generate": Task(
        lambda: read_tasks(DATA.value, load_verifier(VERIFIER.value)),
        encode_generate,
        measure_generate,
    ),
    "environment": Task(read_environment, encode_environment, measure_environment, has_prompts=lambda source: False),
    "needle": Task(read_table, encode_needles, measure_needles, has_prompts=lambda asked: True),
}


if __name__ == "__main__":
    run_program(main)
