"""Task directories: what is read, what is left out with a warning, and one line for each mistake."""

import shutil
from pathlib import Path

import pytest

from ling_jax.envs import is_held_out
from ling_jax.envs.harbor.dockerfile import Unsupported
from ling_jax.envs.harbor.folder import MAX_BYTES, read_task, read_tasks, unpacked
from ling_jax.envs.sources import TaskSource, check_files, check_tasks, held_out_of, task_of, tasks_of_path

FIXTURES = Path(__file__).parents[2] / "fixtures" / "harbor"


@pytest.fixture(autouse=True)
def forget():
    read_tasks.cache_clear()
    yield
    read_tasks.cache_clear()


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURES / "greeting", tmp_path / "greeting")
    return tmp_path / "greeting"


def many(tmp_path, count):
    """A folder of tasks whose instructions differ."""
    for i in range(count):
        shutil.copytree(FIXTURES / "greeting", tmp_path / "set" / f"t{i:02}")
        (tmp_path / "set" / f"t{i:02}" / "instruction.md").write_text(f"Do thing {i}.")
        edit(tmp_path / "set" / f"t{i:02}" / "task.toml", "ling-jax/greeting", f"ling-jax/t{i}")
    return tmp_path / "set"


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_task_holds_all_of_its_folder():
    task = read_task(FIXTURES / "word-count")
    hidden = task.hidden
    assert task.difficulty == 2 and hidden["name"] == "word-count" and hidden["workdir"] == "/workspace"
    assert hidden["env"] == {"TEXTS": "/data/texts", "LANG": "C.UTF-8"} and hidden["tests_seconds"] == 20
    assert set(hidden["files"]) == {
        "/data/texts/a.txt",
        "/data/texts/b.txt",
        "/workspace/notes.md",
        "/workspace/count.sh",
    }
    assert hidden["executable"] == ["/workspace/count.sh"] and {"test.sh", "judge.py"} == set(hidden["tests"])
    assert [tool["function"]["name"] for tool in task.tools] == ["execute_bash", "search_replace", "task_done"]


def test_the_agent_is_told_the_instruction_without_its_canary_and_nothing_hidden():
    task = read_task(FIXTURES / "greeting")
    assert task.prompt.startswith("Write the file `greeting.txt`") and "canary" not in task.prompt
    assert all("reward.txt" not in message["content"] for message in task.messages)


def test_the_same_folder_is_the_same_task(folder):
    assert read_task(folder).id == read_task(FIXTURES / "greeting").id
    edit(folder / "tests" / "test.sh", "Ada", "Bob")
    assert read_task(folder).id != read_task(FIXTURES / "greeting").id


def test_bytes_that_are_no_text_come_back(folder):
    (folder / "tests" / "blob").write_bytes(bytes(range(256)))
    assert unpacked(read_task(folder).hidden["tests"]["blob"]) == bytes(range(256))


def test_a_source_with_a_folder_gives_its_tasks_by_their_content(tmp_path):
    source = TaskSource(path=str(many(tmp_path, 24)))
    check_tasks(source, "tasks[0]")
    training = [task_of([source], i) for i in range(source.size)]
    held_out = held_out_of(source, 100)
    assert source.environment == "harbor" and len(training) + len(held_out) == 24 and 1 <= len(held_out) <= 8
    assert all(is_held_out(task) for task in held_out) and not any(map(is_held_out, training))
    assert [task.seed for task in tasks_of_path(source.path)] == [*range(24)]


def test_tasks_that_need_what_the_sandbox_lacks_are_left_out_with_a_line_each(tmp_path, capsys):
    path = many(tmp_path, 16)
    (path / "t03" / "environment" / "Dockerfile").write_text("FROM python\nRUN apt-get install -y gcc\n")
    found = read_tasks(str(path))
    assert len(found.training) + len(found.held_out) == 15
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: left out: ") and "t03/environment/Dockerfile, line 2: RUN is not followed" in line


