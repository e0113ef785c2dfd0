"""Who judges answers, and by what: the part of a run's config that `ling_jax.align.judges` reads."""

import dataclasses
import math
import re
from urllib.parse import urlsplit

from ling_jax.messages import nearest

KINDS = ("rules", "engine", "endpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rubric:
    """One dimension of an answer. Without a question the rule of its name judges it, with one the judge model."""

    name: str
    weight: float = 1.0
    question: str = ""  # one line, such as "Does every step follow from the one before?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    kind: str = "rules"  # or "engine", a model in this process; or "endpoint", chat completions as OpenAI has them
    model: str = ""  # engine: a workdir or a Hugging Face folder; endpoint: the name that it serves
    base_url: str = ""  # of an endpoint, such as http://localhost:8000/v1
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the endpoint's key; "": it needs none
    rubrics: tuple[Rubric, ...] = ()  # of reward "preference"; (): those of ling_jax.align.rubrics
    cache: str = ""  # judgements.jsonl of another run: what it has is not asked again
    replay: str = ""  # judgements.jsonl of another run, and nothing is asked at all
    budget: int = 10_000  # questions that a run asks the model; our choice
    timeout: float = 60.0  # seconds that an endpoint has for a question, retries included; our choice
    max_tokens: int = 512  # of a reply

    @property
    def asks(self) -> bool:
        """Whether there is a judge model."""
        return self.kind != "rules"


def check_judge(judge: JudgeConfig) -> None:
    """Raises ValueError on a judge that cannot be asked, naming field, value and what would do."""
    if judge.kind not in KINDS:
        raise ValueError(
            f"judge.kind is {judge.kind!r}{nearest(judge.kind, KINDS)}; expected one of {', '.join(KINDS)}"
        )
    if judge.asks and not judge.model:
        wanted = "the workdir or folder of a model" if judge.kind == "engine" else "the name of a model that it serves"
        raise ValueError(f"judge.kind is {judge.kind!r} and judge.model is ''; set it to {wanted}")
    url = urlsplit(judge.base_url)
    if judge.kind == "endpoint" and (url.scheme not in ("http", "https") or not url.hostname):
        raise ValueError(f"judge.base_url is {judge.base_url!r}; expected a URL such as http://localhost:8000/v1")
    for name in ("budget", "max_tokens"):
        if getattr(judge, name) < 1:
            raise ValueError(f"judge.{name} is {getattr(judge, name)}; it must be at least 1")
    if not 0 < judge.timeout < math.inf:
        raise ValueError(f"judge.timeout is {judge.timeout}; it must be positive, in seconds")
    _check_rubrics(judge)


def _check_rubrics(judge: JudgeConfig) -> None:
    names = [rubric.name for rubric in judge.rubrics]
    for i, rubric in enumerate(judge.rubrics):
        where = f"judge.rubrics[{i}]"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", rubric.name) or names.index(rubric.name) != i:
            raise ValueError(f"{where}.name is {rubric.name!r}; expected a new name of a-z, 0-9 and _")
        if not 0 < rubric.weight < math.inf:
            raise ValueError(f"{where}.weight is {rubric.weight}; it must be positive")
        if rubric.question != " ".join(rubric.question.split()):
            raise ValueError(f"{where}.question is {rubric.question!r}; expected one line without blanks around it")
        if rubric.question and not judge.asks:
            raise ValueError(
                f"{where} has a question and judge.kind is 'rules', which no model answers: set judge.kind to 'engine' "
                "or 'endpoint', or leave the question out"
            )
