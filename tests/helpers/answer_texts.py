"""Random and adversarial answers of a model, for the parser of tool calls, and the laws that hold for each of them.

    python -m tests.helpers.answer_texts --seconds=600

2 CPU cores: prints how many texts were tried, and the slowest of the texts of 1 MB.
"""

import argparse
import gc
import json
import random
import time
from collections.abc import Iterator

from ling_jax.chat.tool_calls import Parsed, parse_either, split_answer

TOOLS = [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}}}]
MARKS = [f"<{end}{name}>" for name in ("tool_call", "arg_key", "arg_value", "think") for end in ("", "/")]
WHOLE = [
    "<tool_call>f</tool_call>",
    "<tool_call>f<arg_key>a</arg_key>\n<arg_value>12</arg_value><arg_key>b</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    '<tool_call>\n{"name": "f", "arguments": {"a": "</think>", "b": [1, {"c": null}]}}\n</tool_call>',
    "<think>r</think>",
]
BITS = [
    "f",
    "a",
    " ",
    "\n",
    "é",
    "\U0001f600",
    "\0",
    "12",
    '"',
    '\\"',
    "\\",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    "[]",
    ":",
    ",",
]
BITS += [
    "<",
    "</",
    "<tool_",
    "<arg_",
    "</arg_valu",
    '"name"',
    '"arguments"',
    '{"name": "f"',
    "NaN",
    "1e999",
    "9" * 5000,
]
UNITS = [
    *MARKS,
    *WHOLE,
    *BITS,
    "<tool_call>{",
    '<tool_call>{"',
    '<tool_call>{"a":',
    '<tool_call>{\\"',
    "<tool_call>\n",
    "<arg_key>a</arg_key><arg_value>",
    "<arg_key>a</arg_key><arg_value>v</arg_value>",
    "<tool_call>f<arg_key>a</arg_key><arg_value>",
    '<tool_call>{"name":"f"}</tool_call>',
    '{"a":',
    '","',
    "[[]]",
    "\\u0041",
]
SETTINGS = [  # what may stand before and behind a long repetition
    ("", ""),
    ("<think>", ""),
    ("<tool_call>f", "</tool_call>"),
    ("<tool_call>f<arg_key>a</arg_key><arg_value>", "</arg_value></tool_call>"),
    ("<tool_call>f<arg_key>c</arg_key><arg_value>[", "]</arg_value></tool_call>"),
    ('<tool_call>{"name":"f","arguments":{"a":[', "]}}</tool_call>"),
    ('<tool_call>{"name":"f","arguments":{"a":"', '"}}</tool_call>'),
]


def check_laws(text: str) -> Parsed:
    """Parses the text; raises AssertionError unless its spans stand side by side and hold what the parser returns."""
    spans = list(split_answer(text, [], TOOLS))
    edges = [edge for span in spans for edge in (span.start, span.stop)]
    assert edges[0] == 0 and edges[-1] == len(text) and edges[1:-1:2] == edges[2:-1:2], "spans have a gap or overlap"
    parsed = parse_either(text, TOOLS)
    parts = {
        kind: [text[s.start : s.stop] for s in spans if s.kind == kind] for kind in ("content", "reasoning", "mark")
    }
    assert parsed.content == "".join(parts["content"])
    assert (parsed.reasoning or "") == "".join(parts["reasoning"])
    assert all(part.strip() in ("<think>", "</think>") for part in parts["mark"])
    calls = [text[span.start : span.stop].removeprefix("\n") for span in spans if span.kind == "call"]
    assert len(calls) == len(parsed.tool_calls)
    assert all(call.startswith("<tool_call>") and call.endswith("</tool_call>") for call in calls)
    opened = text.count("<tool_call>") - sum(call.count("<tool_call>") for call in calls)
    named = {"malformed_tool_call", "unclosed_tool_call"} & set(parsed.errors)
    assert bool(opened) == bool(named), "a call that was not read has a named error, and no other text has"
    for call in parsed.tool_calls:
        json.dumps(call, allow_nan=False, ensure_ascii=False).encode()  # JSON and UTF-8 hold every value
    return parsed


def repeated(unit: str, setting: tuple[str, str], size: int) -> str:
    return setting[0] + (unit * (size // len(unit) + 1))[:size] + setting[1]


def seconds(text: str, *, tries: int = 1) -> float:
    """Processor time of parsing, the least of some tries. Without Python's garbage collector, which looks at all
    objects of the process."""
    least = float("inf")
    for _ in range(tries):
        gc.disable()
        start = time.process_time()
        parsed = parse_either(text, TOOLS)
        least = min(least, time.process_time() - start)
        gc.enable()
        del parsed
    return least


def random_text(rng: random.Random) -> str:
    """Pieces in any order, some of them nested in each other or cut."""
    pieces = rng.choices([*MARKS, *MARKS, *WHOLE, *BITS], k=rng.choice([3, 10, 40, 200]))
    text = "".join(pieces)
    for _ in range(rng.randrange(3)):
        before, behind = rng.choice(SETTINGS)
        text = before + text + behind
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.5 else text


def every_cut(text: str) -> Iterator[str]:
    for i in range(len(text) + 1):
        yield text[:i]
        yield text[i:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end, rng = time.monotonic() + options.seconds, random.Random(options.seed)
    long, slowest, steepest = 0, (0.0, ""), (0.0, "")
    for unit in UNITS:
        for setting in SETTINGS:
            small, large = (seconds(repeated(unit, setting, size), tries=2) for size in (100_000, 1_000_000))
            long, name = long + 1, f"{unit[:40]!r} in {setting[0]!r}"
            slowest = max(slowest, (large, name))
            steepest = max(steepest, (large / max(small, 5e-3), name))
    print(f"texts of 1 MB: {long}; slowest {slowest[0]:.3f} s: {slowest[1]}")
    print(f"1 MB / 100 kB (of at least 5 ms): at most {steepest[0]:.1f}: {steepest[1]}", flush=True)
    tried = 0
    while time.monotonic() < end:
        text = random_text(rng)
        texts = every_cut(text) if len(text) < 200 else (text,)
        for cut in texts:
            check_laws("<think>" + cut if rng.random() < 0.3 else cut)
            tried += 1
        if rng.random() < 0.001:  # a random mixture as a long text
            mixed = (text * (1_000_000 // max(1, len(text)) + 1))[:1_000_000]
            took, shorter = seconds(mixed, tries=3), seconds(mixed[:100_000], tries=3)
            assert took < 1 and took < 12 * max(shorter, 5e-3), (took, shorter, text)
            long, slowest = long + 1, max(slowest, (took, text[:80]))
    print(f"texts tried: {tried}, and {long} of 1 MB; slowest {slowest[0]:.3f} s: {slowest[1]!r}")


if __name__ == "__main__":
    main()
