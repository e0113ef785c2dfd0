"""Generates text.

    python -m launch.generate --model=runs/demo/pretrain --prompt="def "
    python -m launch.generate --model=runs/demo/hf --prompts=prompts.jsonl --out=answers.jsonl --temperature=0
    python -m launch.generate --model=FOLDER --chat

`--model` is a run's workdir or a Hugging Face folder with its tokenizer.json. `--prompts` is a file of JSON lines
{"prompt": text} or {"messages": [...]}; `--out` gets a line for each: the record with text, tokens, logps and ended.
The file appears when it is whole; after an interruption the same command continues after the answers that are written.
With `--batch_size` 64 or more an answer depends on its prompt and seed alone; with fewer, its last bits may depend on
which prompts are answered beside it.
`--chat` reads a user's lines from standard input; /reset begins a new conversation, /exit or Ctrl-D ends. A model that
is tuned for conversations takes a prompt as a user's message, or with `--raw` as text to continue; a line says which.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from absl import flags

from launch.chat import chat
from launch.flags import check_sampling, define_checks, define_thinking, run_program, usage_errors
from launch.interrupts import resumable_work
from ling_jax.chat.records import check_text, normalise_prompt
from ling_jax.chat.template import encode, opens_reasoning
from ling_jax.chat.thinking import check_thinking, with_thinking
from ling_jax.chat.tool_calls import THINK, as_message, parse_either
from ling_jax.checkpoint import port
from ling_jax.checkpoint.folder import Loaded, load_model
from ling_jax.data.json_lines import read_objects, with_unique_ids
from ling_jax.engine import EXACT_TILE, Engine, Request, memory_for
from ling_jax.engine.generate import check_prompts, engine_for
from ling_jax.engine.prompts import encode_prompts, prompt_report
from ling_jax.engine.text import complete, stream
from ling_jax.files import replacing
from ling_jax.paths import as_path, is_remote, resolved
from ling_jax.preflight import check_new
from ling_jax.resumable import keep_whole_lines, resumable_file

SECONDS_BETWEEN_LINES = 5  # of progress; our choice
Records = list[tuple[str, dict[str, Any]]]  # ("file, line n", record)

define_checks()
MODEL = flags.DEFINE_string("model", None, "a run's workdir or a Hugging Face folder", required=True)
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")
PROMPT = flags.DEFINE_string("prompt", None, "what a user says, or text to continue")
PROMPTS = flags.DEFINE_string("prompts", None, "a file of JSON lines with `prompt` or `messages`")
CHAT = flags.DEFINE_bool("chat", False, "talk on standard input; /reset, /exit")
RAW = flags.DEFINE_bool("raw", False, "continue prompts as they are, without the chat template")
THINKING, EFFORT = define_thinking()
OUT = flags.DEFINE_string("out", None, "JSON lines of answers, for --prompts")
BATCH = flags.DEFINE_integer("batch_size", 64, "prompts of --prompts at once", lower_bound=1)
NEW = flags.DEFINE_integer("max_new_tokens", 128, "of each answer", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "0 takes the likeliest token", lower_bound=0.0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "draws from the likeliest tokens that have this much together", 0.0, 1.0)
RESUME = flags.DEFINE_bool("resume", True, "continue the answers of an interrupted start with this --out")
SEED = flags.DEFINE_integer("seed", 0, "of the first prompt; the next ones count up", lower_bound=0)
STOP = flags.DEFINE_multi_string("stop", [], "text that ends an answer; may be given several times")


def main() -> None:
    with usage_errors(), _interruptions():
        if sum([PROMPT.value is not None, PROMPTS.value is not None, CHAT.value]) != 1:
            raise ValueError("give one of --prompt, --prompts and --chat")
        if (PROMPTS.value is None) != (OUT.value is None):
            raise ValueError("--prompts and --out go together")
        check_values()
        records = list(read_prompts(PROMPTS.value)) if PROMPTS.value else []
        if PROMPTS.value and not records:
            raise ValueError(f"{PROMPTS.value} has no prompts; it is empty")
        if SEED.value + max(len(records), 1) > 2**32:
            raise ValueError(f"--seed={SEED.value}: with one for each prompt, seeds pass 2^32 - 1; name a smaller one")
        model = load_model(MODEL.value, step=STEP.value)
        model = dataclasses.replace(model, template=with_thinking(model.template, THINKING.value, EFFORT.value))
        if CHAT.value:
            chat(model, MODEL.value, functools.partial(answer_turn, model, conversation_engine(model)))
        elif PROMPT.value is not None:
            answer_one(model, PROMPT.value)
        else:
            answer_all(model, records)


def _interruptions() -> contextlib.AbstractContextManager[None]:
    if PROMPTS.value is None:
        return contextlib.nullcontext()
    return resumable_work("the same command continues after the answers that are written")


def check_values() -> None:
    """Raises ValueError on values of flags that their types allow, before a model is loaded."""
    if OUT.value is not None:
        check_new(OUT.value)
        if as_path(OUT.value).is_dir():
            raise ValueError(f"--out={OUT.value} is a folder; name a file")
    if PROMPT.value is not None:
        check_text(PROMPT.value, "--prompt")
    if RAW.value and CHAT.value:
        raise ValueError("--raw and --chat exclude each other: a conversation is written by the chat template")
    check_thinking(THINKING.value, EFFORT.value)
    check_sampling(TEMPERATURE.value, TOP_P.value, STOP.value)


def read_prompts(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", normalised record) of each prompt. Raises ValueError that names the line."""
    for where, record in with_unique_ids(read_objects(path)):
        yield where, normalise_prompt(record, where)


