import os
import threading
import time

import pytest

from ling_jax.sandbox import Limits, SandboxError
from tests.helpers.boxes import python


def test_files_come_back_as_they_were_written(box):
    files = {"a.txt": b"1", "deep/er/b.bin": bytes(range(256)), "empty": b""}
    box.write(files)
    assert box.files() == files
    assert box.read("deep/er/b.bin") == bytes(range(256))


def test_files_of_many_megabytes_pass_in_a_box_of_little_memory(sandbox):
    limits = Limits(memory_bytes=48 << 20, disk_bytes=48 << 20)
    files = {"large": os.urandom(20 << 20), "small": b"1", "other": os.urandom(20 << 20)}
    with sandbox.open(files, limits) as box:
        assert box.files() == files
        assert box.read("large") == files["large"]


def test_a_box_keeps_its_folder_from_command_to_command(box):
    assert box.run(["bash", "-c", "echo one > kept"]).code == 0
    assert box.run(["cat", "kept"]).stdout == b"one\n"
    assert box.read("kept") == b"one\n"


def test_boxes_do_not_see_each_other(sandbox):
    with sandbox.open({"mine": b"x"}), sandbox.open() as other:
        assert other.files() == {}
        assert b"mine" not in other.run(["bash", "-c", "ls -R . $TMPDIR/.. /work /tmp"]).stdout


@pytest.mark.parametrize("path", ("../out", "/etc/out", "a/../../out", "", "a\0b"))
def test_a_path_that_leads_out_is_refused(box, path):
    with pytest.raises(ValueError, match="no path of a file"):
        box.write({path: b""})
    assert box.read(path or ".") is None


def test_links_out_are_not_followed(box, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o5)
    box.run(["ln", "-s", str(secret), "link"])
    box.run(["ln", "-s", str(tmp_path), "folder"])
    box.run(["ln", "-s", "/etc/passwd", "system"])
    assert box.read("link") is box.read("folder/secret") is box.read("system") is None
    assert box.files() == {}
    with pytest.raises((ValueError, SandboxError)):
        box.write({"folder/new": b"x"})
    with pytest.raises((ValueError, SandboxError)):
        box.write({"link": b"x"})
    assert secret.read_text() == "of the host" and list(tmp_path.iterdir()) == [secret]


def test_what_is_no_regular_file_is_none(box):
    box.run(["bash", "-c", "mkfifo pipe; mkdir folder; ln -s pipe link; ln -s loop loop"])
    assert [box.read(name) for name in ("pipe", "folder", "link", "loop", "absent")] == 5 * [None]
    assert box.files() == {}


def test_names_may_be_any_bytes(box):
    python(box, r"[open(name, 'w').close() for name in (b'a\nb', b'\xff\xfe', b' ')]")
    names = {"a\nb", os.fsdecode(b"\xff\xfe"), " "}
    assert set(box.files()) == names
    assert all(box.read(name) == b"" for name in names)


def test_closed_files_and_folders_are_read_all_the_same(box):
    box.run(["bash", "-c", "mkdir d; echo x > d/f; chmod 0 d/f d"])
    assert box.read("d/f") == b"x\n" and box.files() == {"d/f": b"x\n"}


def test_folders_deeper_than_any_path_do_no_harm(sandbox):
    with sandbox.open(limits=Limits(files=3000)) as box:
        deep = "import os\nfor _ in range(2500): os.mkdir('d'); os.chdir('d')"
        assert python(box, deep).code == 0
        assert box.files() == {}
        assert box.run(["true"]).code == 0


def test_a_sparse_file_is_left_out(sandbox):
    with sandbox.open({"small": b"1"}, Limits(disk_bytes=1 << 20)) as box:
        python(box, "import os\nfor i in range(8): os.truncate(open(f's{i}', 'w').fileno(), 1 << 20)")
        assert "small" in (files := box.files()) and sum(map(len, files.values())) <= 1 << 20


def test_stdin_arrives_whole(box):
    data = os.urandom(1 << 19)
    assert box.run(["cat"], stdin=data).stdout == data
    assert box.run(["true"], stdin=data).code == 0


@pytest.mark.parametrize("command, code", ((["bash", "-c", "exit 7"], 7), (["absent"], 127), (["/etc"], 127)))
def test_exit_codes_are_those_of_a_shell(box, command, code):
    result = box.run(command)
    assert (result.status, result.code) == ("exited", code)


def test_a_signal_of_no_limit_is_killed(box):
    assert box.run(["bash", "-c", "kill -SEGV $$"])[:2] == ("killed", None)


def test_output_and_errors_come_apart(box):
    result = box.run(["bash", "-c", "echo out; echo err >&2"])
    assert (result.stdout, result.stderr, result.truncated) == (b"out\n", b"err\n", False)


def test_the_environment_is_small_and_fixed(box, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    result = python(box, "import os; print(sorted(os.environ))", env={"MORE": "2"})
    names = ["HOME", "LANG", "MORE", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"]
    assert result.stdout.decode().strip() == str(names)


def test_a_command_has_three_descriptors_only(box):
    source = """
import os, errno
def is_open(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False
print([number for number in range(4096) if is_open(number)])"""
    assert python(box, source).stdout == b"[0, 1, 2]\n"


def test_nothing_of_a_command_runs_on(box):
    source = """
import os, signal, time
if not os.fork():
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if not os.fork():
        open('alive', 'w').write('x')
        time.sleep(2)
        open('survived', 'w').write('x')
    os._exit(0)
time.sleep(0.3)
print('done')"""
    begun = time.monotonic()
    result = python(box, source)
    assert result.stdout == b"done\n" and time.monotonic() - begun < 1.5
    time.sleep(2.2 - (time.monotonic() - begun))
    assert set(box.files()) == {"alive"}


def test_an_inherited_pipe_holds_no_result_up(box):
    begun = time.monotonic()
    assert box.run(["bash", "-c", "sleep 60 & disown; echo ready"]).stdout == b"ready\n"
    assert time.monotonic() - begun < 5


def test_close_may_come_while_a_command_runs(sandbox):
    box = sandbox.open()
    threading.Timer(0.3, box.close).start()
    begun = time.monotonic()
    with pytest.raises(SandboxError, match="closed"):
        box.run(["sleep", "9"])
    assert time.monotonic() - begun < 5
    with pytest.raises(SandboxError, match="closed"):
        box.run(["true"])
    box.close()


@pytest.mark.parametrize("argv", ("ls", [], ["a\0b"]))
def test_an_impossible_command_is_refused(box, argv):
    with pytest.raises(ValueError):
        box.run(argv)
