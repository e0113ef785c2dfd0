"""Options of programs and recipes: whether a model thinks before it answers, and with which effort."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ling_jax.chat.folder_template import EFFORT_NAMES, THINKING_NAMES, FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.messages import nearest

CHOICES = {"default": None, "on": True, "off": False}


def check_thinking(thinking: str, effort: str) -> None:
    """Raises ValueError that names an option without a valid value."""
    if thinking not in CHOICES:
        raise ValueError(f"thinking is {thinking!r}{nearest(thinking, CHOICES)}; it is one of {', '.join(CHOICES)}")
    if effort != effort.strip() or not effort.isprintable():
        raise ValueError(f"effort is {effort!r}; expected a word such as high or xhigh, or nothing")


def with_thinking(
    template: ChatTemplate | FolderTemplate, thinking: str = "default", effort: str = ""
) -> ChatTemplate | FolderTemplate:
    """The template with thinking "on", "off" or by its "default", and with an effort such as "high" or none.

    Raises ValueError for an option that the template of a folder does not read, since it would have no effect.
    """
    check_thinking(thinking, effort)
    for asked, value, names in (
        ("thinking", CHOICES[thinking] is not None and thinking, THINKING_NAMES),
        ("effort", effort, EFFORT_NAMES),
    ):
        if value and isinstance(template, FolderTemplate) and not template.reads(names):
            raise ValueError(
                f"{asked} is {value!r}, and the chat template of {template.where} reads none of {', '.join(names)}: it "
                f"would change nothing; leave {asked} out"
            )
    return dataclasses.replace(template, thinking=CHOICES[thinking], effort=effort or None)


def with_reasoning(
    template: ChatTemplate | FolderTemplate, messages: Sequence[Mapping[str, Any]]
) -> ChatTemplate | FolderTemplate:
    """The template with thinking on, if it has no such option yet and an answer of the conversation has reasoning."""
    reasons = any(message.get("reasoning") for message in messages)
    return dataclasses.replace(template, thinking=True) if reasons and template.thinking is None else template
