"""Runs foreign code in a box and reports what it did: results of calls, or which tests pass.

The text of this file is the argument of `python3 -I -S -B -c`. On stdin stand the length of the request (8 digits), the
request as JSON, and the nonce. Foreign code runs only in children: they have no descriptor of stdin or stdout, and the
nonce is read when the last of them is dead. The report is one line: the nonce, and JSON.

    calls   {"source", "name", "calls": [arguments, ...]} -> [["value", value] | ["raised", type] | ["broken", type]]
    tests   {"modules": {name: source}, "tests": ["module.Class.method"]}, the tests of a module one behind the other
            -> ["passed" | "failed" | "late" | "tampered"]
"""

import builtins
import contextlib
import json
import os
import select
import signal
import sys
import time

MAX_REPORT = 1 << 18  # bytes that a child may report
PR_SET_DUMPABLE = 4
# By name, where foreign code itself does them; by the standard library they are everyday.
WATCHED = {
    "sys._getframe", "sys._getframemodulename", "object.__getattr__", "object.__setattr__", "code.__new__", "compile",
}  # fmt: skip
DENIED = {  # and all that begin with "ctypes."
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames", "sys._current_exceptions",
    "sys.settrace", "sys.setprofile", "sys.addaudithook", "sys.monitoring.register_callback", "os.fork", "os.forkpty",
    "os.exec", "os.posix_spawn", "os.system", "os.kill", "os.killpg", "subprocess.Popen", "socket.__new__",
}  # fmt: skip
IGNORED = ("_", "__warningregistry__", "_classSetupFailed", "tearDown_exceptions")  # unittest sets them
LOOKERS = ("inspect.py", "traceback.py")  # of the standard library: they look at frames for their callers
FRAME_GIVER = os.path.join("logging", "__init__.py")  # its currentframe() gives a frame to whoever calls it


def main():
    hide()
    request = json.loads(take(int(take(8))))
    deadline = time.monotonic() + request["seconds"]
    report, flags = {"calls": call_all, "tests": run_all}[request["kind"]](request, deadline)
    nonce = take(32)
    os.write(1, nonce + b" ")
    data = json.dumps({"report": report, "flags": sorted(flags)}).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def hide():
    """Other processes of the user may not read this one's memory or descriptors, nor those of its children."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def take(count):
    """Exactly so many bytes of stdin."""
    data = b""
    while len(data) < count and (more := os.read(0, count - len(data))):
        data += more
    return data


def call_all(request, deadline):
    """What each call came to; what is missing at the end was not reported in time, or at all."""
    data, _ = run_child(lambda write: make_calls(request, write), deadline, len(request["calls"]))
    results = []
    for number, line in enumerate(data.split(b"\n")[:-1]):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(found, list) or len(found) != 3 or found[0] != number or number >= len(request["calls"]):
            return results, ["the results of calls were tampered with"]
        results.append(found[1:])
    return results, []


def make_calls(request, write):
    """In the child: makes the calls one after the other."""
    dumps, space = json.dumps, {"__name__": "answer", "__builtins__": builtins}
    try:
        exec(compile(request["source"], "answer.py", "exec"), space)
        function = space[request["name"]]
    except BaseException as error:
        write(dumps([0, "broken", type(error).__name__]).encode() + b"\n")
        return
    for number, arguments in enumerate(request["calls"]):
        try:
            line = dumps([number, "value", plain(function(*arguments))])
        except BaseException as error:
            line = dumps([number, "raised", type(error).__name__])
        write(line.encode() + b"\n")


def plain(value):
    """The value where JSON can hold it as it is; a tuple becomes a list. Raises TypeError or ValueError for others."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value - value != 0:
            raise ValueError("not finite")
        return value
    if type(value) in (list, tuple):
        return [plain(item) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError("no value of JSON")


def run_all(request, deadline):
    """How each test ended; those of a module run one after the other, in a process of their own."""
    import unittest.case

    report, flags, groups = [], set(), {}
    unittest.TestCase.assertEqual = assert_equal
    spaces = spaces_of_judges()
    for test in request["tests"]:
        groups.setdefault(test.rsplit(".", 2)[0], []).append(test)
    for module, tests in groups.items():
        token = os.urandom(16).hex().encode()
        until = min(deadline, time.monotonic() + request["module_seconds"])
        child = tests_child(module, request["modules"][module], tests, token, spaces)
        data, late = run_child(child, until, len(tests))
        lines = [line.split() for line in data.split(b"\n")[:-1]]
        if len(lines) > len(tests) or any(len(words) < 2 or words[0] != token for words in lines):
            flags.add("the report of tests was tampered with")
            lines = []
        for words in lines:
            report.append(words[1].decode())
            flags |= {word.decode() for word in words[2:]}
        report += ["late" if late else "failed"] * (len(tests) - len(lines))
    return report, flags


def tests_child(name, source, tests, token, spaces):
    """What a child does: runs the tests of a module, and looks after each whether what judges is what it was."""
    import unittest

    suite, result_of, module = unittest.TestSuite, unittest.TestResult, type(sys)(name)
    execute, anything, copy, untouched, straight = exec, BaseException, dict, is_whole, is_plain_case
    case = unittest.TestCase

    def run(write):
        code = compile(source, name, "exec")
        sys.path.append(os.getcwd())
        del sys.modules["__main__"]
        flags, whole, passed = watch(), True, False
        try:
            execute(code, module.__dict__)
            known = [*spaces, *((space, copy(space)) for space in spaces_of_tests(module))]
        except anything:
            known = None
        for test in tests:
            _, group, method = test.rsplit(".", 2)
            if known:
                tested = module.__dict__[group]
                result, whole = result_of(), whole and untouched(known) and straight(tested, case)
                suite([tested(method)]).run(result)
                passed = result.testsRun == 1 and not (result.failures or result.errors or result.skipped)
                whole = whole and untouched(known) and straight(tested, case)
            status = b" tampered" if not whole else b" passed" if passed else b" failed"
            write(token + status + b"".join([b" " + flag.encode() for flag in flags]) + b"\n")

    return run


def spaces_of_judges():
    """The names of what runs tests and judges values, as they are now: (names, copy)."""
    import unittest.case

    judges = [unittest.case, unittest.suite, unittest.result, contextlib]
    values = [value for module in judges for value in vars(module).values()]
    classes = [value for value in values if isinstance(value, type) and value.__module__ != "builtins"]
    owners = (builtins, sys.modules["__main__"], *judges, *classes)
    return [(vars(owner), dict(vars(owner))) for owner in owners]


def spaces_of_tests(module):
    """The names in a module of tests, and in its classes."""
    return [module.__dict__, *(vars(value) for value in module.__dict__.values() if type(value) is type)]


def is_whole(spaces):
    """Whether all names stand for what they stood for. It calls nothing, since anything may have been replaced."""
    for space, copy in spaces:
        for name in space:
            if name not in IGNORED and (name not in copy or space[name] is not copy[name]):
                return False
        for name in copy:
            if name not in space:
                return False
    return True


def is_plain_case(tested, case, kind=type, thing=object):
    """Whether a class of tests inherits from `case` alone. It calls nothing but what is given here."""
    order = tested.__mro__ if kind(tested) is kind else ()
    return order == (tested, case, thing)


def assert_equal(self, first, second, msg=None):
    """Fails where values differ, or one is of a class that can call itself equal."""
    if not same(first, second):
        raise AssertionError(msg or "values differ")


def same(a, b):
    """Whether two values are equal with equal types all the way down."""
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))  # noqa: B905  zip of an old Python
    if type(a) is dict:
        return len(a) == len(b) and all(key in b and same(a[key], b[key]) for key in a)
    return type(a) in (bool, int, float, str, bytes, set, frozenset, type(None)) and a == b


