"""Functions and classes of the user's own are found by name, and what is wrong with the name is said."""

import itertools
import re

import pytest

from ling_jax.user_code import load_object

NUMBERS = itertools.count()


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """`write_module(code)`: the name of a new module in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"own_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def test_a_name_in_the_current_folder_or_in_a_package_below_is_found(write_module, tmp_path):
    assert load_object(f"{write_module('value = 3')}:value", "reward") == 3
    (tmp_path / "own_folder").mkdir()
    (tmp_path / "own_folder" / "rewards.py").write_text("value = 4")
    assert load_object("own_folder.rewards:value", "reward") == 4


@pytest.mark.parametrize(
    "name", ["score", "my_module:", ":score", "my-module:score", "my_module:a.b", "my_module.py:f"]
)
def test_another_form_is_refused_with_the_form_that_works(name):
    if name == "my_module.py:f":  # a module py in a package my_module
        message = "there is no module my_module; expected my_module.py in the current folder"
    else:
        message = "expected module:name, such as my_module:"
    with pytest.raises(ValueError, match=f"reward is {name!r}.*{message}"):
        load_object(name, "reward")


def test_what_is_not_there_is_named_with_what_is(write_module):
    name = write_module("def score(): ...\ndef other(): ...\n")
    with pytest.raises(ValueError, match="has no 'scores', did you mean 'score'"):
        load_object(f"{name}:scores", "reward")
    with pytest.raises(ValueError, match=r"has no 'zzz'; it has score, other$"):
        load_object(f"{name}:zzz", "reward")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nraise KeyError('lost')", "cannot be imported: KeyError: 'lost' .*, line 2"),
        (
            "import no_such_library",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_library' .*line 1",
        ),
        ("def f(:\n", "cannot be imported: SyntaxError: .*line 1"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why_and_where(write_module, code, message):
    name = write_module(code)
    with pytest.raises(ValueError) as error:
        load_object(f"{name}:f", "environment")
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)
