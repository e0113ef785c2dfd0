"""What a run of reinforcement learning is: frozen dataclasses, checked before anything is loaded."""

import dataclasses
import functools
import math

from ling_jax.config import nearest
from ling_jax.envs.sources import TaskSource, check_tasks
from ling_jax.rl import staleness, token_budget
from ling_jax.rl.step import make_objective
from ling_jax.train.config import OptimizerConfig

EFFORTS = ("high", "xhigh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    name: str  # of ling_jax.objectives: "grpo", "gspo", "lpo", "icepop", "kpop", "tis"
    options: dict = dataclasses.field(default_factory=dict)  # its keywords; what is not given has its default
    allow_unbounded: bool = False  # importance weights without a bound on stale tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers come about. Defaults where the Ling 2.6 report gives none are those of Ring-1T or our choice."""

    context: int  # tokens of a row: prompt, answers and tool output
    slots: int = 64  # rollouts that generate at once
    group_size: int = 8  # answers to a prompt; Ring-1T report §2.3.4
    prompts_per_step: int = 32  # groups that an optimisation step uses, at most
    max_tokens: int = 0  # that the policy may write in a rollout; 0: what the task says
    token_budget: int = 0  # generated before an optimisation step; 0: until nothing is left to generate
    max_staleness: int = 0  # weight versions; 0: synchronous
    max_retention: int = 0  # how often a rollout may be paused at the budget
    count: str = "generated"  # what the budget counts, and how the pool fills: ling_jax.rl.token_budget
    refill: str = "continuous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    steps: int
    microbatches: int = 1  # of whole groups
    seed: int = 0
    save_every: int = 10
    keep: int = 2  # checkpoints
    max_bad_steps: int = 10  # a run stops after so many that changed nothing
    samples: int = 2  # answers that each step writes to samples.jsonl
    eval_tasks: int = 0  # held-out tasks of each source, answered greedily at the start and at the end
    dpr_steps: int = 0  # draw tasks by their pass rates, which takes a tenth of so many steps for early; 0: uniformly


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig:
    start_from: str  # the workdir of the stage before, or a Hugging Face folder
    tasks: tuple[TaskSource, ...]
    reward: str  # of ling_jax.align.rewards
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    rollout: RolloutConfig
    train: LoopConfig
    efforts: tuple[str, ...] = ()  # thinking efforts that the answers to a prompt share out; (): no word of it

    def __post_init__(self):
        check_config(self)

    @property
    def rows(self) -> int:
        """Of a batch."""
        return self.rollout.prompts_per_step * self.rollout.group_size


# What may differ between a run and its resumption (compare ling_jax.train.config.RESUMABLE).
RESUMABLE = (
    "train.steps", "train.microbatches", "train.save_every", "train.keep", "train.max_bad_steps", "train.samples",
    "train.eval_tasks",
)  # fmt: skip

POSITIVE = (
    "rollout.slots", "rollout.prompts_per_step", "train.steps", "train.microbatches", "train.save_every", "train.keep",
    "train.max_bad_steps", "optimizer.peak_lr", "optimizer.clip_norm",
)  # fmt: skip
NOT_NEGATIVE = (
    "rollout.max_tokens", "rollout.token_budget", "train.seed", "train.samples", "train.eval_tasks", "train.dpr_steps",
    "optimizer.warmup_steps", "optimizer.weight_decay",
)  # fmt: skip


def check_config(config: RLConfig) -> None:
    """Raises ValueError on what cannot run or would not do what it says, naming field, value and what would do."""
    for names, good, wanted in (
        (POSITIVE, lambda x: x > 0, "must be positive"),
        (NOT_NEGATIVE, lambda x: x >= 0, "must not be negative"),
        (("train.seed",), lambda x: x < 2**32, "must be below 2^32"),
        (("rollout.group_size",), lambda x: x >= 2, "must be at least 2: an answer's worth is relative to the others'"),
        (("rollout.context",), lambda x: x >= 2, "must be at least 2"),
        (("start_from",), bool, "must name the workdir of the stage before, or a Hugging Face folder"),
        (("tasks",), bool, "must name at least one source of tasks"),
    ):
        for name in names:
            value = functools.reduce(getattr, name.split("."), config)
            if not good(value):
                raise ValueError(f"{name} is {value!r}; it {wanted}")
    for i, source in enumerate(config.tasks):
        check_tasks(source, f"tasks[{i}]")
    _check_efforts(config)
    _check_microbatches(config)
    budget_of(config.rollout)
    make_objective(config.objective.name, config.rollout.group_size, config.objective.options)
    _check_bounded(config)


def budget_of(rollout: RolloutConfig) -> token_budget.Budget:
    """Raises ValueError on limits that do not go together."""
    if rollout.token_budget == 0 and rollout.max_staleness + rollout.max_retention > 0:
        raise ValueError(
            f"rollout.token_budget is 0 with max_staleness {rollout.max_staleness} and max_retention "
            f"{rollout.max_retention}: without a budget nothing is ever paused; name the tokens of a step, such as "
            "prompts_per_step · group_size · an answer's mean length, or set both to 0"
        )
    return token_budget.Budget(
        tokens=rollout.token_budget or 2**62,
        pool_size=rollout.slots,
        max_retention=rollout.max_retention,
        max_staleness=rollout.max_staleness,
        count=rollout.count,
        refill=rollout.refill,
    )


def limits_of(rollout: RolloutConfig) -> staleness.Limits:
    return staleness.Limits(
        max_concurrent=rollout.slots,
        max_staleness=rollout.max_staleness,
        consumer_batch_size=rollout.prompts_per_step * rollout.group_size,
    )


def _check_efforts(config: RLConfig) -> None:
    for effort in config.efforts:
        if effort not in EFFORTS:
            raise ValueError(f"efforts has {effort!r}{nearest(effort, EFFORTS)}; expected some of {', '.join(EFFORTS)}")
    size = config.rollout.group_size
    if config.efforts and (size % len(config.efforts) or size == len(config.efforts)):
        raise ValueError(
            f"rollout.group_size is {size}; the {len(config.efforts)} efforts share it out evenly, two answers or more "
            "each: set it to a multiple"
        )


def _check_microbatches(config: RLConfig) -> None:
    microbatches, prompts = config.train.microbatches, config.rollout.prompts_per_step
    if prompts % microbatches:
        raise ValueError(f"train.microbatches {microbatches} does not divide rollout.prompts_per_step {prompts}")
    if microbatches > 1 and config.objective.options.get("aggregate") == "token_mean":
        raise ValueError(
            f"train.microbatches is {microbatches}; the mean over the tokens of the whole batch, aggregate "
            "'token_mean', is no sum over microbatches: set it to 1, or take 'seq_mean'"
        )


def _check_bounded(config: RLConfig) -> None:
    """Stale tokens have weights π_old / π_behaviour of any size; what must not happen by accident is that all count."""
    options, stale = config.objective.options, config.rollout.max_staleness
    by_kpop = math.isinf(options.get("phi", 0)) and options.get("kappa") != "one" and not options.get("kappa_cap")
    unbounded = {
        "tis": math.isinf(options.get("cap", 0)),
        "icepop": math.isinf(options.get("beta", 0)),
        "kpop": by_kpop,
    }
    if stale and unbounded.get(config.objective.name, False) and not config.objective.allow_unbounded:
        raise ValueError(
            f"objective {config.objective.name} with {options} has no bound on its importance weights, and "
            f"rollout.max_staleness {stale} makes them of any size: one token can outweigh a batch; give it a bound, "
            "or set objective.allow_unbounded to say that this is the experiment"
        )
