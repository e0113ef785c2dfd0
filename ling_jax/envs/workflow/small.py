"""Pipelines of one command on a table of three columns, for models of a million parameters that read bytes."""

import random
from typing import Any

SYSTEM = "One awk command on d, columns a b c, to o."
COLUMNS = ("a", "b", "c")
FORMS = (  # words and command; {i} is the place of column {x}
    ("keep {x} over {v}", "awk '${i}>{v}' d>o"),
    ("keep {x} under {v}", "awk '${i}<{v}' d>o"),
    ("sum {y} if {x} over {v}", "awk '${i}>{v}{{s+=${j}}}END{{print s}}' d>o"),
    ("count {x} under {v}", "awk '${i}<{v}{{s++}}END{{print s}}' d>o"),
    ("add {v} to {x}", "awk '{{${i}+={v}}}1' d>o"),
)
ROWS, MAX_VALUE = 12, 999
MAX_TOKENS = 64  # our choice: in bytes, the longest reference has 41


def draw_small(rng: random.Random) -> dict[str, Any]:
    """The fields of a task of one turn, whose text is the command."""
    while True:
        form, (i, j) = rng.randrange(len(FORMS)), rng.sample(range(3), 2)
        table = [[rng.randint(1, MAX_VALUE) for _ in COLUMNS] for _ in range(ROWS)]
        value = rng.randint(1, MAX_VALUE)
        rows = _computed(form, table, i, j, value)
        if rows != table and rows and rows[0]:
            break
    names = {"x": COLUMNS[i], "y": COLUMNS[j], "i": i + 1, "j": j + 1, "v": value}
    words, command = (text.format(**names) for text in FORMS[form])
    content = "".join(" ".join(map(str, row)) + "\n" for row in table)
    return {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}],
        "hidden": {
            "files": {"d": content},
            "outputs": [{"path": "o", "columns": [], "rows": rows}],
            "commands": [command],
            "faults": {},
        },
        "max_tokens": MAX_TOKENS,
        "max_turns": 1,
    }


def _computed(form: int, table: list[list[int]], i: int, j: int, value: int) -> list[list[int]]:
    over, under = ([row for row in table if sign * row[i] > sign * value] for sign in (1, -1))
    if form < 2:
        return (over, under)[form]
    if form == 2:
        return [[sum(row[j] for row in over)]] if over else []
    if form == 3:
        return [[len(under)]] if under else []
    return [[cell + value * (k == i) for k, cell in enumerate(row)] for row in table]
