"""The part of a run's processes but the first: they run the same device programs, and decide nothing."""

import dataclasses

import jax

from ling_jax.checkpoint import orbax
from ling_jax.config import ModelConfig
from ling_jax.distributed import hosts
from ling_jax.engine import EXACT_TILE, Engine
from ling_jax.engine.follow import follow as follow_engine
from ling_jax.rl.batch import on_mesh
from ling_jax.rl.collector import make_engine
from ling_jax.rl.link import Link, Operation
from ling_jax.rl.prepare import Run
from ling_jax.rl.updates import Programs, Scorer
from ling_jax.run.stop import stop_signals
from ling_jax.run.watchdog import stacks_on_hang
from ling_jax.spec import Params
from ling_jax.train.state import TrainState


@dataclasses.dataclass
class Follower:
    """What a process needs to follow; `state` moves on with each step."""

    run: Run
    link: Link
    manager: orbax.Manager
    state: TrainState
    programs: Programs
    reference: Params | None
    teachers: list[Params]

    def follow(self) -> int:
        """Runs what the first process says until it ends; the number of the signal that ended it, 0 if none.

        A signal to this process is passed on to the first one, which saves and ends the run.
        """
        engine = self._engine(EXACT_TILE)
        with stacks_on_hang(self.run.workdir), stop_signals("after this piece of decoding", then=hosts.post_signal):
            while True:
                operation, argument = self.link.receive_operation()
                if operation == Operation.END:
                    return argument
                if operation == Operation.GENERATE:
                    follow_engine(engine, self._weights)
                else:
                    self._do(operation, argument)

    def _do(self, operation: Operation, argument: int) -> None:
        programs = self.programs
        if operation == Operation.EVALUATE:
            follow_engine(self._engine(None), self._weights)
        elif operation == Operation.OLD:
            self._score(programs.old, self.state.params, programs.replays)
        elif operation == Operation.REFERENCE:
            self._score(programs.reference, self.reference)
        elif operation == Operation.TEACHER:
            self._score(programs.teachers[argument], self.teachers[argument])
        elif operation == Operation.STEP:
            batch = on_mesh(self.link.receive(programs.part, programs.floats, programs.replays), programs.mesh)
            self.state, _ = jax.block_until_ready(programs.step(self.state, batch))
        elif operation == Operation.SAVE:
            orbax.save(self.manager, argument, self.state, self.run.start.config, run={}, learner={})
            self.manager.wait_until_finished()

    def _score(self, score: Scorer, params: Params, replays: ModelConfig | None = None) -> None:
        batch = on_mesh(self.link.receive(self.programs.whole, (), replays), self.programs.mesh)
        jax.block_until_ready(score(params, batch))

    def _engine(self, row_tile: int | None) -> Engine:
        run = self.run
        slots, parked = run.config.rollout.of_engine
        return make_engine(run.start.config, run.reader, slots, row_tile, run.engine_mesh, parked)

    def _weights(self, version: int) -> Params:
        return self.state.params
