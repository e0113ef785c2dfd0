"""What the sandbox follows of a Dockerfile, and what it refuses by name and line."""

import pytest

from ling_jax.envs.harbor.dockerfile import Unsupported, read_dockerfile


@pytest.fixture
def image(tmp_path):
    """The image of a Dockerfile beside a few files."""
    for name, text in {"a.py": "a = 1\n", "data/b.csv": "1,2\n", "data/deep/c.csv": "3\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)

    def read(text):
        (tmp_path / "Dockerfile").write_text(text)
        return read_dockerfile(tmp_path / "Dockerfile")

    return read


def test_files_are_where_copy_puts_them(image):
    found = image(
        '# a comment\nFROM python:3.12-slim\nWORKDIR /app\nENV A=1 B="two words"\nENV OLD form of it\n'
        "COPY a.py run.sh \\\n  src/\nCOPY data /data\nCOPY a.py renamed.py\nWORKDIR sub\nCOPY data/*.csv ./\n"
    )
    assert found.workdir == "/app/sub" and found.executable == ("/app/src/run.sh",)
    assert found.env == {"A": "1", "B": "two words", "OLD": "form of it"}
    assert set(found.files) == {
        "/app/src/a.py", "/app/src/run.sh", "/data/b.csv", "/data/deep/c.csv", "/app/renamed.py", "/app/sub/b.csv",
    }  # fmt: skip
    assert found.files["/app/renamed.py"] == b"a = 1\n"


def test_without_a_working_directory_it_is_where_the_files_are(image):
    assert image("FROM python\nCOPY a.py /app/\n").workdir == "/app" and image("FROM python\n").workdir == "/work"


def test_variables_are_put_in_where_env_set_them(image):
    found = image("FROM ubuntu:24.04\nENV ROOT=/app\nWORKDIR $ROOT/src\nENV PATH=${ROOT}/bin:$PATH\n")
    assert found.workdir == "/app/src" and found.env["PATH"].startswith("/app/bin:/usr/local/sbin:")


def test_no_source_leads_out_of_the_build_context(image, tmp_path):
    (tmp_path.parent / "secret").write_text("s")
    with pytest.raises(ValueError, match=r"line 3: COPY: there is no '../secret'"):
        image("FROM debian\nWORKDIR /app\nCOPY ../secret ./\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "FROM python:3\nRUN pip install numpy\n",
            r"Dockerfile, line 2: RUN is not followed; .* FROM, WORKDIR, COPY, ENV",
        ),
        ("FROM python:3\n\n# c\nADD a.py /app/\n", r"line 4: ADD is not followed"),
        ("FROM node:20\n", r"line 1: FROM 'node:20': the sandbox has a shell and Python"),
        ("FROM python:3 AS build\n", r"line 1: FROM python:3 AS build: one image without flags and stages"),
        ("FROM python\nFROM python\n", r"line 2: FROM: one image is followed"),
        ("FROM python\nCOPY --from=build /a /b\n", r"line 2: COPY '--from=build': flags are not followed"),
        ("FROM python\nWORKDIR /usr/src/app\n", r"line 2: WORKDIR '/usr/src/app': the sandbox has the folders /work"),
        ("FROM python\nCOPY a.py /etc/a.py\n", r"line 2: COPY '/etc/a.py': the sandbox has the folders /work"),
        ("FROM python\nWORKDIR /tests\n", r"WORKDIR is /tests; name one such as /app"),
        ("FROM python\nWORKDIR /app\nCOPY a.py /work/a.py\n", r"files in app, work; the sandbox has one work folder"),
        ("FROM python\nCOPY a.py ./\n", r"line 2: COPY '.*': the sandbox has the folders"),
        ("FROM python\nWORKDIR $HOME/a\n", r"line 2: WORKDIR: \$HOME is not set by an ENV before"),
    ],
)
def test_what_the_sandbox_lacks_is_named_with_its_line(image, text, problem):
    with pytest.raises(Unsupported, match=problem):
        image(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no FROM"),
        ("WORKDIR /app\n", "line 1: WORKDIR stands before FROM"),
        ("FROM python\nWORKDIR\n", "line 2: WORKDIR names no path"),
        ("FROM python\nENV A\n", r"line 2: ENV 'A'; expected NAME=value"),
        ("FROM python\nENV A='b\n", "line 2: ENV .*: No closing quotation"),
        ("FROM python\nCOPY a.py\n", "line 2: COPY 'a.py'; expected sources and a target"),
        ("FROM python\nCOPY a.py /app\nWORKDIR /app\n", "puts a file at /app, which WORKDIR /app makes a folder"),
        ("FROM python\nCOPY nothing.py /app/\n", "there is no 'nothing.py'"),
    ],
)
def test_a_malformed_instruction_is_named_with_its_line(image, text, problem):
    with pytest.raises(ValueError, match=problem) as found:
        image(text)
    assert not isinstance(found.value, Unsupported)


def test_a_link_is_refused(image, tmp_path):
    (tmp_path / "data" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Unsupported, match=r"data/link is a link; put the file there"):
        image("FROM python\nCOPY data /data\n")
