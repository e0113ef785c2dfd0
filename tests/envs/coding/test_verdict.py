"""What a verdict says of foreign code, however it behaves. The boxes are real ones."""

import pytest

from ling_jax.envs.coding import verdict as verdict_of_code
from ling_jax.envs.coding.verdict import CALL_LIMITS, TEST_LIMITS, Case, judge_function, judge_tests, same
from ling_jax.sandbox import shared

CASES = [Case([1], 5), Case([2], 8)]


def judge(source, cases=CASES):
    with shared().open({}, CALL_LIMITS) as box:
        return judge_function(box, source, "f", cases)


def test_a_right_function_passes_each_case():
    verdict = judge("def f(x): return x*3+2")
    assert verdict.passed == (True, True) and verdict.outcome == verdict.share == 1
    assert (verdict.detail, verdict.flags) == ("", ())


def test_a_function_that_is_right_once_has_half():
    verdict = judge("def f(x): return 5")
    assert (verdict.outcome, verdict.share, verdict.detail) == (0, 0.5, "call 2: returned another value")


def test_a_function_may_print_and_call_others():
    assert judge("print('hello')\ndef g(x): return x*3\ndef f(x):\n    print(x)\n    return g(x)+2").outcome == 1


@pytest.mark.parametrize(
    "value",
    ["True", "1.0", "'1'", "[1]", "None", "float('nan')", "float('inf')", "10**5000", "object()", "lambda: 1", "b'1'"],
)
def test_only_the_same_value_of_the_same_type_is_right(value):
    assert judge(f"def f(x): return {value}", [Case([1], 1)]).outcome == 0


def test_values_of_json_are_right_where_they_are_equal():
    for value in ([1, "a", None, True, 2.5], {"a": {"b": []}}, "\u00e4\U0001f600", -(10**30)):
        assert judge(f"def f(x): return {value!r}", [Case([0], value)]).outcome == 1


def test_a_tuple_counts_as_a_list_and_other_keys_than_text_do_not_count():
    assert judge("def f(x): return (1, (2,))", [Case([0], [1, [2]])]).outcome == 1
    assert judge("def f(x): return {1: 2}", [Case([0], {"1": 2})]).outcome == 0


def test_types_are_compared_all_the_way_down():
    assert same([1, {"a": 2.0}], [1, {"a": 2.0}])
    for a, b in (([1], [True]), ({"a": 1}, {"a": 1.0}), ([1], [1, 2]), ({"a": 1}, {"b": 1}), ("1", 1)):
        assert not same(a, b)


