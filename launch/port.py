"""Hugging Face folder <-> Orbax checkpoint, through little memory.

    python -m launch.port --source=Ling-2.6-flash --target=runs/flash --dtype=bfloat16
    python -m launch.port --source=runs/demo/pretrain --target=exported
    python -m launch.port --source=Ling-2.6-1T --target=runs/1t --max_host_gb=16 --dry_run
    python -m launch.port --compare=Ling-2.6-flash,runs/flash

A source with *.safetensors becomes a workdir (checkpoints/0 and tokenizer/), one with checkpoints/ becomes a Hugging
Face folder. All files that are neither weights nor config.json are copied, and an export gets missing ones
(docs/porting.md, docs/checkpoints.md). FP8 weights become those of the config's dtype.

Several processes, such as the hosts of a pod, port one model together: the same command on each, as for
`launch.pretrain` (docs/clusters.md), with a target that all share. Each writes its part.

The target appears when it is whole. Until then it is `.NAME.partial` beside it, and the same command continues there
after an interruption. `--layers=N` makes a smaller model of the first N layers: try the path before the hours.
`--compare` runs two models on the same tokens, layer by layer, and names the first part that departs.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import flags

from launch.flags import run_program, usage_errors
from launch.interrupts import resumable_work
from launch.training import join_hosts, starting_errors
from ling_jax.checkpoint import port
from ling_jax.checkpoint.first_layers import FirstLayers
from ling_jax.checkpoint.folder import ModelFolder, check_model_folder, open_model
from ling_jax.checkpoint.heap import keep_freed_memory
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.index import is_workdir
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.orbax import check_path, load_config
from ling_jax.checkpoint.orbax_parts import OrbaxReader, OrbaxWriter
from ling_jax.checkpoint.parts import Reader, Writer
from ling_jax.checkpoint.side_files import copy_side_files, fill_in
from ling_jax.checkpoint.transfer import transfer
from ling_jax.checkpoint.verify import FLOAT8, check_same_shapes, compare_models
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import ALONE, Peers, all_peers
from ling_jax.evaluate.compare import compare_folders
from ling_jax.evaluate.layer_errors import config_differences
from ling_jax.messages import size_text
from ling_jax.paths import as_path, is_new, is_remote, resolved
from ling_jax.preflight import check_new
from ling_jax.resumable import RECORD

SOURCE = flags.DEFINE_string("source", None, "a Hugging Face folder or a run's workdir")
TARGET = flags.DEFINE_string("target", None, "a new folder")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32", FLOAT8],
    "of the target; as stored if not given; float8: linear layers of a Hugging Face target, in blocks of 128 x 128",
)
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")
MAX_HOST_GB = flags.DEFINE_float("max_host_gb", None, "memory of this process, in GB; two threads per CPU if not given")
SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "the largest file of a Hugging Face target, in GB", lower_bound=1e-6)
LAYERS = flags.DEFINE_integer("layers", None, "only the first N layers", lower_bound=1)
MTP = flags.DEFINE_bool("mtp", True, "with --layers: keep the MTP layers")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the plan, from headers alone, and end")
RESUME = flags.DEFINE_bool("resume", True, "continue an interrupted port to this target")
VERIFY = flags.DEFINE_bool(
    "verify", False, "read both sides again and compare every number; also of an existing target"
)
COMPARE = flags.DEFINE_list("compare", [], "A,B: run two models on the same tokens layer by layer, and nothing else")
PROMPT = flags.DEFINE_string("prompt", "", "the text of --compare; random tokens if not given")
TOKENS = flags.DEFINE_integer("tokens", 512, "of --compare, at most", lower_bound=1)

LARGEST_GB = 1e9  # of a flag: larger than any machine
SAME_ON_ALL = (SOURCE, TARGET, DTYPE, STEP, SHARD_GB, LAYERS, MTP, DRY_RUN, RESUME, VERIFY)  # of several processes
OF_PORTS, OF_COMPARISONS = (*SAME_ON_ALL, MAX_HOST_GB), (PROMPT, TOKENS)


def main() -> None:
    keep_freed_memory()
    with usage_errors():
        if _compares():
            for line in compare_folders(*COMPARE.value, num_tokens=TOKENS.value, prompt=PROMPT.value):
                print(line, flush=True)
            return
    with usage_errors(), resumable_work("the same command continues from what is written"), starting_errors():
        _check_flags()
        source, target = as_path(SOURCE.value), as_path(TARGET.value)
        if not (VERIFY.value and target.is_dir()):
            check_new(TARGET.value)
        target = resolved(target)
        _check_paths(source, target)
        join_hosts({}, **{flag.name: flag.value for flag in SAME_ON_ALL})
        if hosts.is_multiprocess():
            jax.config.update("jax_platforms", "cpu")  # a port needs no accelerator, which another program may use
            jax.devices()  # all processes come to this together
        _port(source, target)
        hosts.leave()


def _port(source: Path, target: Path) -> None:
    workdir = is_workdir(source)
    step = load_config(source / "checkpoints", STEP.value, peers=all_peers())[1] if workdir else None
    interrupted = port.is_interrupted(target)
    if VERIFY.value and not interrupted and target.is_dir() and not is_new(target):
        _verify(_open(source, step), open_layers(target), target)
        return
    if not is_remote(target) and (target / RECORD).exists():
        port.finish(target, _record(source, step), all_peers())
        print(f"{source} -> {target}")
        return
    if not interrupted and not is_new(target):
        raise ValueError(f"{target} exists and is not empty; name a new folder")
    if not is_remote(target) and target.is_mount():
        raise ValueError(f"{target} is a mount point, whose name no other folder can take; name a folder in it")
    if workdir:
        has_texts = (source / "tokenizer" / TOKENIZER_FILE).exists()
        _port_model(source, step, target, open_model(source, step=step) if has_texts else None)
    else:
        check_model_folder(source)
        if DTYPE.value == FLOAT8:
            raise ValueError("--dtype=float8 is of Hugging Face targets; a workdir is bfloat16 or float32")
        if STEP.value is not None:
            raise ValueError(
                f"--step={STEP.value}: {source} is no run's workdir and has no checkpoints; leave --step out"
            )
        check_path(target)
        if (source / TOKENIZER_FILE).exists():
            open_model(source)  # raises on files that an export could not read, before the long work
        _port_model(source, None, target, None)


def _compares() -> bool:
    """Whether to compare two models instead of porting one. Raises ValueError on flags of the other task."""
    compares = bool(COMPARE.value)
    if compares and len(COMPARE.value) != 2:
        raise ValueError(f"--compare={','.join(COMPARE.value)}: name two models, A,B")
    for flag in OF_PORTS if compares else OF_COMPARISONS:
        if flag.present:
            kind = "a port, not of --compare" if compares else "--compare, not of a port"
            hint = "; a checkpoint of a workdir is named WORKDIR/checkpoints/STEP" if flag is STEP else ""
            raise ValueError(f"--{flag.name} is of {kind}; leave it out{hint}")
    if not compares and not (SOURCE.value and TARGET.value):
        raise ValueError("name --source and --target, or two models to --compare")
    return compares


def _check_flags() -> None:
    if not MTP.value and LAYERS.value is None:
        raise ValueError("--nomtp is of --layers=N; with the number of all layers it only leaves MTP out")
    for flag in (MAX_HOST_GB, SHARD_GB):
        if flag.value is not None and not abs(flag.value) <= LARGEST_GB:
            raise ValueError(f"--{flag.name}={flag.value:g} is no amount of memory or disk; expected a number of GB")


def _check_paths(source: Path, target: Path) -> None:
    if resolved(target) == resolved(source):
        raise ValueError(f"--target={TARGET.value} is the source; name a new folder")
    of_source = [source / "checkpoints", source / "tokenizer"] if is_workdir(source) else [source]
    for folder in of_source:  # the next port would take the target for a part of its source
        if resolved(target).is_relative_to(resolved(folder)):
            raise ValueError(f"--target={TARGET.value} is inside of {folder}, which is read; name a folder elsewhere")


def _open(source: Path, step: int | None) -> Reader:
    reader = HfReader(source) if step is None else OrbaxReader(source / "checkpoints", step, verify=False)
    return reader if LAYERS.value is None else FirstLayers(reader, LAYERS.value, mtp=MTP.value)


def _port_model(source: Path, step: int | None, target: Path, model: ModelFolder | None) -> None:
    """Ports a checkpoint of a workdir to a Hugging Face folder, or where `step` is None such a folder to a workdir.

    `model` gives an export its tokenizer and whether it is for conversations.
    """
    reader = _open(source, step)
    config, dtypes = _in_dtype(reader.config), _cast(reader.dtypes)
    plan = _plan(reader, config, dtypes, target)

    def writer(folder: Path, peers: Peers) -> Writer:
        if step is None:
            return OrbaxWriter(folder / "checkpoints", config, dtypes, peers=peers)
        limit, fp8 = int(SHARD_GB.value * port.GB), DTYPE.value == FLOAT8
        store = target if is_remote(target) and not DRY_RUN.value else None
        return HfWriter(folder, config, dtypes, max_shard_bytes=limit, fp8=fp8, store=store, peers=peers)

    if DRY_RUN.value:
        _estimate(reader, writer, plan, target)
        return
    peers = all_peers()
    with port.resumable_folder(target, _record(source, step), resume=RESUME.value, peers=peers) as partial:
        with contextlib.nullcontext(partial) if step is None else port.staged_folder(partial, peers) as folder:
            _move(reader, writer(folder, peers), plan)
            if not peers.index and step is None:
                copy_side_files(source, folder / "tokenizer")
            elif not peers.index:
                copy_side_files(source / "tokenizer", folder)
                fill_in(folder, config, model and model.tokenizer, chat=model is not None and model.is_chat)
        peers.wait("all is written")
        if VERIFY.value:
            _verify(reader, open_layers(partial), target)
    print(f"{source} -> {target}")


def _plan(reader: Reader, config: ModelConfig, dtypes: Mapping[str, np.dtype], target: Path) -> port.Plan:
    """Prints the plan of a port and returns it. Raises ValueError or OSError where memory or disk is too small."""
    plan = port.make_plan(reader, config, dtypes, _max_bytes(), _cpus(), fp8=DTYPE.value == FLOAT8)
    print(
        f"{plan.num_tensors} tensors, {size_text(plan.nbytes)} to write; memory "
        f"{plan.memory / port.GB:.2f} GB with {plan.threads} threads; the least --max_host_gb is "
        f"{port.rounded_up_gb(plan.min_bytes)}",
        flush=True,
    )
    if all_peers().index:
        return plan
    missing = port.missing_space(target.with_name(f".{target.name}.partial"), plan.nbytes)
    print(f"disk: {port.rounded_up_gb(missing)} GB too little" if missing else "disk: enough is free", flush=True)
    if missing and not DRY_RUN.value:
        lack = f"{target}: {port.rounded_up_gb(missing)} GB of disk are missing"
        raise OSError(f"{lack}; free them or name another place")
    return plan


def _estimate(reader: Reader, writer: Callable[[Path, Peers], Writer], plan: port.Plan, target: Path) -> None:
    """Prints the time of the port, measured with a few batches that are written beside the target and removed.

    For a store they are written to the local disk. Process 0 measures for all processes.
    """
    remote, peers = is_remote(target), all_peers()
    if peers.index:
        peers.wait("time measured")
        return
    folder = None if remote else next(folder for folder in target.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as scratch:
        rate = peers.count * port.measured_rate(reader, writer(Path(scratch), ALONE), plan.threads)
    peers.wait("time measured")
    how = "measured here on a few batches" + (", without the upload" if remote else "")
    print(f"time: {port.duration(plan.moved_bytes / rate)} at {rate / 1e6:.0f} MB/s, {how}")


def _record(source: Path, step: int | None) -> dict:
    """The record of a port; a port continues only one with the same record."""
    chosen = {"dtype": DTYPE.value, "layers": LAYERS.value, "mtp": MTP.value}
    if step is not None:  # an Orbax target has no shards
        chosen["shard_gb"] = SHARD_GB.value
    return port.source_identity(source, step) | chosen


def _move(reader: Reader, writer: Writer, plan: port.Plan) -> None:
    start, written, count = time.monotonic(), port.written_bytes(reader, writer), writer.peers.count
    if written and not writer.peers.index:
        print(f"continuing: {size_text(written)} of {size_text(plan.moved_bytes)} are written", flush=True)
    progress = port.Progress(plan.moved_bytes // count, written // count)  # of this process's share
    try:
        transfer(reader, writer, threads=plan.threads, progress=progress)
    except OSError as error:
        raise OSError(f"{error}; when that is mended the same command continues from there") from error
    seconds = time.monotonic() - start
    print(f"{size_text(plan.nbytes)} in {port.duration(seconds)}", flush=True)


def _verify(reader: Reader, written: Reader, target: Path) -> None:
    """Raises ValueError that names the tensors of the target, read by `written`, that differ from the source's."""
    check_same_shapes(reader, written)
    for text in config_differences(reader.config, written.config):
        print(f"warning: the configs of source and target differ: {text}", file=sys.stderr, flush=True)
    plan, start = port.make_plan(reader, written.config, written.dtypes, _max_bytes(), _cpus()), time.monotonic()
    peers = all_peers()
    progress = port.Progress(plan.moved_bytes // peers.count)
    found = compare_models(reader, written, threads=plan.threads, progress=progress, peers=peers)
    found.check(target)
    seconds = port.duration(time.monotonic() - start)
    print(f"verified: {found}; {target} holds what the source does; {size_text(plan.nbytes)} in {seconds}")


def _max_bytes() -> int | None:
    return None if MAX_HOST_GB.value is None else int(MAX_HOST_GB.value * port.GB)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _in_dtype(config: ModelConfig) -> ModelConfig:
    return config if DTYPE.value in (None, FLOAT8) else dataclasses.replace(config, compute_dtype=DTYPE.value)


def _cast(dtypes: Mapping[str, np.dtype]) -> dict[str, np.dtype]:
    """{leaf: dtype} of the target; router biases stay float32, as in official checkpoints."""
    if DTYPE.value in (None, FLOAT8):
        return dict(dtypes)
    return {leaf: np.dtype("float32" if leaf.endswith("/expert_bias") else DTYPE.value) for leaf in dtypes}


if __name__ == "__main__":
    run_program(main)
