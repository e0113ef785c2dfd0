"""The rubrics of preference alignment. All of it is our choice: the report (Ling 2.6, §3.1.3) lists none."""

from ling_jax.rl.judge_config import JudgeConfig, Rubric

# Right answers count as much as the four others together.
RULE_RUBRICS = (
    Rubric(name="correct", weight=4.0),
    Rubric(name="shows_steps"),
    Rubric(name="no_repeats"),
    Rubric(name="ends_cleanly"),
    Rubric(name="brief"),
)
# What the report asks of answers: informative, within the constraints; no logical errors, hallucinations, verbosity.
MODEL_RUBRICS = (
    Rubric(name="correct", weight=4.0),
    Rubric(name="informative", question="Does the answer give what the prompt asks for, completely?"),
    Rubric(name="logical", question="Does every step follow from the one before, without an error?"),
    Rubric(name="grounded", question="Is everything that it states true, with nothing made up?"),
    Rubric(name="concise", question="Is it dense, without formulas of politeness, repetition and padding?"),
)


def rubrics_of(judge: JudgeConfig) -> tuple[Rubric, ...]:
    """Those that the config names, else those that go with its kind of judge."""
    return judge.rubrics or (MODEL_RUBRICS if judge.asks else RULE_RUBRICS)
