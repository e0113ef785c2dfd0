"""The disk and memory that `make demo` takes, looked at before it begins and by launch.doctor."""

import os
from pathlib import Path
from typing import NamedTuple

from ling_jax.preflight import check_available_memory, check_space, stored_bytes


class Room(NamedTuple):
    """In bytes, measured and rounded up."""

    disk: int
    memory: int  # of launch.demo and of the one stage that it runs at a time


DEMO = {"full": Room(disk=400_000_000, memory=3_000_000_000), "quick": Room(disk=150_000_000, memory=2_500_000_000)}


def check_demo(preset: str, folder: os.PathLike) -> None:
    """Raises OSError where the machine lacks disk or memory for a preset of the demo in this folder."""
    room = DEMO[preset]
    other = " (PRESET=quick takes less)" if preset != "quick" else ""
    check_space(folder, room.disk - stored_bytes([Path(folder)]), f"the files of the demo{other}")
    check_available_memory(room.memory, f"the demo{other}")
