"""Supervised fine-tuning: the loop of training on conversations, from another stage's weights.

The loss is the mean over the tokens that the assistant said, of all rows of a step together.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from ling_jax.align.records import ChatSource, check_files, check_source, digest, records
from ling_jax.chat.conversations import POLICIES, tokenize_conversations
from ling_jax.chat.end_tokens import check_turns_end
from ling_jax.chat.thinking import check_thinking, with_thinking
from ling_jax.checkpoint.folder import ModelFolder, load_model, open_model, save_texts
from ling_jax.data.tokenizer import EOS
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.engine import Request
from ling_jax.engine.generate import engine_for
from ling_jax.engine.text import complete
from ling_jax.files import parse_object, replacing
from ling_jax.preflight import check_folder
from ling_jax.run.corpus import Corpus, check_token_space, packed_corpus, token_folder
from ling_jax.run.loop import prepare_run, train
from ling_jax.run.stage import Run
from ling_jax.run.workdir import has_checkpoint, open_workdir, write_origins
from ling_jax.train.config import (
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    TrainingConfig,
    check_sequence_length,
    check_training,
)

SAMPLE_TOKENS = 256  # at most, of a sample's answer: our choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRows:
    """How conversations become rows."""

    sequence_length: int
    too_long: str = "drop"  # or "error": conversations that do not fit a row
    unusable: str = "error"  # or "drop": malformed ones, and those in which the assistant says nothing
    held_out_fraction: float = 0.02  # of prompts
    folder: str = ""  # of the tokenised conversations; "": `data` in the workdir
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    start_from: str  # a stage's workdir or a Hugging Face folder
    sources: tuple[ChatSource, ...]
    data: ChatRows
    optimizer: OptimizerConfig
    train: LoopConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    samples: int = 4  # answers to held-out prompts that are written at the end
    thinking: str = "default"  # or "on", "off"; default: on where an answer has reasoning, else as the template has it
    effort: str = ""  # how hard to think, such as "high"; "": no word of it

    def __post_init__(self):
        check_tuning(self)
        if not self.sources:
            raise ValueError("sources is empty; name at least one, such as {'path': 'chats.jsonl'}")
        for i, source in enumerate(self.sources):
            check_source(source, f"sources[{i}]")


def check_tuning(config) -> None:
    """Of what every stage that learns from conversations has: raises ValueError naming the field."""
    check_training(config)
    for name in ("too_long", "unusable"):
        if (policy := getattr(config.data, name)) not in POLICIES:
            raise ValueError(f"data.{name} is {policy!r}; it is one of {', '.join(POLICIES)}")
    check_thinking(config.thinking, config.effort)
    if config.samples < 0:
        raise ValueError(f"samples is {config.samples}; it must not be negative")


def prepare_sft(config: SftConfig, workdir) -> Run:
    """A run that begins with the weights of `start_from`, its rows made from the sources.

    Raises ValueError or OSError with what to change, as `run.loop.prepare`.
    """
    check_files(config.sources)
    start = open_start(config, workdir)
    origins = {config.start_from: start.step}
    return prepare_from(start, config, workdir, lambda folder: config.sources, origins)


def open_start(config, workdir) -> ModelFolder:
    """The model that a run begins with or, where it has a checkpoint, goes on with; its template as the config asks.

    Raises ValueError where the template cannot be asked, or ends no turn.
    """
    workdir = open_workdir(workdir)
    peers = all_peers()
    goes_on = peers.first(has_checkpoint(workdir), "has a checkpoint")
    start = open_model(workdir, peers=peers) if goes_on else open_model(config.start_from)
    check_turns_end(start.template, start.tokenizer, start.end_ids)
    return dataclasses.replace(start, template=with_thinking(start.template, config.thinking, config.effort))


def tune(run: Run, *, samples: int, profile: bool = False) -> None:
    """Trains (`run.loop.train`), then writes samples.jsonl."""
    train(run, profile=profile)
    hosts.first_host_first(lambda: write_samples(run, samples))


def prepare_from(
    start: ModelFolder,
    config: TrainingConfig,
    workdir,
    make_sources: Callable[[Path], Sequence[ChatSource]],
    origins: Mapping[str, int | None],
) -> Run:
    """`prepare_run` on conversations: `make_sources(data folder)` gives them when all else is checked.

    `origins` are noted before the first step (`run.workdir.write_origins`).
    """
    check_sequence_length(config.data.sequence_length, start.config)
    if config.data.folder:
        check_folder(config.data.folder)

    def make_corpus(workdir: epath.Path, *, replace: bool) -> Corpus:
        folder = token_folder(config.data.folder, workdir)
        replaces = replace and not config.data.folder
        corpus = chat_corpus(make_sources(folder), config.data, start, folder, replace=replaces)
        save_texts(start, workdir / "tokenizer", chat=True)
        write_origins(origins, workdir)
        return corpus

    return prepare_run(config, start.config, workdir, make_corpus, start=start.params)


def chat_corpus(
    sources: Sequence[ChatSource], rows: ChatRows, start: ModelFolder, folder: Path, *, replace: bool
) -> Corpus:
    """Rows of conversations as the model's template and tokenizer write them; the tokens go into the folder."""
    padding = None if start.tokenizer.token_to_id(EOS) is not None else min(start.end_ids)
    folders = [folder / f"{i}_{Path(source.path).stem or source.environment}" for i, source in enumerate(sources)]
    check_token_space(
        {where: [Path(s.path)] if not s.environment else [] for where, s in zip(folders, sources, strict=True)}
    )
    for source, where in zip(sources, folders, strict=True):
        tokenize_conversations(
            records(source),
            start.tokenizer,
            start.template,
            where,
            source=source.path or str(source),
            digest=digest(source),
            longest=rows.sequence_length,
            too_long=rows.too_long,
            unusable=rows.unusable,
            held_out_fraction=rows.held_out_fraction,
            replace=replace,
            padding=padding,
        )
    weights = [source.weight for source in sources]
    return packed_corpus(folders, weights, start.tokenizer, rows.sequence_length, rows.seed)


