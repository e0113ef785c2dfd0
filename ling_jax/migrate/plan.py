"""The checks of a migration before any work: source, data, workdir and every stage."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import crc32c
from etils import epath

from ling_jax import data
from ling_jax.checkpoint.folder import ModelFolder, open_model
from ling_jax.checkpoint.index import weight_files
from ling_jax.checkpoint.manifest import FILE_NAME as MANIFEST
from ling_jax.checkpoint.manifest import META_FILE
from ling_jax.checkpoint.shared_folders import check_shared, check_sums
from ling_jax.config import ModelConfig
from ling_jax.config_dicts import differences
from ling_jax.data import Batch
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.files import read_object
from ling_jax.migrate.config import MigrateConfig, stage_models
from ling_jax.migrate.convert import converted_layers
from ling_jax.migrate.dry_run import disk_bytes, dry_run
from ling_jax.migrate.mesh import check_meshes
from ling_jax.paths import is_remote
from ling_jax.preflight import check_space, stored_bytes
from ling_jax.run.corpus import held_out_batches, packed_corpus, tokenize_sources
from ling_jax.run.workdir import lock, open_workdir, read_config, unlock, write_config, write_origins
from ling_jax.sums import DamagedFile
from ling_jax.train.config import open_source

# Config fields that may change when a migration resumes, as in `train.config.RESUMABLE`.
RESUMABLE = (
    "train.log_every", "train.max_nonfinite_steps", "train.spike_sigmas", "train.spike_window", "train.hang_seconds",
    "mesh", "stages.*.context", "target.remat", "target.scan_layers",
)  # fmt: skip

ENDS_BYTES = 2**20  # of each end of a file that hosts compare; our choice
CONVERTED = "converted"  # the folder of a stage's converted model


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked migration: its config fits source, data and workdir."""

    config: MigrateConfig
    source: ModelFolder
    models: list[ModelConfig]  # of each stage
    workdir: Path
    token_folders: list[Path]
    lock: IO[bytes] | None

    def folder(self, number: int) -> Path:
        """The folder of a stage."""
        return self.workdir / f"{number}_{self.config.stages[number].name}"

    def model_before(self, number: int) -> ModelConfig:
        """The model that a stage starts from."""
        return self.models[number - 1] if number else self.source.config

    def result(self, number: int) -> Path:
        """The path of a stage's resulting model, for `open_model`; -1 is the source."""
        if number < 0:
            return self.source.path
        stage, folder = self.config.stages[number], self.folder(number)
        return folder if stage.trains or stage.merges else folder / CONVERTED

    def opened(self, number: int) -> ModelFolder:
        """The model at `result`; for the source, the checkpoint that the migration started from."""
        if number < 0:
            return self.source
        result = self.result(number)
        return open_converted(result) if result.name == CONVERTED else open_model(result, peers=all_peers())

    def converts(self, number: int) -> bool:
        """Whether a stage converts layers."""
        return bool(converted_layers(self.model_before(number), self.models[number]))


def open_converted(folder: Path) -> ModelFolder:
    """The model that a conversion wrote; each process compares a share of its files.

    Raises DamagedFile if a file has changed since.
    """
    try:
        check_sums(folder, all_peers())
    except ValueError as error:
        raise DamagedFile(f"{error}; remove {folder}, and the same command converts again") from None
    return open_model(folder)


def prepare_plan(config: MigrateConfig, workdir: str | Path) -> Plan:
    """Checks source, target, patterns, calibration, lengths, batches, data and workdir, and locks the workdir.

    All processes of a migration call it. Raises ValueError or OSError with the change that is needed.
    """
    if is_remote(workdir):
        raise ValueError(f"{workdir} is no local folder, where conversions are read and written layer by layer")
    peers, workdir = all_peers(), open_workdir(workdir)
    step = peers.first(None if peers.index else _source_step(config, workdir), "source step")
    source = open_model(config.source, step=step, peers=peers)
    hosts.check_same(source_facts(source))
    models = stage_models(config, source.config)
    check_meshes(config, models)
    for described in config.data.sources:
        data.source_files(open_source(described))
    _check_workdir(config, workdir)
    if not (workdir / f"{len(models) - 1}_{config.stages[-1].name}" / "report.json").exists():
        needed = disk_bytes(dry_run(config, source.config)) - stored_bytes([Path(workdir)])
        check_space(workdir, needed, "the models of all stages")
    held = lock(workdir)
    try:
        check_shared(workdir, peers)
        return _with_data(config, source, models, workdir, held)
    except BaseException:
        unlock(workdir, held)
        raise


