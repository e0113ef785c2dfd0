"""Runs a migration from a Ling 2.0 checkpoint stage by stage; it resumes after any interruption.

Each stage has a folder in the workdir and starts from the result of the stage before:

    N_name/converted/       a Hugging Face folder with conversion.json, if the stage converts
    N_name/checkpoints/     and metrics.jsonl, if it trains or merges
    N_name/report.json      written last: the stage is done

Several processes, which share the workdir, run a plan together: they divide the layers of a conversion and the parts of
a merge, train on the mesh of all their devices, and process 0 writes reports and texts.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from ling_jax import spec as specs
from ling_jax.checkpoint.folder import ModelFolder, open_model, save_texts
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.merged import MergedReader
from ling_jax.checkpoint.orbax import load_config
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.shared_folders import new_shared_folder
from ling_jax.checkpoint.transfer import transfer
from ling_jax.config import ModelConfig
from ling_jax.distributed.peers import all_peers
from ling_jax.files import parse_json, read_object, remove_folder
from ling_jax.migrate.config import StageRun, stage_run, trainable_mask
from ling_jax.migrate.convert import RECORDS, RUN_FIELDS, convert_model
from ling_jax.migrate.host_shares import MERGE_THREADS
from ling_jax.migrate.plan import CONVERTED, Plan, open_converted, samples, weights
from ling_jax.model import model_spec
from ling_jax.model.mtp import mtp_spec
from ling_jax.parallel.sharding import make_mesh, shardings
from ling_jax.run.corpus import Corpus, packed_corpus, with_short_sequences
from ling_jax.run.loop import prepare_run, train
from ling_jax.run.metrics import read_metrics
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.stage import eval_loss
from ling_jax.run.workdir import has_checkpoint, unlock
from ling_jax.sums import DamagedFile, checks, read_sealed, write_sealed
from ling_jax.train.merge import decay_weights, merge_coefficients
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import compile_eval_step
from ling_jax.train.state import abstract_state

REPORT = "report.json"
EXPECTED = "the report of a stage; remove it, and the same command makes it again"
RECOVERED = 1.01  # times the source's loss (our choice; the report says "the pre-conversion level")


def run_plan(plan: Plan) -> list[dict[str, Any]]:
    """Runs the unfinished stages and returns the reports of all stages. Raises like `run.loop.train`."""
    use_compilation_cache()
    reports: list[dict[str, Any]] = []
    try:
        for number in range(len(plan.models)):
            reports.append(_done(plan, number) or _run_stage(plan, number, reports))
        return reports
    finally:
        unlock(epath.Path(plan.workdir), plan.lock)


def _done(plan: Plan, number: int) -> dict[str, Any] | None:
    """The report of a finished stage, as process 0 reads it; None of another."""
    peers, path = all_peers(), plan.folder(number) / REPORT
    report = peers.first(read_report(path) if not peers.index and path.exists() else None, "report of a done stage")
    if report is not None:
        print(f"stage {number} {plan.config.stages[number].name}: done", flush=True)
    return report


def _run_stage(plan: Plan, number: int, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of a stage after those with `reports`, the same in all processes."""
    stage, folder, peers = plan.config.stages[number], plan.folder(number), all_peers()
    print(f"stage {number} {stage.name}: {stage.form}", flush=True)
    begun, run = time.monotonic(), stage_run(plan.config, number, plan.models[number])
    report: dict[str, Any] = {"stage": stage.name, "form": stage.form, "trains": list(stage.trains)}
    report["sequence_length"] = run.data.sequence_length
    start = plan.opened(number - 1)
    report["loss_before"] = _loss_before(plan, number, run, start, reports)
    if plan.converts(number):
        report["layers"] = _convert(plan, number, start, folder / CONVERTED)
        start = open_converted(folder / CONVERTED)
    if plan.converts(number) or plan.model_before(number).rope_theta != run.model.rope_theta:
        report["loss_converted"] = measure(start, plan, run)
    if stage.trains:
        of_source = reports[0]["loss_before"] if reports else report["loss_before"]  # losses of stages must not add up
        report |= _train(plan, number, run, start, RECOVERED * of_source if stage.recovers else None)
    elif stage.merges:
        _merge(plan, number, folder)
        report["loss_after"] = measure(open_model(folder, peers=peers), plan, run)
    else:
        report["loss_after"] = report["loss_converted"]
    report["seconds"] = time.monotonic() - begun  # of the process that finishes the stage
    report = peers.first(report, "report")
    if not peers.index:
        write_sealed(report, folder / REPORT)
    peers.wait("report written")
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


def _loss_before(
    plan: Plan, number: int, run: StageRun, start: ModelFolder, reports: Sequence[dict[str, Any]]
) -> float:
    """The loss of the model that the stage starts from, on rows of this stage; the last report may have it."""
    if number and plan.config.stages[number - 1].sequence_length == plan.config.stages[number].sequence_length:
        return reports[-1]["loss_after"]
    before = plan.model_before(number)
    return measure(start, plan, dataclasses.replace(run, model=_as_run(before, run.model)))


def _as_run(model: ModelConfig, other: ModelConfig) -> ModelConfig:
    """The model with the run settings (`RUN_FIELDS`) of the other."""
    return dataclasses.replace(model, **{name: getattr(other, name) for name in RUN_FIELDS})


