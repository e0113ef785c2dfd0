"""Two specialists become one model in `make demo`: it learns the shortest right answers of each in its own domain.

python -m launch.distill --config=configs/demo/specialists.py --workdir=runs/demo/specialists

Held-out tasks, one seed: sums 91 % -> 92 % right, lookups 71 % -> 100 % without superfluous calls, searches
87 % -> 94 %, functions 72 % -> 66 %; the agentic teacher had 82 % of the functions right.
"""

from configs.demo import shortest_correct


def get_config(folder="runs/demo"):
    config = shortest_correct.get_config(folder)
    config.start_from = f"{folder}/shortest_correct"
    sums = {"environment": "digit_sums", "difficulties": (3, 4, 5), "count": 300, "seed": 40_000}
    lookups = {"environment": "lookup", "difficulties": (2,), "count": 350, "seed": 40_000}
    searches = {"environment": "search", "difficulties": (1,), "count": 100, "seed": 40_000}
    functions = {"environment": "functions", "difficulties": (1,), "count": 80, "seed": 50_000}
    config.teachers = (
        {"model": f"{folder}/shortest_correct", "tasks": (sums,)},
        {"model": f"{folder}/agentic", "tasks": (lookups, searches, functions)},
    )
    config.sampling.context = 144
    config.sampling.max_tokens = 88
    config.sampling.per_query = 2
    config.train.steps = 40
    return config
