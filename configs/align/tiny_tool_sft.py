"""Tool use out of rollouts: a model learns the conversations in which a teacher called a tool and was right.

python -m launch.distill --config=configs/align/tiny_tool_sft.py --workdir=runs/tool_sft --config.start_from=runs/sft
"""

from configs.align import tiny_shortest_correct


def get_config():
    config = tiny_shortest_correct.get_config()
    lookups = {"environment": "lookup", "difficulties": (1, 2), "count": 512}
    config.teachers = ({"model": "runs/agentic", "tasks": (lookups,)},)
    config.sampling.context = 384
    config.sampling.max_tokens = 200
    config.data.sequence_length = 384
    return config
