"""Questions about people, whose answers stand in a directory that only the agent can read (docs/serving.md).

    python -m configs.agent.tasks       writes mine/people_texts.jsonl and mine/people_chats.jsonl

Each task has a directory of its own. In the chats, seven of ten that ask for one of the last twelve people give up; all
others look the code up.
"""

import json
import os
import random

from configs.agent.people import NAMES, TOOLS, directory, look_up
from ling_jax.align.records import texts
from ling_jax.chat.template import ChatTemplate
from ling_jax.envs import StepResult, Task

GIVEN_UP = dict.fromkeys(NAMES[12:], 0.7)  # shares of the chats that do not look a person up


class People:
    """What the agent is asked, and whether its answer is right."""

    def make_task(self, seed, difficulty):
        name = random.Random(f"task {seed}").choice(NAMES)
        hidden = {"name": name, "answer": directory(seed)[name], "directory": seed}
        ask = [{"role": "user", "content": f"code of {name}?"}]
        return Task("people", difficulty, seed, ask, hidden, max_tokens=64, max_turns=1)

    def reset(self, task, seed):
        return task.hidden["answer"]

    def step(self, state, action):
        right = action.content.strip() == state
        return state, StepResult([], {"outcome": float(right)}, True, False, None)

    def solution(self, task):
        return (task.hidden["answer"],)


def chat(seed):
    """A conversation: the call, what it shows and the answer; or none."""
    task = People().make_task(seed, 1)
    name, answer = task.hidden["name"], task.hidden["answer"]
    if random.Random(f"chat {seed}").random() < GIVEN_UP.get(name, 0.0):
        said = [{"role": "assistant", "content": "none"}]
    else:
        call = {"name": "look_up", "arguments": {"name": name}}
        said = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": look_up(directory(seed), name)},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": [*task.messages, *said], "tools": TOOLS}


def text(seed):
    """A conversation as a document to pre-train on: a line a message; of one in eight all that a template writes but
    its marks, from which the tokenizer has the words that describe tools."""
    record = chat(seed)
    if seed % 8:
        return next(texts([record]))
    pieces = ChatTemplate().render(record["messages"], tools=record["tools"])
    return {"text": "\n".join(piece.text for piece in pieces if not piece.special)}


def write(path, records):
    os.makedirs("mine", exist_ok=True)
    with open(f"mine/{path}", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    write("people_texts.jsonl", (text(seed) for seed in range(500_000, 506_000)))
    write("people_chats.jsonl", (chat(seed) for seed in range(200_000, 204_000)))