def _convert(plan: Plan, number: int, start: ModelFolder, target: Path) -> list[dict[str, Any]]:
    """The records of `convert_model`; an existing folder is kept."""
    peers = all_peers()
    # The others do not look before it is there: a network file system may remember that it was not.
    if not peers.first(not peers.index and target.exists(), "is converted"):
        calibration, held_out = samples(plan)
        target.parent.mkdir(parents=True, exist_ok=True)  # marks the stage as begun: a restart takes the same source
        with new_shared_folder(target, peers) as partial:
            if not peers.index:
                save_texts(plan.source, partial, chat=plan.source.is_chat)
            reader = open_layers(start.path, start.step, verify=False)
            reader.config = _as_run(reader.config, plan.models[number])
            # New MTP modules come later.
            model = dataclasses.replace(plan.models[number], mtp_depth=reader.config.mtp_depth)
            convert_model(reader, model, calibration, held_out, plan.config.conversion, partial, peers)
    return parse_json((target / RECORDS).read_bytes(), str(target / RECORDS))


def measure(model: ModelFolder, plan: Plan, run: StageRun) -> float:
    """Held-out loss in nats per token of a model with the config `run.model`, on rows of the stage.

    No process holds more of the model than the parts of its devices. Raises ValueError if no document is held out.
    """
    mesh = make_mesh(dataclasses.asdict(run.mesh))
    abstract = abstract_state(run.model, make_optimizer(run.optimizer, run.train.steps, model_spec(run.model)), mesh)
    step = compile_eval_step(run.model, run.train, run.data.sequence_length, abstract, mesh)
    params = _as_master(
        with_mtp_modules(model.params(mesh), run.model, seed=run.train.seed, mesh=mesh), abstract.params
    )
    loss = eval_loss(step, params, _corpus(plan, run), run.train, run.model, mesh)
    if loss is None:
        raise ValueError("no document is held out; raise data.held_out_fraction")
    return loss


def _as_master(params: specs.Params, wanted: specs.Params) -> specs.Params:
    """Parameters on a mesh with the dtypes and shardings of `wanted`."""

    def cast(params: specs.Params) -> specs.Params:
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, wanted)

    placed = jax.tree.map(lambda like: like.sharding, wanted)
    return jax.jit(cast, out_shardings=placed)(params)


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
    peers, corpus, first = all_peers(), _corpus(plan, run), _first_row(plan, number, run)
    corpus = dataclasses.replace(corpus, train=corpus.train.slice(slice(first, None)))
    mask = trainable_mask(run.model, run.stage.trains)

    def make_corpus(workdir: epath.Path, *, replace: bool) -> Corpus:
        if not peers.index and not has_checkpoint(workdir):
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
    found = peers.first(None if peers.index else _outcome(plan.folder(number)), "outcome")  # process 0 has the logs
    leaves = specs.named_leaves(model_spec(run.model))
    chosen = [math.prod(leaf.shape) for leaf, keep in zip(leaves.values(), jax.tree.leaves(mask), strict=True) if keep]
    return {
        "loss_after": found["curve"][-1][1],
        "trained_parameters": sum(chosen),
        "steps": found["steps"],
        "tokens": found["steps"] * run.train.batch_size * run.data.sequence_length,
        "ended": "recovered" if found["steps"] < run.train.steps else "budget",
        "curve": found["curve"],
    }


def _outcome(folder: Path) -> dict[str, Any]:
    """The steps of a training that has ended, and its held-out losses with the steps before them."""
    lines = read_metrics(folder / "metrics.jsonl")
    curve = [[line["step"] + 1, line["eval_loss"]] for line in lines if "eval_loss" in line]
    return {"steps": len(lines), "curve": curve}


def with_mtp_modules(
    params: specs.Params, config: ModelConfig, *, seed: int = 0, mesh: jax.sharding.Mesh | None = None
) -> specs.Params:
    """The parameters with the config's MTP modules: new if there are none, copies of the first if there are fewer.

    Copies are our choice. `mesh` places new modules and copies.
    """
    if not config.mtp_depth:
        return params
    spec = mtp_spec(config)
    placed = None if mesh is None else shardings(spec, mesh)
    if "mtp" not in params:
        new = jax.jit(lambda key: specs.init(key, {"mtp": spec})["mtp"], out_shardings=placed)
        return params | {"mtp": new(jax.random.key(seed))}
    if len(params["mtp"]["embed_norm"]) == config.mtp_depth:
        return params

    def copied(first: specs.Params) -> specs.Params:
        return jax.tree.map(lambda leaf: leaf[:1].repeat(config.mtp_depth, axis=0), first)

    return params | {"mtp": jax.jit(copied, out_shardings=placed)(params["mtp"])}


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
    peers, count, before = all_peers(), plan.config.stages[number].merges, plan.folder(number - 1) / "checkpoints"
    if not peers.index and (folder / "checkpoints").exists():
        remove_folder(folder / "checkpoints", folder)  # left by a killed process: the stage has no report yet
    steps = sorted(int(path.name) for path in before.iterdir() if path.name.isdigit())
    steps = [step for step in steps if step % plan.config.train.save_every == 0][-count:]
    steps = peers.first(steps, "steps of a merge")
    if len(steps) < count:
        raise ValueError(f"{before} holds {len(steps)} checkpoints, {count} are to be merged; lower train.save_every")
    for step in steps:
        load_config(before, step, peers=peers)  # each process compares a share of its files with their sums
    readers = [OrbaxReader(before, step, verify=False) for step in steps]
    merged = MergedReader(readers, merge_coefficients(decay_weights("linear", count - 1)))
    writer = OrbaxWriter(folder / "checkpoints", plan.models[number], merged.dtypes, peers=peers)
    transfer(merged, writer, threads=MERGE_THREADS)
    if not peers.index:
        save_texts(plan.source, folder / "tokenizer", chat=plan.source.is_chat)
    peers.wait("texts of a merge")
