import errno
import json
import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.sandbox import filter as syscall_filter
from ling_jax.sandbox.filter import ARCHITECTURES, CHECKED, KILL, program
from tests.helpers.boxes import python

ALLOW, ERROR = 0x7FFF0000, 0x00050000
MACHINES = tuple(ARCHITECTURES)


def answer(code: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel's interpreter would return for a call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, constant = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == syscall_filter.LOAD:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == syscall_filter.AND:
            accumulator &= constant
        elif operation == syscall_filter.RETURN:
            return constant
        else:
            holds = {
                syscall_filter.EQUAL: accumulator == constant,
                syscall_filter.GREATER: accumulator > constant,
                syscall_filter.GREATER_EQUAL: accumulator >= constant,
            }[operation]
            at += if_true if holds else if_false


def of(machine: str, name: str, *arguments: int, **options) -> int:
    architecture, numbers = ARCHITECTURES[machine]
    return answer(program(machine, **options), architecture, numbers[name], arguments)


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, 2**32 - 1), arguments=st.tuples(*6 * [st.integers(0, 2**64 - 1)]))
def test_calls_outside_the_list_do_not_exist(machine, number, arguments):
    architecture, numbers = ARCHITECTURES[machine]
    known = {numbers[name] for name in numbers if not name.startswith("landlock")}
    given_back = answer(program(machine), architecture, number, arguments)
    if machine == "x86_64" and number >= 0x40000000:
        assert given_back == KILL
    elif number not in known:
        assert given_back == ERROR | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_has_the_answer_of_its_list(machine):
    numbers = ARCHITECTURES[machine][1]
    expected = dict.fromkeys((*syscall_filter.ALLOWED, *syscall_filter.METADATA), ALLOW)
    expected |= dict.fromkeys(syscall_filter.DENIED, ERROR | errno.EPERM)
    expected |= dict.fromkeys(syscall_filter.XATTRS, ERROR | errno.EOPNOTSUPP)
    assert {name: of(machine, name) for name in expected if name in numbers} == {
        name: value for name, value in expected.items() if name in numbers
    }


@pytest.mark.parametrize("machine", MACHINES)
@given(architecture=st.integers(0, 2**32 - 1), number=st.integers(0, 500))
def test_foreign_architectures_are_killed(machine, architecture, number):
    if architecture != ARCHITECTURES[machine][0]:
        assert answer(program(machine), architecture, number) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "name, arguments, allowed",
    (
        ("clone", (0x11,), True),
        ("clone", (0x3D0F00,), True),  # a thread
        *(("clone", (1 << bit | 0x11,), False) for bit in (17, 25, 26, 27, 28, 29, 30)),
        ("prlimit64", (0,), True),
        ("prlimit64", (1,), False),
        ("prlimit64", (1 << 32,), True),  # the kernel reads 32 bits too
        ("setpriority", (0, 0), True),
        ("setpriority", (0, 7), False),
        ("setpriority", (2, 0), False),
        ("socketpair", (1, 1), True),
        ("socketpair", (1, 0x80001), True),
        ("socketpair", (1, 2), False),
        ("socketpair", (2, 1), False),
        ("sendto", (3, 1, 1, 0, 0), True),
        ("sendto", (3, 1, 1, 0, 4096), False),
        ("sendto", (3, 1, 1, 0, 1 << 40), False),
        ("ioctl", (0, 0x5401), True),
        ("ioctl", (0, 0x5412), False),  # TIOCSTI
        ("ioctl", (0, 0x541C), False),  # TIOCLINUX
        ("ioctl", (0, 0x5412 | 1 << 40), False),
        ("fcntl", (0, 1030), True),
        ("fcntl", (0, 1024), False),  # F_SETLEASE
        ("fcntl", (0, 8), False),  # F_SETOWN
        ("personality", (0xFFFFFFFF,), True),
        ("personality", (0x0040000,), False),
        ("sched_setaffinity", (5,), False),
    ),
)
def test_arguments_decide(machine, name, arguments, allowed):
    given_back = of(machine, name, *arguments)
    assert given_back == (ALLOW if allowed else ERROR | CHECKED[name].error)


