"""All toolkits by name, and all their tools."""

from ling_jax.envs.tools.call import Tool
from ling_jax.envs.tools.kinds import (
    access,
    accounts,
    bookings,
    cards,
    devices,
    letters,
    queues,
    routes,
    stock,
    tickets,
)
from ling_jax.envs.tools.kits import Kit, make_kit

KINDS = (access, accounts, bookings, cards, devices, letters, queues, routes, stock, tickets)
SMALL = ("counters", "slips", "dials")  # of the smallest tasks: one-letter names, terse wishes
KITS: dict[str, Kit] = {words.name: make_kit(kind, words) for kind in KINDS for words in kind.DOMAINS}
LARGE = tuple(name for name in KITS if name not in SMALL)
TOOLS: dict[str, tuple[str, Tool]] = {tool.name: (kit.name, tool) for kit in KITS.values() for tool in kit.tools}
DESTROYS = {kind.__name__.rpartition(".")[2]: kind.DESTROYS for kind in KINDS}
