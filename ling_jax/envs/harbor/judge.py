"""The verifier of an exported task: tests/judge.py, which tests/test.sh runs. It needs Python alone.

Beside it stand request.json, what `ling_jax.envs.coding.verdict` asks, and verify.py, the program that runs foreign
code in children. All are removed before any of that code runs, so that it cannot read what is expected of it. The
verdict is that of `verdict`: {"reward": 1 or 0, "tests": the share that passed} in reward.json.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
REWARD = "/logs/verifier/reward.json"
MAX_BYTES = 1 << 20  # of a file that is judged
IGNORED = {"tests", "__pycache__", ".git", ".root", "conftest.py", "sitecustomize.py", "usercustomize.py"}


def main():
    with open(os.path.join(HERE, "request.json")) as file:
        request = json.load(file)
    with open(os.path.join(HERE, "verify.py")) as file:
        program = file.read()
    for name in os.listdir(HERE):
        os.remove(os.path.join(HERE, name))
    expected = request.pop("expected", None)
    with tempfile.TemporaryDirectory() as folder:
        if expected is None:
            copy_sources(os.getcwd(), folder)
        else:
            request["source"] = text_of(request.pop("answer"))
        report = reported(program, request, folder)
    passed = judged(report, request, expected)
    with open(REWARD, "w") as file:
        json.dump({"reward": float(all(passed)), "tests": sum(passed) / len(passed)}, file)


def copy_sources(work, target):
    """Copies the Python sources of the work folder without tests and what an interpreter reads by itself."""
    for here, folders, names in os.walk(work):
        folders[:] = [name for name in folders if name not in IGNORED]
        for name in names:
            path = os.path.join(here, name)
            if name.endswith(".py") and name not in IGNORED and is_plain(path):
                there = os.path.join(target, os.path.relpath(path, work))
                os.makedirs(os.path.dirname(there), exist_ok=True)
                shutil.copyfile(path, there)


def is_plain(path):
    return os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) <= MAX_BYTES


def text_of(path):
    """The text of an answer; "" where there is none."""
    if not is_plain(path):
        return ""
    with open(path, errors="replace") as file:
        return file.read()


def reported(program, request, folder):
    """What the program reports of the foreign code; None where that is no report."""
    body, nonce = json.dumps(request).encode(), secrets.token_hex(16).encode()
    command = [sys.executable, "-I", "-S", "-B", "-c", program]
    stdin = b"%08d" % len(body) + body + nonce
    try:
        ran = subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, cwd=folder, timeout=request["seconds"] + 30, check=False
        )
        line, end = ran.stdout.split(b"\n")
        return json.loads(line[len(nonce) + 1 :])["report"] if line.startswith(nonce + b" ") and not end else None
    except (subprocess.TimeoutExpired, ValueError, LookupError, RecursionError, TypeError):
        return None


def judged(report, request, expected):
    """Whether each test passed, or each call returned what it had to."""
    report = report if isinstance(report, list) else []
    if expected is None:
        passed = [status == "passed" for status in report]
        return passed if len(passed) == len(request["tests"]) else [False] * len(request["tests"])
    found = [*report, *[None] * len(expected)]
    return [one == ["value", value] and same(one[1], value) for one, value in zip(found, expected)]  # noqa: B905


def same(a, b):
    """Whether two JSON values are equal, with the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


if __name__ == "__main__":
    main()
