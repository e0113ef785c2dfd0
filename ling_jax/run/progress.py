"""The output of a run: a report at its start, a line of progress every few steps, a line of JSON for each step."""

import collections
import datetime
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.messages import count_text, size_text
from ling_jax.model import layer_plan, model_spec
from ling_jax.model.flops import flops_per_token, matmul_parameters
from ling_jax.run import tensorboard
from ling_jax.run.corpus import Corpus
from ling_jax.run.memory import MemoryUse
from ling_jax.run.metrics import MetricsWriter, to_line
from ling_jax.train.config import TrainingConfig
from ling_jax.train.norms import parameter_group
from ling_jax.train.optimizer import learning_rate
from ling_jax.train.state import GuardedState, TrainState, state_bytes
from pallas_kernels.lightning_attention.self_check import check_kernels

IN_FLIGHT = 2  # steps that the host runs ahead of the device: it stays busy, and a stop waits for few steps


def start_report(
    config: TrainingConfig,
    model: ModelConfig,
    state: TrainState,
    mesh: jax.sharding.Mesh,
    corpus: Corpus,
    workdir: epath.PathLike,
    start: int,
) -> str:
    """The first lines of a run: its model, sizes, devices, data, steps and files. `state` may be abstract.

    Raises KernelError where the kernels fail their self-check on this device.
    """
    train = config.train
    batch_tokens = train.batch_size * config.data.sequence_length
    parameters, optimizer = (size_text(state_bytes(tree)) for tree in (state.params, state.opt_state))
    groups: collections.Counter[str] = collections.Counter()
    for name, leaf in specs.named_leaves(model_spec(model)).items():
        groups[parameter_group(name, leaf)] += int(np.prod(leaf.shape))
    total, tokens = count_text(sum(groups.values())), count_text(corpus.train_tokens)
    sizes = ", ".join(f"{name} {count_text(size)}" for name, size in groups.most_common())
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({mesh.devices.flat[0].platform})"
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    flops = flops_per_token(model, config.data.sequence_length)
    epochs = train.steps * train.batch_size / corpus.train_rows
    lines = {
        "model": f"{total} parameters ({count_text(matmul_parameters(model))} multiply a token)",
        "layers": _layers(model),
        "groups": sizes,
        "memory": f"{parameters} of parameters + {optimizer} of optimizer state on each device",
        "compute": f"{flops / 1e6:.1f} MFLOP a token, {flops * batch_tokens / 1e9:.1f} GFLOP a step",
        "devices": f"{devices}; mesh {shape}",
        "kernels": check_kernels(),
        "data": f"{tokens} tokens in {corpus.train_rows} rows of {config.data.sequence_length}",
        "run": f"steps {start} to {train.steps} of {batch_tokens} tokens: {epochs:.2f} epochs in all",
        "files": f"{workdir}: config.json, metrics.jsonl, tensorboard/, checkpoints/, tokenizer/",
        "curves": tensorboard.command(workdir),
        "compiled programs": jax.config.jax_compilation_cache_dir or "not kept",
    }
    return "\n".join(f"{name:>17}  {text}" for name, text in lines.items())


def _layers(model: ModelConfig) -> str:
    segments = []
    for segment in layer_plan(model):
        runs = " + ".join(f"{run.count} {run.kind.mixer}-{run.kind.ffn}" for run in segment.runs)
        segments.append(f"{segment.repeats} x ({runs})" if segment.repeats > 1 else runs)
    mtp = f"; MTP depth {model.mtp_predictions}" if model.mtp_depth else ""
    untrained = ", which stays as it is (mtp_loss_weight is 0)" if mtp and not model.mtp_loss_weight else ""
    return ", then ".join(segments) + mtp + untrained


