"""Commands and pages of the documentation."""

import ast
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from launch.config_fields import fields
from ling_jax.align.sft import SftConfig
from ling_jax.align.specialists import DistillConfig
from ling_jax.migrate.config import MigrateConfig
from ling_jax.rl.config import RLConfig
from ling_jax.train.config import PretrainConfig
from tests.helpers.faults import ROOT
from tests.helpers.refusals import parse_each

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.S)
INLINE = re.compile(
    r"`((?:\w+=\w+ |\.venv/bin/)?(?:python|make|pytest|pip|docker|gcloud|hf|sbatch|launch/pod\.sh) [^`\n]+)`"
)
STOP = {"&", "|", ";", "&&", "||"}
ELSEWHERE = {  # commands that no test can run, by their first word, and what they need
    "launch/pod.sh": "a TPU pod",
    "gcloud": "an account of Google Cloud",
    "sbatch": "a SLURM cluster",
    "hf": "Hugging Face",
    "docker": "Docker",
    "pip": "a package index",
    ".": "a shell: it activates the environment",
}
# Lines of own_tasks.md about files that it says to save; its own test runs them.
SAVED = {"mkdir -p mine", *(f"python mine/{name}.py" for name in ("make", "curve", "searches", "functions"))}
# Answers of faq.md to a command that is wrong.
WRONG = {"python launch/pretrain.py"}


def shell_lines(page: Path) -> list[str]:
    """The lines of the page's blocks of shell, with what a backslash joins."""
    text = "\n".join(BLOCK.findall(page.read_text())).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def inline_commands(page: Path) -> list[str]:
    """Commands in the running text and in tables."""
    return INLINE.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.S))


def flags_of(text: str) -> list[str]:
    """The words behind a program's name, up to the end of the command."""
    words = shlex.split(text.replace("$i", "0"), comments=True)
    return words[: next((i for i, word in enumerate(words) if word.strip() in STOP or ";" in word[-1:]), len(words))]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(program, its flags) of every command `python -m launch.…` or `python -m benchmarks.…` of the page.

    Commands in the running text may leave out what is needed, and are not among them if they have no flag.
    """
    found = []
    for line in (*shell_lines(page), *inline_commands(page)):
        if match := re.search(r"python -m ((?:launch|benchmarks)\.\w+)(.*)", line):
            found.append((match[1], flags_of(match[2])))
    return [(program, words) for program, words in found if words]


def module_path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def problem(command: str, targets: set[str]) -> str:
    """Why a command cannot be run from a checkout; "" where it can, or needs what no test has."""
    words = command.split("#")[0].split()
    while re.fullmatch(r"\w+=\w+", words[0]) or words[0] in ("for", "do"):
        words = words[words.index("do") + 1 :] if words[0] == "for" else words[1:]
    name, *rest = (words[0].removeprefix(".venv/bin/"), *words[1:])
    if name in ELSEWHERE:
        return ""
    if name == "make":
        return "" if rest and rest[0] in targets else "no such target"
    if name == "pytest":
        missing = [word for word in rest if word.startswith("tests/") and not (ROOT / word).exists()]
        return f"no {missing[0]}" if missing else ""
    if name == "python" and rest[:1] == ["-m"]:
        return "" if module_path(rest[1]).exists() else f"no module {rest[1]}"
    return "" if command.startswith("--config.") else "no test knows how to check it"


def test_every_command_of_the_documentation_is_there_or_needs_what_no_test_has():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    listed = [(page.name, line) for page in PAGES for line in (*shell_lines(page), *inline_commands(page))]
    assert len(listed) > 80
    listed = [(page, line) for page, line in listed if line not in WRONG | SAVED]
    found = {line: (page, why) for page, line in listed if (why := problem(line, targets))}
    assert not found


@pytest.mark.parametrize(
    "command", ["make tea", "python -m launch.trian --x=1", "pytest tests/modle", "python -m benchmarks.nothing", "ls"]
)
def test_a_command_that_is_not_there_is_found(command):
    assert problem(command, {"test", "demo"})


def test_every_config_that_the_documentation_names_is_there():
    words = [word for page in PAGES for _, words in commands(page) for word in words]
    named = {word.removeprefix("--config=") for word in words if word.startswith("--config=configs/")}
    configs = {name.partition(":")[0] for name in named}  # behind the colon is what a recipe is asked for
    assert len(configs) > 10
    assert not [config for config in configs if not (ROOT / config).exists()]


def python_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_python_of_the_documentation_can_be_read():
    assert len([ast.parse(code) for page in PAGES for code in python_of(page)]) >= 2


@pytest.mark.slow
def test_the_python_of_the_readme_runs():
    names: dict = {}
    for code in python_of(ROOT / "README.md"):
        exec(code, names)
    assert names["logits"].shape == (2, 64, names["config"].vocab_size)
    assert names["more"].logits.shape[1] == 1


@pytest.mark.slow
def test_every_command_of_the_documentation_can_be_read():
    by_program = defaultdict(list)
    for page in PAGES:
        for program, words in commands(page):
            by_program[program].append((page, words))
    assert len(by_program) >= 8
    for program, listed in by_program.items():
        if program == "launch.demo":
            continue
        for (page, words), done in zip(listed, parse_each(program, [words for _, words in listed]), strict=True):
            assert done.returncode == 0, (page.name, program, words, done.stderr)


def test_the_page_of_programs_has_every_field_of_every_config():
    page = (ROOT / "docs" / "programs.md").read_text()
    for cls in (PretrainConfig, SftConfig, DistillConfig, RLConfig, MigrateConfig):
        missing = [field.name for field in fields([cls]) if f"  {field.name}: " not in page]
        assert not missing, f"{cls.__name__}: run docs/write_programs.py"


@pytest.mark.slow
def test_the_page_of_programs_is_what_the_programs_say():
    before = (ROOT / "docs" / "programs.md").read_text()
    subprocess.run([sys.executable, "docs/write_programs.py"], cwd=ROOT, check=True)
    assert (ROOT / "docs" / "programs.md").read_text() == before


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api" / "model" / "index.html").read_text().count("ling_jax.model") > 5
