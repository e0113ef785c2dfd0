"""The judge that a config names, checked before any work."""

import functools
import os
from collections.abc import Iterable

from etils import epath

from ling_jax.align.judges.endpoint import EndpointJudge
from ling_jax.align.judges.engine import EngineJudge
from ling_jax.align.judges.judge import RULES, Judge
from ling_jax.align.judges.judgements import FILE_NAME, Ask, Judgement, Judgements, read_judgements
from ling_jax.checkpoint.folder import open_model
from ling_jax.paths import as_path
from ling_jax.rl.judge_config import JudgeConfig


def make_judge(config: JudgeConfig, workdir: epath.PathLike, *, replay: bool = False) -> Judge:
    """The judge of a run in this workdir, whose file judgements.jsonl gets all that a model says.

    `replay`: of the run that is there, by that file alone. Raises ValueError or OSError, before anything is loaded, on
    a model that is not there, an endpoint without its key, or one that cannot be reached.
    """
    if not config.asks:
        return RULES
    record = as_path(workdir) / FILE_NAME
    model = functools.partial(Judgements, model=config.model, budget=config.budget)
    if replay:
        return Judge(model(None, known=_by_key(read_judgements(record))))
    cached = [line for line in read_judgements(config.cache) if not line.error] if config.cache else []
    if config.replay:
        return Judge(model(None, record=record, known=_by_key(cached + read_judgements(config.replay))))
    ask, step = _model(config)
    known = _by_key(line for line in cached if line.step == step)
    return Judge(model(ask, step=step, record=record, known=known))


def _by_key(lines: Iterable[Judgement]) -> dict[str, Judgement]:
    return {line.key: line for line in lines}


def _model(config: JudgeConfig) -> tuple[Ask, int | None]:
    """What is asked, and its checkpoint where it is a workdir."""
    if config.kind == "engine":
        return _engine(config)
    return _endpoint(config), None


def _endpoint(config: JudgeConfig) -> EndpointJudge:
    key = os.environ.get(config.key_variable, "") if config.key_variable else ""
    if config.key_variable and not key:
        raise ValueError(
            f"judge.kind is 'endpoint' and the environment has no {config.key_variable} (judge.key_variable): export "
            "the key there, or set judge.key_variable to '' where the endpoint needs none"
        )
    judge = EndpointJudge(config.base_url, config.model, key, timeout=config.timeout, max_tokens=config.max_tokens)
    judge.check()
    return judge


def _engine(config: JudgeConfig) -> tuple[EngineJudge, int | None]:
    try:
        folder = open_model(config.model)
        folder.end_ids  # noqa: B018  refuses a model without an end token
    except (ValueError, OSError) as error:
        raise type(error)(f"judge.model: {error}") from None
    if config.max_tokens >= folder.config.max_length:
        raise ValueError(
            f"judge.max_tokens is {config.max_tokens}; the context of {config.model} has {folder.config.max_length} "
            "tokens, for question and reply"
        )
    return EngineJudge(folder, config.max_tokens), folder.step
