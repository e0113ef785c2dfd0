"""Makes one attack inside of a box: python3 -m benchmarks.sandbox_attacks.attempt MODULE FUNCTION TOKEN.

The last line of stdout is what came of it, as JSON: ["worked" or "refused" or "broken", what it got or why not,
an error number].
`TOKEN` stands in the command line so that the host finds all processes of the attack.
"""

import importlib
import json
import sys
from types import SimpleNamespace


def main(module: str, function: str) -> None:
    with open("host.json", encoding="utf-8") as file:
        host = SimpleNamespace(**json.load(file))
    attack = getattr(importlib.import_module(f"benchmarks.sandbox_attacks.{module}"), function)
    try:
        got = attack.attempt(host)
        outcome = ("worked", str(got)[:500], 0) if got is not None else ("refused", "nothing came of it", 0)
    except (OSError, MemoryError, RecursionError) as error:
        outcome = ("refused", repr(error), getattr(error, "errno", 0))
    except Exception as error:
        outcome = ("broken", repr(error), 0)
    print("\n" + json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
