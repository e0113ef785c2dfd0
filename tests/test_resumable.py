"""Output of an interrupted program: gone on with where it is of the same, behind what is whole."""

import pytest

from ling_jax.resumable import RECORD as RECORD_NAME
from ling_jax.resumable import keep_whole_lines, resumable_file

RECORD = {"seed": 0, "step": None}


class Interrupted(Exception):
    pass


def write(target, text, record=RECORD, *, resume=True, interrupt=False):
    """Appends to what is there; returns what was."""
    with resumable_file(target, record, resume=resume) as path:
        before = path.read_bytes()
        path.write_bytes(before + text)
        if interrupt:
            raise Interrupted
    return before


def test_an_interrupted_file_is_gone_on_with_and_leaves_nothing(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"of an earlier run")
    for text in (b"a", b"b"):
        with pytest.raises(Interrupted):
            write(target, text, interrupt=True)
    assert target.read_bytes() == b"of an earlier run"
    assert write(target, b"c") == b"ab" and target.read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_differs_is_named_and_noresume_begins_anew(tmp_path):
    with pytest.raises(Interrupted):
        write(tmp_path / "out", b"a", interrupt=True)
    with pytest.raises(ValueError, match=r"another seed: 0, now 1; continue with that, or .* --noresume"):
        write(tmp_path / "out", b"b", RECORD | {"seed": 1})
    assert write(tmp_path / "out", b"b", RECORD | {"seed": 1}, resume=False) == b""


def test_a_record_that_lost_its_bytes_is_named_and_noresume_begins_anew(tmp_path):
    """As of a machine that lost power."""
    with pytest.raises(Interrupted):
        write(tmp_path / "out", b"a", interrupt=True)
    (tmp_path / ".out.partial" / RECORD_NAME).write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"\.record\.json is not JSON: .* start anew with --noresume"):
        write(tmp_path / "out", b"b")
    assert write(tmp_path / "out", b"b", resume=False) == b""


def test_two_processes_do_not_write_one_output(tmp_path):
    with resumable_file(tmp_path / "out", RECORD, resume=True):
        for resume in (True, False):
            with pytest.raises(OSError, match="is being written by another process"):
                write(tmp_path / "out", b"", resume=resume)


@pytest.mark.parametrize(
    ("content", "kept"),
    [(b"", 0), (b"{}\n", 1), (b"{}\n{}\n", 2), (b'{}\n{"a": ', 1), (b"{}\n\0\0\n{}\n{}\n", 1)],
)
def test_whole_lines_are_kept(tmp_path, content, kept):
    (tmp_path / "lines").write_bytes(content)
    with (tmp_path / "lines").open("r+b") as file:
        assert keep_whole_lines(file) == kept
        assert file.tell() == 3 * kept
    assert (tmp_path / "lines").read_bytes() == b"{}\n" * kept