def write_samples(run: Run, count: int) -> None:
    """Writes greedy answers to held-out prompts into samples.jsonl, a line each, where this step's are not there yet.

    {"step", "prompt", "reference": what the conversation's assistant says first, "answer", "tokens", "ended"}
    """
    path, step = run.workdir / "samples.jsonl", run.config.train.steps
    if not count or (path.exists() and parse_object(path.read_bytes().partition(b"\n")[0], str(path))["step"] == step):
        return
    chosen = list(itertools.islice(_held_out(run.corpus), count))
    if not chosen:
        print("samples: no prompt is held out (data.held_out_fraction)", flush=True)
        return
    model, prompts = load_model(run.workdir), [prompt for prompt, _ in chosen]
    room = min(SAMPLE_TOKENS, model.config.max_length - max(map(len, prompts)))
    engine = engine_for(model.params, model.config, prompts, max_new_tokens=room)
    sampling = dict(max_new_tokens=room, seed=0, temperature=0.0, stop_ids=sorted(model.end_ids))
    answers = list(complete(engine, model.tokenizer, (Request(i, p, **sampling) for i, p in enumerate(prompts))))
    with replacing(path) as file:
        for (prompt, reference), answer in zip(chosen, answers, strict=True):
            texts = model.tokenizer.decode_batch([prompt, reference], skip_special_tokens=False)
            told = {"step": step, "prompt": texts[0], "reference": texts[1], "answer": answer.text}
            told |= {"tokens": len(answer.tokens), "ended": answer.ended}
            file.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
    print(f"samples: {len(chosen)} answers in {path}", flush=True)


def _held_out(corpus: Corpus) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens before the assistant's first, those of its first turn) of conversations, source by source in turn."""
    documents = [rows.documents for rows in corpus.held_out]
    for i in range(max(map(len, documents), default=0)):
        for source in documents:
            if i < len(source):
                tokens, trained = source.doc(i).tolist(), source.trained[slice(*source.offsets[i : i + 2])]
                first = int(trained.argmax())
                length = int(np.append(~trained[first:], True).argmax())
                yield tokens[:first], tokens[first : first + length]
