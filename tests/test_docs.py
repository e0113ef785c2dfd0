"""Commands and pages of the documentation."""

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
from tests.faults import ROOT
from tests.refusals import parse_each

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.S)
STOP = {"&", "|", ";", "&&", "||"}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(program, its flags) of every command `python -m launch.…` in the page's blocks of shell."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        text = block.replace("\\\n", " ")
        for line in text.splitlines():
            if match := re.search(r"python -m (launch\.\w+)(.*)", line):
                words = shlex.split(match[2].replace("$i", "0"), comments=True)
                end = next((i for i, word in enumerate(words) if word.strip() in STOP or ";" in word[-1:]), len(words))
                found.append((match[1], words[:end]))
    return found


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
