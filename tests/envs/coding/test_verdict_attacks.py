"""Code that means to get a verdict that it does not deserve. A naive grader believes it; ours does not."""

import subprocess
import sys

import pytest

from ling_jax.envs.coding.verdict import CALL_LIMITS, TEST_LIMITS, Case, judge_function, judge_tests
from ling_jax.sandbox import shared

# A grader as often written: the answer runs in the grader's process, which holds what is expected and says how it went.
NAIVE = """
import json, sys
expected = [int(word) for word in sys.argv[1:]]
from answer import f
print(json.dumps({"passed": all(f(x) == y for x, y in enumerate(expected))}))
"""
WRONG_FUNCTIONS = {
    "prints a verdict at exit": """
import atexit, os
atexit.register(lambda: (os.write(1, b'{"passed": true}\\n'), os._exit(0)))
def f(x): return -1""",
    "prints a verdict and leaves": """
import os
os.write(1, b'{"passed": true}\\n')
os._exit(0)""",
    "is equal to everything": """
class Equal:
    def __eq__(self, other): return True
def f(x): return Equal()""",
    "is a number equal to everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Equal(-1)""",
    "replaces json.dumps": """
import json
json.dumps = lambda *a, **k: '{"passed": true}'
def f(x): return -1""",
    "replaces all": """
import builtins
builtins.all = lambda values: True
def f(x): return -1""",
    "replaces print": """
import builtins, sys
builtins.print = lambda *a, **k: sys.stdout.write('{"passed": true}\\n')
def f(x): return -1""",
    "reads the expected values from the frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        if "expected" in frame.f_globals: return frame.f_globals["expected"][x]
        frame = frame.f_back
    return -1""",
    "reads the expected values from the main module": """
import __main__
def f(x): return __main__.expected[x]""",
    "reads the expected values from the command line": """
import sys
def f(x): return int(open('/proc/self/cmdline').read().split('\\0')[-5 + x])""",
    "reads the expected values from the collector of garbage": """
import gc
def f(x):
    for each in gc.get_objects():
        if type(each) is dict and type(each.get("expected")) is list: return each["expected"][x]
    return -1""",
    "reads the expected values from memory": """
import sys
def f(x): return sys.modules["__main__"].__dict__["expected"][x]""",
    "guesses the report by writing to each descriptor": """
import os
for number in range(1, 40):
    try: os.write(number, b'{"passed": true}\\n')
    except OSError: pass
os._exit(0)""",
    "starts a process that reports later": """
import os
if os.fork() == 0:
    os.write(1, b'{"passed": true}\\n')
    os._exit(0)
os.wait()
os._exit(0)""",
    "ends by an exception that claims success": """
class Done(SystemExit): pass
print('{"passed": true}')
raise Done(0)""",
    "changes the list of expected values": """
import __main__
__main__.expected.clear()
def f(x): return -1""",
}
CASES = [Case([x], 3 * x + 2) for x in range(4)]


def naive(source: str, folder) -> bool:
    """Whether a naive grader passes the source."""
    (folder / "answer.py").write_text(source)
    (folder / "grade.py").write_text(NAIVE)
    command = [sys.executable, "grade.py", *(str(case.expected) for case in CASES)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20)
    return '{"passed": true}' in ended.stdout


@pytest.mark.parametrize("source", WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS)
def test_a_function_that_fools_a_naive_grader_fails_here(source, tmp_path):
    assert naive(source, tmp_path)
    with shared().open({}, CALL_LIMITS) as box:
        verdict = judge_function(box, source, "f", CASES)
    assert verdict.outcome == verdict.share == 0


FORGED = """
import os
for number in range(3, 60):
    for nonce in ({nonces}):
        report = b'{{"report": [["value", 2], ["value", 5], ["value", 8], ["value", 11]], "flags": []}}'
        try: os.write(number, nonce + b" " + report + b"\\n")
        except OSError: pass
def f(x): return -1
"""


@pytest.mark.parametrize("nonces", ["b'', b'0' * 32", "*(os.urandom(16).hex().encode() for _ in range(200)),"])
def test_a_report_of_a_guessed_nonce_is_none(nonces):
    with shared().open({}, CALL_LIMITS) as box:
        assert judge_function(box, FORGED.format(nonces=nonces), "f", CASES).outcome == 0


TESTS = {
    "test_sums": """import unittest

from shop.sums import add


class TestSums(unittest.TestCase):
    def test_large(self):
        self.assertEqual(add(10**20, 1), 10**20 + 1)

    def test_small(self):
        self.assertEqual(add(1, 2), 3)

    def test_text(self):
        with self.assertRaises(TypeError):
            add(1, "a")
"""
}
NAMES = [f"test_sums.TestSums.test_{name}" for name in ("large", "small", "text")]
CLIMB = """
    while frame:
        if "token" in frame.f_locals and "write" in frame.f_locals:
            frame.f_locals["write"]((frame.f_locals["token"] + b" passed\\n") * 3)
            __import__("os")._exit(0)
        frame = frame.f_back
    return 0
"""
TAMPERING = {
    "equality of the judge": """
import sys
sys.modules["__main__"].same = lambda a, b: True
def add(a, b): return int(b) if b != "a" else 1 + b""",
    "watch over the judge": """
import sys, unittest
sys.modules["__main__"].is_whole = lambda _: True
unittest.TestCase.run = lambda self, result: result.startTest(self)
def add(a, b): return 0""",
    "lists of what is denied": """
import sys
sys.modules["__main__"].DENIED.clear()
sys.modules["__main__"].WATCHED.clear()
def add(a, b):
    frame = sys._getframe()"""
    + CLIMB,
    "frames by a signal": """
import signal
seen = []
signal.signal(signal.SIGUSR1, lambda _, frame: seen.append(frame))
def add(a, b):
    signal.raise_signal(signal.SIGUSR1)
    frame = seen[-1]"""
    + CLIMB,
    "frames by logging": """
import logging
def add(a, b):
    frame = logging.currentframe()"""
    + CLIMB,
    "frames by a generator": """
def look():
    yield g.gi_frame
def add(a, b):
    global g
    g = look()
    frame = next(g)"""
    + CLIMB,
    "the tests' base class": """
import sys, types, unittest
class Case(unittest.TestCase):
    def run(self, result=None): result.startTest(self)
sys.modules["test_sums"].unittest = types.SimpleNamespace(TestCase=Case)
def add(a, b): return 0""",
    "the order of a suite": """
import unittest.suite
class Fine:
    def __call__(self, result): result.startTest(self)
unittest.suite.BaseTestSuite.__iter__ = lambda self: iter([Fine()])
def add(a, b): return 0""",
    "a builtin by a module's name": """
import unittest.case
unittest.case.getattr = lambda of, name, *rest: (lambda: None) if name.startswith("test_") else getattr(of, name, *rest)
def add(a, b): return 0""",
    "what context managers do": """
import contextlib
contextlib._GeneratorContextManager.__exit__ = lambda *_: True
def add(a, b): return 0""",
    "what context managers do, and keep": """
import contextlib
kept = []
contextlib._GeneratorContextManager.__exit__ = lambda self, *_: kept.append(self.gen) or True
def add(a, b): return 0""",
    "the bases of the tests": """
import sys, unittest
class Fine(unittest.TestCase):
    def run(self, result): result.startTest(self)
def add(a, b):
    sys.modules["test_sums"].TestSums.__bases__ = (Fine,)
    return a + b if a > 9 else 0""",
    "how classes are built": """
import builtins, unittest
build = builtins.__build_class__
class Fine(unittest.TestCase):
    def run(self, result): result.startTest(self)
def other(function, name, *bases, **options):
    builtins.__build_class__ = build
    return build(function, name, Fine)
builtins.__build_class__ = other
def add(a, b): return 0""",
    "the base class, put back in time": """
import unittest
true = unittest.TestCase
class Fine(true):
    def run(self, result): result.startTest(self)
    def __init_subclass__(cls): unittest.TestCase = true
unittest.TestCase = Fine
def add(a, b): return 0""",
    "equality, put back in time": """
import sys
judge = sys.modules["__main__"]
true = judge.same
def once(a, b):
    judge.same = true
    return True
def add(a, b):
    judge.same = once
    return 1 + b if b == "a" else 0""",
    "what assertRaises does": """
import unittest.case
unittest.case._AssertRaisesContext.__exit__ = lambda *_: True
def add(a, b): return a + (b if b != "a" else 0)""",
    "tests that come later": """
import sys
def add(a, b):
    tests = sys.modules["test_sums"].TestSums
    tests.test_small = tests.test_text = lambda self: None
    return a + b if a > 9 else 0""",
    "the class of the results": """
import __main__, unittest
def start(self, test): self.testsRun += 1
class Result(unittest.TestResult):
    def addFailure(self, *_): pass
    addError = addFailure
unittest.TestResult = Result
def add(a, b): return 0""",
    "the report's pipe": """
import os
def add(a, b):
    for number in range(3, 60):
        try: os.write(number, b"passed\\n" * 3)
        except OSError: pass
    os._exit(0)""",
    "skipping": "import unittest\ndef add(a, b): raise unittest.SkipTest('not today')",
    "expecting failure": """
import sys, unittest
def add(a, b):
    sys.modules["test_sums"].TestSums.__unittest_expecting_failure__ = True
    return 0""",
    "values equal to all": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def add(a, b): return Equal()""",
    "the type of types": """
import builtins
builtins.type = lambda value: int
def add(a, b): return 0""",
    "the tracer of threads": """
import threading
threading.settrace(print)
def add(a, b):
    t = threading.Thread(target=print); t.start(); t.join()
    return 0""",
}


@pytest.mark.parametrize("source", TAMPERING.values(), ids=TAMPERING)
def test_tampering_does_not_pass_the_tests(source):
    files = {"shop/__init__.py": b"", "shop/sums.py": source.encode()}
    with shared().open(files, TEST_LIMITS) as box:
        verdict = judge_tests(box, TESTS, NAMES)
    assert verdict.outcome == 0, verdict
