"""The loop of training: data, logs, evaluations, saves and signals around the step of `ling_jax.train.step`."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import optax
from etils import epath

from ling_jax import data
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import open_model, save_texts
from ling_jax.checkpoint.steps import resume_step
from ling_jax.checkpoint.workdir_sums import check_logs, check_texts, workdir_sums
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.files import upload_folder
from ling_jax.model.transformer import LossSums, model_spec
from ling_jax.parallel import context
from ling_jax.parallel.sharding import batch_sharding, make_mesh
from ling_jax.paths import is_remote
from ling_jax.run.corpus import Corpus, held_out_batches, prepare_corpus
from ling_jax.run.metrics import MetricsWriter, read_metrics
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.progress import IN_FLIGHT, ProgressLog, start_report
from ling_jax.run.speed import peak_flops
from ling_jax.run.start import check_tokenizer, start_line, with_model
from ling_jax.run.stop import stop_signals
from ling_jax.run.wandb_run import check_wandb, open_wandb
from ling_jax.run.watchdog import watch_steps
from ling_jax.run.workdir import (
    check_workdir,
    has_checkpoint,
    lock,
    open_workdir,
    unlock,
    write_config,
    write_origins,
)
from ling_jax.spec import Params
from ling_jax.train.config import LoopConfig, PretrainConfig, TrainingConfig, open_source
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import (
    compile_eval_step,
    compile_train_step,
    device_rows,
    host_rows,
    random_state,
    restored_state,
    state_of,
)
from ling_jax.train.spikes import with_sigmas
from ling_jax.train.state import GuardedState, abstract_state, check_disk, check_memory

PROFILED_STEPS = 3
PROFILE_AFTER = 10  # steps after the start, where the config names no step


class Interrupted(Exception):
    """A signal ended the run after a save; the same call continues it."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command continues from there")
        self.number = number


class TooManyNonfiniteSteps(RuntimeError):
    """`train.max_nonfinite_steps` steps had a loss or gradient that is not finite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose config was checked against its devices, its data and its workdir."""

    config: TrainingConfig
    model: ModelConfig
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    abstract: GuardedState
    corpus: Corpus
    start: Callable[[jax.sharding.Mesh], Params] | None  # loads the parameters before step 0; None: random ones
    lock: IO[bytes] | None
    trainable: Any = None  # a tree of bools; None: all that the spec declares so
    target_loss: float | None = None  # the run ends at the first evaluation with a loss of at most this


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

    def fill_workdir() -> Corpus:
        if hosts.process_index() and not (workdir / "config.json").exists():
            lacks = f"{workdir} lacks the files that host 0 wrote into its workdir"
            raise ValueError(f"{lacks}; name a workdir that all hosts share")
        corpus = make_corpus(workdir, replace=not has_checkpoint(workdir))
        kept = has_checkpoint(workdir) and (workdir / "tokenizer" / "tokenizer.json").exists()
        if (
            not hosts.process_index() and not kept
        ):  # checkpoints have its sum, and the library may write it otherwise by now
            data.save_tokenizer(corpus.tokenizer, workdir / "tokenizer")
        write_config(config, workdir)
        return corpus

    held = lock(workdir)
    try:
        corpus = hosts.first_host_first(fill_workdir)
    except BaseException:
        unlock(workdir, held)
        raise
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
            loop = _Loop(run, manager, train_step.result(), eval_step, peak)
            return loop.steps(state, start, profile=profile)
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


