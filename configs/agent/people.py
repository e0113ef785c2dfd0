"""A directory of people, and the tool that reads it: what the agent of `agent.py` has."""

import random

NAMES = (
    "nia", "dan", "eve", "bob", "kim", "lee", "sam", "tom", "amy", "ben", "cal", "dot", "eli", "fay", "gus", "hal",
    "ida", "jan", "kay", "leo", "mia", "ned", "ola", "pam",
)  # fmt: skip
LOOK_UP = {"name": "look_up", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": LOOK_UP}]


def directory(seed):
    """{name: code} of a task."""
    rng = random.Random(seed)
    return {name: str(rng.randrange(10, 100)) for name in NAMES}


def look_up(people, name):
    """What the directory says of a person."""
    return f"code {people[name]}" if name in people else "nobody"
