"""One model learns from two specialists, each in its own domain: sums and orderings.

python -m launch.distill --config=configs/align/tiny_specialists.py --workdir=runs/specialists
"""

from configs.align import tiny_shortest_correct


def get_config():
    config = tiny_shortest_correct.get_config()
    sums = config.teachers[0] | {"model": "runs/sums"}
    orderings = {"environment": "ordering", "difficulties": (2, 3), "count": 512}
    config.teachers = (sums, {"model": "runs/orderings", "tasks": (orderings,)})
    return config
