"""A task's environment/Dockerfile, as far as a sandbox without images can follow it: FROM, WORKDIR, COPY, ENV."""

import glob
import json
import os
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ling_jax.envs.harbor.places import KNOWN as KNOWN_FOLDERS
from ling_jax.envs.harbor.places import WORK_FOLDERS
from ling_jax.messages import shown
from ling_jax.sandbox.contract import IN_WORK

KNOWN = ("FROM", "WORKDIR", "COPY", "ENV")
IMAGES = ("alpine", "debian", "python", "ubuntu")  # whose tools, a shell and Python, the sandbox has too
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of the images
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class Unsupported(ValueError):
    """A task is well formed and needs what the sandbox lacks."""


class Image(NamedTuple):
    """What the agent finds; paths are absolute."""

    workdir: str
    env: Mapping[str, str]
    files: Mapping[str, bytes]
    executable: tuple[str, ...]  # those of the files that are


def read_dockerfile(file: Path) -> Image:
    """The image of a Dockerfile, whose folder is the build context.

    Raises Unsupported, which names file and line, where it needs more than `KNOWN`, or an image with more than a shell
    and Python; ValueError where an instruction is malformed, and OSError.
    """
    image, begun = Image("/", {}, {}, ()), False
    for line, name, rest in _instructions(read_text(file)):
        where = f"{file}, line {line}: {name}"
        if name not in KNOWN:
            raise Unsupported(f"{where} is not followed; of a Dockerfile the sandbox follows {', '.join(KNOWN)}")
        if begun and name == "FROM":
            raise Unsupported(f"{where}: one image is followed, and the first line names it")
        if not begun and name != "FROM":
            raise ValueError(f"{where} stands before FROM")
        begun = True
        if name == "FROM":
            _check_image(rest, where)
        else:
            image = _follow(image, name, _expanded(rest, image.env, where), file.parent, where)
    if not begun:
        raise ValueError(f"{file} has no FROM; expected a Dockerfile")
    return image._replace(workdir=_work_folder(image, file))


def read_text(file: Path) -> str:
    """The text of a file. Raises ValueError where it is none, and OSError."""
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from None


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, the rest) of each instruction; a backslash at the end of a line joins the next one."""
    whole, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("#") or not (line.strip() or whole):
            continue
        first = first if whole else number
        whole += line.rstrip().removesuffix("\\") + " "
        if not line.rstrip().endswith("\\"):
            name, _, rest = whole.strip().partition(" ")
            yield first, name.upper(), rest.strip()
            whole = ""


def _check_image(rest: str, where: str) -> None:
    words = rest.split()
    if len(words) != 1:
        raise Unsupported(f"{where} {rest}: one image without flags and stages is followed")
    name = words[0].partition("@")[0].rpartition("/")[2].partition(":")[0]
    if name not in IMAGES:
        raise Unsupported(
            f"{where} {shown(words[0])}: the sandbox has a shell and Python, as the images {', '.join(IMAGES)} have"
        )


def _follow(image: Image, name: str, rest: str, context: Path, where: str) -> Image:
    if name == "WORKDIR":
        return image._replace(workdir=_absolute(rest, image.workdir, where))
    if name == "ENV":
        return image._replace(env={**image.env, **_variables(rest, where)})
    files, executable = _copied(rest, image.workdir, context, where)
    return image._replace(files={**image.files, **files}, executable=(*image.executable, *executable))


def _expanded(text: str, env: Mapping[str, str], where: str) -> str:
    def value(found: re.Match) -> str:
        name = found[1] or found[2]
        known = {"PATH": PATH, **env}
        if name not in known:
            raise Unsupported(f"{where}: ${name} is not set by an ENV before")
        return known[name]

    return VARIABLE.sub(value, text)


def _absolute(path: str, workdir: str, where: str) -> str:
    """The absolute form of a path in the image. Raises Unsupported for one in another folder than boxes have."""
    if not path:
        raise ValueError(f"{where} names no path")
    whole = posixpath.normpath(posixpath.join(workdir, path)).replace("//", "/")
    if whole.split("/")[1] not in (*WORK_FOLDERS, *IN_WORK):
        raise Unsupported(f"{where} {shown(path)}: the sandbox has the folders {KNOWN_FOLDERS}")
    return whole


def _work_folder(image: Image, file: Path) -> str:
    """The working directory; where none is named, the folder that has files. Raises Unsupported where it is not one."""
    folders = {path.split("/")[1] for path in (image.workdir, *image.files)} & {*WORK_FOLDERS}
    if len(folders) > 1:
        raise Unsupported(f"{file} has files in {', '.join(sorted(folders))}; the sandbox has one work folder")
    if image.workdir == "/":
        return f"/{next(iter(folders), WORK_FOLDERS[0])}"
    if image.workdir.split("/")[1] not in WORK_FOLDERS:
        raise Unsupported(f"{file}: WORKDIR is {image.workdir}; name one such as /app")
    for path in image.files:
        if f"{image.workdir}/".startswith(f"{path}/"):
            raise ValueError(f"{file}: COPY puts a file at {path}, which WORKDIR {image.workdir} makes a folder")
    return image.workdir


def _variables(rest: str, where: str) -> dict[str, str]:
    """The variables of ENV, in the form A=b C="d e" or in the old one, A b."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"{where} {shown(rest)}: {error}") from None
    if len(words) > 1 and "=" not in words[0]:
        return {words[0]: rest.split(None, 1)[1]}
    pairs = [word.partition("=") for word in words]
    if not pairs or not all(equals and name for name, equals, _ in pairs):
        raise ValueError(f"{where} {shown(rest)}; expected NAME=value")
    return {name: value for name, _, value in pairs}


def _copied(rest: str, workdir: str, context: Path, where: str) -> tuple[dict[str, bytes], list[str]]:
    """({path: bytes}, those that are executable) of COPY; a folder's content is copied, not the folder."""
    *sources, target = _copy_words(rest, where)
    into = target.endswith("/") or target == "." or len(sources) > 1
    target = _absolute(target, workdir, where)
    files, executable = {}, []
    for source in sources:
        for found in _matches(source, context, where):
            named = into or len(_matches(source, context, where)) > 1
            for file in _below(found, where):
                inside = file.relative_to(found).as_posix() if found.is_dir() else found.name if named else ""
                path = _absolute(inside or ".", target, where)
                files[path] = file.read_bytes()
                if os.access(file, os.X_OK):
                    executable.append(path)
    return files, executable


def _copy_words(rest: str, where: str) -> list[str]:
    try:
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"{where} {shown(rest)}: {error}") from None
    if not isinstance(words, list) or len(words) < 2 or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where} {shown(rest)}; expected sources and a target")
    if words[0].startswith("--"):
        raise Unsupported(f"{where} {shown(words[0])}: flags are not followed")
    return words


def _matches(source: str, context: Path, where: str) -> list[Path]:
    """The files and folders of the build context that a source names. Raises ValueError where there are none."""
    inside = posixpath.normpath("/" + source).lstrip("/")  # no path leads out of the context
    found = [context / name for name in sorted(glob.glob(inside, root_dir=context, include_hidden=True))] or [
        context / inside
    ]
    if not all(path.exists() for path in found):
        raise ValueError(f"{where}: there is no {shown(source)} in {context}")
    return found


def _below(path: Path, where: str) -> list[Path]:
    """The path, or all files below it. Raises Unsupported on links, which would not stay links."""
    paths = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
    if link := next((one for one in paths if one.is_symlink()), None):
        raise Unsupported(f"{where}: {link} is a link; put the file there")
    return [one for one in paths if one.is_file()]
