"""What disks, copies and people do to files: one random damage at a time."""

import random
from pathlib import Path


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_bit(files: list[Path], rng: random.Random) -> list[Path]:
    path = rng.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return [path]


def cut(files: list[Path], rng: random.Random) -> list[Path]:
    path = rng.choice([path for path in files if path.stat().st_size])
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return [path]


def delete(files: list[Path], rng: random.Random) -> list[Path]:
    path = rng.choice(files)
    path.unlink()
    return [path]


def swap(files: list[Path], rng: random.Random) -> list[Path]:
    """The content of two files that are not the same, each in the other's place."""
    first = rng.choice(files)
    content = first.read_bytes()
    second = rng.choice([path for path in files if path.read_bytes() != content])
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return [first, second]


DAMAGES = {"flip": flip_bit, "cut": cut, "delete": delete, "swap": swap}


def damage(kind: str, folder: Path, rng: random.Random) -> list[Path]:
    """Damages files of a folder; returns which."""
    return DAMAGES[kind](sorted(path for path in folder.rglob("*") if path.is_file()), rng)