class ProgressLog:
    """Takes the metrics of each step while they are being computed, and reads them `IN_FLIGHT` steps later.

    So the device never waits for the host. It writes lines of metrics.jsonl every `log_every` steps and in `flush`.
    """

    def __init__(
        self, config: TrainingConfig, model: ModelConfig, writer: MetricsWriter, *, state: GuardedState, peak: float
    ):
        self._config, self._writer, self._peak = config, writer, peak
        self._flops = flops_per_token(model, config.data.sequence_length)
        self._running: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
        self._lines: list[dict[str, Any]] = []
        self._window_tokens, self._window_steps, self._window_start = 0, 0, time.perf_counter()
        steps = np.arange(config.train.steps)
        self._learning_rates = np.asarray(learning_rate(config.optimizer, config.train.steps)(steps))
        self._memory = MemoryUse()
        self._spikes = int(state.spikes.skipped)
        self.nonfinite_steps = int(state.skipped_steps) - self._spikes

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of a step, which need not be computed yet."""
        self._running.append((step, metrics))
        if len(self._running) > IN_FLIGHT:
            self._read_one()

    def drain(self) -> None:
        """Waits for all steps and reads their metrics."""
        while self._running:
            self._read_one()

    def flush(self, **measured: float) -> dict[str, Any]:
        """Drains and writes all lines; `measured` goes into the last one, which is returned."""
        self.drain()
        if self._lines:
            self._lines[-1] |= measured
        last = self._lines[-1] if self._lines else {}
        self._write(self._lines)
        return last

    def restart_clock(self) -> None:
        """Restarts the measurement of the speed after an evaluation or a save, whose time does not count."""
        self._window_tokens, self._window_steps, self._window_start = 0, 0, time.perf_counter()

    def _read_one(self) -> None:
        step, metrics = self._running.popleft()
        line = to_line(step, jax.device_get(metrics)) | {"time": time.time()}
        # Skipped steps did not advance the optimizer's count.
        line["learning_rate"] = float(self._learning_rates[step - self.nonfinite_steps - self._spikes])
        self._lines.append(line)
        self._window_tokens += line["tokens"]
        self._window_steps += 1
        if line["nonfinite"] or line["spike"]:
            self.nonfinite_steps += line["nonfinite"]
            self._spikes += line["spike"]
            _print_not_applied(line, self._config)
        if (step + 1) % self._config.train.log_every == 0:
            seconds = time.perf_counter() - self._window_start
            speed = self._window_tokens / seconds
            line |= {"tokens_per_second": speed, "mfu": speed * self._flops / self._peak} | self._memory.measure()
            _print_progress(line, self._config.train.steps, seconds / self._window_steps)
            self._write(self._lines[:-1])  # the last line waits for an evaluation after its step
            self.restart_clock()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._writer.write(lines)
        self._lines = self._lines[len(lines) :]


def _print_progress(line: dict[str, Any], steps: int, seconds_per_step: float) -> None:
    shown = {"loss": "main_loss", "grad_norm": "grad_norm", "load_max/mean": "load_max_over_mean", "drops": "drops"}
    values = " ".join(f"{name}={_round(line[key])}" for name, key in shown.items() if key in line)
    eta = datetime.timedelta(seconds=round((steps - line["step"] - 1) * seconds_per_step))
    speed = f"tokens/s={line['tokens_per_second']:.0f} mfu={line['mfu']:.1%}"
    print(f"step={line['step'] + 1}/{steps} {values} {speed} eta={eta}", flush=True)


def _round(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_not_applied(line: dict[str, Any], config: TrainingConfig) -> None:
    size = config.train.batch_size
    rows = f"rows {line['step'] * size} to {(line['step'] + 1) * size - 1} of the mixture with data.seed"
    found = f"loss={line['loss']} grad_norm={line['grad_norm']}"
    where = f"{'nonfinite' if line['nonfinite'] else 'spike'} step={line['step'] + 1}/{config.train.steps}"
    print(f"{where} {found}: not applied; its batch is {rows} {config.data.seed}", flush=True)
