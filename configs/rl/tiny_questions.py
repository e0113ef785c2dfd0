"""Word problems with checked answers: KPop on a file of GSM8K's form, 64 questions that are shipped or one's own.

python -m launch.rl --config=configs/rl/tiny_questions.py --workdir=runs/questions --config.start_from=runs/sft \
    --config.tasks[0].path=gsm8k/train.jsonl --config.rollout.context=1024 --config.rollout.max_tokens=512

A file has JSON lines {"prompt": text, "answer": text or number}, or GSM8K's {"question", "answer": a solution that ends
in #### and the answer}; docs/own_tasks.md has all forms. An answer that lists, hedges or keeps the checker busy is
wrong; one that the machine kept from a verdict is left out and counted as `infra_failed`.
"""

import dataclasses
from pathlib import Path

from configs.rl import tiny_kpop
from ling_jax.envs.sources import TaskSource

QUESTIONS = Path(__file__).with_suffix(".jsonl")


def get_config():
    config = tiny_kpop.get_config()
    config.tasks = (dataclasses.asdict(TaskSource(environment="questions", path=str(QUESTIONS))),)
    config.train.eval_tasks = 8  # one question in eight is held out
    return config