def _with_data(
    config: MigrateConfig, source: ModelFolder, models: list[ModelConfig], workdir: epath.Path, held: IO[bytes] | None
) -> Plan:
    """The plan with its tokens, which process 0 makes first, in a locked workdir."""
    peers = all_peers()
    fresh = peers.first(not peers.index and not any(workdir.glob("[0-9]*_*")), "is fresh")
    folders = hosts.first_host_first(lambda: tokenize_sources(config.data, source.tokenizer, workdir, replace=fresh))
    write_config(config, workdir)
    if fresh:
        write_origins({config.source: source.step}, workdir)
    plan = Plan(config, source, models, Path(workdir), folders, held)
    _check_data(plan)
    return plan


def source_facts(source: ModelFolder) -> dict[str, str]:
    """What must be the same on all hosts, which may have copies of their own: the texts and the weights of the source.

    The manifest of a checkpoint has sums of all its files. Of other files the size and both ends are compared, in which
    two models differ. A store is one for all hosts.
    """
    facts = {"source.tokenizer": tokenizer_digest(source.tokenizer), "source.step": str(source.step)}
    if is_remote(source.path):
        return facts
    if source.step is None:
        files = [source.path / name for name in ("config.json", *weight_files(source.path))]
    else:
        files = [source.path / "checkpoints" / str(source.step) / name for name in (META_FILE, MANIFEST)]
    return facts | {f"source.{path.name}": _ends(path) for path in files if path.exists()}


def _ends(path: Path) -> str:
    """The size of a file, and a sum of its first and its last MiB."""
    size, sum_ = path.stat().st_size, 0
    with path.open("rb") as file:
        for begin in (0, max(0, size - ENDS_BYTES)):
            file.seek(begin)
            sum_ = crc32c.crc32c(file.read(ENDS_BYTES), sum_)
    return f"{size} bytes, crc32c {sum_:08x}"


def _source_step(config: MigrateConfig, workdir: epath.Path) -> int | None:
    """The source checkpoint of an unfinished first stage, since the source may have newer ones; None: the newest."""
    first, path = workdir / f"0_{config.stages[0].name}", workdir / "origins.json"
    unfinished = first.exists() and not (first / "report.json").exists()
    return read_object(path).get(config.source) if unfinished and path.exists() else None


def _check_workdir(config: MigrateConfig, workdir: epath.Path) -> None:
    """Raises ValueError if the workdir holds another run. A migration without finished work may be replaced."""
    path = workdir / "config.json"
    if not path.exists():
        return
    old = read_config(path)
    if "stages" not in old:
        raise ValueError(f"{workdir} holds a model or another run, such as the source; name a workdir of its own")
    if not any(workdir.glob("[0-9]*_*")):
        return
    if changed := differences(old, config, RESUMABLE):
        lines = "\n  ".join(changed)
        raise ValueError(f"{workdir} holds another migration; name another workdir, or undo these:\n  {lines}")


def _check_data(plan: Plan) -> None:
    """Raises ValueError if the data has too few samples for the conversions."""
    if any(map(plan.converts, range(len(plan.models)))):
        calibration, held_out = samples(plan)
        for name, batches in (("calibration", calibration), ("held_out", held_out)):
            found, wanted = live_tokens(batches), getattr(plan.config.conversion, f"{name}_tokens")
            if found < wanted:
                raise ValueError(
                    f"conversion.{name}_tokens is {wanted}; the data has {found}; name more sources or ask for fewer"
                )


def live_tokens(batches: list[Batch]) -> int:
    """Number of tokens that are no padding."""
    return sum(int((rows["segment_ids"] > 0).sum()) for rows in batches)


def samples(plan: Plan) -> tuple[list[Batch], list[Batch]]:
    """(calibration, held-out) batches of one row: the first rows of the mixture, and rows of held-out documents."""
    config, wanted = plan.config, plan.config.conversion
    rows = (config.data.sequence_length, config.data.seed)
    corpus = packed_corpus(plan.token_folders, weights(config), plan.source.tokenizer, *rows)
    train_rows = ({name: x[None] for name, x in corpus.train[i].items()} for i in range(corpus.train_rows))
    calibration = list(_take(train_rows, wanted.calibration_tokens))
    return calibration, list(_take(held_out_batches(corpus, 1, sys.maxsize), wanted.held_out_tokens))


def _take(batches: Iterator[Batch], tokens: int) -> Iterator[Batch]:
    """Batches until they hold `tokens` live tokens."""
    while tokens > 0 and (rows := next(batches, None)):
        yield rows
        tokens -= live_tokens([rows])


def weights(config: MigrateConfig) -> list[float]:
    """The mixture weight of each data source."""
    return [source.weight for source in config.data.sources]
