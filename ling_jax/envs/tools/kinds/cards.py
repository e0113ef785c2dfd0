"""Records with fields, each of which has one of a few values: {name: {field: value}}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain, table
from ling_jax.envs.tools.words import PEOPLE
from ling_jax.messages import nearest


def read(words: Domain, state: KitState, name: str):
    return state, known(state, name, words.noun)


def find(words: Domain, state: KitState, field: str, value: str):
    _check(words, field, value)
    return state, [name for name in sorted(state) if state[name][field] == value]


def put(words: Domain, state: KitState, name: str, field: str, value: str):
    card = known(state, name, words.noun)
    _check(words, field, value)
    return {**state, name: {**card, field: value}}, {field: value}


def delete(words: Domain, state: KitState, name: str):
    known(state, name, words.noun)
    return {other: card for other, card in state.items() if other != name}, {"deleted": name}


def _check(words: Domain, field: str, value: str) -> None:
    values = words.words["fields"][field]
    if value not in values:
        raise ToolError(f"{field} cannot be {value!r}{nearest(value, values)}; it is one of {', '.join(values)}")


OPERATIONS = (
    Operation("read", read, "All that is written of a {noun}.", ("noun",), changes=False),
    Operation("find", find, "Every {noun} whose field has a value.", ("field", "value"), changes=False),
    Operation("put", put, "Writes a value into a field of a {noun}.", ("noun", "field", "value")),
    Operation("delete", delete, "Deletes a {noun} for good.", ("noun",)),
)
DESTROYS = "delete"
PHRASES = {
    "read": ("What is the {field} of the {noun} {name}?", "Tell me the {field} of the {noun} {name}."),
    "put": ("Set the {field} of the {noun} {name} to {value}.", "The {noun} {name} has a new {field}: {value}."),
    "delete": ("Delete the {noun} {name}.", "Remove the {noun} {name} for good."),
    "copy": ("Give the {noun} {name} the {field} that the {noun} {other} has.",),
    "every": ("Set the {field} of every {noun} whose {by} is {has} to {value}.",),
}


def arguments(words: Domain) -> dict:
    return {"field": {"type": "string", "enum": list(words.words["fields"])}, "value": {"type": "string"}}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    fields = words.words["fields"]
    return {
        name: {field: rng.choice(values) for field, values in fields.items()} for name in rng.sample(words.names, size)
    }


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    fields = words.words["fields"]
    name, other = rng.sample(sorted(state), 2) if len(state) > 1 else (*state, None)
    field, by = rng.sample(sorted(fields), 2)
    value = rng.choice([value for value in fields[field] if value != state[name][field]])
    asked = {"name": name, "field": field, "value": value}
    yield Option("read", asked, [("read", (name,))], state[name][field])
    yield Option("put", asked, [("put", (name, field, value))])
    if other is None:
        return
    yield Option("delete", asked, [("delete", (name,))])
    theirs = state[other][field]
    if theirs != state[name][field]:
        copied = [("read", (other,)), ("put", (name, field, theirs))]
        yield Option("copy", {**asked, "other": other}, copied)
    has = state[name][by]
    every = [("put", (found, field, value)) for found in sorted(state) if state[found][by] == has]
    yield Option("every", {**asked, "by": by, "has": has}, [("find", (by, has)), *every])


DOMAINS = (
    domain(
        "contacts",
        "contact_show contact_search contact_edit contact_erase",
        PEOPLE,
        noun="contact",
        fields=table("city: oslo lima riga cairo quito; group: family work sport choir; tone: formal casual brief"),
    ),
    domain(
        "staff",
        "staff_record staff_find staff_update staff_remove",
        PEOPLE,
        noun="employee",
        fields=table("site: oslo lima accra kyoto porto; team: sales legal design support; shift: early late night"),
    ),
    domain(
        "customers",
        "customer_show customer_find customer_set customer_delete",
        PEOPLE,
        noun="customer",
        fields=table("plan: basic plus pro trial; country: chad fiji iran peru; language: dutch czech hindi malay"),
    ),
    domain(
        "pets",
        "pet_file pet_list pet_note pet_strike_out",
        ("rex", "milo", "luna", "nala", "otto", "fips", "kira", "bello", "maja", "pablo", "tiger", "bruno"),
        noun="pet",
        fields=table("food: kibble tuna hay raw; room: one two three; walk: dawn noon dusk"),
    ),
    domain(
        "plants",
        "plant_card plant_search plant_update plant_discard",
        ("fern", "cactus", "orchid", "palm", "ivy", "aloe", "basil", "lemon", "olive", "yucca", "thyme", "jasmine"),
        noun="plant",
        fields=table("place: sill hall porch cellar; water: daily weekly monthly; soil: sand peat clay"),
    ),
    domain(
        "vehicles",
        "vehicle_entry vehicle_query vehicle_amend vehicle_scrap",
        ("k101", "k110", "k201", "k210", "m301", "m310", "m401", "m410", "t501", "t510", "w601", "w610"),
        noun="vehicle",
        fields=table("garage: oslo lima riga cairo; fuel: diesel petrol power gas; status: ready repair out"),
    ),
)
