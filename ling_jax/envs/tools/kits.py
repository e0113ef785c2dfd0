"""A toolkit is a kind of state machine (`envs.tools.kinds`) in a domain, which has the words."""

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ling_jax.envs.tools.call import AMOUNT, NOUN, Call, KitState, Tool
from ling_jax.envs.tools.words import DAYS

DONE, CANNOT = "done", "cannot"  # how a wish ends that asks for no value; what no tool does, or no rule allows
HOURS = range(8, 19)
ARGUMENTS = {
    "count": AMOUNT,
    "person": NOUN,
    "source": NOUN,
    "target": NOUN,
    "day": {"type": "string", "enum": list(DAYS)},
    "hour": {"type": "integer", "minimum": HOURS[0], "maximum": HOURS[-1]},
}


class Operation(NamedTuple):
    """What a kind does. `run(domain, state, *arguments)` gives (new state, result) or raises ToolError."""

    key: str
    run: Callable[..., tuple[KitState, Any]]
    description: str  # a template of the domain's words
    parameters: tuple[str, ...]  # of `ARGUMENTS` or the kind's `arguments`; "noun" is named by the domain
    changes: bool = True


class Domain(NamedTuple):
    """The words of a toolkit."""

    name: str
    tools: tuple[str, ...]  # names, in the order of the kind's operations
    names: tuple[str, ...]  # of the things
    words: Mapping[str, Any]  # "noun" of a thing, and what else the kind's templates need

    @property
    def noun(self) -> str:
        return self.words["noun"]


class Option(NamedTuple):
    """Something that a user may want, in the terms of a kind."""

    key: str  # of its phrases
    values: Mapping[str, Any]  # of its phrases
    calls: Sequence[tuple[str, tuple[Any, ...]]]  # (operation, arguments in order)
    answer: str = DONE


class Wish(NamedTuple):
    """Something that a user wants, in the terms of a toolkit. `vague` lacks a value, which `told` has by its name."""

    text: str
    calls: list[Call]
    answer: str
    vague: str
    told: dict[str, str]


class Kit(NamedTuple):
    """A toolkit. All that is drawn is drawn from the generator that is handed in."""

    name: str
    noun: str
    tools: tuple[Tool, ...]
    initial: Callable[[random.Random, int], KitState]  # (rng, number of things, or all there are if they are fewer)
    wishes: Callable[[random.Random, KitState], list[Wish]]  # one of each sort that the state allows
    named: Mapping[str, str]  # the kind's operation -> the tool's name
    argument: str  # of a tool, that says which thing it is about
    kind: str
    domain: Domain

    def draw_wish(self, rng: random.Random, state: KitState, most: int) -> Wish:
        """A wish that takes at most `most` calls, from 1 on."""
        return rng.choice([wish for wish in self.wishes(rng, state) if len(wish.calls) <= most])


def domain(name: str, tools: str, names: Sequence[str], **words: Any) -> Domain:
    """A domain; `tools` are names apart by blanks."""
    return Domain(name, tuple(tools.split()), tuple(names), words)


def table(text: str) -> dict[str, tuple[str, ...]]:
    """{name: words} of "name: word word; name: word"."""
    rows = (row.split(":") for row in text.split(";"))
    return {name.strip(): tuple(values.split()) for name, values in rows}


def make_kit(kind: ModuleType, words: Domain) -> Kit:
    """The toolkit of a kind in a domain."""
    named = dict(zip([operation.key for operation in kind.OPERATIONS], words.tools, strict=True))
    return Kit(
        name=words.name,
        noun=words.noun,
        tools=tuple(_tool(kind, words, operation, named[operation.key]) for operation in kind.OPERATIONS),
        initial=functools.partial(_initial, kind, words),
        wishes=functools.partial(_wishes, kind, words, named),
        named=named,
        argument=_argument(words, "noun"),
        kind=kind.__name__.rpartition(".")[2],
        domain=words,
    )


def _tool(kind: ModuleType, words: Domain, operation: Operation, name: str) -> Tool:
    schemas = {"noun": NOUN, **ARGUMENTS, **kind.arguments(words)}
    names = [_argument(words, parameter) for parameter in operation.parameters]
    properties = {name: schemas[key] for name, key in zip(names, operation.parameters, strict=True)}

    def run(state: KitState, /, **arguments: Any) -> tuple[KitState, Any]:
        return operation.run(words, state, *(arguments[name] for name in names))

    parameters = {"type": "object", "properties": properties, "required": names}
    description = operation.description.format(**words.words)
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool({"type": "function", "function": function}, run, operation.changes)


def _initial(kind: ModuleType, words: Domain, rng: random.Random, size: int) -> KitState:
    return kind.initial(words, rng, min(size, len(words.names)))


def _argument(words: Domain, parameter: str) -> str:
    return words.noun.replace(" ", "_") if parameter == "noun" else words.words.get(f"{parameter}_argument", parameter)


def _wishes(kind: ModuleType, words: Domain, named: Mapping[str, str], rng: random.Random, state: KitState):
    phrases = words.words.get("phrases", kind.PHRASES)
    return [
        _wish(kind, words, named, option, rng.choice(phrases[option.key]))
        for option in kind.options(words, rng, state)
        if option.key in phrases
    ]


def _wish(kind: ModuleType, words: Domain, named: Mapping[str, str], option: Option, phrase: str) -> Wish:
    parameters = {operation.key: operation.parameters for operation in kind.OPERATIONS}
    calls = []
    for key, values in option.calls:
        names = [_argument(words, parameter) for parameter in parameters[key]]
        calls.append({"name": named[key], "arguments": dict(zip(names, values, strict=True))})
    texts = {**words.words, **option.values}
    # A value that can be left out is one that a call needs: a number of the phrase.
    asked = next((name for name in ("count", "level", "hour") if name in option.values and f"{{{name}}}" in phrase), "")
    vague = phrase.format(**{**texts, asked: f"(ask me the {asked})"}) if asked else ""
    told = {asked: str(option.values[asked])} if asked else {}
    return Wish(phrase.format(**texts), calls, option.answer, vague, told)


def others(rng: random.Random, known: Sequence[str], taken: Mapping[str, Any] | Sequence[str]) -> Iterator[str]:
    """A known name that is not taken, if there is one."""
    free = [name for name in known if name not in taken]
    return iter(rng.sample(free, min(1, len(free))))
