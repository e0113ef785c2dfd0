"""The judge that a config names, checked before any work."""

import os

from etils import epath

from ling_jax.align.judges.endpoint import EndpointJudge
from ling_jax.align.judges.engine import EngineJudge
from ling_jax.align.judges.judge import RULES, Judge
from ling_jax.align.judges.judgements import FILE_NAME, Ask, Judgements, read_judgements
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
    if replay:
        known = read_judgements(os.fspath(record), failures=True)
        return Judge(Judgements(None, model=config.model, budget=config.budget, known=known))
    known = read_judgements(config.cache, failures=False) if config.cache else {}
    known |= read_judgements(config.replay, failures=True) if config.replay else {}
    ask = None if config.replay else _ask(config)
    return Judge(Judgements(ask, model=config.model, budget=config.budget, record=record, known=known))


def _ask(config: JudgeConfig) -> Ask:
    if config.kind == "engine":
        return _engine(config)
    key = os.environ.get(config.key_variable, "") if config.key_variable else ""
    if config.key_variable and not key:
        raise ValueError(
            f"judge.kind is 'endpoint' and the environment has no {config.key_variable} (judge.key_variable): export "
            "the key there, or set judge.key_variable to '' where the endpoint needs none"
        )
    judge = EndpointJudge(config.base_url, config.model, key, timeout=config.timeout, max_tokens=config.max_tokens)
    judge.check()
    return judge


def _engine(config: JudgeConfig) -> EngineJudge:
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
    return EngineJudge(folder, config.max_tokens)
