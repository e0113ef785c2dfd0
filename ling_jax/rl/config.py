"""What a run of reinforcement learning is: frozen dataclasses, checked before anything is loaded."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from ling_jax.chat.thinking import check_thinking
from ling_jax.config import nearest
from ling_jax.envs.sources import TaskSource, check_tasks, held_out_of, tasks
from ling_jax.rewards.length import EFFORT_WEIGHTS
from ling_jax.rl.ledger import Limits
from ling_jax.rl.step import make_objective
from ling_jax.train.config import HANG, OptimizerConfig, Rule, check_fields, check_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    name: str  # of ling_jax.objectives: "grpo", "gspo", "lpo", "icepop", "kpop", "tis"
    options: dict = dataclasses.field(default_factory=dict)  # its keywords; what is not given has its default
    allow_uncorrected: bool = False  # stale tokens with weights of 1, or with weights of any size


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers come about. Defaults where the Ling 2.6 report gives none are those of Ring-1T or our choice."""

    context: int  # tokens of a row: prompt, answers and tool output
    slots: int = 64  # rollouts that generate at once
    group_size: int = 8  # answers to a prompt; Ring-1T report §2.3.4
    prompts_per_step: int = 32  # groups that an optimisation step uses, at most
    max_tokens: int = 0  # that the policy may write in a rollout; 0: what the task says
    token_budget: int = 0  # generated before an optimisation step, unless its batch is full; 0: until it is
    max_staleness: int = 0  # weight versions; 0: synchronous
    max_retention: int = 0  # how often a rollout may be paused at the budget
    session_seconds: float = 600.0  # for an opening and for each action of an environment's session; our choice
    count: str = "generated"  # what the budget counts, and how slots fill: ling_jax.rl.ledger
    refill: str = "continuous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    steps: int
    microbatches: int = 1  # of whole groups
    seed: int = 0
    save_every: int = 10
    keep: int = 2  # checkpoints
    max_nonfinite_steps: int = 10  # a run stops after so many that changed nothing
    max_failed_share: float = 0.5  # of the last rollouts, lost to environments and machinery: more ends the run (ours)
    hang_seconds: float = 1800.0  # the run ends where nothing is generated or learnt in so many (our choice); 0: never
    samples: int = 2  # answers that each step writes to samples.jsonl
    eval_tasks: int = 0  # held-out tasks of each source, answered greedily at the start and at the end
    eval_every: int = 0  # also after every so many steps; 0: not
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

    def __post_init__(self):
        check_config(self)

    @property
    def rows(self) -> int:
        """Of a batch."""
        return self.rollout.prompts_per_step * self.rollout.group_size


# What may differ between a run and its resumption (compare ling_jax.train.config.RESUMABLE).
RESUMABLE = (
    "train.steps", "train.microbatches", "train.save_every", "train.keep", "train.max_nonfinite_steps",
    "train.max_failed_share", "train.hang_seconds", "train.samples", "train.eval_tasks", "train.eval_every",
    "rollout.session_seconds",
)  # fmt: skip

