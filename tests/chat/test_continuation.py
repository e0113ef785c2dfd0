"""What a policy reads behind its own answer is what the template writes there, or the answer cannot be gone on from."""

import random

import pytest

from ling_jax.chat.continuation import UnreadableAnswer, continue_conversation
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.thinking import with_thinking
from tests.chat.test_official_forms import joined
from tests.helpers.official_forms import FORMS

ENDS = ("<|role_end|>", "[END]")
ASKED = [{"role": "user", "content": "ring Ann"}]
RESULT = [{"role": "tool", "content": "no answer"}]
XML = "<tool_call>ring\n<arg_key>who</arg_key>\n<arg_value>Ann</arg_value>\n</tool_call>"
JSON = '<tool_call>\n{"name": "ring", "arguments": {"who": "Ann"}}\n</tool_call>'
NEWLINE = """{% for m in messages %}{{ m.role }}: {{ m.content }}[END]{{ '\\n' }}{% endfor %}
{% if add_generation_prompt %}assistant: {% endif %}"""
ANSWERS = (
    "", "Hello", f"I ring.\n{JSON}", f"I ring.\n{XML}", XML + " no call", " padded \n", "<tool_call>broken",
    "r</think>4",
)  # fmt: skip


def templates():
    """(name, template) of several kinds."""
    yield "default", ChatTemplate()
    yield "newline", FolderTemplate(NEWLINE, "newline", end_tokens=("[END]",), special_tokens=("[END]",))
    for name, form in FORMS.items():
        for thinking in ("on", "off"):
            yield f"{name} {thinking}", with_thinking(FolderTemplate(form, name), thinking)


@pytest.mark.parametrize(("name", "template"), list(templates()))
def test_what_was_read_and_written_is_the_templates_rendering(name, template):
    rng = random.Random(name)
    for _ in range(4):
        messages, read = list(ASKED), joined(template, ASKED, prompt=True)
        for _ in range(3):
            words = ("hm</think>" if name == "2.6 on" else "") + rng.choice(ANSWERS)
            answer, pieces = continue_conversation(template, messages, words, RESULT, end_tokens=ENDS)
            end = "[END]" if name == "newline" else "<|role_end|>"
            read += words + end + "".join(piece.text for piece in pieces)
            messages += [answer, *RESULT]
            assert joined(template, messages, prompt=True) == read
            assert not any(piece.trained for piece in pieces)


def test_what_stands_behind_the_end_token_is_read():
    template = dict(templates())["newline"]
    _, pieces = continue_conversation(template, ASKED, "Hello", RESULT, end_tokens=ENDS)
    assert "".join(piece.text for piece in pieces) == "\ntool: no answer[END]\nassistant: "
    assert pieces[0].text == "\ntool: no answer", "one text: it is cut into tokens as one"


def test_an_answer_is_parsed_as_an_engine_would():
    """The prompt opened the reasoning."""
    template = dict(templates())["2.6 on"]
    answer, _ = continue_conversation(template, ASKED, "hm</think>Hello", RESULT, end_tokens=ENDS)
    assert (answer["reasoning"], answer["content"]) == ("hm", "Hello")


def test_an_answer_may_look_different_while_it_is_the_last_message():
    """Qwen 3 writes an empty <think> into the last answer alone."""
    source = NEWLINE.replace(
        "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    )
    template = FolderTemplate(source, "folder", end_tokens=ENDS, special_tokens=("[END]",))
    answer, pieces = continue_conversation(template, ASKED, "Hello", RESULT, end_tokens=ENDS)
    assert answer["content"] == "Hello" and pieces[0].text == "\ntool: no answer"


TRIMS = NEWLINE.replace("m.content", "m.content | trim")
LAST_ONLY = NEWLINE.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
REWRITES = {
    "the reasoning of earlier turns": (FORMS["2.0"], "<think>hm</think>Hello", [{"role": "user", "content": "b"}]),
    "blanks around": (TRIMS, " Hello ", RESULT),
    "all but the last": (LAST_ONLY, "Hello", [*RESULT, *RESULT]),
    "no end token": (NEWLINE.replace("[END]", ""), "Hello", RESULT),
    "reasoning that was never closed": (FORMS["2.6"], "on and on", RESULT),
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_template_that_rewrites_an_answer_is_found(name):
    source, words, observation = REWRITES[name]
    template = FolderTemplate(source, "folder", end_tokens=ENDS, special_tokens=("[END]", "<|role_end|>", "<think>"))
    with pytest.raises(ValueError, match=r"the chat template (rewrites history behind|writes an answer in)") as raised:
        continue_conversation(template, ASKED, words, observation, end_tokens=ENDS)
    models_mistake = name in ("blanks around", "reasoning that was never closed")
    assert isinstance(raised.value, UnreadableAnswer) is models_mistake
