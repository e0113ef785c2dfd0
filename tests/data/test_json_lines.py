"""Promises of the readers of JSON lines beside those in test_sources.py: ids, and errors of one short line."""

import json

import pytest

from ling_jax.data.json_lines import read_objects, with_unique_ids
from ling_jax.evaluate.answers import exact_match, read_tasks
from ling_jax.evaluate.choice import read_questions
from ling_jax.messages import shown


@pytest.mark.parametrize("ids", [["a", "b", "a"], [7, None, 7], [[1], 3, [1]], [{"x": 1, "y": 2}, 3, {"y": 2, "x": 1}]])
def test_an_id_that_comes_again_is_refused_with_both_lines(tmp_path, ids):
    records = [{"id": id, "prompt": "p", "answer": 0, "choices": ["x", "y"]} for id in ids]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=rf"{path}, line 5: id is .*, as that of {path}, line 1; give each"):
        read_questions(path)
    path.write_text("\n\n".join(json.dumps(record | {"answer": "0"}) for record in records))
    with pytest.raises(ValueError, match=rf"{path}, line 5: id is .*, as that of {path}, line 1; give each"):
        read_tasks(path, exact_match)


def test_a_record_without_an_id_has_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "0"}\n{}\n{"id": true}\n{"id": 3}\n')
    assert len(list(with_unique_ids(read_objects(path)))) == 4
    path.write_text('{"id": 1}\n{}\n')
    with pytest.raises(ValueError, match=r"line 2: id is 1, as that of .* line 1"):
        list(with_unique_ids(read_objects(path)))


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x" * 10**6] * 1000, {str(i): [["y"] * 1000] * 1000 for i in range(1000)}, 10**4000, {}]
)
def test_a_large_value_is_shown_in_a_short_line(value):
    assert 2 <= len(shown(value)) < 1500 and "\n" not in shown(value)


def test_a_large_answer_does_not_fill_the_error(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": ["x" * 10**6], "choices": ["x" * 10**6] * 2}))
    for read in (lambda: read_tasks(path, exact_match), lambda: read_questions(path)):
        with pytest.raises(ValueError, match=f"^{path}, line 1: ") as error:
            read()
        assert len(str(error.value)) < 500 + len(str(path))
