"""Judges: rules, a model in this process or an endpoint; one interface, `Judge`."""

from ling_jax.align.judges.cases import Answer as Answer
from ling_jax.align.judges.cases import Case as Case
from ling_jax.align.judges.cases import Judged as Judged
from ling_jax.align.judges.cases import case_of as case_of
from ling_jax.align.judges.judge import RULES as RULES
from ling_jax.align.judges.judge import Judge as Judge
from ling_jax.align.judges.make import make_judge as make_judge
