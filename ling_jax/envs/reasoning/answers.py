"""Final answers, compared with the right one. The standard library is enough, since tasks carry this file.

As a program it is the verifier of an exported task: request.json beside it has the rule and the right answer, and the
reward goes to /logs/verifier/reward.json.
"""

import json
import os
import re

ANSWER = "A:"
NUMBER = re.compile("[0-9]+")
FILE = "answer.txt"
MAX_BYTES = 1 << 20  # of the file
HERE = os.path.dirname(os.path.abspath(__file__))
REWARD = "/logs/verifier/reward.json"


def is_text(said: str, answer: str) -> bool:
    """Whether all that follows the last `A:` is the answer, blanks around it aside."""
    _, found, last = said.rpartition(ANSWER)
    return bool(found) and last.strip() == answer


def is_list(said: str, answer: str) -> bool:
    """Whether the list that follows the last `A:` is the answer, blanks and case aside."""
    _, found, last = said.rpartition(ANSWER)
    return bool(found) and _items(last) == _items(answer)


def is_code(said: str, answer: str) -> bool:
    """Whether an answer, which is without its reasoning, names one number, and that is the right one."""
    return set(NUMBER.findall(said)) == {answer}


RULES = {"text": is_text, "list": is_list, "code": is_code}


def main() -> None:
    with open(os.path.join(HERE, "request.json")) as file:
        request = json.load(file)
    right = RULES[request["rule"]](_said(), request["answer"])
    with open(REWARD, "w") as file:
        json.dump({"reward": float(right)}, file)


def _said() -> str:
    """The text of the answer's file; "" where there is no plain file of a fit size."""
    if not os.path.isfile(FILE) or os.path.islink(FILE) or os.path.getsize(FILE) > MAX_BYTES:
        return ""
    with open(FILE, "rb") as file:
        return file.read().decode(errors="replace")


def _items(text: str) -> list[str]:
    return [item.strip().casefold() for item in text.strip().rstrip(".").split(",")]


if __name__ == "__main__":
    main()
