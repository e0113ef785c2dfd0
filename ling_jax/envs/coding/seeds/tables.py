"""Tables as lists of records that all have the same fields."""


def read(text, separator=","):
    """Records of lines, of which the first names the fields; whole numbers become ints."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    names = [name.strip() for name in lines[0].split(separator)]
    records = []
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != len(names):
            raise ValueError(f"line {number} has {len(cells)} cells; expected {len(names)}")
        records.append({name: _cell(cell) for name, cell in zip(names, cells, strict=True)})
    return records


def _cell(text):
    return int(text) if text.lstrip("-").isdigit() else text


def where(records, **wanted):
    """The records whose fields have these values; a function decides by itself."""
    found = []
    for record in records:
        tests = (value(record[name]) if callable(value) else record[name] == value for name, value in wanted.items())
        if all(tests):
            found.append(record)
    return found


def order_by(records, *names):
    """Sorted by these fields; a - in front of a name turns its order around."""
    ordered = list(records)
    for name in reversed(names):
        ordered.sort(key=lambda record: record[name.lstrip("-")], reverse=name.startswith("-"))
    return ordered


def group_by(records, name):
    """{value: records that have it}, in the order in which values come first."""
    groups = {}
    for record in records:
        groups.setdefault(record[name], []).append(record)
    return groups


def summary(records, name, of):
    """(value, count, sum, least, largest) of field `of` for each value of field `name`, sorted by value."""
    lines = []
    for value, group in sorted(group_by(records, name).items()):
        numbers = [record[of] for record in group]
        lines.append((value, len(numbers), sum(numbers), min(numbers), max(numbers)))
    return lines


def join(left, right, name):
    """Each pair of records with the same value in a field, as one record; the left one's fields win."""
    matches = group_by(right, name)
    return [{**other, **record} for record in left for other in matches.get(record[name], [])]


def distinct(records, *names):
    """The first record of each combination of these fields."""
    seen, kept = set(), []
    for record in records:
        key = tuple(record[name] for name in names)
        if key not in seen:
            seen.add(key)
            kept.append(record)
    return kept


def top(records, name, count):
    """The records with the largest values in a field, also those that tie with the last."""
    ordered = order_by(records, f"-{name}")
    if count <= 0:
        return []
    if len(ordered) <= count:
        return ordered
    least = ordered[count - 1][name]
    return [record for record in ordered if record[name] >= least]