def sampling() -> dict[str, Any]:
    """The flags of sampling, as fields of a request."""
    return dict(max_new_tokens=NEW.value, temperature=TEMPERATURE.value, top_p=TOP_P.value)


def make_request(model: Loaded, prompt: list[int], number: int = 0) -> Request:
    """The request of the prompt with this number."""
    return Request(number, prompt, seed=SEED.value + number, stop_ids=sorted(model.end_ids), **sampling())


def answer_one(model: Loaded, prompt: str) -> None:
    """Prints the answer to stdout, after the text that it continues."""
    (tokens,) = encode_prompts(model, [("--prompt", {"prompt": prompt})], raw=RAW.value)
    engine = engine_for(model.params, model.config, [tokens], max_new_tokens=NEW.value)
    print(prompt_report(model, raw=RAW.value), file=sys.stderr, flush=True)
    print_answer(model, engine, tokens, shown="" if model.is_chat and not RAW.value else prompt)


def conversation_engine(model: Loaded) -> Engine:
    """An engine for one conversation of any length that the model takes."""
    memory = memory_for(model.config, slots=1, max_tokens=model.config.max_length)
    engine = Engine(model.config, slots=1, memory_bytes=memory)
    engine.load(model.params, version=0)
    return engine


def print_answer(model: Loaded, engine: Engine, prompt: list[int], *, shown: str = "") -> str:
    """Prints an answer as it is written; returns it."""
    check_prompts(model.config, [prompt], NEW.value)
    print(shown, end="", flush=True)
    printed = 0
    for answer in stream(engine, model.tokenizer, make_request(model, prompt), STOP.value):
        print(answer.text[printed:], end="", flush=True)
        printed = len(answer.text)
    print(flush=True)
    return answer.text


def answer_all(model: Loaded, records: Records) -> None:
    """Answers all records into --out, after the answers of an interrupted start."""
    prompts = encode_prompts(model, records, raw=RAW.value)
    engine = engine_for(model.params, model.config, prompts, max_new_tokens=NEW.value, slots=BATCH.value)
    print(engine.plan, flush=True)
    if any("prompt" in record for _, record in records):
        print(prompt_report(model, raw=RAW.value), flush=True)
    if is_remote(OUT.value):  # objects cannot be continued
        with replacing(OUT.value) as file:
            write_answers(model, engine, records, prompts, 0, file)
    else:
        record, out = _record(model, records, prompts), resolved(OUT.value)
        with resumable_file(out, record, resume=RESUME.value) as path, path.open("r+b") as file:
            if done := keep_whole_lines(file):
                print(f"{done} answers of an interrupted start are kept", flush=True)
            write_answers(model, engine, records, prompts, done, file)
    print(f"answers in {OUT.value}", flush=True)


def write_answers(
    model: Loaded, engine: Engine, records: Records, prompts: list[list[int]], done: int, file: BinaryIO
) -> None:
    """Writes a line for each record, in order, after the `done` lines of the file."""
    start, shown, tokens, total = time.monotonic(), time.monotonic(), 0, len(records)
    requests = (make_request(model, prompts[number], number) for number in range(done, total))
    answers = complete(engine, model.tokenizer, requests, STOP.value)
    for number, answer in enumerate(answers, start=done):
        line = json.dumps(records[number][1] | vars(answer), ensure_ascii=False)
        file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        file.flush()
        tokens += len(answer.tokens)
        now = time.monotonic()
        if now - shown > SECONDS_BETWEEN_LINES or number + 1 == total:
            speed, eta = tokens / (now - start), (now - start) / (number + 1 - done) * (total - number - 1)
            print(f"prompts={number + 1}/{total} {tokens=} tokens/s={speed:.0f} eta={eta:.0f}s", flush=True)
            shown = now


def _record(model: Loaded, records: Records, prompts: list[list[int]]) -> dict[str, Any]:
    """The record of the output: all that changes the answers; a small batch size changes last bits."""
    asked = hashlib.blake2b(repr(([record for _, record in records], prompts)).encode("utf-8", "backslashreplace"))
    chosen = {"step": model.step, "seed": SEED.value, "batch_size": min(BATCH.value, EXACT_TILE)} | sampling()
    chosen["stop"] = STOP.value
    folder = as_path(MODEL.value)
    return chosen | {"prompts": asked.hexdigest()} | port.source_identity(folder, model.step)


def answer_turn(model: Loaded, engine: Engine, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the answer to a conversation; returns it as a message."""
    pieces = model.template.render(messages, prompt=True)
    text = print_answer(model, engine, encode(model.tokenizer, pieces)[0])
    return as_message(parse_either((THINK if opens_reasoning(pieces) else "") + text))


if __name__ == "__main__":
    run_program(main)
