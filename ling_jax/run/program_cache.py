"""The folder of compiled programs, from which damaged entries are removed with a warning.

JAX itself never replaces an entry that it cannot read, and it does not notice an entry that belongs to another program.
So each entry has a checksum file beside it.

A compilation that takes longer than a few seconds is announced: nothing else is printed in the meantime.
"""

import contextlib
import math
import threading
import time

import crc32c
import jax
from jax._src import compilation_cache  # JAX has no public way to look at entries before it reads them
from jax._src.lru_cache import LRUCache

from ling_jax.files import replacing
from ling_jax.messages import warn
from ling_jax.partials import locked
from ling_jax.paths import cache_folder, is_remote

SILENT_SECONDS = 3.0  # of a compilation, before a line announces it: our choice
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event at the end of a compilation
_current = threading.local()  # .notice: the compilation of this thread that may have to be announced


def use_compilation_cache() -> None:
    """Makes JAX keep compiled programs, in JAX_COMPILATION_CACHE_DIR or else in the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None:
        try:
            jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        except OSError as error:
            warn(f"compiled programs are not kept: {error}")
            return
    compilation_cache.get_file_cache = _open_cache
    if not isinstance(compilation_cache._cache, CheckedCache):  # JAX opens it for its first program
        compilation_cache.reset_cache()
        jax.monitoring.register_event_duration_secs_listener(_end_notice)


def _open_cache(folder: str) -> tuple[LRUCache, str] | None:
    """(cache, folder) for JAX; None, with a warning, where the folder cannot be used."""
    try:
        return CheckedCache(folder, max_size=jax.config.jax_compilation_cache_max_size), folder
    except OSError as error:
        warn(f"compiled programs are not kept: {error}; set JAX_COMPILATION_CACHE_DIR to a folder that can be written")
        return None


class CheckedCache(LRUCache):
    """JAX's folder of files KEY-cache, each with a checksum in KEY-sum.

    JAX compiles after a `get` without a result and calls `put` afterwards. A key is NAME-DIGEST; NAME-seconds has how
    long the last program of that name took.
    """

    def get(self, key: str) -> bytes | None:
        content = self._read(key)
        if content is None:
            _begin_notice(key, self._last_seconds(key))
        return content

    def _read(self, key: str) -> bytes | None:
        try:
            content = super().get(key)
            if content is None or self._is_whole(key, content):
                return content
            (self.path / f"{key}-cache").unlink(missing_ok=True)
        except OSError as error:
            warn(f"a compiled program cannot be read and is compiled again: {error}")
            return None
        warn(f"{self.path / key}-cache is damaged; it is removed, and the program is compiled and kept again")
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, unless another process has kept it: two compilations of a program differ in their bytes."""
        notice = getattr(_current, "notice", None)
        try:
            with contextlib.nullcontext() if is_remote(self.path) else locked(self.path):
                if self._is_kept(key):
                    return
                self._write_sum(key, value)  # first: a sum without an entry is harmless
                if notice and notice.seconds > SILENT_SECONDS:
                    with replacing(self.path / f"{_name(key)}-seconds") as file:
                        file.write(b"%.1f\n" % notice.seconds)
                if not self.eviction_enabled:
                    with replacing(self.path / f"{key}-cache") as file:  # other processes read the folder meanwhile
                        file.write(value)
                else:
                    super().put(key, value)
        except OSError as error:
            warn(f"a compiled program is not kept: {error}")

    def _is_kept(self, key: str) -> bool:
        try:
            content = super().get(key)
            return content is not None and self._is_whole(key, content)
        except OSError:
            return False

    def _is_whole(self, key: str, content: bytes) -> bool:
        path = self.path / f"{key}-sum"
        if path.exists():
            return path.read_bytes() == _sum(key, content)
        try:
            compilation_cache.decompress_executable(content)  # an entry that JAX wrote without a sum
        except Exception:  # of any kind: the compression library raises its own
            return False
        with contextlib.suppress(OSError):  # the folder may be read-only
            self._write_sum(key, content)
        return True

    def _last_seconds(self, key: str) -> float | None:
        """How long a program of this name took to compile; None where that is not known."""
        try:
            seconds = float((self.path / f"{_name(key)}-seconds").read_bytes())
        except (OSError, ValueError):
            return None
        return seconds if math.isfinite(seconds) else None

    def _write_sum(self, key: str, content: bytes) -> None:
        with replacing(self.path / f"{key}-sum") as file:
            file.write(_sum(key, content))


def _sum(key: str, content: bytes) -> bytes:
    return b"%08x\n" % crc32c.crc32c(content, crc32c.crc32c(key.encode()))


class _Notice:
    """Prints a line once a compilation has taken `SILENT_SECONDS`, unless it ends before."""

    def __init__(self, name: str, seconds: float | None):
        self._begun = time.monotonic()
        usual = "10 to 60 s for small models" if seconds is None else f"about {seconds:.0f} s"
        text = f"compiling {name} ({usual}, cached afterwards)"
        self._timer = threading.Timer(SILENT_SECONDS, print, (text,), {"flush": True})
        self._timer.daemon = True
        self._timer.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def end(self) -> None:
        self._timer.cancel()


def _begin_notice(key: str, seconds: float | None) -> None:
    _end_notice(COMPILED)
    name = _name(key).removeprefix("jit_").strip("_")
    _current.notice = _Notice("a program" if name == "lambda" else name, seconds)


def _end_notice(event: str, *_, **__) -> None:
    """JAX calls it in the thread that has compiled, whether the program was kept or not."""
    if event == COMPILED and (notice := getattr(_current, "notice", None)):
        notice.end()
        _current.notice = None


def _name(key: str) -> str:
    """Of the function that a key's program was made from, such as jit_train_step."""
    return key.rpartition("-")[0]
