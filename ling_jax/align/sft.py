"""Supervised fine-tuning: the loop of training on conversations, from another stage's weights.

The loss is the mean over the tokens that the assistant said, of all rows of a step together.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from ling_jax.align.records import ChatSource, check_source, digest, records
from ling_jax.data.conversations import POLICIES, held_out_prompts, tokenize_conversations
from ling_jax.data.folder_template import FolderTemplate, save_template
from ling_jax.files import replacing
from ling_jax.rollout import Generator
from ling_jax.rollout.load import ModelFolder, load_model, open_model
from ling_jax.rollout.prompts import encode_prompts
from ling_jax.rollout.text import complete
from ling_jax.train.config import (
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    TrainingConfig,
    check_sequence_length,
    check_training,
)
from ling_jax.train.corpus import Corpus, local_folder, packed_corpus
from ling_jax.train.loop import Run, prepare_run, train

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

    def __post_init__(self):
        check_training(self)
        check_rows(self.data)
        if not self.sources:
            raise ValueError("sources is empty; name at least one, such as {'path': 'chats.jsonl'}")
        for i, source in enumerate(self.sources):
            check_source(source, f"sources[{i}]")


def check_rows(rows: ChatRows) -> None:
    for name in ("too_long", "unusable"):
        if getattr(rows, name) not in POLICIES:
            raise ValueError(f"data.{name} is {getattr(rows, name)!r}; it is one of {', '.join(POLICIES)}")


def prepare_sft(config: SftConfig, workdir) -> Run:
    """A run that begins with the weights of `start_from`, its rows made from the sources.

    Raises ValueError or OSError with what to change, as `train.loop.prepare`.
    """
    start = open_model(config.start_from)
    return prepare_from(start, config, workdir, lambda: config.sources)


def sft(config: SftConfig, run: Run, *, profile: bool = False) -> None:
    """Trains (`train.loop.train`), then writes samples.jsonl."""
    train(run, profile=profile)
    write_samples(run.workdir, config.sources, config.data.held_out_fraction, config.samples)


def prepare_from(
    start: ModelFolder, config: TrainingConfig, workdir, make_sources: Callable[[], Sequence[ChatSource]]
) -> Run:
    """`prepare_run` on conversations: `make_sources()` gives them when all else is checked."""
    check_sequence_length(config.data.sequence_length, start.config)

    def make_corpus(workdir: epath.Path, *, replace: bool) -> Corpus:
        if isinstance(start.template, FolderTemplate):
            save_template(start.template, workdir)
        return chat_corpus(make_sources(), config.data, start, workdir, replace=replace)

    return prepare_run(config, start.config, workdir, make_corpus, start=start.params)


def chat_corpus(
    sources: Sequence[ChatSource], rows: ChatRows, start: ModelFolder, workdir: epath.Path, *, replace: bool
) -> Corpus:
    """Rows of conversations as the model's template and tokenizer write them."""
    folder = local_folder(rows.folder, workdir)
    folders = [folder / f"{i}_{Path(source.path).stem or source.environment}" for i, source in enumerate(sources)]
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
            replace=replace and not rows.folder,
        )
    weights = [source.weight for source in sources]
    return packed_corpus(folders, weights, start.tokenizer, rows.sequence_length, rows.seed)


def write_samples(workdir: epath.Path, sources: Sequence[ChatSource], held_out_fraction: float, count: int) -> None:
    """Writes greedy answers to held-out prompts into samples.jsonl, a line each, where they are not there yet.

    {"messages": the prompt, "reference": the first words of the conversation's assistant, "answer", "tokens", "ended"}
    """
    path = workdir / "samples.jsonl"
    if path.exists() or not count:
        return
    of_each = [
        itertools.islice(held_out_prompts(records(source), held_out_fraction), -(-count // len(sources)))
        for source in sources
    ]
    prompts = list(itertools.chain.from_iterable(of_each))[:count]
    if not prompts:
        print("samples: no prompt is held out (data.held_out_fraction)", flush=True)
        return
    model = load_model(workdir)
    tokens = encode_prompts(model, [(str(path), prompt) for prompt in prompts])
    room = min(SAMPLE_TOKENS, model.config.max_length - max(map(len, tokens)))
    generator = Generator(model.params, model.config, model.end_ids)
    *_, answers = complete(generator, model.tokenizer, tokens, max_new_tokens=room, temperature=0.0)
    with replacing(path) as file:
        for prompt, answer in zip(prompts, answers, strict=True):
            told = {"answer": answer.text, "tokens": len(answer.tokens), "ended": answer.ended}
            file.write(json.dumps(prompt | told, ensure_ascii=False).encode() + b"\n")
    print(f"samples: {len(prompts)} answers in {path}", flush=True)
