"""What is read from gs:// is what is read from the disk."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from ling_jax import data
from ling_jax.data import JsonLines, ParquetFiles, TextFiles
from ling_jax.data.sources import source_digest
from ling_jax.files import upload_folder
from tests.helpers.small_run import write_corpus


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_corpus(folder / "texts", 3)
    (folder / "texts" / "deep").mkdir()
    (folder / "texts" / "deep" / "packed.gz").write_bytes(gzip.compress(b"packed text"))
    (folder / "texts" / ".hidden").write_text("no document")
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3)))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row 0", "row 1"]}), folder / "rows.parquet")
    return folder


def test_sources_give_the_same_documents(corpus, gs):
    upload_folder(corpus, gs)
    for kind, path in (
        (TextFiles, "texts"),
        (TextFiles, "texts/*1.txt"),
        (TextFiles, "texts/**/*"),
        (TextFiles, "texts/00.txt"),
        (JsonLines, "lines.jsonl"),
        (ParquetFiles, "rows.parquet"),
        (ParquetFiles, ""),
    ):
        local, remote = kind(f"{corpus}/{path}"), kind(f"{gs}/{path}")
        assert list(data.documents(remote)) == list(data.documents(local)) != [], path
        assert source_digest(remote) == source_digest(local)
    with pytest.raises(FileNotFoundError, match="nothing does not exist; name a file, a folder or a glob"):
        data.source_files(TextFiles(f"{gs}/nothing"))
    with pytest.raises(ValueError, match=r"is an empty corpus: no file found that ends in \.parquet"):
        data.source_files(ParquetFiles(f"{gs}/texts"))


def test_tokens_are_prepared_once_and_read_from_a_copy(corpus, gs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, tokenizer = TextFiles(str(corpus / "texts")), data.train_bpe(["one other"], 300)
    made = [data.tokenize(source, tokenizer, folder, held_out_fraction=0.3) for folder in (tmp_path / "data", gs)]
    assert made[0] == made[1] == data.tokenize(source, tokenizer, gs, held_out_fraction=0.3)
    rows = [data.packed_rows(folder / "train", 16, seed=0) for folder in (tmp_path / "data", gs)]
    assert len(rows[0]) == len(rows[1]) > 0
    assert all((rows[0][0][name] == rows[1][0][name]).all() for name in rows[0][0])
    (gs / "train" / "tokens.bin").write_bytes(b"x" * (gs / "train" / "tokens.bin").stat().length)
    with pytest.raises(ValueError, match=r"train/tokens.bin has changed since it was written: .*makes it again"):
        data.tokenize(source, tokenizer, gs, held_out_fraction=0.3)
    other = data.tokenize(TextFiles(str(corpus / "texts/00.txt")), tokenizer, gs, held_out_fraction=0.3, replace=True)
    assert other["fingerprint"] != made[0]["fingerprint"]
