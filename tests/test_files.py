"""JSON from outside: whatever a file holds is an object, or one line that names it."""

import pytest

from ling_jax import files
from ling_jax.data.json_lines import read_objects
from ling_jax.files import parse_object, read_object
from ling_jax.run.metrics import drop_lines_from
from ling_jax.run.workdir import read_origins

BROKEN = {
    "nothing": b"",
    "half": b'{"a": ',
    "brackets": b"[" * 200_000,
    "braces": b'{"a":' * 200_000,
    "no UTF-8": b'{"a": "\xff"}',
    "a key twice": b'{"a": 1, "b": {"c": 2, "c": 3}}',
    "a number of thousands of digits": b'{"a": ' + b"9" * 5000 + b"}",
}


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_object(tmp_path / "a.json") == {"a": "é"} == parse_object('{"a": "é"}', "here")


def test_a_key_that_repeats_its_value_is_no_contradiction():
    assert parse_object('{"a": [1], "b": 2, "a": [1]}', "here") == {"a": [1], "b": 2}


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\n", b"version https://git-lfs"])
def test_a_git_lfs_pointer_is_called_so(text):
    with pytest.raises(ValueError, match=r"^here is a Git LFS pointer.*git lfs pull"):
        parse_object(text, "here")


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for place in ("a/b/c", "link"):
        with pytest.raises(ValueError, match=r"^stop$"), files.new_folder(tmp_path / place) as folder:
            (folder / "file").touch()
            raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    with files.new_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "target" / "file").is_file() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_one_line_wherever_it_is_read(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "run" / "origins.json").write_bytes(content)
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n' + content + b"x\n")
    for read, where in (
        (lambda: read_object(path, "a thing"), f"{path} is not JSON: .*; expected a thing"),
        (lambda: read_origins(tmp_path / "run"), "origins.json is not JSON"),
        (lambda: list(read_objects(tmp_path / "lines")), "lines, line 2 is not JSON"),
        (lambda: drop_lines_from(tmp_path / "lines", 1), "lines, line 1 has no step"),
    ):
        with pytest.raises(ValueError, match=where) as error:
            read()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(("content", "kind"), [(b"[]", "list"), (b"null", "NoneType"), (b'"a"', "str"), (b"1", "int")])
def test_what_is_no_object_is_named(tmp_path, content, kind):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json is a JSON {kind}; expected an object"):
        read_object(tmp_path / "a.json")


def test_files_of_an_absurd_size_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[" + " " * 100)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    with pytest.raises(ValueError, match=r"a\.json has 101 bytes; JSON of at most 100 bytes is read"):
        read_object(tmp_path / "a.json")


def test_a_folder_behind_a_link_is_not_removed(tmp_path):
    (tmp_path / "other" / "data" / "1").mkdir(parents=True)
    (tmp_path / "run" / "data" / "1").mkdir(parents=True)
    files.remove_folder(tmp_path / "run" / "data" / "1", tmp_path / "run")
    assert not (tmp_path / "run" / "data" / "1").exists()
    (tmp_path / "run" / "data").rmdir()
    (tmp_path / "run" / "data").symlink_to(tmp_path / "other" / "data")
    with pytest.raises(ValueError, match=r"run/data/1 is to be replaced and lies outside of .*; remove the link"):
        files.remove_folder(tmp_path / "run" / "data" / "1", tmp_path / "run")
    assert (tmp_path / "other" / "data" / "1").is_dir()
