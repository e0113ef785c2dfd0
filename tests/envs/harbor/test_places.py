"""Absolute paths of a task and the places of a box that they lead to."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.envs.harbor.places import place
from ling_jax.sandbox.contract import LINKS

names = st.text("abc.", min_size=1, max_size=3)


def test_the_working_directory_is_the_work_folder():
    assert place("/app/src/a.py") == place("src/a.py", "/app") == place("/work/src/a.py", "/app") == "src/a.py"
    assert place("a.py", "/app/src") == "src/a.py" and place("/app") == "."
    assert place("/data/b.csv", "/app") == ".root/data/b.csv" and place("../tests/x", "/app") == ".root/tests/x"


@pytest.mark.parametrize("path", ["/etc/passwd", "../etc/passwd", "/", "../..", "/proc/1/root"])
def test_a_path_in_another_folder_is_refused(path):
    with pytest.raises(ValueError, match="is in none of the task's folders, /work, /app"):
        place(path, "/app")


@given(st.sampled_from(sorted(LINKS)), st.lists(names, max_size=3))
def test_every_path_leads_through_the_links_to_its_place(top, rest):
    path = posixpath.normpath("/".join(("", top, *rest)))
    if path.split("/")[1:2] == [top]:
        through = posixpath.normpath(LINKS[top] + path.removeprefix(f"/{top}"))
        assert through == posixpath.normpath(f"/work/{place(path)}")
