"""Promises of the sources: what they read, in which order, and what they say when they cannot."""

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.data import json_lines
from ling_jax.data.sources import (
    JsonLines,
    ParquetFiles,
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
    split_hash,
    training_documents,
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


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0|"), min_size=1), min_size=1))
def test_split_is_the_split_of_the_text(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("split") / "all.txt"
    path.write_bytes("|é|".join(pieces).encode())
    expected = [piece for piece in "|é|".join(pieces).split("|é|") if piece.strip()]
    if expected:
        assert list(documents(TextFiles(str(path), separator="|é|"))) == expected


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
def test_an_empty_line_splits_a_file_whatever_its_line_ends_are(tmp_path, line_end, separator):
    text = "one\ntwo\n\nthree\n\nfour\n".replace("\n", line_end)
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = list(documents(TextFiles(str(tmp_path), separator)))
    assert found == [f"one{line_end}two", "three", f"four{line_end}"]  # line ends of documents stay as they are


@settings(max_examples=50)
@given(st.text(st.sampled_from("a\r\n"), max_size=20))
def test_mixed_line_ends_split_as_if_they_were_all_the_same(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("mixed") / "all.txt"
    path.write_bytes((text + "a").encode())
    one_kind = (text + "a").replace("\r\n", "\n").replace("\r", "\n")
    found = [piece.replace("\r\n", "\n").replace("\r", "\n") for piece in documents(TextFiles(str(path), "\n\n"))]
    assert found == [piece for piece in one_kind.split("\n\n") if piece.strip()]


def test_a_separator_that_occurs_nowhere_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("one\ntwo")
    assert list(documents(TextFiles(str(tmp_path), "\n\n"))) == ["one", "two", "one\ntwo"]
    said = f"text: the separator '\\n\\n' does not occur in 1 of 2 files, the first {tmp_path}/b.txt; "
    assert capsys.readouterr().out == said + "each is one document\n"
    list(documents(TextFiles(str(tmp_path))))
    assert capsys.readouterr().out == ""


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, text in {"a.txt": "é|b", "b.jsonl": '{"text": "é"}\n{"text": "b"}\n'}.items():
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(codecs.BOM_UTF8 + text.encode()))
    for ending in ("", ".gz"):
        assert list(documents(TextFiles(f"{tmp_path}/a.txt{ending}"))) == ["é|b"]
        assert list(documents(TextFiles(f"{tmp_path}/a.txt{ending}", "|"))) == ["é", "b"]
        assert list(documents(JsonLines(f"{tmp_path}/b.jsonl{ending}"))) == ["é", "b"]
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(ValueError, match="empty corpus"):
        list(documents(TextFiles(f"{tmp_path}/a.txt")))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NOT_TEXT = {
    "git-lfs": (LFS_POINTER, "is a git-lfs pointer, not the file itself: fetch it with git lfs pull"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00text", "is compressed with zstd: unpack it with zstd -d"),
    "xz": (lzma.compress(b"text"), "is compressed with xz: unpack it with xz -d"),
    "bzip2": (bz2.compress(b"text"), "is compressed with bzip2: unpack it with bzip2 -d"),
    "zip": (b"PK\x03\x04\x14\x00text", "is a zip archive: unpack it"),
    "utf-16": ("Ärger".encode("utf-16"), "is UTF-16; expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8"),
    "utf-32": ("Ärger".encode("utf-32"), "is UTF-32; expected UTF-8"),
    "latin-1": ("Ärger".encode("latin-1"), r"is not UTF-8: invalid continuation byte \(byte 0xc4\)"),
    "cut": ("Ä".encode()[:1], r"is not UTF-8: unexpected end of data \(byte 0xc3\)"),
    "binary": (b"a\0b", "has NUL bytes: no text"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_file_that_is_no_text_is_counted_or_is_an_error_where_it_is_all(tmp_path, capsys, name):
    content, why = NOT_TEXT[name]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"none of 1 file\(s\) is UTF-8 text; {tmp_path}/a\.txt {why}"):
        list(documents(TextFiles(str(tmp_path))))
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.txt").write_bytes(content)
    assert list(documents(TextFiles(str(tmp_path)))) == ["text"]
    assert capsys.readouterr().out.startswith(f"text: 2 of 3 files are left out; the first {tmp_path}/a.txt ")


OTHER_FORMATS = ("git-lfs", "zstd", "xz", "bzip2", "zip", "utf-16")


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_json_lines_and_parquet_files_of_another_format_are_named(tmp_path, name):
    content, why = NOT_TEXT[name]
    for kind, file in ((JsonLines, "a.jsonl"), (JsonLines, "a.jsonl.gz"), (ParquetFiles, "a.parquet")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}/{file} {why}"):
            list(documents(kind(f"{tmp_path}/{file}")))


@pytest.mark.parametrize("text", ["BZhang wrote this", "PAR1 is a gene", "version https://example.org/"])
def test_a_text_that_begins_almost_as_another_format_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert list(documents(TextFiles(str(tmp_path)))) == [text]


def test_folders_behind_links_are_read_and_each_folder_ends(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "b.txt").write_text("b")
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "linked").symlink_to("../disk")
    (tmp_path / "corpus" / "again").symlink_to("../disk/deep")
    (tmp_path / "corpus" / "sub" / "loop").symlink_to("..")
    assert list(source_files(TextFiles(f"{tmp_path}/corpus"))) == ["a.txt", "again/b.txt", "linked/deep/b.txt"]
    (tmp_path / "all").symlink_to("corpus")
    assert list(documents(TextFiles(f"{tmp_path}/all"))) == ["a", "b", "b"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "note.txt").symlink_to("gone")
    assert list(documents(JsonLines(str(tmp_path)))) == ["a"]
    (tmp_path / "b.jsonl").symlink_to("../blobs/gone")
    for path in (tmp_path, f"{tmp_path}/*.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"b\.jsonl is a link to a file that does not exist"):
            documents(JsonLines(str(path)))


@pytest.mark.parametrize("folder", ["data [2024]", "[x]/what?", "a*b"])
def test_a_folder_with_a_pattern_in_its_name_is_found(tmp_path, folder):
    where = tmp_path / folder
    where.mkdir(parents=True)
    (where / "my text.txt").write_text("text")
    for path in (where, where / "my text.txt", f"{where}/*.txt", f"{where}/**/my*"):
        assert list(documents(TextFiles(str(path)))) == ["text"], path


def test_reading_can_stop_in_the_middle_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one|two|three")
    for separator in ("|", None):
        read = documents(TextFiles(str(tmp_path), separator))
        assert next(read).startswith("one")
        read.close()


def test_gzip_is_known_by_its_first_bytes_and_split_like_text(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\n\r\ntwo"))
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"three"))
    assert list(documents(TextFiles(str(tmp_path), "\n\n"))) == ["one", "two", "three"]


def test_json_lines_are_found_gzipped_and_by_a_glob(tmp_path):
    for i, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.json.gz", "d.json", "e.txt.gz", "f.ndjson", "G.JSONL")):
        line = json.dumps({"text": f"{i}", "id": "the same"}).encode()
        (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    assert list(documents(JsonLines(str(tmp_path)))) == ["6", "0", "1", "2", "5"]
    assert list(documents(JsonLines(f"{tmp_path}/*.jsonl*"))) == ["0", "1"]
    assert list(documents(JsonLines(f"{tmp_path}/d.json"))) == ["3"]


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: data[:200] + b"\xff" * 40 + data[240:]])
@pytest.mark.parametrize("kind", [TextFiles, JsonLines])
def test_a_damaged_gzip_file_is_named(tmp_path, kind, damage):
    lines = "".join(json.dumps({"text": f"{i * i}"}) + "\n" for i in range(300))
    (tmp_path / "a.jsonl.gz").write_bytes(damage(gzip.compress(lines.encode())))
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.jsonl\.gz is a damaged gzip file: ") as error:
        list(documents(kind(str(tmp_path))))
    assert "\n" not in str(error.value)


def write_parquet(path: Path, **columns) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)


def test_parquet_rows_are_documents(tmp_path):
    texts = [f"text {i}\r\né" for i in range(8)]
    write_parquet(tmp_path / "a.parquet", text=texts, n=list(range(8)))
    write_parquet(tmp_path / "b.parquet", text=pyarrow.array(["x", " ", "x"]).dictionary_encode(), n=[1, 2, 3])
    assert list(documents(ParquetFiles(str(tmp_path)))) == [*texts, "x", "x"]
    assert list(documents(ParquetFiles(f"{tmp_path}/b*"))) == ["x", "x"]
    write_parquet(tmp_path / "c.parquet", body=pyarrow.array(["large"], pyarrow.large_string()))
    assert list(documents(ParquetFiles(f"{tmp_path}/c.parquet", "body"))) == ["large"]


BAD_PARQUET = {
    "missing": (dict(txt=["a"]), "has no column 'text', did you mean 'txt'?; found txt"),
    "number": (dict(text=[1]), "column 'text' is int64; expected strings"),
    "bytes": (dict(text=[b"a"]), "column 'text' is binary; expected strings"),
    "list": (dict(text=[["a"]]), "column 'text' is list<element: string>; expected strings"),
    "null": (dict(text=["a"] * 7 + [None]), "row group 2, row 1: column 'text' is null; expected a string"),
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_a_bad_parquet_value_is_named_with_its_place(tmp_path, name):
    columns, message = BAD_PARQUET[name]
    write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(ValueError) as error:
        list(documents(ParquetFiles(str(tmp_path))))
    assert str(error.value).startswith(f"{tmp_path}/a.parquet") and message in str(error.value)


@pytest.mark.parametrize("damage", [lambda data: b"PAR1", lambda data: data[:-9], lambda data: data[:4] + data[60:]])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    write_parquet(tmp_path / "a.parquet", text=[f"{i * i} words" for i in range(300)])
    (tmp_path / "a.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.parquet is no parquet file, or damaged: ") as error:
        list(documents(ParquetFiles(str(tmp_path))))
    assert "\n" not in str(error.value)


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has 2 columns 'text'; expected one"):
        list(documents(ParquetFiles(str(tmp_path))))


def test_parquet_without_pyarrow_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow, which is not installed; run: pip install pyarrow"):
        source_from_config({"kind": "parquet", "path": str(tmp_path)})


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
        ('{"text": null}', "line 2: field 'text' is null; expected a string"),
        ('{"text": 3}', "line 2: field 'text' is int; expected a string"),
        (r'{"text": "\ud800"}', "line 2: field 'text' holds half a surrogate pair"),
        ('{"text": NaN}', r"line 2 is not JSON: NaN is no JSON number \(null is its like\)"),
        ('{"text": "a", "n": [{"b": 1, "b": 2}]}', "line 2 is not JSON: the key 'b' stands twice in an object"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "line 2 is not JSON: Exceeds the limit"),
        ('{"text": ' + "[" * 10_000, "line 2 is not JSON: maximum recursion depth"),
        ('{"text": "a\0b"}', "line 2 is not JSON: Invalid control character"),
        (json.dumps({"x" * 10**6: 1}), "line 2 has no field 'text'; found x{97}[.]{3}$"),
        (json.dumps({f"x{i}": 1 for i in range(10**4)}), "line 2 has no field 'text'; found x0, x1, .*, x19, [.]{3}$"),
        (json.dumps("x" * 10**6), "line 2 is a JSON str; expected an object"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, {message}") as error:
        list(documents(JsonLines(str(tmp_path / "bad.jsonl"))))
    assert len(str(error.value)) < 400 + len(str(tmp_path)) and "\n" not in str(error.value)


def test_joined_json_lines_may_have_a_byte_order_mark_each(tmp_path):
    lines = codecs.BOM_UTF8 + b'{"text": "a"}\r\n' + codecs.BOM_UTF8 + b'{"text": "b"}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    assert list(documents(JsonLines(str(tmp_path)))) == ["a", "b"]


def test_a_repeated_key_among_many_is_found_at_once(tmp_path):
    keys = ", ".join(f'"k{i}": 1' for i in range(50_000))
    (tmp_path / "a.jsonl").write_text(f'{{{keys}, "k49999": 2}}')
    start = time.process_time()
    with pytest.raises(ValueError, match="the key 'k49999' stands twice in an object"):
        list(documents(JsonLines(str(tmp_path))))
    assert time.process_time() - start < 5  # measured: 0.1 s; a search for each key took 25


def test_a_line_of_any_length_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 10**7))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz, line 1 is longer than 1000 bytes"):
        list(documents(JsonLines(str(tmp_path))))


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


def test_the_hash_of_a_long_document_is_that_of_its_bytes():
    text = "größer 日本 " * 300_000
    whole = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert split_hash(text) == split_hash(text.encode()) == int.from_bytes(whole, "big")


@given(st.text(), st.floats(0, 0.999), st.floats(0, 0.999))
def test_held_out_grows_with_the_fraction(text, a, b):
    assert is_held_out(text, 0.0) is False
    assert is_held_out(text, min(a, b)) <= is_held_out(text, max(a, b))
    assert is_held_out(text, a) == is_held_out(text.encode(), a)


@pytest.mark.parametrize("kept", [10, 1, 0])
def test_a_tokenizer_learns_from_what_is_not_held_out_and_of_small_data_from_all(tmp_path, kept):
    texts = [f"document {i}" for i in range(100)]
    train = [text for text in texts if not is_held_out(text, 0.5)][:kept]
    mixed = [*(text for text in texts if is_held_out(text, 0.5)), *train]
    (tmp_path / "all.txt").write_text("|".join(mixed))
    assert list(training_documents(TextFiles(str(tmp_path), "|"), 0.5)) == (train or mixed)


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


@pytest.mark.parametrize("meta", ["[]", "null", '"x"', "{", '{"dtype": "uint16", "vocab_size": "10", "eos_id": 0}'])
def test_a_bad_meta_of_a_token_folder_is_named(tmp_path, meta):
    (token_folder(tmp_path, [5], [0, 1]) / "meta.json").write_text(meta)
    with pytest.raises(ValueError, match=r"meta\.json is "):
        open_documents(tmp_path)


@pytest.mark.parametrize(
    "offsets", [[], [0.0, 3.0], [[0, 3]], [1, 3], [0, 5, 3], [0, -1, 3], 3, ["0", "3"], b"", b"text"]
)
def test_bad_offsets_of_a_token_folder_are_named(tmp_path, offsets):
    token_folder(tmp_path, [5, 6, 0], [0, 3])
    if isinstance(offsets, bytes):
        (tmp_path / "offsets.npy").write_bytes(offsets)
    else:
        np.save(tmp_path / "offsets.npy", np.array(offsets))
    with pytest.raises(ValueError, match=r"offsets\.npy (is|does) "):
        open_documents(tmp_path)