@dataclasses.dataclass(frozen=True)
class _Loop:
    run: Run
    manager: orbax.Manager
    train_step: Callable
    eval_step: concurrent.futures.Future
    peak: float  # FLOP/s of all devices

    def steps(self, state: GuardedState, start: int, *, profile: bool) -> dict:
        train = self.run.config.train
        rows = device_rows(train.batch_size, train.microbatches, self.run.mesh)
        wandb = open_wandb(train.wandb, self.run.workdir, self.run.config)
        writer = MetricsWriter(self.run.workdir, first_step=start, wandb=wandb)
        log = ProgressLog(self.run.config, self.run.model, writer, state=state, peak=self.peak)
        self._check_nonfinite_steps(log, start)
        batches = data.batches(
            self.run.corpus.train,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            part=host_rows(rows, self.run.mesh),
        )
        line = {}
        with (
            contextlib.closing(writer),
            stop_signals() as stopped,
            watch_steps(self.run.workdir, train.hang_seconds) as ended,
            self._trace(start, enabled=profile) as trace,
        ):
            for step, batch in batches:
                trace(step)
                self.manager.check_saves()
                state, metrics = self.train_step(state, _on_devices(batch, rows, self.run.model, self.run.mesh))
                log.add(step, metrics)
                # Before this a host has read the metrics of IN_FLIGHT steps ago, which all hosts computed together.
                stop = stopped[0] if stopped else None  # read once: a signal may arrive at any moment
                stop = hosts.stop_after(step + 1, stop, ahead=IN_FLIGHT + 1)
                line, is_target = self._after(state, step + 1, log, stops=stop is not None)
                self._check_nonfinite_steps(log, step + 1)
                ended()
                if is_target:
                    break
                if stop is not None and step + 1 < train.steps:
                    raise Interrupted(stop, step + 1)
        return line

    def _after(self, state: GuardedState, done: int, log: ProgressLog, *, stops: bool) -> tuple[dict, bool]:
        """Evaluates and saves where either is due; (the step's metrics if so, whether it reached the target loss)."""
        train, target = self.run.config.train, self.run.target_loss
        ends = done == train.steps
        evaluates = train.eval_every and done % train.eval_every == 0
        # A run that stops for a signal skips the evaluation, unless the evaluation may end the run.
        evaluates = ends or (evaluates and (not stops or target is not None))
        saves = ends or stops or done % train.save_every == 0 or log.nonfinite_steps >= train.max_nonfinite_steps
        if not evaluates and not saves:
            return {}, False
        log.drain()
        stops = stops or log.nonfinite_steps >= train.max_nonfinite_steps
        measured = self.eval_loss(state.params) if evaluates else {}
        is_target = target is not None and measured.get("eval_loss", math.inf) <= target
        ends, saves = ends or is_target, saves or is_target
        line = log.flush(**measured)  # before the save, so that every step of the checkpoint has its line
        if saves or stops:
            print(f"saving step={done} in {self.run.workdir / 'checkpoints' / str(done)}", flush=True)
            orbax.save(self.manager, done, state, self.run.model, run=self._record(done))
        if ends or stops:
            self.manager.wait_until_finished()
            print(f"saved step={done}", flush=True)
        log.restart_clock()
        return line, is_target

    def _record(self, done: int) -> dict[str, Any]:
        """The record of the run in a checkpoint. Host 0 writes it, and only host 0 has the logs."""
        rows = done * self.run.config.train.batch_size  # of the mixture
        record = {"config": dataclasses.asdict(self.run.config), "data": {"step": done, "rows": rows}}
        return record | (workdir_sums(self.run.workdir, ["metrics.jsonl"]) if not hosts.process_index() else {})

    def eval_loss(self, params) -> dict[str, float]:
        """{"eval_loss": nats per token}; {} where no document is held out."""
        run = self.run
        loss = eval_loss(self.eval_step.result(), params, run.corpus, run.config.train, run.model, run.mesh)
        if loss is None:
            print("eval_loss: no document is held out (data.held_out_fraction)", flush=True)
            return {}
        print(f"eval_loss={loss:.4f} nats/token", flush=True)
        return {"eval_loss": loss}

    @contextlib.contextmanager
    def _trace(self, start: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
        """Yields a function to call before each step; it traces `PROFILED_STEPS` of them."""
        train, folder, running = self.run.config.train, self.run.workdir / "profile", []
        first = max(start, min(train.profile_step or start + PROFILE_AFTER, train.steps - 1))

        def end():
            if running:
                jax.profiler.stop_trace()
                if is_remote(folder):  # JAX writes to local disks only
                    upload_folder(Path(staged), folder)
                running.clear()
                print(f"profile in {folder}; open it with TensorBoard's profile plugin or xprof", flush=True)

        def before(step: int) -> None:
            if enabled and step == first:
                jax.profiler.start_trace(staged if is_remote(folder) else str(folder))
                running.append(step)
            elif step == first + PROFILED_STEPS:
                end()

        with tempfile.TemporaryDirectory(prefix="ling_jax_profile_") as staged:
            try:
                yield before
            finally:
                end()

    def _check_nonfinite_steps(self, log: ProgressLog, step: int) -> None:
        limit, file = self.run.config.train.max_nonfinite_steps, self.run.workdir / "metrics.jsonl"
        if log.nonfinite_steps >= limit:
            raise TooManyNonfiniteSteps(
                f"{log.nonfinite_steps} steps until step {step} had a loss or gradient that is not finite, and "
                f'train.max_nonfinite_steps is {limit}; the steps are in {file} ("nonfinite": true)'
            )


def eval_loss(
    eval_step: Callable[..., LossSums],
    params: Params,
    corpus: Corpus,
    train: LoopConfig,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
) -> float | None:
    """Mean nats per token over the held-out batches, at most `train.eval_batches` of each source.

    `eval_step` is the program of `programs.compile_eval_step`. None where no document is held out.
    """
    size, max_batches = train.batch_size // train.microbatches, train.eval_batches * train.microbatches
    rows = device_rows(size, 1, mesh)
    batches = held_out_batches(corpus, size, max_batches, host_rows(rows, mesh))
    sums = [eval_step(params, _on_devices(batch, rows, model, mesh)) for batch in batches]
    if not sums:
        return None
    sums = jax.device_get([(s.main, s.main_count) for s in sums])
    return float(sum(main for main, _ in sums) / sum(count for _, count in sums))


def _on_devices(batch: data.Batch, rows: int, model: ModelConfig, mesh):
    """This host's part (`host_rows`) of a batch of `rows` rows, on the devices where the program expects it."""
    data.validate_batch(batch, vocab_size=model.vocab_size, max_length=model.max_length)
    sharding, places = batch_sharding(mesh), host_rows(rows, mesh)

    def placed(values: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return values[np.searchsorted(places, np.arange(rows)[index[0]]), *index[1:]]

        return jax.make_array_from_callback((rows, values.shape[1]), sharding, part)

    return {name: placed(values) for name, values in batch.items()}


def _say_padding(config: TrainingConfig, mesh: jax.sharding.Mesh) -> None:
    rows, all_rows = config.train.batch_size, device_rows(config.train.batch_size, config.train.microbatches, mesh)
    if all_rows > rows:
        share = f"{all_rows - rows} rows of padding a step ({1 - rows / all_rows:.1%} of the computation)"
        print(f"{share}: train.batch_size {rows} in {config.train.microbatches} microbatches on {dict(mesh.shape)}")
