import gzip
import json

import numpy as np
import pyarrow.parquet
import pytest

from ling_jax import data
from ling_jax.evaluate.perplexity import encode_texts, perplexity_results, read_texts, windows

TEXTS = ["a text of some words", "naïve 日本 🎉 <|endoftext|> and more", "x", "🎉"]
TOKENIZER = data.train_bpe(["some words of a text", "and more text"], 290)


@pytest.mark.parametrize("size", [2, 3, 7, 100])
def test_windows_predict_every_token_but_the_first_once(size):
    documents = encode_texts(TOKENIZER, TEXTS)
    for number, document in enumerate(documents):
        parts = [part for part in windows(documents, size) if part.document == number]
        assert all(2 <= len(part.tokens) <= size for part in parts)
        predicted = [part.start + t for part in parts for t in range(1, len(part.tokens))]
        assert predicted == list(range(1, len(document.tokens)))
        for part in parts:
            np.testing.assert_array_equal(part.tokens, document.tokens[part.start :][: len(part.tokens)])


def test_bytes_are_those_of_the_predicted_tokens_and_the_end_has_none():
    for text, (tokens, num_bytes) in zip(TEXTS, encode_texts(TOKENIZER, TEXTS), strict=True):
        spelled = [TOKENIZER.id_to_token(token) for token in tokens[:-1].tolist()]
        assert "".join(spelled).count("Ġ") == text.count(" ")
        assert sum(map(len, spelled)) == len(text.encode()), "one letter a byte"
        assert num_bytes == sum(map(len, spelled[1:]))
        assert tokens[-1] == data.eos_id(TOKENIZER) and data.eos_id(TOKENIZER) not in tokens[:-1]


def test_numbers_are_ratios_of_sums():
    documents = encode_texts(TOKENIZER, TEXTS)
    parts = list(windows(documents, 5))
    rng = np.random.default_rng(0)
    logps = {i: -rng.uniform(1, 3, len(part.tokens) - 1).astype(np.float32) for i, part in enumerate(parts)}
    samples, metrics = perplexity_results(documents, parts, logps)
    by_name = {metric.name: metric for metric in metrics}
    nats = -sum(float(x) for part in logps.values() for x in part)
    tokens = sum(len(document.tokens) - 1 for document in documents)
    assert by_name["nats_per_token"].value == pytest.approx(nats / tokens, rel=1e-6)
    assert by_name["perplexity"].value == pytest.approx(np.exp(nats / tokens), rel=1e-6)
    assert by_name["nats_per_byte"].value == pytest.approx(nats / sum(d.num_bytes for d in documents), rel=1e-6)
    for metric in metrics:
        assert metric.n == len(TEXTS) and metric.interval[0] < metric.value < metric.interval[1]
    np.testing.assert_allclose(by_name["perplexity"].interval, np.exp(by_name["nats_per_token"].interval))
    for sample, document in zip(samples, documents, strict=True):
        assert sample["tokens"] == document.tokens.tolist() and len(sample["logps"]) == len(document.tokens) - 1
        assert sample["nats"] == pytest.approx(-sum(sample["logps"]), rel=1e-6)


def test_one_document_has_no_interval_and_one_token_no_bytes():
    documents = encode_texts(TOKENIZER, ["x"])
    _, metrics = perplexity_results(documents, list(windows(documents, 8)), {0: np.array([-2.0], np.float32)})
    assert [metric.value for metric in metrics] == [2.0, pytest.approx(np.exp(2)), None]
    assert [metric.interval for metric in metrics] == [None, None, None]


def test_file_names_decide_the_format(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "second"}) + "\n" + json.dumps({"text": "third"}))
    assert read_texts(tmp_path / "a.txt") == ["first"]
    assert read_texts(tmp_path / "b.jsonl") == read_texts(tmp_path / "*.jsonl") == ["second", "third"]
    with pytest.raises(ValueError, match=r"has files of two kinds, a.txt \(TextFiles\) and b.jsonl \(JsonLines\)"):
        read_texts(tmp_path)
    (tmp_path / "a.txt").unlink()
    assert read_texts(tmp_path) == ["second", "third"]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fourth"}'))
    assert read_texts(tmp_path) == ["second", "third", "fourth"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fifth"]}), tmp_path / "d.parquet")
    assert read_texts(tmp_path / "*.parquet") == ["fifth"]
