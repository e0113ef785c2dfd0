"""An agent that answers questions about people: it offers a model one tool, runs its calls and prints the answer.

    echo '{"messages": [{"role": "user", "content": "code of nia?"}], "seed": 7}' | python configs/agent/agent.py

It knows nothing of training. OPENAI_BASE_URL and OPENAI_API_KEY say who answers.
"""

import json
import os
import sys

from openai import OpenAI
from people import TOOLS, directory, look_up

MAX_TURNS = 4


def arguments_of(call):
    """The arguments of a call; none where the model wrote something else."""
    try:
        found = json.loads(call.function.arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def main():
    task = json.load(sys.stdin)
    people, messages, client = directory(task["seed"]), task["messages"], OpenAI()
    for _ in range(MAX_TURNS):
        model = os.environ.get("OPENAI_MODEL", "policy")
        answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
        if not answer.tool_calls:
            break
        messages.append(answer)
        for call in answer.tool_calls:
            shown = look_up(people, str(arguments_of(call).get("name")))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": shown})
    print(answer.content)


if __name__ == "__main__":
    main()