HOSTILE = {
    "raises": "def f(x): raise ValueError",
    "exits": "def f(x): raise SystemExit(0)",
    "exits at once": "import os\nos._exit(0)",
    "exits in the second call": "import os\ndef f(x): return 5 if x == 1 else os._exit(0)",
    "does not compile": "def f(x) return 5",
    "is another function": "def g(x): return x*3+2",
    "is no function": "f = 5",
    "recurses": "def f(x): return f(x)",
    "recurses in C": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "is equal to all": "class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(5)",
    "returns a lot": "def f(x): return 'a' * 10**7",
    "prints a lot": "def f(x):\n    for _ in range(10**4): print('a' * 10**4)\n    return 4",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef f(x): return x*3+2",
    "kills all": "import os, signal\nos.kill(-1, signal.SIGKILL)\ndef f(x): return x*3+2",
    "forks": "import os\ndef f(x):\n    while True: os.fork()",
    "takes memory": "def f(x): return len(bytearray(10**10))",
    "closes all": "import os\nos.closerange(0, 100)\ndef f(x): return x*3+2",
    "writes to all": "import os\nfor i in range(50):\n    try: os.write(i, b'[0, \"value\", 1]\\n' * 2)\n"
    "    except OSError: pass\ndef f(x): return x*3+2",
    "writes at exit": "import atexit\natexit.register(print, '[0, \"value\", 5]')\ndef f(x): return 0",
    "replaces json": "import json\njson.dumps = lambda *_: '[0, \"value\", 5]'\ndef f(x): return 0",
    "breaks builtins": "import builtins\nbuiltins.len = builtins.type = None\ndef f(x): return 0",
    "half a character": "def f(x): return '\\ud800'",
    "NUL": "\0",
    "empty": "",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_whatever_else_a_function_does_is_wrong(source):
    assert judge(source).outcome == 0


@pytest.mark.parametrize("loop", ["while True: pass", "return sum(range(10**12))"])
def test_a_function_without_end_is_wrong_after_some_seconds(loop, monkeypatch):
    monkeypatch.setattr(verdict_of_code, "CALL_SECONDS", 1.0)
    verdict = judge(f"def f(x):\n    if x == 1: return 5\n    {loop}")
    assert (verdict.outcome, verdict.detail) == (0, "call 2 did not return")


def test_a_result_in_the_place_of_another_is_flagged():
    source = """import os
for i in range(3, 50):
    try: os.write(i, b'[1, "value", 8]\\n')
    except OSError: pass
def f(x): return x*3+2
"""
    verdict = judge(source)
    assert verdict.outcome == 0 and verdict.flags == ("the results of calls were tampered with",)


def test_nobody_sees_what_is_expected():
    """The function looks at all that it can reach: its arguments, its memory, its parent."""
    source = """import glob
def f(x):
    found = ''
    for path in [*glob.glob('/proc/*/cmdline'), *glob.glob('/proc/*/environ'), *glob.glob('/work/*')]:
        try: found += open(path, errors='replace').read()
        except OSError: pass
    import gc
    return found + repr(gc.get_objects())
"""
    secret = "57f1c3e0"
    source += (
        "look = f\ndef f(x):\n    wanted = ''.join(['57f1', 'c3e0'])\n    return wanted if wanted in look(x) else ''\n"
    )
    assert judge(source, [Case([1], secret)]).detail == "call 1: returned another value"


def test_a_source_that_is_too_long_is_wrong():
    assert judge("def f(x): return x*3+2\n#" + "a" * (1 << 17)).outcome == 0


FILES = {"shop/__init__.py": "", "shop/sums.py": "def add(a, b): return a + b\n"}
TESTS = {
    "test_sums": """import unittest

from shop.sums import add


class TestSums(unittest.TestCase):
    def test_small(self):
        self.assertEqual(add(1, 2), 3)

    def test_large(self):
        self.assertEqual(add(10**20, 1), 10**20 + 1)

    def test_text(self):
        with self.assertRaises(TypeError):
            add(1, "a")
"""
}
NAMES = [f"test_sums.TestSums.test_{name}" for name in ("small", "large", "text")]


def judge_sums(source, **files):
    files = FILES | {"shop/sums.py": source} | files
    with shared().open({path: text.encode() for path, text in files.items()}, TEST_LIMITS) as box:
        return judge_tests(box, TESTS, NAMES)


def test_tests_pass_on_right_code_one_by_one():
    verdict = judge_sums(FILES["shop/sums.py"])
    assert verdict.passed == (True, True, True) and verdict.flags == ()
    verdict = judge_sums("def add(a, b): return a + b if a < 9 else 0")
    assert verdict.passed == (True, False, True) and verdict.detail == f"{NAMES[1]}: failed"


TAMPERING = {
    "checks are replaced": "import unittest\nunittest.TestCase.assertEqual = lambda *_: 0\ndef add(a, b): return 0",
    "run is replaced": "import unittest\nunittest.TestCase.run = lambda *_: None\ndef add(a, b): return 0",
    "results are replaced": "import unittest\nunittest.TestResult.addFailure = unittest.TestResult.addError = "
    "lambda *_: None\ndef add(a, b): return 0",
    "builtins are replaced": "import builtins\nbuiltins.AssertionError = KeyError\ndef add(a, b): return 0",
    "frames are read": "import sys\ndef add(a, b):\n    sys._getframe().f_back\n    return 0",
    "frames are read by inspect": "import inspect\ndef add(a, b):\n    inspect.stack()\n    return a + b",
    "frames of a traceback": "def add(a, b):\n    try: 1/0\n    except Exception as e: e.__traceback__.tb_frame",
    "frames of exec": "exec('import sys; sys._getframe()')\ndef add(a, b): return a + b",
    "objects are searched": "import gc\ndef add(a, b):\n    gc.get_objects()\n    return a + b",
    "memory is read": "import ctypes\ndef add(a, b):\n    ctypes.string_at(id(a), 8)\n    return a + b",
    "the judge's names are": "import unittest\nunittest.TestCase.assertEqual.__globals__['same'] = lambda *_: True\n"
    "def add(a, b): return 0",
    "names hide built-in ones": "import unittest\nunittest.TestCase.assertEqual.__globals__['type'] = lambda *_: int\n"
    "unittest.case.AssertionError = KeyError\ndef add(a, b): return 0",
    "lists of the watch are cleared": "import unittest, sys\nspace = unittest.TestCase.assertEqual.__globals__\n"
    "space['WATCHED'].clear(); space['DENIED'].clear(); space['is_whole'] = None\n"
    "def add(a, b):\n    sys._getframe()\n    return 0",
    "the tests are replaced": "import unittest\ndef add(a, b):\n    for t in unittest.TestCase.__subclasses__():\n"
    "        for n in dir(t):\n            if n.startswith('test_'): setattr(t, n, lambda self: None)\n    return 0",
    "a signal handler": "import signal\nsignal.signal(signal.SIGALRM, print)\ndef add(a, b): return a + b",
    "a tracer is set": "import sys\nsys.settrace(lambda *_: None)\ndef add(a, b): return a + b",
}
QUIET = {
    "the judge is replaced": "import __main__\n__main__.same = lambda *_: True\ndef add(a, b): return 0",
    "is equal to all": "class E:\n    def __eq__(s, o): return True\n    __hash__ = None\ndef add(a, b): return E()",
    "is a number equal to all": "class E(int):\n    def __eq__(s, o): return True\ndef add(a, b): return E()",
    "exits": "import os\ndef add(a, b): os._exit(0)",
    "exits on import": "raise SystemExit",
    "writes a report": "import os\nfor i in range(3, 60):\n    try: os.write(i, b'x passed\\n' * 3)\n"
    "    except OSError: pass\ndef add(a, b): os._exit(0)",
    "replaces sys.modules": "import sys\nsys.modules.clear()\ndef add(a, b): return 0",
    "loops": "def add(a, b):\n    while True: pass",
}


@pytest.mark.parametrize("source", TAMPERING.values(), ids=TAMPERING)
def test_tampering_with_what_judges_fails_and_is_flagged(source):
    verdict = judge_sums(source)
    assert verdict.outcome == 0 and verdict.flags


@pytest.mark.parametrize("source", QUIET.values(), ids=QUIET)
def test_other_ways_around_the_tests_fail(source, monkeypatch):
    monkeypatch.setattr(verdict_of_code, "MODULE_SECONDS", 1.0)
    assert judge_sums(source).outcome == 0


@pytest.mark.parametrize("name", ["unittest", "json", "builtins", "sitecustomize", "usercustomize", "os"])
def test_files_of_the_standard_librarys_names_are_not_read(name):
    """They would end the verifier, or let all tests pass."""
    ending = "import sys, os; os._exit(0)"
    verdict = judge_sums(
        FILES["shop/sums.py"], **{f"{name}.py": ending, f"{name}/__init__.py": ending, "a.pth": ending}
    )
    assert verdict.outcome == 1


def test_plain_code_of_the_standard_library_is_not_suspicious():
    source = """import collections, dataclasses, enum, functools, typing, logging, re, abc
Pair = collections.namedtuple("Pair", "a b")
@dataclasses.dataclass(frozen=True)
class Sum:
    a: int
    b: int = 0
class Kind(enum.Enum):
    A = 1
class T(typing.NamedTuple):
    a: int
@functools.lru_cache
def add(a, b):
    logging.getLogger("x").debug("%s", a)
    return Pair(a, b).a + Sum(b).a + T(0).a
"""
    verdict = judge_sums(source)
    assert verdict.outcome == 1 and verdict.flags == (), verdict
