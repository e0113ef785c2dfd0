"""Promises of the token folders and of the packing plan."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ling_jax.data import packing
from ling_jax.data.packing import PackedRows, pack_plan, packed_rows, tokenize, validate_batch
from ling_jax.data.sources import PythonSources, TextFiles, TokenDocuments, TokenFile, is_held_out, open_documents
from ling_jax.data.tokenizer import train_bpe
from ling_jax.sums import read_sealed
from tests.helpers.damage import DAMAGES, damage

TEXTS = [f"document {i}: " + "word " * (i % 7) for i in range(40)]
LENGTHS = st.lists(st.integers(0, 40), max_size=30).map(lambda lengths: np.array(lengths, int))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 272)


@pytest.fixture
def corpus(tmp_path: Path) -> TextFiles:
    (tmp_path / "corpus.txt").write_text("\n---\n".join(TEXTS))
    return TextFiles(str(tmp_path / "corpus.txt"), separator="\n---\n")


def rows_of(lengths: np.ndarray, sequence_length: int, seed: int) -> PackedRows:
    """Rows of documents whose tokens 1, 2, 3, … are all different; eos, the padding, is 0."""
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.uint16)
    documents = TokenDocuments(Path("memory"), tokens, offsets, 2000, 0, "")
    return PackedRows(documents, pack_plan(lengths, sequence_length, seed))


def test_every_document_lands_in_one_split_with_its_eos(corpus, tokenizer, tmp_path):
    meta = tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)
    assert meta == read_sealed(tmp_path / "out" / "meta.json", "an object")
    assert meta["dtype"] == "uint16" and meta["vocab_size"] == 272
    for split, held_out in (("train", False), ("held_out", True)):
        expected = [text for text in TEXTS if is_held_out(text, 0.3) == held_out]
        read = open_documents(tmp_path / "out" / split)
        texts = [tokenizer.decode(read.doc(i)[:-1].tolist()) for i in range(len(read))]
        assert texts == expected and len(expected) > 3
        assert all(read.doc(i)[-1] == 0 and 0 not in read.doc(i)[:-1] for i in range(len(read)))
        assert meta[split] == {"documents": len(read), "tokens": read.num_tokens}


def test_large_vocabulary_takes_four_bytes(corpus, tokenizer, tmp_path):
    large = Tokenizer.from_str(tokenizer.to_str())
    large.add_tokens([f"token {i}" for i in range(65_536)])
    assert tokenize(corpus, large, tmp_path / "out", held_out_fraction=0)["dtype"] == "uint32"
    assert open_documents(tmp_path / "out" / "train").tokens.dtype == np.uint32


def test_progress_can_be_grepped(corpus, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packing, "REPORT_SECONDS", 0)
    tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    lines = re.findall(r"^tokenize: documents=(\d+) tokens=(\d+) tokens_per_second=\d+$", capsys.readouterr().out, re.M)
    assert len(lines) > 10 and lines[-1][0] == "40"
    assert int(lines[-1][1]) == open_documents(tmp_path / "out" / "train").num_tokens


def test_same_corpus_is_reused_and_another_is_refused(corpus, tokenizer, tmp_path):
    meta = tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)
    written = (tmp_path / "out" / "train" / "tokens.bin").stat().st_mtime_ns
    assert tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3) == meta
    assert (tmp_path / "out" / "train" / "tokens.bin").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"another corpus: held_out_fraction was 0\.3 and is 0\.2; remove"):
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.2)
    with pytest.raises(ValueError, match="another corpus: tokenizer was"):
        tokenize(corpus, train_bpe(TEXTS, 270), tmp_path / "out", held_out_fraction=0.3)
    Path(corpus.path).write_text("other\n---\n" + "\n---\n".join(TEXTS))
    with pytest.raises(ValueError, match="holds another corpus"):
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)


@pytest.mark.parametrize("kind", sorted(DAMAGES))
def test_no_damage_of_a_prepared_corpus_is_silent(corpus, tokenizer, tmp_path, kind):
    tokenize(corpus, tokenizer, tmp_path / "whole", held_out_fraction=0.3)
    for seed in range(15):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(seed))
        damage(kind, folder, random.Random(seed))
        with pytest.raises((ValueError, OSError)) as raised:
            tokenize(corpus, tokenizer, folder, held_out_fraction=0.3)
        assert str(folder) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_a_damaged_plan_is_made_again(corpus, tokenizer, tmp_path, kind):
    tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    folder = tmp_path / "out" / "train"
    rows, path = packed_rows(folder, 32, 7), folder / "pack_32_7.npz"
    whole = path.read_bytes()
    for seed in range(40):
        path.write_bytes(whole)
        DAMAGES[kind]([path], random.Random(seed))
        again = packed_rows(folder, 32, 7)
        for name in packing.PLAN_ARRAYS:
            np.testing.assert_array_equal(getattr(again.plan, name), getattr(rows.plan, name))


def test_a_corpus_of_an_earlier_version_is_used_with_a_line(corpus, tokenizer, tmp_path, capsys):
    meta = tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)
    del meta["files"]
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    assert tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3) == meta
    assert "tokenised by an earlier version: its bytes are not verified" in capsys.readouterr().err


def test_foreign_folder_is_left_alone(corpus, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"without a meta\.json: not a tokenised corpus"):
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_tokenising_leaves_nothing(corpus, tokenizer, tmp_path, monkeypatch, error):
    def interrupted(*args):
        raise error

    monkeypatch.setattr(packing.np, "save", interrupted)  # the tokens are written, the offsets are not
    with pytest.raises((KeyboardInterrupt, OSError)):
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_the_slower_of_two_processes_takes_what_the_faster_wrote(corpus, tokenizer, tmp_path, monkeypatch):
    write = packing._write_splits

    def overtaken(*args):
        monkeypatch.setattr(packing, "_write_splits", write)
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)
        return write(*args)

    monkeypatch.setattr(packing, "_write_splits", overtaken)
    meta = tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0.3)
    assert meta == read_sealed(tmp_path / "out" / "meta.json", "an object")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out"]


def text_of(folder: Path, tokenizer: Tokenizer) -> list[str]:
    read = open_documents(folder)
    return [tokenizer.decode(read.doc(i).tolist(), skip_special_tokens=False) for i in range(len(read))]


@pytest.mark.parametrize("hash_holds_it_out", [False, True])
def test_the_last_part_of_a_single_file_is_held_out(tokenizer, tmp_path, capsys, hash_holds_it_out):
    texts = (f"{number} words and {number} more " * 20 for number in range(100))
    text = next(text for text in texts if is_held_out(text, 0.2) == hash_holds_it_out)
    (tmp_path / "a.txt").write_text(text)
    source = TextFiles(str(tmp_path / "a.txt"))
    meta = tokenize(source, tokenizer, tmp_path / "out", held_out_fraction=0.2)
    (train,), (held_out,) = (text_of(tmp_path / "out" / split, tokenizer) for split in ("train", "held_out"))
    assert train + held_out == text + "<|endoftext|>"
    tokens = meta["train"]["tokens"] + meta["held_out"]["tokens"]
    assert meta["held_out"] == {"documents": 1, "tokens": round(0.2 * tokens)} and meta["held_out_by"] == "position"
    said = (
        f"1 document.s. are too few .* held out is the last part of the text, 0.2 of it .{round(0.2 * tokens)} tokens"
    )
    assert re.search(said, capsys.readouterr().out)
    assert len(packed_rows(tmp_path / "out" / "train", 64, 0)) and len(
        packed_rows(tmp_path / "out" / "held_out", 64, 0)
    )
    assert tokenize(source, tokenizer, tmp_path / "out", held_out_fraction=0.2) == meta  # reused


@settings(max_examples=50)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_of_few_documents_both_sides_have_some_and_none_is_on_both(tmp_path_factory, tokenizer, letters, fraction):
    folder = tmp_path_factory.mktemp("few")
    (folder / "few.txt").write_text("|".join(letter * 6 for letter in letters))
    meta = tokenize(TextFiles(str(folder / "few.txt"), "|"), tokenizer, folder / "out", held_out_fraction=fraction)
    train, held_out = (text_of(folder / "out" / split, tokenizer) for split in ("train", "held_out"))
    texts = [letter * 6 + "<|endoftext|>" for letter in letters]
    assert meta["train"]["tokens"] == sum(len(tokenizer.encode(text).ids) for text in train)
    if len(set(letters)) == 1 and meta["held_out"]["documents"]:
        assert [text + held_out[0] for text in train] == texts
    elif len(set(letters)) == 1:  # its tokens are too few for a part on each side
        assert train == texts
    else:
        assert sorted(train + held_out) == sorted(texts) and train and held_out
        assert not set(train) & set(held_out)
        if meta["held_out_by"] == "position":
            assert set(held_out) == {texts[-1]}


def test_nothing_is_held_out_where_that_is_wanted_or_the_text_is_too_short(tokenizer, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a")
    source = TextFiles(str(tmp_path / "a.txt"))
    assert tokenize(source, tokenizer, tmp_path / "none", held_out_fraction=0)["train"] == {"documents": 1, "tokens": 2}
    assert "held out" not in capsys.readouterr().out
    assert tokenize(source, tokenizer, tmp_path / "out", held_out_fraction=0.9)["held_out"]["documents"] == 0
    assert "held out is nothing, since they cannot be split" in capsys.readouterr().out
    with pytest.raises(ValueError, match="held_out_fraction is 1; it must be at least 0 and below 1"):
        tokenize(source, tokenizer, tmp_path / "other", held_out_fraction=1)


def test_token_folder_is_a_source(corpus, tokenizer, tmp_path):
    tokenize(corpus, tokenizer, tmp_path / "given", held_out_fraction=0)
    source = TokenFile(str(tmp_path / "given" / "train"))
    tokenize(source, tokenizer, tmp_path / "out", held_out_fraction=0.5)
    given = open_documents(source.path)
    splits = [open_documents(tmp_path / "out" / split) for split in ("train", "held_out")]
    documents = sorted(split.doc(i).tolist() for split in splits for i in range(len(split)))
    assert documents == sorted(given.doc(i).tolist() for i in range(len(given)))
    assert all(len(split) for split in splits)
    other = train_bpe([text.upper() for text in TEXTS], 272)
    with pytest.raises(ValueError, match="is of another tokenizer"):
        tokenize(source, other, tmp_path / "third", held_out_fraction=0.5)


def test_token_outside_the_vocabulary_is_named(corpus, tokenizer, tmp_path):
    tokenize(corpus, tokenizer, tmp_path / "given", held_out_fraction=0)
    tokens = np.fromfile(tmp_path / "given" / "train" / "tokens.bin", "<u2")
    tokens[0] = 272
    tokens.tofile(tmp_path / "given" / "train" / "tokens.bin")
    with pytest.raises(ValueError, match="document 0 has token 272; vocab_size is 272"):
        tokenize(TokenFile(str(tmp_path / "given" / "train")), tokenizer, tmp_path / "out", held_out_fraction=0)


@given(LENGTHS, st.integers(2, 50), st.integers(0, 3))
def test_every_token_once_per_epoch(lengths, sequence_length, seed):
    rows = rows_of(lengths, sequence_length, seed)
    tokens = [row["tokens"][row["segment_ids"] > 0] for row in (rows[i] for i in range(len(rows)))]
    assert sorted(np.concatenate([[], *tokens])) == list(range(1, lengths.sum() + 1))
    assert rows.plan.num_tokens == lengths.sum()


@given(LENGTHS, st.integers(2, 50))
def test_segments_and_positions_follow_documents(lengths, sequence_length):
    rows = rows_of(lengths, sequence_length, 0)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in (rows[i] for i in range(len(rows))):
        assert {name: (values.dtype, values.shape) for name, values in row.items()} == dict.fromkeys(
            ("tokens", "labels", "segment_ids", "positions"), (np.int32, (sequence_length,))
        )
        tokens, segments, positions = row["tokens"], row["segment_ids"], row["positions"]
        real = segments > 0
        assert not real[np.argmin(real) :].any() or real.all()  # padding comes last
        assert (row["labels"] == np.where(real, tokens, -100)).all()
        assert (tokens[~real] == 0).all() and (positions[~real] == 0).all()
        for segment in range(1, segments.max() + 1):
            piece = tokens[segments == segment]
            assert len(piece) and (np.diff(piece) == 1).all()  # consecutive tokens …
            assert len(set(document_of[piece - 1])) == 1  # … of one document
            assert positions[segments == segment].tolist() == list(range(len(piece)))


@given(LENGTHS, st.integers(2, 50))
def test_only_what_is_longer_than_a_row_is_cut(lengths, sequence_length):
    plan = pack_plan(lengths, sequence_length, 0)
    assert np.bincount(plan.piece_doc, minlength=len(lengths)).tolist() == [-(-n // sequence_length) for n in lengths]


@given(LENGTHS, st.integers(2, 50))
def test_no_two_rows_could_be_one(lengths, sequence_length):
    plan = pack_plan(lengths, sequence_length, 0)
    pieces = np.split(plan.piece_length, plan.row_offsets[1:-1]) if plan.num_rows else []
    used = sorted(piece.sum() for piece in pieces)
    assert all(0 < n <= sequence_length for n in used)
    assert len(used) < 2 or used[0] + used[1] > sequence_length


def test_plan_depends_on_the_seed_alone():
    lengths = np.random.default_rng(0).integers(1, 300, 200)
    first, again, other = (pack_plan(lengths, 64, seed) for seed in (0, 0, 1))
    for name in packing.PLAN_ARRAYS:
        assert (getattr(first, name) == getattr(again, name)).all()
        assert getattr(first, name).dtype == np.int32
    assert not np.array_equal(first.piece_doc, other.piece_doc)


def test_a_row_holds_two_tokens_at_least():
    with pytest.raises(ValueError, match="sequence_length is 1"):
        pack_plan(np.array([5]), 1, 0)


def test_plan_is_kept_and_reused(corpus, tokenizer, tmp_path, monkeypatch):
    tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    folder = tmp_path / "out" / "train"
    rows = packed_rows(folder, 32, 7)
    assert {path.name for path in folder.glob("*pack*")} == {"pack_32_7.npz"}
    monkeypatch.setattr(packing, "pack_plan", None)
    again = packed_rows(folder, 32, 7)
    assert all((again[i]["tokens"] == rows[i]["tokens"]).all() for i in range(len(rows)))
    with pytest.raises(IndexError):
        rows[len(rows)]
    np.savez(folder / "pack_32_7.npz", **{name: getattr(rows.plan, name)[:3] for name in packing.PLAN_ARRAYS})
    with pytest.raises(ValueError, match=r"pack_32_7\.npz plans \d+ tokens; .*remove the plan"):
        packed_rows(folder, 32, 7)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04text", None])
def test_a_file_that_is_no_plan_is_made_again(corpus, tokenizer, tmp_path, content):
    tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    path = tmp_path / "out" / "train" / "pack_32_7.npz"
    rows = packed_rows(path.parent, 32, 7)
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    again = packed_rows(path.parent, 32, 7)
    assert all((again[i]["tokens"] == rows[i]["tokens"]).all() for i in range(len(rows)))


@pytest.mark.parametrize("content", ["[]", "null", '{"fing'])
def test_a_damaged_meta_of_a_corpus_is_named(corpus, tokenizer, tmp_path, content):
    tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0)
    (tmp_path / "out" / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=r"out/meta\.json is .*; remove the folder, or name another"):
        tokenize(corpus, tokenizer, tmp_path / "out", held_out_fraction=0, replace=True)


def test_library_sources_pack_with_little_padding():
    lengths = np.array([path.stat().st_size // 3 for path in packing.sources.source_files(PythonSources()).values()])
    plan = pack_plan(lengths, 256, 0)
    assert plan.num_tokens > 0.99 * plan.num_rows * 256


def test_valid_batch_passes():
    rows = rows_of(np.array([5, 9, 3]), 8, 0)
    batch = {name: np.stack([rows[i][name] for i in range(len(rows))]) for name in rows[0]}
    validate_batch(batch, vocab_size=2000, max_length=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", 2000, r"batch\['tokens'\]\[1, 2\] is 2000; expected 0 <= token < vocab_size = 2000"),
        ("tokens", -1, r"batch\['tokens'\]\[1, 2\] is -1"),
        ("labels", 1999, r"batch\['labels'\]\[1, 2\] is 1999; expected the token there, or -100"),
        ("segment_ids", -1, r"batch\['segment_ids'\]\[1, 2\] is -1; expected 0 \(padding\) or more"),
        ("positions", 8, r"batch\['positions'\]\[1, 2\] is 8; expected 0 <= position < 8"),
    ],
)
def test_bad_value_is_named_with_its_place(field, value, message):
    rows = rows_of(np.array([8, 8]), 8, 0)
    batch = {name: np.stack([rows[0][name], rows[1][name]]) for name in rows[0]}
    batch[field][1, 2] = value
    with pytest.raises(ValueError, match=message):
        validate_batch(batch, vocab_size=2000, max_length=8)


def test_misshapen_batch_is_named():
    batch = {name: np.zeros((2, 4), np.int32) for name in ("tokens", "labels", "segment_ids", "positions")}
    with pytest.raises(ValueError, match=r"batch\['labels'\] is int32\[2, 3\]; .*shaped as tokens, \[2, 4\]"):
        validate_batch(batch | {"labels": batch["labels"][:, :3]}, vocab_size=5, max_length=4)
    with pytest.raises(ValueError, match=r"batch\['positions'\] is float32\[2, 4\]; expected integers"):
        validate_batch(batch | {"positions": np.zeros((2, 4), np.float32)}, vocab_size=5, max_length=4)
    del batch["segment_ids"]
    with pytest.raises(ValueError, match="the batch has no 'segment_ids'; found tokens, labels, positions"):
        validate_batch(batch, vocab_size=5, max_length=4)
