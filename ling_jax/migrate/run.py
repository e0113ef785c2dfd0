"""Runs a migration from a Ling 2.0 checkpoint stage by stage; it resumes after any interruption.

Each stage has a folder in the workdir and starts from the result of the stage before:

    N_name/converted/       a Hugging Face folder with conversion.json, if the stage converts
    N_name/checkpoints/     and metrics.jsonl, if it trains or merges
    N_name/report.json      written last: the stage is done
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from ling_jax import spec as specs
from ling_jax.checkpoint.folder import ModelFolder, open_model, save_texts
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.merged import MergedReader
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.transfer import transfer
from ling_jax.config import ModelConfig
from ling_jax.files import new_folder, parse_json, read_object, remove_folder
from ling_jax.migrate.config import StageRun, stage_run, trainable_mask
from ling_jax.migrate.convert import RUN_FIELDS, convert_model
from ling_jax.migrate.plan import CONVERTED, Plan, open_converted, samples, weights
from ling_jax.model import model_spec
from ling_jax.model.mtp import mtp_spec
from ling_jax.parallel.sharding import make_mesh, shardings
from ling_jax.run.corpus import Corpus, packed_corpus, with_short_sequences
from ling_jax.run.loop import eval_loss, prepare_run, train
from ling_jax.run.metrics import read_metrics
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.workdir import has_checkpoint, unlock
from ling_jax.sums import DamagedFile, checks, read_sealed, write_folder_sums, write_sealed
from ling_jax.train.merge import decay_weights, merge_coefficients
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import compile_eval_step
from ling_jax.train.state import abstract_state

EXPECTED = "the report of a stage; remove it, and the same command makes it again"
RECOVERED = 1.01  # times the source's loss (our choice; the report says "the pre-conversion level")


def run_plan(plan: Plan) -> list[dict[str, Any]]:
    """Runs the unfinished stages and returns the reports of all stages. Raises like `run.loop.train`."""
    use_compilation_cache()
    try:
        return [_run_stage(plan, number) for number in range(len(plan.models))]
    finally:
        unlock(epath.Path(plan.workdir), plan.lock)


def _run_stage(plan: Plan, number: int) -> dict[str, Any]:
    stage, folder = plan.config.stages[number], plan.folder(number)
    path = folder / "report.json"
    if path.exists():
        print(f"stage {number} {stage.name}: done", flush=True)
        return read_report(path)
    print(f"stage {number} {stage.name}: {stage.form}", flush=True)
    begun, run = time.monotonic(), stage_run(plan.config, number, plan.models[number])
    report: dict[str, Any] = {"stage": stage.name, "form": stage.form, "trains": list(stage.trains)}
    report["sequence_length"] = run.data.sequence_length
    start = plan.opened(number - 1)
    report["loss_before"] = _loss_before(plan, number, run, start)
    if plan.converts(number):
        report["layers"] = _convert(plan, number, start, folder / CONVERTED)
        start = open_converted(folder / CONVERTED)
    if plan.converts(number) or plan.model_before(number).rope_theta != run.model.rope_theta:
        report["loss_converted"] = measure(start, plan, run)
    if stage.trains:
        report |= _train(plan, number, run, start, _target_loss(plan, run, report["loss_before"]))
    elif stage.merges:
        _merge(plan, number, folder)
        report["loss_after"] = measure(open_model(folder), plan, run)
    else:
        report["loss_after"] = report["loss_converted"]
    report["seconds"] = time.monotonic() - begun  # of the process that finishes the stage
    write_sealed(report, path)
    print(" ".join(f"{name}={report[name]:.4f}" for name in report if name.startswith("loss_")), flush=True)
    return report


def read_report(path: Path) -> dict[str, Any]:
    """The report of a finished stage. Raises DamagedFile if it has changed since it was written."""
    report = read_object(path, EXPECTED)
    if not checks.verify or "crc32c" not in report:  # as in earlier versions
        report.pop("crc32c", None)
        return report
    try:
        return read_sealed(path, EXPECTED)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; remove it, and the same command makes it again") from None


def _loss_before(plan: Plan, number: int, run: StageRun, start: ModelFolder) -> float:
    """The loss of the model that the stage starts from, on rows of this stage; the last report may have it."""
    if number and plan.config.stages[number - 1].sequence_length == plan.config.stages[number].sequence_length:
        return read_report(plan.folder(number - 1) / "report.json")["loss_after"]
    before = plan.model_before(number)
    return measure(start, plan, dataclasses.replace(run, model=_as_run(before, run.model)))


def _target_loss(plan: Plan, run: StageRun, before: float) -> float | None:
    """The loss at which a stage has recovered, relative to the source: losses of stages must not add up."""
    first = plan.folder(0) / "report.json"
    of_source = read_report(first)["loss_before"] if first.exists() else before
    return RECOVERED * of_source if run.stage.recovers else None


def _as_run(model: ModelConfig, other: ModelConfig) -> ModelConfig:
    """The model with the run settings (`RUN_FIELDS`) of the other."""
    return dataclasses.replace(model, **{name: getattr(other, name) for name in RUN_FIELDS})


def _convert(plan: Plan, number: int, start: ModelFolder, target: Path) -> list[dict[str, Any]]:
    """The records of `convert_model`; an existing folder is kept."""
    if not target.exists():
        calibration, held_out = samples(plan)
        target.parent.mkdir(parents=True, exist_ok=True)  # marks the stage as begun: a restart takes the same source
        with new_folder(target) as partial:
            reader = open_layers(start.path, start.step)
            reader.config = _as_run(reader.config, plan.models[number])
            # New MTP modules come later.
            model = dataclasses.replace(plan.models[number], mtp_depth=reader.config.mtp_depth)
            records = convert_model(reader, model, calibration, held_out, plan.config.conversion, partial)
            save_texts(plan.source, partial, chat=plan.source.is_chat)
            (partial / "conversion.json").write_text(json.dumps(records, indent=1))
            write_folder_sums(partial)
    return parse_json((target / "conversion.json").read_bytes(), str(target / "conversion.json"))


def measure(model: ModelFolder, plan: Plan, run: StageRun) -> float:
    """Held-out loss in nats per token of a model with the config `run.model`, on rows of the stage.

    Raises ValueError if no document is held out.
    """
    mesh = make_mesh(dataclasses.asdict(run.mesh))
    abstract = abstract_state(run.model, make_optimizer(run.optimizer, run.train.steps, model_spec(run.model)), mesh)
    params = with_mtp_modules(model.params(mesh), run.model, seed=run.train.seed, mesh=mesh)
    params = jax.tree.map(lambda x, wanted: np.asarray(x, wanted.dtype), params, abstract.params)
    params = jax.device_put(params, shardings(model_spec(run.model), mesh))
    step = compile_eval_step(run.model, run.train, run.data.sequence_length, abstract, mesh)
    loss = eval_loss(step, params, _corpus(plan, run), run.train, run.model, mesh)
    if loss is None:
        raise ValueError("no document is held out; raise data.held_out_fraction")
    return loss


def _corpus(plan: Plan, run: StageRun) -> Corpus:
    """The packed rows of the stage."""
    shares, length, seed = weights(plan.config), run.data.sequence_length, run.data.seed
    corpus = packed_corpus(plan.token_folders, shares, plan.source.tokenizer, length, seed)
    if run.stage.long_share == 1:
        return corpus
    return with_short_sequences(
        corpus,
        plan.token_folders,
        shares,
        sequence_length=length,
        short_length=plan.config.data.sequence_length,
        long_share=run.stage.long_share,
        seed=seed,
    )


def _train(plan: Plan, number: int, run: StageRun, start: ModelFolder, target_loss: float | None) -> dict[str, Any]:
    """Trains the stage; returns its part of the report."""
    corpus, first = _corpus(plan, run), _first_row(plan, number, run)
    corpus = dataclasses.replace(corpus, train=corpus.train.slice(slice(first, None)))
    mask = trainable_mask(run.model, run.stage.trains)

    def make_corpus(workdir: epath.Path, *, replace: bool) -> Corpus:
        if not has_checkpoint(workdir):
            save_texts(plan.source, workdir / "tokenizer", chat=plan.source.is_chat)
        return corpus

    loop = prepare_run(
        run,
        run.model,
        plan.folder(number),
        make_corpus,
        start=lambda mesh: with_mtp_modules(start.params(mesh), run.model, seed=run.train.seed, mesh=mesh),
        trainable=mask,
        target_loss=target_loss,
    )
    train(loop)
    lines = read_metrics(plan.folder(number) / "metrics.jsonl")
    leaves = specs.named_leaves(model_spec(run.model))
    chosen = [math.prod(leaf.shape) for leaf, keep in zip(leaves.values(), jax.tree.leaves(mask), strict=True) if keep]
    return {
        "loss_after": lines[-1]["eval_loss"],
        "trained_parameters": sum(chosen),
        "steps": len(lines),
        "tokens": len(lines) * run.train.batch_size * run.data.sequence_length,
        "ended": "recovered" if len(lines) < run.train.steps else "budget",
        "curve": [[line["step"] + 1, line["eval_loss"]] for line in lines if "eval_loss" in line],
    }


def with_mtp_modules(
    params: specs.Params, config: ModelConfig, *, seed: int = 0, mesh: jax.sharding.Mesh | None = None
) -> specs.Params:
    """The parameters with the config's MTP modules: new if there are none, copies of the first if there are fewer.

    Copies are our choice. `mesh` places new modules.
    """
    if not config.mtp_depth:
        return params
    if "mtp" not in params:
        spec = {"mtp": mtp_spec(config)}
        placed = None if mesh is None else shardings(spec, mesh)
        return params | jax.jit(lambda key: specs.init(key, spec), out_shardings=placed)(jax.random.key(seed))
    if len(params["mtp"]["embed_norm"]) == config.mtp_depth:
        return params
    return params | {"mtp": jax.tree.map(lambda leaf: leaf[:1].repeat(config.mtp_depth, axis=0), params["mtp"])}


def _first_row(plan: Plan, number: int, run: StageRun) -> int:
    """Number of rows (of this stage's length) that source and earlier stages may have used; later rows are new.

    Budgets count, not actual steps, so the position does not depend on when a stage ended.
    """
    planned = plan.config.seen_tokens
    for earlier in range(number):
        if plan.config.stages[earlier].trains:
            loop = stage_run(plan.config, earlier, plan.models[earlier])
            planned += loop.train.steps * loop.train.batch_size * loop.data.sequence_length
    return planned // run.data.sequence_length


def _merge(plan: Plan, number: int, folder: Path) -> None:
    """The mean of the last checkpoints of the stage before, which approximates a linear decay (WSM).

    Only checkpoints at multiples of `train.save_every` count; signals and the end of a stage save in between.
    """
    count, before = plan.config.stages[number].merges, plan.folder(number - 1) / "checkpoints"
    if (folder / "checkpoints").exists():
        remove_folder(folder / "checkpoints", folder)  # left by a killed process: the stage has no report yet
    steps = sorted(int(path.name) for path in before.iterdir() if path.name.isdigit())
    steps = [step for step in steps if step % plan.config.train.save_every == 0][-count:]
    if len(steps) < count:
        raise ValueError(f"{before} holds {len(steps)} checkpoints, {count} are to be merged; lower train.save_every")
    coefficients = merge_coefficients(decay_weights("linear", count - 1))
    merged = MergedReader([OrbaxReader(before, step) for step in steps], coefficients)
    transfer(merged, OrbaxWriter(folder / "checkpoints", plan.models[number], merged.dtypes))
    save_texts(plan.source, folder / "tokenizer", chat=plan.source.is_chat)