def test_where_all_need_what_it_lacks_the_first_is_named(folder):
    (folder / "environment" / "Dockerfile").write_text("FROM python\nRUN make\n")
    with pytest.raises(Unsupported, match=r"greeting/environment/Dockerfile, line 2: RUN is not followed"):
        read_tasks(str(folder.parent))


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("task.toml", 'schema_version = "2.0"', r"schema_version is '2.0'; expected one of 1.0, 1.1, 1.2, 1.3, 1.4"),
        ("task.toml", "schema_version = 1.4", r"schema_version is 1.4; expected one of"),
        ("task.toml", "[verifier", r"task.toml is not TOML"),
        ("task.toml", "verifier = 3", r"task.toml: verifier is 3; expected a table"),
        (
            "task.toml",
            '[verifier]\ntimeout_sec = "long"',
            r"verifier.timeout_sec is 'long'; expected a value of type number",
        ),
        ("task.toml", "[verifier]\ntimeout_sec = -1", r"verifier.timeout_sec is -1; expected a number above 0"),
        ("task.toml", "[agent]\ntimeout_sec = nan", r"agent.timeout_sec is nan; expected a number above 0"),
        ("task.toml", "[environment]\nmemory_mb = 0.5", r"environment.memory_mb is 0.5; expected a value of type int"),
        ("task.toml", "[verifier]\nenv = {A = 1}", r"verifier.env.A is 1; expected text"),
        ("instruction.md", "<!-- only a comment -->\n", r"instruction.md is empty"),
        ("environment/Dockerfile", "", r"Dockerfile has no FROM"),
        ("environment/Dockerfile", b"\xff", r"Dockerfile is not text in UTF-8"),
    ],
)
def test_a_malformed_file_is_named_with_its_field(folder, file, text, problem):
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=problem) as found:
        read_tasks(str(folder))
    assert not isinstance(found.value, Unsupported) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[environment]\ndocker_image = "x/y:1"', r"environment.docker_image is 'x/y:1'; the sandbox has none"),
        ("[environment]\ngpus = 1", r"environment.gpus is 1"),
        ('[[steps]]\nname = "one"', r"\[\[steps\]\]: tasks of several steps are not run"),
        ('[verifier]\nenv = {KEY = "${OPENAI_API_KEY}"}', r"verifier.env.KEY: no variable of this machine is given"),
    ],
)
def test_settings_that_ask_for_what_the_sandbox_lacks_are_named(folder, text, problem):
    (folder / "task.toml").write_text(text)
    with pytest.raises(Unsupported, match=problem):
        read_tasks(str(folder))


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("task.toml", "has no task.toml|holds no task"),
        ("instruction.md", "has no instruction.md, which says what is asked"),
        ("environment/Dockerfile", "has no environment/Dockerfile"),
        ("tests/test.sh", "has no tests/test.sh, which judges"),
    ],
)
def test_a_missing_file_is_named(folder, missing, problem):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=problem):
        read_tasks(str(folder))


def test_a_name_or_a_content_that_stands_twice_is_named(tmp_path):
    path = many(tmp_path, 2)
    edit(path / "t01" / "task.toml", "ling-jax/t1", "ling-jax/t0")
    with pytest.raises(ValueError, match=r"t01: its name is that of .*t00; leave one of the two out"):
        read_tasks(str(path))


def test_the_same_content_under_two_names_is_named(tmp_path):
    path = many(tmp_path, 2)
    shutil.copy(path / "t00" / "instruction.md", path / "t01" / "instruction.md")
    with pytest.raises(ValueError, match=r"t01: its content is that of .*t00; leave one of the two out"):
        read_tasks(str(path))


def test_a_folder_of_tests_that_is_a_link_and_one_that_is_too_large_are_left_out(folder, tmp_path):
    shutil.move(folder / "tests", tmp_path / "elsewhere")
    (folder / "tests").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unsupported, match="tests is a link; put the file there"):
        read_task(folder)
    with (folder / "environment" / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(Unsupported, match=r"has files of .* bytes; a task holds"):
        read_task(folder)


def test_a_folder_that_is_not_there_is_named():
    source = TaskSource(environment="harbor", path="nowhere")
    check_tasks(source, "tasks[0]")
    with pytest.raises(FileNotFoundError, match=r"tasks\[0\].path: nowhere does not exist; name a folder of tasks"):
        check_files([source], "tasks")
    with pytest.raises(ValueError, match=r"tasks\[0\].path is ''; harbor needs the folder of its tasks"):
        check_tasks(TaskSource(environment="harbor"), "tasks[0]")
