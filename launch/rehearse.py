"""Writes an environment's tasks with their solutions, some of them with planted mistakes.

    python -m launch.rehearse --environment=toolkits --form=texts --count=6000 --seed=500000 --mistakes=0.25 \
        --out=mine/toolkits_texts.jsonl
    python -m launch.rehearse --environment=toolkits --form=chats --count=2500 --seed=200000 --mistakes=0.5 \
        --out=mine/toolkits_chats.jsonl

A model that has read them does some of the tasks, and not all: it has something to learn by trial. Form texts is a line
{"text"} for each task, to pre-train on, form chats a line {"messages", "tools"}, to fine-tune on. A mistake is one that
the environment's solution makes at its `error_rate`, or else all the turns of another task. No task is held out.
"""

from absl import flags

from launch.flags import check_output, run_program, usage_errors
from launch.sandboxed import start_sandbox
from ling_jax.align.records import texts, write_records
from ling_jax.align.rehearsals import rehearsals
from ling_jax.envs import environment
from ling_jax.envs.sources import TaskSource, check_tasks

ENVIRONMENT = flags.DEFINE_string("environment", None, "that makes the tasks, such as toolkits", required=True)
DIFFICULTY = flags.DEFINE_integer("difficulty", None, "of the tasks; the lowest if not given", lower_bound=0)
FORM = flags.DEFINE_enum("form", None, ["texts", "chats"], "of the lines", required=True)
COUNT = flags.DEFINE_integer("count", 1000, "tasks", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the first task; the next ones count up", lower_bound=0)
MISTAKES = flags.DEFINE_float("mistakes", 0.0, "share of the tasks", lower_bound=0.0, upper_bound=1.0)
OUT = flags.DEFINE_string("out", None, "file of JSON lines", required=True)


def main() -> None:
    with usage_errors():
        check_output("out", OUT.value)
        source = tasks_of_flags()
        start_sandbox([source.environment])
        found = rehearsals(source, MISTAKES.value)
        count = write_records(texts(found) if FORM.value == "texts" else found, OUT.value)
    print(f"{count} {FORM.value} of {source.environment} in {OUT.value}", flush=True)


def tasks_of_flags() -> TaskSource:
    """The tasks, checked. Raises ValueError where an environment makes none, or knows no solutions."""
    env = environment(ENVIRONMENT.value)
    if env.solution is None:
        raise ValueError(f"--environment={ENVIRONMENT.value} has no solution(task) to write")
    difficulty = env.DIFFICULTIES[0] if DIFFICULTY.value is None else DIFFICULTY.value
    source = TaskSource(environment=ENVIRONMENT.value, difficulties=(difficulty,), count=COUNT.value, seed=SEED.value)
    check_tasks(source, "tasks")
    return source


if __name__ == "__main__":
    run_program(main)
