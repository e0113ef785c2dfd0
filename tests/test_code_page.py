"""The page on the code shows the code that there is."""

import importlib
import importlib.util
import inspect
import re

import pytest

from tests.helpers.faults import ROOT
from tests.test_imports import ORDER

PAGE = (ROOT / "docs" / "code.md").read_text()
PICTURES = re.findall(r"```\n(.*?)```", PAGE, re.S)
ROOM = re.compile(r"^\| (\d+) \| `(\w+)` \| ([^|]+) \| `([\w.]+)` \|$", re.M)
DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
FIELDS = {"train.save_every"}  # of configs


def names_with_dots() -> list[str]:
    """Dotted names of the pictures, and those between backticks in the text."""
    text = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    return sorted({*re.findall(DOTTED, "\n".join(PICTURES)), *re.findall(f"`({DOTTED})`", text)} - FIELDS)


def found(name: str):
    """The object of a dotted name, beginning with the longest module. Raises AttributeError or ModuleNotFoundError."""
    top = name.split(".")[0]
    parts = name.split(".") if top in ("launch", "pallas_kernels") else ["ling_jax", *name.split(".")]
    stop = 1
    while stop < len(parts) and is_module(".".join(parts[: stop + 1])):
        stop += 1
    thing = importlib.import_module(".".join(parts[:stop]))
    for part in parts[stop:]:
        thing = getattr(thing, part)
    return thing


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module and no package
        return False


def test_the_rooms_stand_in_the_order_of_the_imports():
    rooms = [(int(number), name) for number, name, *_ in ROOM.findall(PAGE)]
    assert rooms == sorted(rooms, key=lambda room: room[0])
    by_number = [{name for number, name in rooms if number == n} for n in range(1, len(ORDER) + 1)]
    assert by_number == [set(names) for names in ORDER]
    assert len(rooms) == sum(map(len, ORDER))  # each once


def test_the_place_to_begin_with_is_in_its_room():
    for _, room, _, begin in ROOM.findall(PAGE):
        assert begin.split(".")[0] == room


@pytest.mark.parametrize("name", names_with_dots())
def test_a_name_with_dots_is_in_the_code(name):
    if name.rpartition(".")[0].startswith("launch."):  # importing a program defines its flags
        module, _, function = name.rpartition(".")
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
        assert f"\ndef {function}(" in source
    else:
        assert found(name) is not None


@pytest.mark.parametrize("name", ["data.mixture.bathces", "nothing.at_all", "rl.learner.Learner.leap"])
def test_a_name_that_is_not_there_is_found_out(name):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        found(name)


@pytest.mark.parametrize(
    ("caller", "called"),
    [
        ("run.corpus", ("tokenize", "packed_rows", "mixture")),
        ("run.loop", ("prepare_corpus", "compile_train_step", "run_steps")),
        ("run.stage", ("batches", "orbax.save")),
        ("train.programs", ("make_train_step",)),
        ("train.step", ("loss_counts", "loss_sums", "total_loss", "update_expert_bias", "next_state")),
        ("rl.learner", ("draws_of", "advance", "harvest_of", "answers_to_learn", "prepare", "commit")),
        ("rl.prompts", ("task_of", "reader.begin")),
        ("rl.harvest", ("reward.pay", "group_advantages", "answers_of")),
        ("rl.collector", ("resume", "step", "append_generation", "act", "append_observation", "extend")),
        ("rl.updates", ("pack", "make_rl_step")),
        ("rl.step", ("policy_logps", "make_step")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_picture_joins_is_joined_in_the_code(caller, called):
    """The module that a picture names as the one in charge uses each of the steps that the picture gives it."""
    source = inspect.getsource(found(caller))
    for name in called:
        assert re.search(rf"\b{re.escape(name)}\b", source), f"{caller} does not use {name}"
        assert name.rpartition(".")[2] in PAGE or name == "compile_train_step"


def test_pictures_fit_a_page():
    assert len(PICTURES) == 2
    assert max(len(line) for picture in PICTURES for line in picture.splitlines()) <= 100
    assert all(picture.isascii() for picture in PICTURES)
