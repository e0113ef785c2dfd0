"""Serves a model over HTTP, in the protocol of OpenAI's clients.

    python -m launch.serve --model=runs/demo/kpop
    python -m launch.serve --model=runs/demo/kpop --compare=runs/demo/sft
    python -m launch.serve --model=FOLDER --slots=64 --context=32768 --host=0.0.0.0 --api_key_variable=LING_API_KEY

`--model` is a run's workdir or a Hugging Face folder with its tokenizer.json. The server prints its address when it
answers: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, /openapi.json; at
/ it has a page to talk to the model. Calls below /sessions/NAME/v1 are recorded, and /v1/sessions/NAME gives them to be
learnt from. `--compare` loads a second model, whose answers the page shows beside those of the first; it has an engine
of its own, of the same sizes, and the same endpoints below /compare.
With `--slots` 64 or more an answer depends on its request and seed alone; with fewer, its last bits may depend on what
is answered beside it.
SIGTERM and Ctrl-C end the server once the answers under way have ended, after `--grace_seconds` at most. It needs the
extra `serve`: pip install 'ling-jax[serve]'.
"""

import os
from typing import Any

from absl import flags

from launch.flags import define_checks, define_thinking, run_program, usage_errors
from ling_jax.chat.thinking import check_thinking
from ling_jax.checkpoint.folder import load_model, open_model
from ling_jax.engine import EXACT_TILE, Engine, memory_for
from ling_jax.messages import warn

HERE = ("127.0.0.1", "localhost", "::1")  # addresses that only this machine reaches

define_checks()
MODEL = flags.DEFINE_string("model", None, "a run's workdir or a Hugging Face folder", required=True)
STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoints; the newest if not given")
COMPARE = flags.DEFINE_string("compare", "", "a second model, for the page's answers side by side")
NAME = flags.DEFINE_string("name", "", "of the model, as clients give it; the folder's if not given")
HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all of the machine")
PORT = flags.DEFINE_integer("port", 8000, "to listen on; 0 takes a free one", 0, 65535)
SLOTS = flags.DEFINE_integer("slots", 64, "answers that are drawn at a time", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", None, "tokens of the longest context; the model's if not given", 2)
MEMORY = flags.DEFINE_float(
    "memory_gb", None, "for contexts, in GB; if not given, for `slots` of the longest ones", 0.0
)
THINKING, EFFORT = define_thinking()
API_KEY = flags.DEFINE_string("api_key_variable", "", "environment variable with the key that clients must give")
ADMIN_KEY = flags.DEFINE_string(
    "admin_key_variable",
    "",
    "environment variable with the key of /v1/weights; without it those calls must come from this machine",
)
BODY = flags.DEFINE_float("max_body_mb", 4.0, "of a request's body, in MB", lower_bound=0.001)
QUEUE = flags.DEFINE_integer("max_pending", 512, "answers under way and waiting; more are refused (429)", lower_bound=1)
SESSIONS = flags.DEFINE_integer("max_sessions", 256, "recorded sessions; the oldest idle ones leave", lower_bound=0)
SECONDS = flags.DEFINE_float("max_seconds", 600.0, "from a request to the end of its answer (408)", lower_bound=0.001)
GRACE = flags.DEFINE_integer("grace_seconds", 30, "that answers under way have after SIGTERM", lower_bound=0)


def main() -> None:
    with usage_errors():
        try:
            from ling_jax.serve.http import Keys, Limits
            from ling_jax.serve.run import bind, run
        except ImportError as error:
            raise ValueError(f"{error.name} is missing: pip install 'ling-jax[serve]'") from None
        check_thinking(THINKING.value, EFFORT.value)
        keys = Keys(_key(API_KEY), _key(ADMIN_KEY))
        if HOST.value not in HERE and not keys.api:
            warn(f"--host={HOST.value} without --api_key_variable: whoever reaches this address may ask")
        listener = bind(HOST.value, PORT.value)
        if COMPARE.value:
            open_model(COMPARE.value)  # says what is wrong with it before the first model is loaded
        models = [load(MODEL.value, STEP.value, NAME.value)]
        if COMPARE.value:
            models.append(load(COMPARE.value))
    limits = Limits(
        body_bytes=int(BODY.value * 1e6), choices=QUEUE.value, sessions=SESSIONS.value, seconds=SECONDS.value
    )
    run(models, limits, keys, listener, grace_seconds=GRACE.value)


def load(folder: str, step: int | None = None, name: str = "") -> tuple[Engine, Any]:
    """(an engine with the model's weights, all programs compiled; what requests are translated by)."""
    from ling_jax.serve.run import prepare

    model = load_model(folder, step=step)
    slots, longest = SLOTS.value, model.config.max_length
    context = min(CONTEXT.value or longest, longest)
    memory = int(MEMORY.value * 1e9) if MEMORY.value else memory_for(model.config, slots=slots, max_tokens=context)
    tile = EXACT_TILE if slots >= EXACT_TILE else None
    engine = Engine(model.config, slots=slots, memory_bytes=memory, row_tile=tile)
    name = name or os.path.basename(os.path.abspath(folder))
    served = prepare(model, engine, name, thinking=THINKING.value, effort=EFFORT.value)
    print(engine.plan, flush=True)
    engine.load(model.params, version=model.step or 0)
    engine.warm_up()
    return engine, served


def _key(flag: flags.FlagHolder) -> str:
    """The key in the variable that the flag names; "" where it names none."""
    if not flag.value:
        return ""
    if not (key := os.environ.get(flag.value, "").strip()):
        raise ValueError(f"--{flag.name}={flag.value}: this environment variable is not set or empty")
    return key


if __name__ == "__main__":
    run_program(main)
