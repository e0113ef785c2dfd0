"""Promises of the sources: what they read, in which order, and what they say when they cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.data.sources import (
    JsonLines,
    PythonDocstrings,
    PythonSources,
    TextFiles,
    TokenFile,
    documents,
    is_held_out,
    open_documents,
    source_digest,
    source_files,
    source_from_config,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text in and below a folder, among files that are no corpus."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c.txt").write_text("third\r\nline", newline="")
    (tmp_path / "b" / "é.txt").write_text("zweites Ärgernis", encoding="utf-8")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary").write_bytes(b"\x00\x01text")
    (tmp_path / "latin1.txt").write_bytes("Ärger".encode("latin-1"))
    (tmp_path / ".hidden" / "d.txt").write_text("hidden")
    (tmp_path / ".e.txt").write_text("hidden")
    return tmp_path


def test_folder_is_read_in_order_of_names(folder):
    assert list(documents(TextFiles(str(folder)))) == ["first", "zweites Ärgernis", "third\r\nline"]


def test_one_file_and_a_glob(folder):
    assert list(documents(TextFiles(str(folder / "a.md")))) == ["first"]
    assert list(documents(TextFiles(f"{folder}/**/*.txt"))) == ["zweites Ärgernis", "third\r\nline"]


def test_separator_splits_and_blank_pieces_vanish(tmp_path):
    (tmp_path / "all.txt").write_text("ä---b\n------c", encoding="utf-8")
    assert list(documents(TextFiles(str(tmp_path), separator="---"))) == ["ä", "b\n", "c"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0|"), min_size=1), min_size=1))
def test_split_is_the_split_of_the_text(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("split") / "all.txt"
    path.write_bytes("|é|".join(pieces).encode())
    expected = [piece for piece in "|é|".join(pieces).split("|é|") if piece.strip()]
    if expected:
        assert list(documents(TextFiles(str(path), separator="|é|"))) == expected


def test_json_lines(tmp_path):
    lines = [json.dumps({"text": "eins", "n": 1}), "", json.dumps({"text": "zwei\n", "body": "b"})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    (tmp_path / "notes.txt").write_text("not read")
    assert list(documents(JsonLines(str(tmp_path)))) == ["eins", "zwei\n"]
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1 has no field 'body'; found text, n"):
        list(documents(JsonLines(str(tmp_path), field="body")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text: 1}", "line 2 is not JSON.*expected an object with a field 'text'"),
        ('["text"]', "line 2 is a JSON list; expected an object"),
        ('{"txt": "a"}', "line 2 has no field 'text', did you mean 'txt'"),
        ('{"text": 3}', "line 2: field 'text' is int; expected a string"),
        (r'{"text": "\ud800"}', "line 2: field 'text' holds half a surrogate pair"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, {message}"):
        list(documents(JsonLines(str(tmp_path / "bad.jsonl"))))


def test_empty_corpus_says_what_was_found(tmp_path):
    with pytest.raises(ValueError, match=r"empty corpus: no file .*name another path"):
        documents(TextFiles(str(tmp_path)))
    (tmp_path / "blank").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\0")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*empty corpus: 2 file\(s\), but no document"):
        list(documents(TextFiles(str(tmp_path))))


@pytest.mark.parametrize("source", [TextFiles, JsonLines, TokenFile])
def test_missing_path_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/nowhere.* does not exist; "):
        source_files(source(f"{tmp_path}/nowhere"))


def test_python_corpus_needs_no_download():
    files = source_files(PythonSources())
    assert "ast.py" in files and "json/decoder.py" in files
    assert not any("test" in name.split("/")[:-1] or "site-packages" in name for name in files)
    texts = documents(PythonSources())
    assert [next(texts), next(texts)] == [path.read_text() for path in list(files.values())[:2]]


def test_docstrings_come_in_order_of_the_source(tmp_path, monkeypatch):
    code = '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """F."""\n    x = "no"\n'
    code += 'def g():\n    "G."\n'
    (tmp_path / "m.py").write_text(code)
    (tmp_path / "n.py").write_text("x = 1\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert list(documents(PythonDocstrings())) == ["Module.\n\nClass.\n\nF.\n\nG."]


def test_source_from_config():
    assert source_from_config({"kind": "text", "path": "a", "separator": "\n\n"}) == TextFiles("a", "\n\n")
    assert source_from_config({"kind": "text", "path": "a", "field": "text", "separator": ""}) == TextFiles("a")
    assert source_from_config({"kind": "jsonl", "path": "a", "field": "body"}) == JsonLines("a", "body")
    assert source_from_config({"kind": "tokens", "path": "a"}) == TokenFile("a")
    assert source_from_config({"kind": "python", "path": "", "field": "text"}) == PythonSources()
    assert source_from_config({"kind": "docstrings"}) == PythonDocstrings()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "jsonlines"}, "kind 'jsonlines' is unknown, did you mean 'jsonl'"),
        ({"kind": "text", "pth": "a"}, "key 'pth' is unknown, did you mean 'path'"),
        ({"path": "a"}, "kind None is unknown"),
        ({"kind": "text"}, "kind 'text' needs a path"),
        ({"kind": "python", "path": "a"}, "kind 'python' has no path"),
    ],
)
def test_config_errors_name_the_nearest(config, message):
    with pytest.raises(ValueError, match=message):
        source_from_config(config)


def test_digest_follows_content_and_not_place(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("abc")
    here, there = TextFiles(str(tmp_path / "here")), TextFiles(str(tmp_path / "there"))
    assert source_digest(here) == source_digest(there)
    assert source_digest(here) != source_digest(TextFiles(here.path, separator="b"))
    (tmp_path / "there" / "a.txt").write_text("abd")
    assert source_digest(here) != source_digest(there)


@given(st.text(), st.floats(0, 0.999), st.floats(0, 0.999))
def test_held_out_grows_with_the_fraction(text, a, b):
    assert is_held_out(text, 0.0) is False
    assert is_held_out(text, min(a, b)) <= is_held_out(text, max(a, b))
    assert is_held_out(text, a) == is_held_out(text.encode(), a)


def test_held_out_fraction_is_met():
    share = np.mean([is_held_out(f"document {i}", 0.1) for i in range(20_000)])
    assert abs(share - 0.1) < 0.01  # five standard deviations


def token_folder(folder: Path, tokens: list[int], offsets: list[int], **meta) -> Path:
    folder.mkdir(exist_ok=True)
    np.array(tokens, "<u2").tofile(folder / "tokens.bin")
    np.save(folder / "offsets.npy", np.array(offsets))
    (folder / "meta.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": 10, "eos_id": 0} | meta))
    return folder


def test_token_folder_is_mapped(tmp_path):
    read = open_documents(token_folder(tmp_path, [5, 6, 0, 7, 0], [0, 3, 5]))
    assert len(read) == 2 and read.num_tokens == 5 and read.vocab_size == 10
    assert read.doc(0).tolist() == [5, 6, 0] and read.doc(1).tolist() == [7, 0]
    assert not read.tokens.flags.writeable
    with pytest.raises(ValueError, match="is already tokenised"):
        documents(TokenFile(str(tmp_path)))


def test_damaged_token_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has 6 bytes; offsets\.npy says 5 tokens of 2 bytes"):
        open_documents(token_folder(tmp_path, [5, 6, 0], [0, 3, 5]))
    with pytest.raises(ValueError, match="expected vocab_size, eos_id, and dtype uint16 or uint32"):
        open_documents(token_folder(tmp_path, [5], [0, 1], dtype="float32"))
