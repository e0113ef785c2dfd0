"""Messages in boxes: {"messages": {name: {"box", "from", "text"}}, "sent": [[name, to], …], in alphabetical order}."""

import random
from collections.abc import Iterator

from ling_jax.envs.tools.call import KitState, ToolError, known
from ling_jax.envs.tools.kits import Domain, Operation, Option, domain
from ling_jax.envs.tools.words import LETTERS, PEOPLE

IDS = tuple(f"m{number}" for number in range(10, 100))
TOPICS = ("review", "dinner", "train", "parcel", "invoice", "concert", "flat", "garden", "exam", "boat")
BOXES = ("inbox", "archive", "later")


def look(words: Domain, state: KitState, box: str):
    found = {name: m["from"] for name, m in state["messages"].items() if m["box"] == box}
    return state, found


def read(words: Domain, state: KitState, name: str):
    return state, known(state["messages"], name, words.noun)


def move(words: Domain, state: KitState, name: str, box: str):
    message = known(state["messages"], name, words.noun)
    return {**state, "messages": {**state["messages"], name: {**message, "box": box}}}, {name: box}


def delete(words: Domain, state: KitState, name: str):
    known(state["messages"], name, words.noun)
    left = {other: message for other, message in state["messages"].items() if other != name}
    return {**state, "messages": left}, {"deleted": name}


def forward(words: Domain, state: KitState, name: str, person: str):
    known(state["messages"], name, words.noun)
    if [name, person] in state["sent"]:
        raise ToolError(f"{person!r} has {name!r} already")
    return {**state, "sent": sorted([*state["sent"], [name, person]])}, {"sent": name, "to": person}


OPERATIONS = (
    Operation("look", look, "Every {noun} in a box, and whom it is from.", ("box",), changes=False),
    Operation("read", read, "The text of a {noun}.", ("noun",), changes=False),
    Operation("move", move, "Puts a {noun} into another box.", ("noun", "box")),
    Operation("delete", delete, "Deletes a {noun} for good.", ("noun",)),
    Operation("forward", forward, "Sends a {noun} on to a person.", ("noun", "person")),
)
DESTROYS = "delete"
PHRASES = {
    "read": ("Which number does the {noun} {name} say?", "Read the {noun} {name} and tell me its number."),
    "from": ("Which number does the {noun} from {person} in the inbox say?",),
    "move": ("Put the {noun} {name} into the box {box}.",),
    "delete": ("Delete the {noun} {name}.",),
    "forward": ("Forward the {noun} {name} to {to}.", "Send the {noun} {name} on to {to}."),
    "pass": ("Forward what {person} has sent to the inbox to {to}.",),
}
TERSE = {"read": ("open {name}",), "delete": ("drop {name}",)}


def arguments(words: Domain) -> dict:
    del words
    return {"box": {"type": "string", "enum": list(BOXES)}}


def initial(words: Domain, rng: random.Random, size: int) -> KitState:
    messages = {}
    for name, sender in zip(rng.sample(words.names, size), rng.sample(PEOPLE, size), strict=True):
        number = rng.randrange(100, 1000)
        text = words.words.get("text", "About the {topic}: the number is {number}.")
        text = text.format(topic=rng.choice(TOPICS), number=number)
        messages[name] = {"box": rng.choice(BOXES[:2]), "from": sender, "text": text}
    return {"messages": messages, "sent": []}


def options(words: Domain, rng: random.Random, state: KitState) -> Iterator[Option]:
    del words
    messages = state["messages"]
    name, to = rng.choice(sorted(messages)), rng.choice(PEOPLE)
    message = messages[name]
    box = rng.choice([box for box in BOXES if box != message["box"]])
    asked = {"name": name, "box": box, "person": message["from"], "to": to}
    yield Option("read", asked, [("read", (name,))], number_in(message["text"]))
    yield Option("move", asked, [("move", (name, box))])
    if len(messages) > 1:
        yield Option("delete", asked, [("delete", (name,))])
    if [name, to] not in state["sent"]:
        yield Option("forward", asked, [("forward", (name, to))])
        if message["box"] == "inbox":
            yield Option("pass", asked, [("look", ("inbox",)), ("forward", (name, to))])
    if message["box"] == "inbox":
        yield Option("from", asked, [("look", ("inbox",)), ("read", (name,))], number_in(message["text"]))


def number_in(text: str) -> str:
    """The first number of a message."""
    return next(word.strip(".") for word in text.split() if word.strip(".").isdigit())


DOMAINS = (
    domain("slips", "list open put drop pass", LETTERS, noun="name", text="{number}", phrases=TERSE),
    domain("mail", "mail_list mail_read mail_file mail_delete mail_forward", IDS, noun="mail"),
    domain("chats", "chat_list chat_open chat_sort chat_erase chat_share", IDS, noun="chat"),
    domain("voice", "voice_list voice_play voice_store voice_wipe voice_send_on", IDS, noun="voice message"),
    domain("faxes", "fax_list fax_view fax_shelve fax_shred fax_relay", IDS, noun="fax"),
    domain("letters", "post_list post_open post_put_away post_burn post_hand_on", IDS, noun="letter"),
)
