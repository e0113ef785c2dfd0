"""Kinds of steps: each draws one on the tables that are there, says it in words, computes it, and writes it in Python.

The computed table is what is expected of the step's output. The Python is what the reference solver runs on the files,
so that the two are written twice. A kind that nothing can be drawn for returns None.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ling_jax.envs.workflow.domains import CATEGORY, DATE, KEY, LIST, NUMBER, Table

Row = dict[str, Any]


class Drawn(NamedTuple):
    """A step without the file that it writes."""

    inputs: tuple[str, ...]
    words: str
    code: str  # makes `rows` of the lists of rows that `read(path)` returns
    table: Table


Tables = Mapping[str, Table]  # by path
Kind = Callable[[random.Random, Tables, str], Drawn | None]  # (rng, tables, path of the first one)


def keep(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """Rows by a condition."""
    table = tables[path]
    column = rng.choice(table.of(NUMBER, CATEGORY, DATE) or [""])
    values = sorted(row[column] for row in table.rows) if column else []
    if len(set(values)) < 2:
        return None
    value, kind = rng.choice(values[1:-1] or values), table.columns[column]
    words, sign = rng.choice(
        {
            NUMBER: (("is over", ">"), ("is under", "<"), ("is at least", ">=")),
            DATE: (("is before", "<"), ("is after", ">")),
            CATEGORY: (("is", "=="), ("is not", "!=")),
        }[kind]
    )
    holds = {
        ">": lambda found: found > value,
        "<": lambda found: found < value,
        ">=": lambda found: found >= value,
        "==": lambda found: found == value,
        "!=": lambda found: found != value,
    }[sign]
    return Drawn(
        (path,),
        f"keep the rows of {path} whose {column} {words} {value}",
        f"rows = [row for row in read({path!r}) if row[{column!r}] {sign} {value!r}]",
        Table(table.columns, [row for row in table.rows if holds(row[column])]),
    )


def join(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """A column of another table for each row that has a partner there."""
    table = tables[path]
    found = [
        (other, key, column)
        for other, wanted in tables.items()
        for key in list(wanted.columns)[:1]
        for column in wanted.of(CATEGORY, NUMBER)
        if key in list(table.columns)[1:] and wanted.columns[key] == KEY and column not in table.columns
    ]
    if not found:
        return None
    other, key, column = rng.choice(found)
    values = {row[key]: row[column] for row in tables[other].rows}
    rows = [{**row, column: values[row[key]]} for row in table.rows if row[key] in values]
    code = f"""found = {{row[{key!r}]: row[{column!r}] for row in read({other!r})}}
rows = [dict(row, **{{{column!r}: found[row[{key!r}]]}}) for row in read({path!r}) if row[{key!r}] in found]"""
    words = f"add to each row of {path} the {column} of its {key}, as {other} has it; leave out rows without one there"
    return Drawn((path, other), words, code, Table({**table.columns, column: tables[other].columns[column]}, rows))


def total(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """A number for each group."""
    table = tables[path]
    groups, numbers = table.of(CATEGORY) or table.of(KEY)[1:], table.of(NUMBER)
    if not groups or not numbers:
        return None
    group, column, how = rng.choice(groups), rng.choice(numbers), rng.choice(("sum", "max", "min", "count"))
    members: dict[str, list[int]] = {}
    for row in table.rows:
        members.setdefault(row[group], []).append(row[column])
    value = {"sum": sum, "max": max, "min": min, "count": len}[how]
    name = "count" if how == "count" else f"{how}_{column}"
    rows = [{group: key, name: value(members[key])} for key in sorted(members)]
    say = {"sum": "the sum of", "max": "the largest", "min": "the smallest", "count": "the number of rows"}[how]
    function = "len" if how == "count" else how
    code = f"""found = {{}}
for row in read({path!r}):
    found.setdefault(row[{group!r}], []).append(row[{column!r}])
