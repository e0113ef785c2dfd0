"""Whether files hold what they should, read from their bytes. The standard library is enough, since tasks carry it.

As a program it is the verifier of an exported task: request.json beside it lists the outputs, and the reward goes to
/logs/verifier/reward.json. No code of whoever is judged runs.
"""

import csv
import io
import json
import os

MAX_BYTES = 1 << 20  # of a file
HERE = os.path.dirname(os.path.abspath(__file__))
REWARD = "/logs/verifier/reward.json"


def main():
    with open(os.path.join(HERE, "request.json")) as file:
        outputs = json.load(file)["outputs"]
    right = sum(not what_is_wrong(output, content_of(output["path"])) for output in outputs)
    with open(REWARD, "w") as file:
        json.dump({"reward": float(right == len(outputs)), "steps": right / len(outputs)}, file)


def content_of(path):
    """The bytes of a plain file below the working directory; None where there is none."""
    if not os.path.isfile(path) or os.path.islink(path) or os.path.getsize(path) > MAX_BYTES:
        return None
    with open(path, "rb") as file:
        return file.read()


def what_is_wrong(output, content):
    """What is wrong with the content of an output, {"path", "columns", "rows"}, in words; "" where it is right."""
    path, columns, expected = output["path"], output["columns"], output["rows"]
    if content is None:
        return f"{path} is not there"
    try:
        rows = read_rows(path, content, columns)
    except (ValueError, RecursionError, csv.Error) as error:
        return f"{path} cannot be read: {str(error)[:200]}"
    if len(rows) != len(expected):
        return f"{path} has {len(rows)} rows; expected {len(expected)}"
    for number, (row, right) in enumerate(zip(rows, expected), 1):  # noqa: B905 (they are as many)
        right = right if path.endswith((".json", ".jsonl")) else [str(value) for value in right]
        if len(row) != len(right) or any(type(a) is not type(b) or a != b for a, b in zip(row, right)):  # noqa: B905
            return f"{path}: row {number} is not as expected"
    return ""


def read_rows(path, content, columns):
    """The rows of a file by its ending: .csv with a header, .json and .jsonl of objects, else cells between blanks."""
    text = content.decode()
    if path.endswith(".csv"):
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        if not lines or lines[0] != columns:
            header = ",".join(lines[0]) if lines else "missing"
            raise ValueError(f"the header is {header}; expected {','.join(columns)}")
        return [line for line in lines[1:] if line]
    if not path.endswith((".json", ".jsonl")):
        return [line.split() for line in text.splitlines()]
    rows = [json.loads(line) for line in text.split("\n") if line.strip()] if path.endswith("l") else json.loads(text)
    if not isinstance(rows, list) or any(not isinstance(row, dict) or set(row) != set(columns) for row in rows):
        raise ValueError(f"it holds no objects of {', '.join(columns)}")
    return [[row[name] for name in columns] for row in rows]


if __name__ == "__main__":
    main()