FIELDS: tuple[Rule, ...] = (
    (
        (
            "rollout.slots", "rollout.prompts_per_step", "train.steps", "train.microbatches", "train.save_every",
            "train.keep", "train.max_nonfinite_steps",
        ),
        lambda x: x > 0,
        "must be positive",
    ),
    (
        (
            "rollout.max_tokens", "rollout.token_budget", "train.seed", "train.samples", "train.eval_tasks",
            "train.eval_every", "train.dpr_steps",
        ),
        lambda x: x >= 0,
        "must not be negative",
    ),
    (("train.seed",), lambda x: x < 2**32, "must be below 2^32"),
    (("rollout.session_seconds",), lambda x: 0 < x < math.inf, "must be positive and finite"),
    HANG,
    (("train.max_failed_share",), lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
    (("rollout.group_size",), lambda x: x >= 2, "must be at least 2: an answer's worth is relative to the others'"),
    (("rollout.context",), lambda x: x >= 2, "must be at least 2"),
    (("start_from",), bool, "must name the workdir of the stage before, or a Hugging Face folder"),
    (("tasks",), bool, "must name at least one source of tasks"),
)  # fmt: skip
# Options of objectives that are no choice by name.
POSITIVE_OPTIONS = ("clip", "clip_low", "clip_high", "phi", "alpha", "beta", "cap", "kappa_cap")


def check_config(config: RLConfig) -> None:
    """Raises ValueError on what cannot run or would not do what it says, naming field, value and what would do."""
    check_fields(config, FIELDS)
    check_optimizer(config)
    for i, source in enumerate(config.tasks):
        check_tasks(source, f"tasks[{i}]")
        _check_answers(source, config.reward, f"tasks[{i}]")
        if config.train.eval_tasks and not held_out_of(source, 1):
            raise ValueError(
                f"train.eval_tasks is {config.train.eval_tasks}; {source.path} has no held-out question, which one in "
                "eight is by its text: set it to 0, or add questions"
            )
    _check_efforts(config)
    _check_microbatches(config)
    limits_of(config.rollout)
    _check_objective(config)
    _check_corrected(config)


def _check_answers(source: TaskSource, reward: str, where: str) -> None:
    """Our rewards pay right answers, and nothing where no answer is known."""
    if source.path and ":" not in reward:
        for task in tasks(source):
            if task.hidden["checker"] == "none":
                raise ValueError(
                    f'{where}: line {task.seed} of {source.path} has the checker "none", and reward {reward!r} pays '
                    "right answers: give it an answer, or name a reward of your own, module:function"
                )


def limits_of(rollout: RolloutConfig) -> Limits:
    """Raises ValueError on limits that do not go together."""
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
        slots=rollout.slots,
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


def _check_microbatches(config: RLConfig) -> None:
    microbatches, prompts = config.train.microbatches, config.rollout.prompts_per_step
    if prompts % microbatches:
        raise ValueError(f"train.microbatches {microbatches} does not divide rollout.prompts_per_step {prompts}")
    if microbatches > 1 and config.objective.options.get("aggregate") == "token_mean":
        raise ValueError(
            f"train.microbatches is {microbatches}; the mean over the tokens of the whole batch, aggregate "
            "'token_mean', is no sum over microbatches: set it to 1, or take 'seq_mean'"
        )


def _check_objective(config: RLConfig) -> None:
    name, options, size = config.objective.name, config.objective.options, config.rollout.group_size
    objective = make_objective(name, size, options)
    if "group_size" in options:
        raise ValueError(f"objective.options.group_size is {options['group_size']}; rollout.group_size, {size}, is it")
    for option, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        absent = option == "kappa_cap" and value is None
        if option in POSITIVE_OPTIONS and not absent and not (is_number and value > 0):
            raise ValueError(f"objective.options.{option} is {value!r}; it must be a positive number")
    if not isinstance(options.get("symmetric", True), bool):
        raise ValueError(f"objective.options.symmetric is {options['symmetric']!r}; it must be True or False")
    array = functools.partial(jax.ShapeDtypeStruct, (size, 2))
    logps, advantages = array(jnp.float32), jax.ShapeDtypeStruct((size,), jnp.float32)
    per_token = dict(sentence_ids=array(jnp.int32), entropies=logps)
    jax.eval_shape(objective, logps, logps, logps, advantages, array(bool), **per_token)  # refuses unknown choices


def _check_corrected(config: RLConfig) -> None:
    """Stale tokens are off the policy by π_old / π_behaviour, and one optimisation step has old = policy: what neither
    masks nor bounds that ratio must not happen by accident. KPop's phi bounds a divergence and not the ratio: a rare
    token may still weigh thousands (`kappa_cap` bounds it); only without a mask it is caught here."""
    options, name, stale = config.objective.options, config.objective.name, config.rollout.max_staleness
    no_mask = math.isinf(options.get("phi", 0)) and options.get("kappa") != "one" and not options.get("kappa_cap")
    wrong = {
        "grpo": "does not look at the policy that drew a token",
        "gspo": "does not look at the policy that drew a token",
        "lpo": "does not look at the policy that drew a token",
        "tis": math.isinf(options.get("cap", 0)) and "has no bound on its importance weights",
        "icepop": math.isinf(options.get("beta", 0)) and "has no bound on its importance weights",
        "kpop": no_mask and "has no bound on its importance weights",
    }[name]
    if stale and wrong and not config.objective.allow_uncorrected:
        raise ValueError(
            f"objective {name} with {options} {wrong}, and rollout.max_staleness {stale} lets tokens be drawn by older "
            "weights: take kpop, icepop or tis with finite bounds, set max_staleness to 0, or set "
            "objective.allow_uncorrected to say that this is the experiment"
        )
