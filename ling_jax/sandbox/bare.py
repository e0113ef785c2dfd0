"""T0: no confinement. Commands have their deadline and their caps; nothing else holds them."""

import os
import tempfile

from ling_jax.sandbox import killing, places, rooms
from ling_jax.sandbox.contract import Limits


class Bare:
    name, signals, same_python = "T0", "list", True
    advice = ""
    lacks = ("nothing is protected: commands run with all rights of this user",)

    def __init__(self):
        self.room, self.family = rooms.new_room(), killing.Family()

    def start(self, channel: int, command: list[str]) -> places.Place:
        folder = tempfile.mkdtemp(prefix="box-", dir=self.room)
        os.mkdir(f"{folder}/work")
        os.mkdir(f"{folder}/tmp")
        errors, stderr = places.error_pipe()
        try:
            process = self.family.start(command, pass_fds=[channel], stderr=stderr, **places.QUIET)
        finally:
            os.close(stderr)
        environment = places.environment(f"{folder}/work", f"{folder}/tmp")
        return places.Place(process, process.pid, f"{folder}/work", environment, errors, folder)

    def settle(self, place: places.Place) -> None:
        pass

    def limit(self, place: places.Place, limits: Limits) -> dict[str, int]:
        return {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": limits.disk_bytes}

    def remove(self, place: places.Place) -> None:
        self.family.forget(place.pid)
        os.close(place.errors)
        rooms.remove_tree(place.folder)

    def end(self) -> None:
        rooms.remove_tree(self.room)
