"""The loop of training: data, logs, evaluations, saves and signals around the step of `ling_jax.train.step`."""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from ling_jax import data
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import open_model, save_texts
from ling_jax.checkpoint.steps import resume_step
from ling_jax.checkpoint.workdir_sums import check_logs, check_texts
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.model.transformer import model_spec
from ling_jax.parallel import context
from ling_jax.parallel.sharding import make_mesh
from ling_jax.run.corpus import Corpus, prepare_corpus
from ling_jax.run.metrics import MetricsWriter, read_metrics
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.progress import ProgressLog, start_report
from ling_jax.run.speed import peak_flops
from ling_jax.run.stage import Run, TrainingStage, trace
from ling_jax.run.start import check_tokenizer, start_line, with_model
from ling_jax.run.steps import run_steps
from ling_jax.run.wandb_run import check_wandb, open_wandb
from ling_jax.run.workdir import (
    check_workdir,
    has_checkpoint,
    lock_and_fill,
    open_workdir,
    unlock,
    write_config,
    write_origins,
)
from ling_jax.spec import Params
from ling_jax.train.config import PretrainConfig, TrainingConfig, open_source
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import (
    compile_eval_step,
    compile_train_step,
    device_rows,
    random_state,
    restored_state,
    state_of,
)
from ling_jax.train.spikes import with_sigmas
from ling_jax.train.state import GuardedState, abstract_state, check_disk, check_memory


def prepare(config: PretrainConfig, workdir: epath.PathLike) -> Run:
    """Checks a config against devices, sources and workdir, then makes the missing tokenizer, tokens and rows.

    Raises ValueError or OSError with the field or file to change. After an error the workdir holds nothing new but
    tokens of the sources that come before it.
    """
    for source in config.data.sources:
        data.source_files(open_source(source))
    if config.start_from is not None:
        return _prepare_from_model(config, open_workdir(workdir))
    return prepare_run(config, config.model, workdir, functools.partial(prepare_corpus, config.data, config.model))


def _prepare_from_model(config: PretrainConfig, workdir: epath.Path) -> Run:
    """`prepare` with the parameters of `start_from`, or of the run's own checkpoint if it has one.

    A run with a checkpoint does not need the folder that it started from.
    """
    peers = all_peers()
    if peers.first(has_checkpoint(workdir), "has a checkpoint"):
        own = workdir / "checkpoints"
        config = with_model(config, orbax.load_config(own, peers=peers)[0], workdir)
        make_corpus = functools.partial(prepare_corpus, config.data, config.model)

        def start(mesh: jax.sharding.Mesh) -> Params:
            return orbax.load_params(own, mesh=mesh)[0]

        return prepare_run(config, config.model, workdir, make_corpus, start=start)
    model = open_model(config.start_from, tokenizer=config.data.tokenizer)
    config = with_model(config, model.config, config.start_from)
    check_tokenizer(config.data.tokenizer, model)
    print(start_line(config.start_from, model, config.model), flush=True)

    def make_corpus(workdir: epath.Path, *, replace: bool) -> Corpus:
        save_texts(model, workdir / "tokenizer", chat=model.is_chat)
        corpus = prepare_corpus(config.data, config.model, workdir, replace=replace, tokenizer=model.tokenizer)
        write_origins({config.start_from: model.step}, workdir)
        return corpus

    return prepare_run(config, config.model, workdir, make_corpus, start=model.params)


def prepare_run(
    config: TrainingConfig,
    model: ModelConfig,
    workdir: epath.PathLike,
    make_corpus: Callable[..., Corpus],
    *,
    start: Callable[[jax.sharding.Mesh], Params] | None = None,
    trainable: Any = None,
    target_loss: float | None = None,
) -> Run:
    """`prepare` of any run: its rows are `make_corpus(workdir, replace=whether no checkpoint is there)`.

    `make_corpus` is called when everything else is checked and the workdir is locked for this process. `start`,
    `trainable` and `target_loss` are as in `Run`.
    """
    workdir = open_workdir(workdir)
    check_wandb(config.train.wandb)
    check_workdir(config, workdir)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    context.check_rows(config.data.sequence_length, mesh.shape["context"])
    _say_padding(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps, model_spec(model))
    abstract = abstract_state(model, optimizer, mesh, trainable, spike_window=config.train.spike_window)
    check_memory(abstract, mesh)
    check_disk(abstract, workdir, config.train)

    def fill() -> Corpus:
        corpus = make_corpus(workdir, replace=not has_checkpoint(workdir))
        # Checkpoints have the sum of the tokenizer's file, and the library may write it otherwise by now.
        kept = has_checkpoint(workdir) and (workdir / "tokenizer" / "tokenizer.json").exists()
        if not hosts.process_index() and not kept:
            data.save_tokenizer(corpus.tokenizer, workdir / "tokenizer")
        write_config(config, workdir)
        return corpus

    held, corpus = lock_and_fill(workdir, fill)
    return Run(config, model, workdir, mesh, optimizer, abstract, corpus, start, held, trainable, target_loss)


