"""Which prompts are a user's message and which are text to go on from."""

import dataclasses

import pytest

from ling_jax import data
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint.folder import Loaded
from ling_jax.engine.prompts import encode_prompts, prompt_report
from tests.helpers.official_forms import LING_2_6

TOKENIZER = data.train_bpe([], 263)
BASE = Loaded(None, None, TOKENIZER, ChatTemplate())
CHAT = dataclasses.replace(BASE, declared_ends=frozenset({TOKENIZER.token_to_id("<|role_end|>")}))
FOLDER = dataclasses.replace(BASE, template=FolderTemplate(LING_2_6, "FOLDER"))
RECORD = ("here", {"prompt": "Hi"})
MESSAGES = ("here", {"messages": [{"role": "user", "content": "Hi"}]})


def texts(model, *records, **options):
    return [TOKENIZER.decode(ids, skip_special_tokens=False) for ids in encode_prompts(model, records, **options)]


def test_a_base_model_goes_on_from_a_prompt():
    assert texts(BASE, RECORD) == texts(BASE, RECORD, raw=True) == ["Hi"]
    assert prompt_report(BASE).startswith("prompt: plain text to go on from; the model's files have no chat template")


@pytest.mark.parametrize(
    ("model", "template"), [(CHAT, "the default chat template"), (FOLDER, "FOLDER")], ids=["declared", "template"]
)
def test_a_model_for_conversations_takes_a_prompt_as_a_users_message(model, template):
    (prompt,), (message,), (raw,) = (texts(model, RECORD), texts(model, MESSAGES), texts(model, RECORD, raw=True))
    assert prompt == message and "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>" in prompt and raw == "Hi"
    assert f"one user message, by {template}; --raw" in prompt_report(model)
    assert "plain text to go on from (--raw)" in prompt_report(model, raw=True)
    assert texts(model, MESSAGES, raw=True) == [message], "messages are no plain text"


def test_thinking_is_what_is_asked_for_and_on_behind_reasoning():
    reasons = [*MESSAGES[1]["messages"], {"role": "assistant", "content": "a", "reasoning": "r"}]
    reasons += MESSAGES[1]["messages"]
    (prompt,) = texts(FOLDER, RECORD)
    assert prompt.endswith("<role>ASSISTANT</role>\n<think>"), "the template's own default"
    off = dataclasses.replace(FOLDER, template=with_thinking(FOLDER.template, "off"))
    assert texts(off, RECORD)[0].endswith("<think></think>")
    assert "detailed thinking on" in texts(CHAT, ("here", {"messages": reasons}))[0]
    assert "detailed thinking off" in texts(off, ("here", {"messages": reasons}))[0]


def test_tools_that_a_template_does_not_read_are_not_left_out_silently():
    model = dataclasses.replace(BASE, template=FolderTemplate("{{ messages[0].content }}", "FOLDER"))
    with pytest.raises(ValueError, match="here: the chat template of FOLDER reads no tools"):
        encode_prompts(model, [("here", MESSAGES[1] | {"tools": [{"type": "function"}]})])
    assert texts(model, ("here", MESSAGES[1] | {"tools": []})) == ["Hi"]


def test_a_template_that_refuses_is_named_with_the_record():
    model = dataclasses.replace(BASE, template=FolderTemplate("{{ raise_exception('no') }}", "FOLDER"))
    with pytest.raises(ValueError, match="here: the chat template of FOLDER fails: TemplateError: no"):
        encode_prompts(model, [RECORD])
