"""Generates text.

    python -m launch.generate --model=runs/demo/pretrain --prompt="def "
    python -m launch.generate --model=runs/demo/hf --prompts=prompts.jsonl --out=answers.jsonl --temperature=0
    python -m launch.generate --model=FOLDER --chat

`--model` is a run's workdir or a Hugging Face folder with its tokenizer.json. `--prompts` is a file of JSON lines
{"prompt": text} or {"messages": [...]}; `--out` gets a line for each: the record with text, tokens, logps and ended.
The file appears when it is whole; after an interruption the same command continues after the answers that are written.
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
from ling_jax.files import replacing
from ling_jax.paths import as_path, is_remote, resolved
from ling_jax.preflight import check_new
from ling_jax.resumable import keep_whole_lines, resumable_file
from ling_jax.rollout import Generator
from ling_jax.rollout.prompts import encode_prompts, prompt_report
from ling_jax.rollout.text import Completion, complete, complete_all

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
BATCH = flags.DEFINE_integer("batch_size", 8, "prompts of --prompts at once", lower_bound=1)
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
        generator = Generator(model.params, model.config, model.end_ids)
        if CHAT.value:
            chat(model, MODEL.value, functools.partial(answer_turn, model, generator))
        elif PROMPT.value is not None:
            answer_one(model, generator, PROMPT.value)
        else:
            answer_all(model, generator, records)


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
    """The flags of sampling, as arguments of the generator."""
    return dict(max_new_tokens=NEW.value, temperature=TEMPERATURE.value, top_p=TOP_P.value, stop=STOP.value)


def answer_one(model: Loaded, generator: Generator, prompt: str) -> None:
    """Prints the answer to stdout, after the text that it continues."""
    (tokens,) = encode_prompts(model, [("--prompt", {"prompt": prompt})], raw=RAW.value)
    generator.room_for([tokens], NEW.value)  # before anything is shown
    print(prompt_report(model, raw=RAW.value), file=sys.stderr, flush=True)
    stream(model, generator, tokens, shown="" if model.is_chat and not RAW.value else prompt)


def stream(model: Loaded, generator: Generator, prompt: list[int], *, shown: str = "") -> Completion:
    """Prints an answer as it is written."""
    generator.room_for([prompt], NEW.value)
    print(shown, end="", flush=True)
    printed = ""
    for (answer,) in complete(generator, model.tokenizer, [prompt], seeds=[SEED.value], **sampling()):
        print(answer.text[len(printed) :], end="", flush=True)
        printed = answer.text
    print(flush=True)
    return answer


def answer_all(model: Loaded, generator: Generator, records: Records) -> None:
    """Answers all records into --out, after the whole batches of an interrupted start."""
    prompts = encode_prompts(model, records, raw=RAW.value)
    generator.room_for(prompts, NEW.value)  # raises before the first answer
    if any("prompt" in record for _, record in records):
        print(prompt_report(model, raw=RAW.value), flush=True)
    if is_remote(OUT.value):  # objects cannot be continued
        with replacing(OUT.value) as file:
            write_answers(model, generator, records, prompts, 0, file)
    else:
        record, out = _record(model, records, prompts), resolved(OUT.value)
        with resumable_file(out, record, resume=RESUME.value) as path, path.open("r+b") as file:
            if done := keep_whole_lines(file, BATCH.value):
                print(f"{done} answers of an interrupted start are kept", flush=True)
            write_answers(model, generator, records[done:], prompts[done:], done, file)
    print(f"programs compiled: {generator.programs()}; answers in {OUT.value}", flush=True)


def write_answers(
    model: Loaded, generator: Generator, records: Records, prompts: list[list[int]], done: int, file: BinaryIO
) -> None:
    """Writes a line for each record, in batches, after the `done` lines of the file."""
    start, tokens, left, total = time.monotonic(), 0, iter(records), done + len(records)
    seeds = range(SEED.value + done, SEED.value + total)
    for answers in complete_all(generator, model.tokenizer, prompts, seeds, BATCH.value, **sampling()):
        for answer in answers:
            line = json.dumps(next(left)[1] | vars(answer), ensure_ascii=False)
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            tokens += len(answer.tokens)
        file.flush()
        done, speed = done + len(answers), tokens / (time.monotonic() - start)
        print(f"prompts={done}/{total} {tokens=} tokens/s={speed:.0f}", flush=True)


def _record(model: Loaded, records: Records, prompts: list[list[int]]) -> dict[str, Any]:
    """The record of the output: all that changes the answers, also the batch size, which changes last bits."""
    asked = hashlib.blake2b(repr(([record for _, record in records], prompts)).encode("utf-8", "backslashreplace"))
    chosen = {"step": model.step, "seed": SEED.value, "batch_size": BATCH.value} | sampling()
    folder = as_path(MODEL.value)
    return chosen | {"prompts": asked.hexdigest()} | port.source_identity(folder, model.step)


def answer_turn(model: Loaded, generator: Generator, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the answer to a conversation; returns it as a message."""
    pieces = model.template.render(messages, prompt=True)
    answer = stream(model, generator, encode(model.tokenizer, pieces)[0])
    return as_message(parse_either((THINK if opens_reasoning(pieces) else "") + answer.text))


if __name__ == "__main__":
    run_program(main)