def train(run: Run, *, profile: bool = False) -> dict:
    """Trains until `train.steps` or `Run.target_loss`, from the newest checkpoint in the workdir if there is one.

    Prints a report and then progress, and writes metrics.jsonl, tensorboard/ and checkpoints/ into the workdir. Returns
    the last line of metrics.jsonl, or {} where no step was left. Raises `Interrupted` after SIGTERM or Ctrl-C and
    `TooManyNonfiniteSteps`, both after a save; `SaveFailed` where a checkpoint cannot be written; `DamagedCheckpoint`
    where none can be read, or with --strict where the newest cannot.
    """
    use_compilation_cache()
    config, compiler = run.config, concurrent.futures.ThreadPoolExecutor(1)
    try:
        keep, folder = dict(keep=config.train.keep, every=config.train.save_every), run.workdir / "checkpoints"
        start = _checked_step(run.workdir)
        with orbax.open_manager(folder, **keep) as manager:
            rows = dict(rows=run.corpus.train_rows, tokens=run.corpus.train_tokens)
            hosts.check_same(dict(checkpoint=start, tokenizer=tokenizer_digest(run.corpus.tokenizer)) | rows)
            print(start_report(config, run.model, run.abstract, run.mesh, run.corpus, run.workdir, start), flush=True)
            if start >= config.train.steps:
                print(f"done: the run has reached step {start}; raise train.steps to continue it", flush=True)
                return {}
            if start and run.target_loss is not None and (line := _target_line(run, start)):
                print(f"done: the held-out loss of step {start} is at most {run.target_loss:.4f}", flush=True)
                return line
            peak = peak_flops(run.mesh)  # it may be measured, which needs an idle machine
            of_rows = (run.model, config.train, config.data.sequence_length)
            train_step = compiler.submit(
                compile_train_step, *of_rows, run.optimizer, run.abstract, run.mesh, run.trainable
            )
            eval_step = compiler.submit(compile_eval_step, *of_rows, run.abstract, run.mesh)
            state = restored_state(manager, run.abstract) if start else _first_state(run)
            state = state.replace(spikes=with_sigmas(state.spikes, config.train.spike_sigmas))
            return _steps(run, manager, train_step.result(), eval_step, peak, state, start, profile=profile)
    finally:
        compiler.shutdown(wait=False, cancel_futures=True)
        unlock(run.workdir, run.lock)


def _checked_step(workdir: epath.Path) -> int:
    """The step of the checkpoint that the run continues from; 0 without one.

    Each host compares a share of the checkpoint's files with their sums, and host 0 the other files of the run. Raises
    DamagedCheckpoint or DamagedFile where the run cannot continue; warns of damaged logs.
    """
    peers = all_peers()
    step = resume_step(workdir / "checkpoints", peers)
    if not peers.index:
        check_texts(workdir, step)
        check_logs(workdir, step)
    peers.wait("texts checked")
    return step


def _first_state(run: Run) -> GuardedState:
    if run.start is None:
        return random_state(run.config.train.seed, run.model, run.optimizer, run.abstract, run.trainable)
    return state_of(run.start(run.mesh), run.model, run.optimizer, run.abstract, run.trainable)


def _target_line(run: Run, done: int) -> dict:
    """The metrics of step `done` where its held-out loss ended the run, else {}."""
    for line in read_metrics(run.workdir / "metrics.jsonl"):
        loss = line.get("eval_loss")  # text where it was not finite
        if line.get("step") == done - 1 and isinstance(loss, float) and loss <= run.target_loss:
            return line
    return {}


def _steps(run: Run, manager, train_step, eval_step, peak: float, state: GuardedState, start: int, *, profile: bool):
    """The line of the last step that was evaluated or saved."""
    wandb = open_wandb(run.config.train.wandb, run.workdir, run.config)
    writer = MetricsWriter(run.workdir, first_step=start, wandb=wandb)
    log, steps = ProgressLog(run.config, run.model, writer, state=state, peak=peak), run.config.train.steps
    with contextlib.closing(writer), trace(run.workdir, run.config.train, start, enabled=profile) as before:
        stage = TrainingStage(run, manager, train_step, eval_step, log, before, state, start)
        run_steps(stage, run.config.train, steps, start, run.workdir, "after this step")
    return stage.line


def _say_padding(config: TrainingConfig, mesh: jax.sharding.Mesh) -> None:
    rows, all_rows = config.train.batch_size, device_rows(config.train.batch_size, config.train.microbatches, mesh)
    if all_rows > rows:
        share = f"{all_rows - rows} rows of padding a step ({1 - rows / all_rows:.1%} of the computation)"
        print(f"{share}: train.batch_size {rows} in {config.train.microbatches} microbatches on {dict(mesh.shape)}")
