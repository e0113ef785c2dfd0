"""Tables as files, sound ones and damaged ones, and the Python that reads and writes them in a box."""

import csv
import io
import json
import random
from typing import Any

from ling_jax.envs.workflow.domains import NUMBER, Table

Row = dict[str, Any]
PRELUDE = """import csv, json
def read(path):
    with open(path) as file:
        if path.endswith(".csv"):
            return [{k: int(v) if v.isdigit() else v for k, v in row.items()} for row in csv.DictReader(file)]
        return json.load(file) if path.endswith(".json") else [json.loads(line) for line in file]
def write(path, rows):
    with open(path, "w", newline="") as file:
        if path.endswith(".csv"):
            out = csv.DictWriter(file, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
        else:
            file.write(json.dumps(rows) if path.endswith(".json") else "".join(json.dumps(row) + "\\n" for row in rows))
"""
ENDINGS = (".csv", ".json", ".jsonl")
DAMAGE = 1 / 8  # our choice: the chance that a line is cut off, and that a row stands twice
NUMBERS = (int, str, "{:,}".format, " {} ".format)  # how a damaged file writes one


def text_of(path: str, table: Table) -> str:
    """The content of a file of this name."""
    if path.endswith(".csv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(table.columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.rows)
        return out.getvalue()
    if path.endswith(".jsonl"):
        return "".join(f"{json.dumps(row)}\n" for row in table.rows)
    return json.dumps(table.rows, indent=1) + "\n"


def script(code: str, output: str) -> str:
    """A program that makes `rows` and writes them."""
    return f"{PRELUDE}{code}\nwrite({output!r}, rows)\n"


def damaged(rng: random.Random, table: Table) -> tuple[str, Table]:
    """(JSON lines: some cut off, some rows twice, numbers as text, the table of the last readable line of each row)."""
    key, column = next(iter(table.columns)), table.of(NUMBER)[0]
    lines: list[str] = []
    readable: list[Row] = []
    for row in table.rows:
        earlier = [{**row, column: rng.randint(1, 2000)}] if rng.random() < DAMAGE else []
        for version in (*earlier, row):
            line = json.dumps({**version, column: rng.choice(NUMBERS)(version[column])})
            if rng.random() < DAMAGE:
                lines.append(line[: rng.randint(5, len(line) - 2)])
            else:
                lines.append(line)
                readable.append(version)
    last = {row[key]: i for i, row in enumerate(readable)}
    rows = [row for i, row in enumerate(readable) if last[row[key]] == i]
    return "\n".join(lines) + "\n", Table(table.columns, rows)


def mending(path: str, table: Table) -> tuple[str, str]:
    """(what to do with a damaged file of this table, in words, the Python that does it)."""
    key, column = next(iter(table.columns)), table.of(NUMBER)[0]
    words = (
        f"mend {path}: leave out lines that cannot be read, keep of lines with the same {key} only the last, "
        f"and make {column} a number (some stand as text, such as 1,204)"
    )
    code = f"""rows = []
for line in open({path!r}):
    try:
        rows.append(json.loads(line))
    except ValueError:
        pass
last = {{row[{key!r}]: i for i, row in enumerate(rows)}}
rows = [row for i, row in enumerate(rows) if last[row[{key!r}]] == i]
for row in rows:
    row[{column!r}] = int(str(row[{column!r}]).replace(',', ''))"""
    return words, code