def watch():
    """The list to which the names of suspicious acts of foreign code are added; such acts raise."""
    flags, ours = [], (os.path.dirname(os.__file__) + os.sep, "<frozen ")
    frame_of, busy, watched, denied = sys._getframe, [], frozenset(WATCHED), frozenset(DENIED)
    lookers, giver = LOOKERS, FRAME_GIVER

    def is_foreign():
        frame = frame_of(2)
        if frame is not None and frame.f_code.co_filename.endswith(giver):
            frame = frame.f_back
        while frame is not None and frame.f_code.co_filename.endswith(lookers):
            frame = frame.f_back
        return frame is not None and not frame.f_code.co_filename.startswith(ours)

    def hook(event, arguments):
        if busy or not (event in denied or event in watched or event[:7] == "ctypes."):
            return
        busy.append(True)
        try:
            suspicious = event not in watched or is_foreign()
        finally:
            busy.pop()
        if suspicious:
            refuse(event)

    def refuse(event):
        if event not in flags:
            flags.append(event)
        raise RuntimeError("denied")

    def no_handler(*_):
        refuse("signal.signal")  # handlers are given frames

    signal.signal = sys.modules["_signal"].signal = no_handler
    sys.addaudithook(hook)
    return flags


def run_child(work, deadline, lines):
    """(what the child wrote up to so many lines, whether it was late). The child dies with its process group."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        become(work, writing)
    os.close(writing)
    data, late = b"", False
    while len(data) <= MAX_REPORT and data.count(b"\n") < lines:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            late = True
            break
        if not (more := os.read(reading, 1 << 16)):
            break
        data += more
    os.close(reading)
    with contextlib.suppress(OSError):  # it may not be a leader yet
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return data[:MAX_REPORT], late


def become(work, writing):
    """In the child: nothing is open but the pipe to the parent. Does not return."""
    exit_, write_ = os._exit, os.write
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.closerange(3, writing)
        os.closerange(writing + 1, 1 << 12)

        def write(data):
            while data:
                data = data[write_(writing, data) :]

        work(write)
    finally:
        exit_(0)


main()