@pytest.mark.parametrize("machine", MACHINES)
def test_as_the_own_user_attributes_of_files_stay(machine):
    assert of(machine, "fchmodat") == ALLOW
    assert of(machine, "fchmodat", own_user=True) == ERROR
    assert of(machine, "landlock_restrict_self") == ERROR | errno.ENOSYS
    assert of(machine, "landlock_restrict_self", landlock=True) == ALLOW


def test_an_unknown_machine_is_named():
    with pytest.raises(ValueError, match="riscv64"):
        program("riscv64")


CALLS = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, number, arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(value) for value in arguments))
    found[name] = errno.errorcode.get(ctypes.get_errno(), 'ok') if result < 0 else 'ok'
print(json.dumps(found))
"""
DENIED = {
    "socket": ("socket", 1, 1, 0), "socket_inet": ("socket", 2, 1, 0), "netlink": ("socket", 16, 3, 0),
    "vsock": ("socket", 40, 1, 0), "ptrace": ("ptrace", 0), "unshare": ("unshare", 0x10000000), "setns": ("setns", 0),
    "bpf": ("bpf", 0, 0, 0), "keyctl": ("keyctl", 0, -3, 0), "add_key": ("add_key", 0, 0, 0),
    "request_key": ("request_key", 0, 0, 0), "mount": ("mount", 0, 0, 0), "perf": ("perf_event_open", 0, 0, 0),
    "userfaultfd": ("userfaultfd", 0), "process_vm_readv": ("process_vm_readv", 1, 0, 0),
    "clone_newuser": ("clone", 0x10000011, 0), "prlimit": ("prlimit64", 1, 7, 0, 0),
    "shmget": ("shmget", 0, 4096, 0o1600), "chroot": ("chroot", 0), "pivot_root": ("pivot_root", 0, 0),
}  # fmt: skip
MISSING = {"clone3": 435, "io_uring_setup": 425, "io_uring_enter": 426, "pidfd_open": 434, "pidfd_getfd": 438,
           "fsopen": 430, "open_tree": 428, "move_mount": 429, "memfd_secret": 447}  # fmt: skip


def test_the_kernel_denies_in_a_box_what_the_list_denies(box):
    numbers = ARCHITECTURES[platform.machine()][1]
    calls = [(name, numbers[call], arguments) for name, (call, *arguments) in DENIED.items()]
    calls += [(name, number, [0, 0, 0]) for name, number in MISSING.items()]
    found = json.loads(python(box, CALLS, json.dumps(calls)).stdout)
    assert found == dict.fromkeys(DENIED, "EPERM") | dict.fromkeys(MISSING, "ENOSYS")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and 32-bit calls are those of x86_64")
@pytest.mark.parametrize("number", (0x40000000 + 39, 0x40000000))
def test_x32_calls_kill(box, number):
    source = "import ctypes, sys; ctypes.CDLL(None).syscall(ctypes.c_long(int(sys.argv[1]))); print('alive')"
    result = python(box, source, str(number))
    assert (result.status, result.stdout) == ("killed", b"")


def test_programs_work_under_the_filter(box):
    source = """
import asyncio, concurrent.futures, hashlib, os, random, select, shutil, subprocess, tempfile, threading
async def answer():
    process = await asyncio.create_subprocess_exec("echo", "asyncio", stdout=subprocess.PIPE)
    return (await process.communicate())[0]
assert asyncio.run(answer()) == b"asyncio\\n"
assert subprocess.run(["bash", "-c", "ls | wc -l"], capture_output=True).returncode == 0
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, range(9))) == 36
with tempfile.TemporaryDirectory() as folder:
    open(folder + '/a', 'w').write('x')
    shutil.copy(folder + '/a', folder + '/b')
    os.rename(folder + '/b', folder + '/c')
print('fine')"""
    result = python(box, source)
    assert result.stdout == b"fine\n", result.stderr.decode()