rows = [{{{group!r}: key, {name!r}: {function}(found[key])}} for key in sorted(found)]"""
    words = f"for each {group} of {path}, in the order of the alphabet, write {group} and {name}, "
    words += say if how == "count" else f"{say} {column}"
    return Drawn((path,), words, code, Table({group: CATEGORY, name: NUMBER}, rows))


def top(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """The first rows by a number."""
    table = tables[path]
    first, numbers = next(iter(table.columns)), table.of(NUMBER)
    if not numbers or len(table.rows) < 3:
        return None
    column, count, up = rng.choice(numbers), rng.randint(2, min(8, len(table.rows) - 1)), rng.random() < 0.5
    sign, which = (1, "smallest") if up else (-1, "largest")
    rows = sorted(table.rows, key=lambda row: (sign * row[column], row[first]))[:count]
    minus = "" if up else "-"
    words = (
        f"write the {count} rows of {path} with the {which} {column}, the {which} first, equal ones by their {first}"
    )
    code = f"rows = sorted(read({path!r}), key=lambda row: ({minus}row[{column!r}], row[{first!r}]))[:{count}]"
    return Drawn((path,), words, code, Table(table.columns, rows))


def convert(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """Another unit, way to write a date, or case, in one column."""
    table = tables[path]
    column = rng.choice(table.of(NUMBER, DATE, CATEGORY) or [""])
    if not column:
        return None
    kind = table.columns[column]
    if kind == NUMBER:
        by = rng.choice((2, 3, 7, 10, 12, 60))
        words, change, text = rng.choice(
            (
                (f"divided by {by}, rounded down", lambda value: value // by, f"row[{column!r}] // {by}"),
                (f"times {by}", lambda value: value * by, f"row[{column!r}] * {by}"),
            )
        )
    elif kind == DATE:
        words, text = "as DD.MM.YYYY", f"'.'.join(reversed(row[{column!r}].split('-')))"
        kind, change = CATEGORY, lambda value: f"{value[8:]}.{value[5:7]}.{value[:4]}"
        if "." in table.rows[0][column]:
            return None
    else:
        words, text, change = "in capital letters", f"row[{column!r}].upper()", lambda value: value.upper()
    code = f"""rows = read({path!r})
for row in rows:
    row[{column!r}] = {text}"""
    rows = [{**row, column: change(row[column])} for row in table.rows]
    words = f"write the rows of {path} with {column} {words}"
    return Drawn((path,), words, code, Table({**table.columns, column: kind}, rows))


def pick(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """Some columns, the first one among them, of which another gets a new name."""
    table = tables[path]
    first, *others = table.columns
    if len(others) < 3:
        return None
    kept = sorted(rng.sample(others, 2), key=others.index)
    new = f"{kept[1]}_new"
    names = {first: first, kept[0]: kept[0], kept[1]: new}
    rows = [{name: row[old] for old, name in names.items()} for row in table.rows]
    code = f"rows = [{{name: row[old] for old, name in {names!r}.items()}} for row in read({path!r})]"
    words = f"write only {first}, {kept[0]} and {kept[1]} of {path}, in this order, the last one renamed {new}"
    return Drawn((path,), words, code, Table({name: table.columns[old] for old, name in names.items()}, rows))


def queue(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """Start and end of rows that wait for each other, by group."""
    table = tables[path]
    first, groups, numbers = next(iter(table.columns)), table.of(CATEGORY), table.of(NUMBER)
    if table.columns[first] != KEY or not groups or not numbers:
        return None
    group, column, free, rows = rng.choice(groups), rng.choice(numbers), {}, []
    for row in table.rows:
        start = free.get(row[group], 0)
        free[row[group]] = start + row[column]
        rows.append({first: row[first], group: row[group], "start": start, "end": start + row[column]})
    code = f"""rows, free = [], {{}}
for row in read({path!r}):
    start = free.get(row[{group!r}], 0)
    end = free[row[{group!r}]] = start + row[{column!r}]
    rows.append({{{first!r}: row[{first!r}], {group!r}: row[{group!r}], 'start': start, 'end': end}})"""
    words = (
        f"plan the rows of {path}: those of one {group} run one after the other, in the order of the file, from 0 on, "
        f"and each takes its {column}; write {first}, {group}, start and end"
    )
    return Drawn((path,), words, code, Table({first: KEY, group: CATEGORY, "start": NUMBER, "end": NUMBER}, rows))


def plan(rng: random.Random, tables: Tables, path: str) -> Drawn | None:
    """The earliest start and end of jobs that wait for others; of whatever table has them."""
    del rng, path
    path = next((path for path, table in tables.items() if table.of(LIST)), "")
    if not path:
        return None
    ends: dict[str, int] = {}
    rows = []
    for row in tables[path].rows:
        start = max((ends[name] for name in row["after"].split()), default=0)
        ends[row["job"]] = start + row["minutes"]
        rows.append({"job": row["job"], "start": start, "end": ends[row["job"]]})
    code = f"""rows, ends = [], {{}}
for row in read({path!r}):
    start = max([ends[name] for name in row['after'].split()], default=0)
    ends[row['job']] = start + row['minutes']
    rows.append({{'job': row['job'], 'start': start, 'end': ends[row['job']]}})"""
    words = (
        f"plan the jobs of {path}: each starts as soon as all jobs named in its after have ended, the others at 0; "
        "write job, start and end in minutes"
    )
    return Drawn((path,), words, code, Table({"job": KEY, "start": NUMBER, "end": NUMBER}, rows))


KINDS: dict[str, Kind] = {
    "keep": keep, "join": join, "total": total, "top": top, "convert": convert, "pick": pick, "queue": queue,
    "plan": plan,
}  # fmt: skip
