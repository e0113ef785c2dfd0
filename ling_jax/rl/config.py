"""What a run of reinforcement learning is: frozen dataclasses, checked before anything is loaded."""

import dataclasses
import math
from typing import Any

from ling_jax.chat.thinking import check_thinking
from ling_jax.config_dicts import Rule, check_fields
from ling_jax.envs.sources import TaskSource, check_tasks, held_out_of, locate, tasks
from ling_jax.messages import nearest
from ling_jax.objectives import OBJECTIVES, settings_of
from ling_jax.rewards.length import EFFORT_WEIGHTS
from ling_jax.rl.judge_config import JudgeConfig, check_judge
from ling_jax.rl.ledger import Limits
from ling_jax.rl.trajectory import BRANCHES, SAMPLES
from ling_jax.train.config import (
    RESUMABLE_FIELDS,
    RUN_FIELDS,
    MeshConfig,
    ModelChanges,
    OptimizerConfig,
    RunFields,
    check_optimizer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """The keywords of all objectives; None is the default of the objective, and all that others may have."""

    clip: float | None = None  # lpo (0.03), icepop, kpop, tis (0.2): ratios count within 1 ± clip
    clip_low: float | None = None  # grpo (0.2), gspo (3e-4): down to 1 - clip_low
    clip_high: float | None = None  # grpo (0.2), gspo (4e-4): up to 1 + clip_high
    aggregate: str | None = None  # grpo: "seq_mean" (default), or "token_mean" over all tokens of an optimisation step
    alpha: float | None = None  # icepop (0.5): the least old/behaviour of a token that counts
    beta: float | None = None  # icepop (5): the largest
    cap: float | None = None  # tis, reverse_kl (2): the largest weight
    phi: float | None = None  # kpop (0.1): the largest divergence of a token that counts, nats
    symmetric: bool | None = None  # kpop (True): the divergence in both directions
    kappa: str | None = None  # kpop: the weight of a token, "ratio" (default) or "one"
    kappa_cap: float | None = None  # kpop: the largest such weight; no bound by default


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    name: str  # of ling_jax.objectives: "grpo", "gspo", "lpo", "icepop", "kpop", "tis", "reverse_kl"
    options: ObjectiveOptions = ObjectiveOptions()
    allow_uncorrected: bool = False  # stale tokens with weights of 1, or with weights of any size
    reference_kl: float = 0.0  # weight of the KL to the weights that the run starts from; Ring-1T report §2.3.4
    calibrate_phi: float = 0.0  # share of the loss tokens that kpop drops, by its choice of phi; 0: options.phi


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers come about. Defaults where the Ling 2.6 report gives none are those of Ring-1T or our choice."""

    context: int  # tokens of a row: prompt, answers and tool output
    slots: int = 64  # rollouts that generate at once
    engines: int = 1  # that share out the slots, each with a thread and, of `engine_devices`, devices of its own
    episodes: int = 0  # rollouts under way at once, with those whose environments act; 0: as many as slots
    group_size: int = 8  # answers to a prompt; Ring-1T report §2.3.4
    prompts_per_step: int = 32  # groups that an optimisation step uses, at most
    max_tokens: int = 0  # that the policy may write in a rollout; 0: what the task says
    token_budget: int = 0  # generated before an optimisation step, unless its batch is full; 0: until it is
    max_staleness: int = 0  # weight versions; 0: synchronous
    max_retention: int = 0  # how often a rollout may be paused at the budget
    record_experts: bool = False  # the learner's tokens go to the experts that generation chose: docs/rl.md
    overlap: bool = False  # generation goes on while the weights learn, where its rollouts may meet newer weights
    session_seconds: float = 600.0  # for an opening and for each action of an environment's session; our choice
    agent: tuple[str, ...] = ()  # the command of a program that plays the rollouts: docs/serving.md
    max_calls: int = 16  # answers that the agent may ask for in a rollout; our choice
    samples: str = "concat"  # of an agent's calls: a chain of them is a sample, or "individual": each is one
    branches: str = "main"  # of the tree of an agent's calls: those on the way to its last one, or "all"
    count: str = "generated"  # what the budget counts, and how slots fill: ling_jax.rl.ledger
    refill: str = "continuous"

    @property
    def under_way(self) -> int:
        """Rollouts at once, whether they generate or their environments act."""
        return self.episodes or self.slots

    @property
    def parked(self) -> int:
        """Of these, those for which no slot is."""
        return self.under_way - self.slots

    @property
    def max_samples(self) -> int:
        """Of a rollout."""
        return 1 if (self.samples, self.branches) == ("concat", "main") else self.max_calls

    @property
    def of_engine(self) -> tuple[int, int]:
        """(slots, rollouts for which no slot is) of an engine."""
        return self.slots // self.engines, -(-self.parked // self.engines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(RunFields):
    steps: int
    updates_per_batch: int = 1  # optimisation steps, each on other groups of the batch, in a random order
    save_every: int = 10
    max_failed_share: float = 0.5  # of the last rollouts, lost to environments and machinery: more ends the run (ours)
    max_mismatch: float = 0.5  # nats: mean of recorded against recomputed log-probs; more ends the run (our choice)
    min_entropy: float = 0.0  # nats, in the mean over a step's tokens: less ends the run
    samples: int = 2  # answers that each step writes to samples.jsonl
    eval_tasks: int = 0  # held-out tasks of each source, answered greedily at the start and at the end
    dpr_steps: int = 0  # draw tasks by their pass rates, which takes a tenth of so many steps for early; 0: uniformly


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig:
    start_from: str  # the workdir of the stage before, or a Hugging Face folder
    tasks: tuple[TaskSource, ...]
    reward: str  # of ling_jax.align.rewards, or module:function of score(task, answer) -> float
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    rollout: RolloutConfig
    train: LoopConfig
    efforts: tuple[str, ...] = ()  # thinking efforts that the answers to a prompt share out; (): no word of it
    thinking: str = "default"  # or "on", "off"; default: as the chat template has it
    effort: str = ""  # of all answers, such as "high"; "": no word of it
    teachers: tuple[str, ...] = ()  # of objective reverse_kl: the workdir or folder of each source's teacher, or one
    model: ModelChanges = dataclasses.field(default_factory=ModelChanges)  # how the weights that learn are computed
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # of the weights that learn
    engine: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # of generation
    engine_devices: int = 0  # the last devices are the engine's alone; 0: it shares those of the weights that learn
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)  # of rewards "evo_cot" and "preference"

    def __post_init__(self):
        check_config(self)

    @property
    def rows(self) -> int:
        """Of a batch."""
        return self.rollout.prompts_per_step * self.rollout.group_size

    @property
    def max_updates(self) -> int:
        """Optimisation steps in the whole run; fewer where a batch has fewer groups than `updates_per_batch`."""
        return self.train.steps * self.train.updates_per_batch

    @property
    def teacher_names(self) -> list[str]:
        """The teachers, each once."""
        return list(dict.fromkeys(self.teachers))

    def teacher_of(self, number: int) -> int:
        """Which of `teacher_names` is the teacher of task `number`."""
        place = locate(self.tasks, number)[0] if len(self.teachers) > 1 else 0
        return self.teacher_names.index(self.teachers[place])


# What may differ between a run and its resumption (compare ling_jax.train.config.RESUMABLE).
RESUMABLE = (
    *RESUMABLE_FIELDS, "train.microbatches", "train.max_failed_share", "train.max_mismatch", "train.min_entropy",
    "train.samples", "train.eval_tasks",
    "mesh", "engine", "engine_devices", "model.remat", "model.scan_layers", "rollout.session_seconds",
    "rollout.overlap", "rollout.engines", "judge.base_url", "judge.key_variable", "judge.budget", "judge.timeout",
)  # fmt: skip

FIELDS: tuple[Rule, ...] = (
    *RUN_FIELDS,
    (
        (
            "train.steps", "rollout.slots", "rollout.engines", "rollout.max_calls", "rollout.prompts_per_step",
            "train.updates_per_batch",
        ),
        lambda x: x > 0,
        "must be positive",
    ),
    (
        (
            "rollout.max_tokens", "rollout.token_budget", "train.samples", "train.eval_tasks", "train.dpr_steps",
            "engine_devices", "rollout.episodes",
        ),
        lambda x: x >= 0,
        "must not be negative",
    ),
    (("rollout.session_seconds",), lambda x: 0 < x < math.inf, "must be positive and finite"),
    (("train.max_mismatch",), lambda x: x > 0, "must be positive"),
    (("train.min_entropy",), lambda x: 0 <= x < math.inf, "must be finite and not negative"),
    (("train.max_failed_share",), lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
    (("rollout.group_size",), lambda x: x >= 2, "must be at least 2: an answer's worth is relative to the others'"),
    (("rollout.context",), lambda x: x >= 2, "must be at least 2"),
    (("rollout.samples",), lambda x: x in SAMPLES, f"must be {' or '.join(SAMPLES)}"),
    (("rollout.branches",), lambda x: x in BRANCHES, f"must be {' or '.join(BRANCHES)}"),
    (("start_from",), bool, "must name the workdir of the stage before, or a Hugging Face folder"),
    (("tasks",), bool, "must name at least one source of tasks"),
    (("objective.reference_kl",), lambda x: 0 <= x < math.inf, "must be finite and not negative"),
    (("objective.calibrate_phi",), lambda x: 0 <= x < 1, "must be at least 0 and below 1: a share of the tokens"),
)  # fmt: skip


def check_config(config: RLConfig) -> None:
    """Raises ValueError on what cannot run or would not do what it says, naming field, value and what would do."""
    check_fields(config, FIELDS)
    check_optimizer(config)
    for i, source in enumerate(config.tasks):
        check_tasks(source, f"tasks[{i}]")
        if not source.is_there:  # flags may name another file
            continue
        _check_answers(source, config.reward, f"tasks[{i}]")
        if config.train.eval_tasks and not held_out_of(source, 1):
            raise ValueError(
                f"train.eval_tasks is {config.train.eval_tasks}; {source.path} has no held-out question, which one in "
                "eight is by its text: set it to 0, or add questions"
            )
    check_judge(config.judge)
    _check_efforts(config)
    _check_agent(config)
    _check_updates(config)
    limits_of(config.rollout)
    _check_objective(config)
    _check_corrected(config)
    _check_teachers(config)


def _check_answers(source: TaskSource, reward: str, where: str) -> None:
    """Our rewards pay right answers, and nothing where no answer is known."""
    if source.path and ":" not in reward:
        for task in tasks(source):
            if task.hidden.get("checker") == "none":
                raise ValueError(
                    f'{where}: line {task.seed} of {source.path} has the checker "none", and reward {reward!r} pays '
                    "right answers: give it an answer, or name a reward of your own, module:function"
                )


def limits_of(rollout: RolloutConfig) -> Limits:
    """Raises ValueError on limits that do not go together."""
    if rollout.slots % rollout.engines:
        raise ValueError(f"rollout.engines {rollout.engines} does not divide rollout.slots {rollout.slots}")
    if 0 < rollout.episodes < rollout.slots:
        raise ValueError(
            f"rollout.episodes is {rollout.episodes}, fewer than the {rollout.slots} slots in which they generate: set "
            "it to 0, or to more than rollout.slots where environments take long"
        )
    if rollout.token_budget == 0 and rollout.max_staleness + rollout.max_retention > 0:
        raise ValueError(
            f"rollout.token_budget is 0 with max_staleness {rollout.max_staleness} and max_retention "
            f"{rollout.max_retention}: without a budget nothing is ever paused; name the tokens of a step, such as "
            "prompts_per_step · group_size · an answer's mean length, or set both to 0"
        )
    answers = rollout.prompts_per_step * rollout.group_size
    if 0 < rollout.token_budget < answers:
        raise ValueError(
            f"rollout.token_budget is {rollout.token_budget}, less than a token for each of a step's "
            f"{rollout.prompts_per_step} x {rollout.group_size} answers, so that no batch fills up: set it to {answers}"
            " times the mean length of an answer, or lower prompts_per_step"
        )
    return Limits(
        slots=rollout.under_way,
        prompts_per_step=rollout.prompts_per_step,
        group_size=rollout.group_size,
        token_budget=rollout.token_budget,
        max_staleness=rollout.max_staleness,
        max_retention=rollout.max_retention,
        count=rollout.count,
        refill=rollout.refill,
    )


def _check_efforts(config: RLConfig) -> None:
    check_thinking(config.thinking, config.effort)
    if config.effort and config.efforts:
        raise ValueError(f"effort is {config.effort!r} and efforts {config.efforts}; set one of them")
    for effort in config.efforts:
        if effort not in EFFORT_WEIGHTS:
            raise ValueError(
                f"efforts has {effort!r}{nearest(effort, EFFORT_WEIGHTS)}; expected some of {', '.join(EFFORT_WEIGHTS)}"
            )
    size = config.rollout.group_size
    if config.efforts and (size % len(config.efforts) or size == len(config.efforts)):
        raise ValueError(
            f"rollout.group_size is {size}; the {len(config.efforts)} efforts share it out evenly, two answers or more "
            "each: set it to a multiple"
        )


def _check_agent(config: RLConfig) -> None:
    """What episodes cannot do that a program plays."""
    rollout = config.rollout
    if not rollout.agent:
        if rollout.max_samples > 1:
            raise ValueError(
                f"rollout.samples is {rollout.samples!r} and rollout.branches {rollout.branches!r}, and rollout.agent "
                "is (): only an agent's calls make several samples; name the agent's command"
            )
        return
    for name, found, wanted in (
        ("rollout.engines", rollout.engines, 1),
        ("rollout.overlap", rollout.overlap, False),
        ("rollout.record_experts", rollout.record_experts, False),
        ("efforts", config.efforts, ()),
    ):
        if found != wanted:
            raise ValueError(
                f"{name} is {found} and rollout.agent {rollout.agent}: an agent's calls are answered by one engine, "
                f"between the optimisation steps, as the program asks; set {name} to {wanted}"
            )


def _check_updates(config: RLConfig) -> None:
    """An optimisation step has the same number of places for groups as all others."""
    updates, prompts = config.train.updates_per_batch, config.rollout.prompts_per_step
    if prompts % updates:
        raise ValueError(f"train.updates_per_batch {updates} does not divide rollout.prompts_per_step {prompts}")
    answers = config.rows // updates
    if config.train.microbatches > answers:
        raise ValueError(
            f"train.microbatches is {config.train.microbatches}, and an optimisation step has {answers} answers "
            "(prompts_per_step x group_size / updates_per_batch): a part has one at least"
        )


def objective_settings(objective: ObjectiveConfig, group_size: int) -> dict[str, Any]:
    """The keywords of an objective's loss that are no arrays. Raises ValueError for a wrong name or option."""
    given = {name: value for name, value in dataclasses.asdict(objective.options).items() if value is not None}
    if objective.name in OBJECTIVES and "group_size" in OBJECTIVES[objective.name].keywords:
        given["group_size"] = group_size
    return settings_of(objective.name, given)


def _check_objective(config: RLConfig) -> None:
    objective = config.objective
    try:
        objective_settings(objective, config.rollout.group_size)
    except ValueError as error:
        raise ValueError(f"{error} (--config.objective.options.NAME=VALUE sets an option)") from None
    if not objective.calibrate_phi:
        return
    if "phi" not in OBJECTIVES[objective.name].options:
        raise ValueError(
            f"objective.calibrate_phi is {objective.calibrate_phi}, and {objective.name} has no phi: set it to 0, or "
            "objective.name to 'kpop'"
        )
    if objective.options.phi is not None:
        raise ValueError(
            f"objective.calibrate_phi is {objective.calibrate_phi} and objective.options.phi {objective.options.phi}: "
            "the first chooses the second; set one of them"
        )


def _check_corrected(config: RLConfig) -> None:
    """Stale tokens are off the policy by π_old / π_behaviour: what neither masks nor bounds that ratio must not happen
    by accident."""
    objective, stale = config.objective, config.rollout.max_staleness
    settings = objective_settings(objective, config.rollout.group_size)
    flaw = OBJECTIVES[objective.name].stale_flaw(**settings)
    if stale and flaw and not objective.allow_uncorrected:
        raise ValueError(
            f"objective {objective.name} with {settings} {flaw}, and rollout.max_staleness {stale} lets tokens be drawn"
            " by older weights: take kpop, icepop or tis with finite bounds, set max_staleness to 0, or set "
            "objective.allow_uncorrected to say that this is the experiment"
        )


def _check_teachers(config: RLConfig) -> None:
    name, teachers = config.objective.name, config.teachers
    if (name == "reverse_kl") != bool(teachers):
        advice = "name the teacher of each source of tasks, or one for all" if not teachers else "remove them"
        raise ValueError(f"teachers is {teachers} and objective {name}; only reverse_kl has teachers: {advice}")
    if teachers and len(teachers) not in (1, len(config.tasks)):
        raise ValueError(
            f"teachers has {len(teachers)} names and tasks {len(config.tasks)} sources; name one teacher for each "
            "source, in their order, or one for all"
        )
    for i, teacher in enumerate(teachers):
        if not teacher:
            raise ValueError(f"teachers[{i}] is empty; name a stage's workdir or a Hugging Face folder")
