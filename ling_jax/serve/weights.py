"""New weights for the engine while it serves, in four phases: init, start, update, finish."""

import asyncio
import dataclasses
from typing import Any

from ling_jax.checkpoint.folder import open_model
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.engine.engine import Engine
from ling_jax.engine.service import EngineService
from ling_jax.messages import one_line
from ling_jax.run.start import FIXED
from ling_jax.serve.errors import ApiError
from ling_jax.serve.protocol import FinishBody, InitBody, StartBody, UpdateBody

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class New:
    """Weights that wait for `finish`."""

    params: Any
    version: int


class WeightUpdates:
    """The phases, each of which needs the one before:

    init     says by which transport weights come: "checkpoint", a path of the server
    start    pauses the engine: "keep", "wait" for turns under way, or "abort" them
    update   reads a checkpoint; the last one counts
    finish   the engine takes the weights and goes on; `abandon` goes on without
    """

    def __init__(self, service: EngineService, engine: Engine, tokenizer_digest: str):
        self._service, self._engine, self._digest = service, engine, tokenizer_digest
        self._lock = asyncio.Lock()
        self._ready, self._mode, self._new = False, "", None

    @property
    def paused(self) -> bool:
        """Whether an update holds the engine."""
        return bool(self._mode)

    async def init(self, body: InitBody) -> Json:
        """Any number of times, but not during an update."""
        async with self._alone():
            self._need(not self._mode, "an update is under way; finish or abandon it first")
            self._ready = True
            return self._state() | {"transport": body.transport}

    async def start(self, body: StartBody) -> Json:
        """Returns when no step of the engine runs."""
        async with self._alone():
            self._need(self._ready, "call /v1/weights/init first")
            self._need(not self._mode, "an update is under way; finish or abandon it first")
            await self._service.pause(body.mode)
            self._mode = body.mode
            return self._state()

    async def update(self, body: UpdateBody) -> Json:
        """Reads and checks the checkpoint; the engine keeps its weights."""
        async with self._alone():
            self._need(bool(self._mode), "call /v1/weights/start first")
            version = self._engine.version + 1 if body.version is None else body.version
            try:
                self._new = New(await asyncio.to_thread(self._read, body), version)
            except (ValueError, OSError) as error:
                raise ApiError(400, f"path: {one_line(str(error))}", "path") from None
            return self._state() | {"new_version": version}

    async def finish(self, body: FinishBody) -> Json:
        """The engine answers by the new weights from here on. Refused weights leave the update under way."""
        async with self._alone():
            self._need(bool(self._mode), "call /v1/weights/start first")
            self._need(self._new is not None, "call /v1/weights/update first, or /v1/weights/abandon")
            try:
                await self._service.load(self._new.params, self._new.version, body.in_flight)
            except ValueError as error:
                self._new = None
                raise ApiError(400, f"path: {one_line(str(error))}", "path") from None
            await self._resume()
            return self._state()

    async def abandon(self) -> Json:
        """The engine goes on with its old weights, from any phase."""
        async with self._alone():
            await self._resume()
            return self._state()

    async def _resume(self) -> None:
        self._mode, self._new = "", None
        await self._service.resume()

    def _read(self, body: UpdateBody) -> Any:
        found = open_model(body.path, step=body.step)
        check_same_sizes(self._engine.config, found.config)
        if tokenizer_digest(found.tokenizer) != self._digest:
            raise ValueError(f"{body.path} has another tokenizer than the model that is served")
        return found.params()

    def _alone(self) -> asyncio.Lock:
        if self._lock.locked():
            raise ApiError(409, "another call of /v1/weights is under way; wait for its answer")
        return self._lock

    def _need(self, holds: bool, message: str) -> None:
        if not holds:
            raise ApiError(409, message)

    def _state(self) -> Json:
        return {"weight_version": self._engine.version, "paused": self.paused, "mode": self._mode or None}


def check_same_sizes(served: ModelConfig, found: ModelConfig) -> None:
    """Raises ValueError that names the first field in which a checkpoint is of another model."""
    for name in FIXED:
        if (wanted := getattr(served, name)) != (other := getattr(found, name)):
            raise ValueError(f"its model has {name} {other!r}, the served one {wanted!r}; name a checkpoint of that")
