"""Distillation: one model learns from the shortest correct answers of one teacher or of several specialists.

The Ling 2.6 report merges its specialists by distillation and does not say how. Our choice: each answers the tasks of
its own domain, and the model is fine-tuned on what is right and shortest of all of them, mixed by weight.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from ling_jax.align.records import ChatSource, write_records
from ling_jax.align.sft import ChatRows, check_tuning, open_start, prepare_from
from ling_jax.align.shortest_correct import Figures, Sampling, shortest_correct
from ling_jax.checkpoint.folder import ModelFolder, load_model, open_model
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.envs.sources import TaskSource, check_files, check_tasks
from ling_jax.files import read_object
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.stage import Run
from ling_jax.run.workdir import open_workdir, read_origins
from ling_jax.sums import DamagedFile, checks, compare, read_sealed, sums_of, write_sealed
from ling_jax.train.config import LoopConfig, MeshConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    model: str  # a stage's workdir or a Hugging Face folder
    tasks: tuple[TaskSource, ...]
    weight: float = 1.0  # of its answers' rows in the mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    start_from: str  # the model that learns: a stage's workdir or a Hugging Face folder
    teachers: tuple[Teacher, ...]
    sampling: Sampling
    data: ChatRows
    optimizer: OptimizerConfig
    train: LoopConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    samples: int = 4  # answers to held-out prompts that are written at the end
    thinking: str = "default"  # of the model that learns, as the next: see SftConfig
    effort: str = ""

    def __post_init__(self):
        check_tuning(self)
        _check_sampling(self.sampling)
        if not self.teachers:
            raise ValueError("teachers is empty; name at least one, such as {'model': 'runs/sft', 'tasks': (…,)}")
        for i, teacher in enumerate(self.teachers):
            _check_teacher(f"teachers[{i}]", teacher)


def _check_sampling(sampling: Sampling) -> None:
    for name, good, wanted in (
        ("context", sampling.context >= 2, "at least 2"),
        ("per_query", sampling.per_query >= 1, "at least 1"),
        ("max_tokens", sampling.max_tokens >= 0, "at least 0"),
        ("slots", sampling.slots >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < float("inf"), "finite and not negative"),
        ("floor_percentile", 0 <= sampling.floor_percentile <= 100, "from 0 to 100"),
        ("seed", 0 <= sampling.seed < 2**32, "from 0 to below 2^32"),
    ):
        if not good:
            raise ValueError(f"sampling.{name} is {getattr(sampling, name)!r}; it must be {wanted}")


def _check_teacher(where: str, teacher: Teacher) -> None:
    if not 0 < teacher.weight < float("inf"):
        raise ValueError(f"{where}.weight is {teacher.weight}; it must be positive and finite")
    if not teacher.tasks:
        raise ValueError(f"{where}.tasks is empty; name what {teacher.model or 'it'} is to answer")
    for i, source in enumerate(teacher.tasks):
        check_tasks(source, f"{where}.tasks[{i}]")


def prepare_distillation(config: DistillConfig, workdir) -> Run:
    """A run on the teachers' answers, which are written into its data folder here, where they are not there yet.

    Raises ValueError or OSError with what to change, as `run.loop.prepare`.
    """
    for i, teacher in enumerate(config.teachers):
        check_files(teacher.tasks, f"teachers[{i}].tasks")
    student = open_start(config, workdir)
    teachers = [open_model(teacher.model) for teacher in config.teachers]
    for teacher, folder in zip(config.teachers, teachers, strict=True):
        if config.sampling.context > folder.config.max_length:
            raise ValueError(
                f"sampling.context is {config.sampling.context}; the context of {teacher.model} is "
                f"{folder.config.max_length}"
            )
    use_compilation_cache()
    newest = {config.start_from: student.step}
    newest |= {teacher.model: folder.step for teacher, folder in zip(config.teachers, teachers, strict=True)}
    origins = read_origins(open_workdir(workdir)) or newest
    return prepare_from(student, config, workdir, lambda folder: answer_files(config, student, origins, folder), newest)


def answer_files(
    config: DistillConfig, student: ModelFolder, origins: Mapping[str, int | None], folder: Path
) -> list[ChatSource]:
    """A source for each teacher's answers: a file that is there is used again.

    Its figures stand beside it with its sum, and are written last. `origins` says which checkpoint of a teacher
    answers. Raises DamagedFile where a file that is there is not as it was written.
    """
    sources = []
    for number, teacher in enumerate(config.teachers):
        if teacher.model not in origins:
            raise ValueError(f"origins.json of the workdir does not name {teacher.model}; restore it, or begin anew")
        step = origins[teacher.model]
        path = folder / f"answers_{number}_{_digest(config, teacher, step, student)}.jsonl"
        if not _are_there(path):
            _ask(teacher, step, config, student, path)
        sources.append(ChatSource(path=str(path), weight=teacher.weight))
    return sources


def _ask(teacher: Teacher, step: int | None, config: DistillConfig, student: ModelFolder, path: Path) -> None:
    """Writes a teacher's answers, and beside them the figures with their sum."""
    print(f"{teacher.model} answers", flush=True)
    model = load_model(teacher.model, step=step)
    records, figures = shortest_correct(model, teacher.tasks, student, config.sampling)
    print(f"{teacher.model}: {_told(figures)}", flush=True)
    _check_kept(teacher, figures)
    write_records(records, path)
    write_sealed(figures._asdict() | {"files": sums_of(path.parent, [path.name])}, path.with_suffix(".json"))


def _are_there(path: Path) -> bool:
    """Whether a teacher's answers are there. Raises DamagedFile where they are not as they were written."""
    beside, expected = path.with_suffix(".json"), "the figures of a teacher's answers"
    missing = [file for file in (path, beside) if not file.exists()]
    if len(missing) == 1:
        print(f"WARNING: DAMAGED FILE: {missing[0]} is missing; the teacher answers again", file=sys.stderr, flush=True)
    if missing or not checks.verify:
        return not missing
    try:
        if read_object(beside, expected).keys() == set(Figures._fields):
            print(f"{path} is of an earlier version: its bytes are not verified", file=sys.stderr, flush=True)
        else:
            compare(path.parent, read_sealed(beside, expected).get("files"))
    except ValueError as error:
        raise DamagedFile(
            f"{error}; remove {path}, and the same command asks the teacher again (--no_verify reads what is there)"
        ) from None
    return True


def _digest(config: DistillConfig, teacher: Teacher, step: int | None, student: ModelFolder) -> str:
    """Of all that the answers depend on."""
    learner = (tokenizer_digest(student.tokenizer), student.template)
    told = repr((teacher.model, step, teacher.tasks, config.sampling, learner))
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _check_kept(teacher: Teacher, figures: Figures) -> None:
    if not figures.kept:
        raise ValueError(
            f"{teacher.model} has {figures.correct} right answers of {figures.answers} and none to learn from; let it "
            "answer easier tasks (difficulties), more often (sampling.per_query), or in more tokens"
        )


def _told(figures: Figures) -> str:
    values = figures._asdict().items()
    return " ".join(f"{name}={value:.1f}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
