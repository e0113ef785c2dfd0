"""Training on rows of tokens, as the loop sees it: batches, logs, evaluations and saves around the compiled step."""

import concurrent.futures
import contextlib
import dataclasses
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
from ling_jax.checkpoint.workdir_sums import workdir_sums
from ling_jax.config import ModelConfig
from ling_jax.distributed import hosts
from ling_jax.files import upload_folder
from ling_jax.model.transformer import LossSums
from ling_jax.parallel.sharding import batch_sharding
from ling_jax.paths import is_remote
from ling_jax.run.corpus import Corpus, held_out_batches
from ling_jax.run.progress import IN_FLIGHT, ProgressLog
from ling_jax.spec import Params
from ling_jax.train.config import LoopConfig, TrainingConfig
from ling_jax.train.programs import device_rows, host_rows
from ling_jax.train.state import GuardedState

PROFILED_STEPS = 3
PROFILE_AFTER = 10  # steps after the start, where the config names no step


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


class TrainingStage:
    """`steps.Stage` of a run; `line` is that of the last step that was evaluated or saved."""

    def __init__(
        self,
        run: Run,
        manager: orbax.Manager,
        train_step: Callable,
        eval_step: concurrent.futures.Future,
        log: ProgressLog,
        before: Callable[[int], None],
        state: GuardedState,
        start: int,
    ):
        """`before` is called with the number of each step."""
        self.run, self.manager, self.log, self.state, self.line = run, manager, log, state, {}
        self._train_step, self._eval_step, self._before = train_step, eval_step, before
        train = run.config.train
        self._rows = device_rows(train.batch_size, train.microbatches, run.mesh)
        self._batches = data.batches(
            run.corpus.train,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            part=host_rows(self._rows, run.mesh),
        )

    def begin(self, stopped: list[int], note: Callable[[], None]) -> None:
        """Nothing comes before the first step."""

    def step(self, step: int, stopped: list[int], note: Callable[[], None]) -> None:
        """One step, whose metrics the log reads later."""
        del stopped, note
        _, batch = next(self._batches)
        self._before(step)
        self.manager.check_saves()
        placed = _on_devices(batch, self._rows, self.run.model, self.run.mesh)
        self.state, metrics = self._train_step(self.state, placed)
        self.log.add(step, metrics)

    def stop(self, done: int, number: int | None) -> int | None:
        """The signal that any of the hosts got; all see it at the same step, a few steps later."""
        # A host has read the metrics of IN_FLIGHT steps ago, which all hosts computed together.
        return hosts.stop_after(done, number, ahead=IN_FLIGHT + 1)

    def is_evaluated(self, done: int, *, stops: bool) -> bool:
        """A run that stops for a signal skips the evaluation, unless the evaluation may end the run."""
        train = self.run.config.train
        due = train.eval_every and done % train.eval_every == 0
        return done == train.steps or bool(due and (not stops or self.run.target_loss is not None))

    def settle(self) -> None:
        """Waits for the metrics of all steps."""
        self.log.drain()

    def evaluate(self, done: int) -> bool:
        """The held-out loss goes into the line of the last step; whether it is at most the target."""
        del done
        run = self.run
        loss = eval_loss(self._eval_step.result(), self.state.params, run.corpus, run.config.train, run.model, run.mesh)
        if loss is None:
            print("eval_loss: no document is held out (data.held_out_fraction)", flush=True)
        else:
            print(f"eval_loss={loss:.4f} nats/token", flush=True)
        self.line = self.log.flush(**({} if loss is None else {"eval_loss": loss})) or self.line
        self.log.restart_clock()
        return run.target_loss is not None and loss is not None and loss <= run.target_loss

    def save(self, done: int, *, waits: bool) -> None:
        """A checkpoint, before which every step of it has its line."""
        self.line = self.log.flush() or self.line
        print(f"saving step={done} in {self.run.workdir / 'checkpoints' / str(done)}", flush=True)
        orbax.save(self.manager, done, self.state, self.run.model, run=self._record(done))
        if waits:
            self.manager.wait_until_finished()
            print(f"saved step={done}", flush=True)
        self.log.restart_clock()

    def save_after_error(self, done: int) -> None:
        """Of several hosts one may have failed alone, and the others would not come to the save."""
        if not hosts.is_multiprocess():
            self.save(done, waits=True)

    def failed_steps(self) -> int:
        """Those whose metrics have been read."""
        return self.log.nonfinite_steps

    def failed_text(self) -> str:
        """What is wrong with them, and where they are listed."""
        file = self.run.workdir / "metrics.jsonl"
        return f'had a loss or gradient that is not finite; the steps are in {file} ("nonfinite": true)'

    def _record(self, done: int) -> dict[str, Any]:
        """The record of the run in a checkpoint. Host 0 writes it, and only host 0 has the logs."""
        rows = done * self.run.config.train.batch_size  # of the mixture
        record = {"config": dataclasses.asdict(self.run.config), "data": {"step": done, "rows": rows}}
        return record | (workdir_sums(self.run.workdir, ["metrics.jsonl"]) if not hosts.process_index() else {})


@contextlib.contextmanager
def trace(workdir: epath.Path, train: LoopConfig, start: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each step; it traces `PROFILED_STEPS` of them."""
    folder, running = workdir / "profile", []
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
