"""Three MTP depths trained from one, three ways: tokens for each step of speculative decoding (report App. B)."""

import dataclasses
import functools
import statistics
from pathlib import Path

import jax
import numpy as np

from benchmarks.migration_recovery import DATA, OPTIMIZER, ROWS, TARGET
from benchmarks.report import Finding
from ling_jax import model
from ling_jax.checkpoint.folder import Loaded, load_model
from ling_jax.config import ModelConfig
from ling_jax.engine import Request
from ling_jax.engine.generate import engine_for, generate
from ling_jax.evaluate.accepted import accepted_length
from ling_jax.migrate.config import MTP_SCHEMES
from ling_jax.migrate.run import with_mtp_modules
from ling_jax.run.corpus import prepare_corpus
from ling_jax.run.loop import prepare, prepare_run, train
from ling_jax.train.config import LoopConfig, PretrainConfig

BASE = dataclasses.replace(TARGET, num_layers=4, layer_group_size=4, first_dense_layers=4, mtp_depth=1)
PROMPT, NEW = 32, 96  # tokens of held-out texts, and of their greedy continuations
TEXTS = 32


def accepted_lengths(steps: int, folder: Path) -> dict[str, list[float]]:
    """{scheme: accepted length of each text}; the base has so many steps, and three depths as many again."""
    base = folder / "mtp_base"
    train(prepare(_config(BASE, steps, folder), base))
    found = {}
    for scheme, fields in MTP_SCHEMES.items():
        config = _config(dataclasses.replace(BASE, **fields), steps, folder)
        workdir = folder / f"mtp_{scheme}"
        corpus = functools.partial(prepare_corpus, config.data, config.model)
        start = lambda mesh, to=config.model: with_mtp_modules(load_model(base).params, to)  # noqa: E731
        run = prepare_run(config, config.model, workdir, corpus, start=start)
        train(run)
        prompts = [run.corpus.held_out[0][i]["tokens"][:PROMPT] for i in range(TEXTS)]
        found[scheme] = accepted(load_model(workdir), prompts)
    return found


def _config(config: ModelConfig, steps: int, folder: Path) -> PretrainConfig:
    loop = LoopConfig(steps=steps, batch_size=ROWS, log_every=50, save_every=steps, keep=1)
    data = dataclasses.replace(DATA, folder=str(folder / "tokens"), tokenizer=str(folder / "base_0/tokenizer"))
    # As much for the depths as for the next token: they are what is trained here.
    return PretrainConfig(
        model=dataclasses.replace(config, mtp_loss_weight=1.0), data=data, optimizer=OPTIMIZER, train=loop
    )


def accepted(loaded: Loaded, prompts: list[np.ndarray]) -> list[float]:
    """Of each prompt's greedy continuation."""
    lists = [prompt.tolist() for prompt in prompts]
    engine = engine_for(loaded.params, loaded.config, lists, max_new_tokens=NEW)
    greedy = (Request(i, prompt, NEW, seed=0, temperature=0.0) for i, prompt in enumerate(lists))
    answers = list(generate(engine, greedy))
    texts = np.stack([np.r_[prompt, answer.tokens] for prompt, answer in zip(prompts, answers, strict=True)])
    logits = jax.jit(model.forward, static_argnums=2)(loaded.params, texts, loaded.config).mtp_logits
    drafts_BTN = np.stack([np.asarray(depth).argmax(axis=-1) for depth in logits], axis=-1)
    return [accepted_length(text, drafts, start=PROMPT) for text, drafts in zip(texts, drafts_BTN, strict=True)]


def finding(found: dict[str, list[float]]) -> Finding:
    """The shared and detached module against the best of the others, text by text."""
    others = max((way for way in found if way != "shared_detached"), key=lambda way: statistics.mean(found[way]))
    gains = [ours - theirs for ours, theirs in zip(found["shared_detached"], found[others], strict=True)]
    mean, half = statistics.mean(gains), 1.96 * statistics.stdev(gains) / len(gains) ** 0.5
    means = ", ".join(f"{way} {statistics.mean(lengths):.2f}" for way, lengths in found.items())
    rule = (
        "reproduced if a step gives more tokens with one shared module whose later depths leave the trunk alone than "
        f"with the best other way, by the 95 % interval over texts; found {means}"
    )
    verdict = "reproduced" if mean - half > 0 else "not seen"
    return Finding("mtp_shared_detached", "App. B", mean, (mean - half, mean + half), len(gains), [0], rule, verdict)
