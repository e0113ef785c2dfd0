"""Which tests of a seed module fail with which mistake; writes or checks the table that repositories are made from.

python -m tests.helpers.mutants [seed module ...]
"""

import gc
import random
import resource
import signal
import sys
import types
import unittest

from ling_jax.envs.coding import mutants, variants
from ling_jax.envs.coding.mutants import Mutant
from ling_jax.envs.coding.mutations import mutations

SECONDS = 0.3  # of processor time, for all tests of a module; they take milliseconds
CHOICES = 6  # of names, on which a mistake is tried
MEMORY_BYTES = 4 << 30


class Late(BaseException):
    """The tests did not end."""


def failing(name: str, source: str, test_source: str = "") -> tuple[str, ...] | None:
    """The tests, as Class.method, that fail where the module has this source; None where they do not all end."""
    whole = f"{mutants.SEEDS}.{name}"
    sys.modules[whole] = module = types.ModuleType(whole)
    tests = types.ModuleType("tests_of_it")
    try:
        exec(compile(source, name, "exec"), module.__dict__)
        exec(compile(test_source or mutants.test_source(name), "tests", "exec"), tests.__dict__)
    except Exception:
        return None
    finally:
        del sys.modules[whole]
    result, late = unittest.TestResult(), []

    def stop(*_):
        late.append(True)
        raise Late

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        unittest.defaultTestLoader.loadTestsFromModule(tests).run(result)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Late:  # between two tests
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    failed = {".".join(test.id().split(".")[-2:]) for test, _ in [*result.failures, *result.errors]}
    return None if late else tuple(test for test in mutants.test_places(name) if test in failed)


def mutants_of(name: str) -> list[Mutant]:
    """The mistakes in a module that some of its tests find and others do not, the same ones under other names too."""
    source, tests = mutants.source(name), mutants.test_places(name)
    assert failing(name, source) == (), f"{name}: its own tests fail"
    found = [Mutant(each, failing(name, each.applied(source)) or ()) for each in mutations(source)]
    return [mutant for mutant in found if 0 < len(mutant.failing) < len(tests) and is_stable(name, mutant)]


def is_stable(name: str, mutant: Mutant) -> bool:
    """Whether the same tests find a mistake under each other name, and under some choices of names for all."""
    groups, rng = variants.groups(name), random.Random(name)
    choices = [{group[0]: group[i % len(group)] for group in groups} for i in (1, 2)]
    choices += [variants.draw_renames(rng, name) for _ in range(CHOICES)]
    for renames in choices:
        texts = (mutant.mutation.applied(mutants.source(name)), mutants.test_source(name))
        if failing(name, *(variants.renamed(text, renames) for text in texts)) != mutant.failing:
            return False
    return True


def main(names: list[str]) -> None:
    """Writes the whole table, or ends with an error where it does not hold what is found for these modules."""
    gc.disable()  # a callback of the collector would swallow `Late`
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    found = {}
    for name in names or mutants.NAMES:
        found[name] = mutants_of(name)
        print(f"{name}: {len(found[name])} of {len(mutations(mutants.source(name)))} mistakes", flush=True)
    if not names:
        mutants.write_table(found)
    elif wrong := [name for name in names if found[name] != list(mutants.table()[name])]:
        sys.exit(f"the table holds others of {', '.join(wrong)}: write it anew with python -m tests.helpers.mutants")


if __name__ == "__main__":
    main(sys.argv[1:])
