"""Shortest correct answers in `make demo`: the model of Evo-CoT learns the shortest of its own right answers.

python -m launch.distill --config=configs/demo/shortest_correct.py --workdir=runs/demo/shortest_correct

512 held-out sums, one seed: 87 % -> 91 % right, 34.7 -> 34.3 tokens an answer.
"""

from configs.align import tiny_shortest_correct


def get_config(folder="runs/demo"):
    config = tiny_shortest_correct.get_config()
    config.start_from = f"{folder}/evo_cot"
    tasks = ({"environment": "digit_sums", "difficulties": (3, 4, 5), "count": 512, "seed": 20_000},)
    config.teachers = ({"model": f"{folder}/evo_cot", "tasks": tasks},)
    config.sampling.context = 120
    config.sampling.max_tokens = 88
    config.sampling.per_query = 4
    config.data.sequence_length = 144
    config.train.steps = 30
    config.samples = 0  # launch.demo asks all stages the same questions
    return config
