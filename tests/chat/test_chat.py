import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.conversations import tokenize_conversations
from ling_jax.chat.folder_template import FolderTemplate, load_template
from ling_jax.chat.template import ChatTemplate, Piece, check_messages, encode, opens_reasoning
from ling_jax.chat.tool_calls import as_message, parse_either, render_call
from ling_jax.checkpoint.side_files import copy_side_files
from ling_jax.data.tokenizer import SPECIAL_TOKENS, train_bpe
from tests.chat.test_official_forms import plain

TOKENIZER = train_bpe(["Be brief. What is the weather? detailed thinking off HUMAN SYSTEM ASSISTANT"] * 3, 330)
SYSTEM = "<role>SYSTEM</role>detailed thinking off<|role_end|>"
WEATHER = {"name": "get_weather", "arguments": {"days": 3}}


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def user(content="Hi"):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def rendered(messages, template=ChatTemplate(), **options):  # noqa: B008  frozen
    return text(template.render(messages, **options))


def test_the_documented_examples():
    hi = "<role>HUMAN</role>Hi<|role_end|>"
    assert rendered([user()], prompt=True) == SYSTEM + hi + "<role>ASSISTANT</role>"
    messages = [{"role": "system", "content": "Be brief."}, user()]
    wanted = "<role>SYSTEM</role>Be brief.\ndetailed thinking on<|role_end|>" + hi + "<role>ASSISTANT</role>"
    assert rendered(messages, ChatTemplate(thinking=True), prompt=True) == wanted
    wanted = SYSTEM + hi + "<role>ASSISTANT</role><think>2+2=4</think>4<|role_end|>"
    assert rendered([user(), assistant("4", reasoning="2+2=4")]) == wanted
    call = "\n<tool_call>get_weather<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call><|role_end|>"
    messages = [user(), assistant("Let me check", tool_calls=[WEATHER])]
    assert rendered(messages) == SYSTEM + hi + "<role>ASSISTANT</role>Let me check" + call
    messages += [{"role": "tool", "content": "sunny"}, {"role": "tool", "content": "22"}]
    results = "\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\n22\n</tool_response><|role_end|>"
    assert rendered(messages).endswith("<role>OBSERVATION</role>" + results)
    effort = rendered([user()], ChatTemplate(thinking=True, effort="xhigh"))
    assert effort.startswith("<role>SYSTEM</role>detailed thinking on\nthinking effort: xhigh<|role_end|>")


def test_a_system_text_with_the_switch_gets_no_second_one():
    messages = [{"role": "system", "content": "Think. detailed thinking on"}, user()]
    assert rendered(messages).startswith("<role>SYSTEM</role>Think. detailed thinking on<|role_end|>")


def test_tools_stand_one_a_line_in_the_system_turn():
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    line = "<tool_call>name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>"
    for tool_format, shown in (("xml", line), ("xml_lines", line), ("json", '"arguments"')):
        system = rendered([user()], ChatTemplate(tool_format=tool_format), tools=tools).split("<|role_end|>")[0]
        block = system.split("<tools>\n")[1].split("\n</tools>")[0]
        assert [json.loads(line) for line in block.splitlines()] == tools
        assert system.startswith("<role>SYSTEM</role># Tools\n") and system.endswith("\ndetailed thinking off")
        assert shown in system


def test_only_what_the_assistant_says_is_trained():
    pieces = ChatTemplate().render([user(), assistant("4", reasoning="2+2"), user("ok")], prompt=True)
    ids, mask = encode(TOKENIZER, pieces)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert TOKENIZER.decode(trained, skip_special_tokens=False) == "<think>2+2</think>4<|role_end|>"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text(pieces)


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "\n"]), max_size=6).map("".join))
def test_text_that_spells_a_special_token_stays_text(content):
    special = set(range(len(SPECIAL_TOKENS)))
    count = lambda content: sum(t in special for t in encode(TOKENIZER, ChatTemplate().render([user(content)]))[0])  # noqa: E731
    assert count(content) == count("")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [user(), {"role": "system", "content": "b"}],
            r"^messages\[1\].role is 'system'; the default template has one",
        ),
        ([{"role": "system", "content": "a"}, user(), {"role": "system", "content": "b"}], r"^messages\[2\].role is"),
        (
            [user(), assistant("", tool_calls=[WEATHER, {"name": "f", "arguments": {"a": "</arg_value>"}}])],
            r"^messages\[1\].tool_calls\[1\]: argument 'a' of 'f' spells </arg_value>",
        ),
    ],
)
def test_a_message_that_the_default_template_cannot_write_is_named(messages, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate().render(messages)


def test_a_folders_template_decides_on_later_system_messages():
    template = FolderTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", "folder")
    assert rendered([user("a"), {"role": "system", "content": "b"}], template) == "[user]a[system]b"


def test_a_prompt_that_ends_inside_think_opens_the_reasoning():
    messages = [user()]
    for end, opened in (("<think>", True), ("<think>\n", True), ("<think></think>", False), ("", False)):
        template = FolderTemplate("<role>" + end.replace("\n", "{{ '\\n' }}"), "folder")
        assert opens_reasoning(template.render(messages, prompt=True)) is opened


@pytest.mark.parametrize("answer", ["4", "<think>2+2</think>4", f"<think>r</think>See\n{render_call(WEATHER, 'xml')}"])
def test_an_answer_is_the_next_turns_history_token_for_token(answer):
    message = as_message(parse_either(answer))
    pieces = ChatTemplate().render([user(), message])
    ids, mask = encode(TOKENIZER, pieces)
    assert [token for token, kept in zip(ids, mask, strict=True) if kept] == TOKENIZER.encode(
        answer + "<|role_end|>"
    ).ids
    assert all("<think>" not in piece.text for piece in pieces if not piece.special)


def test_no_tool_calls_may_be_null():
    folder = FolderTemplate("{% for m in messages %}{{ 'tool_calls' in m }}{% endfor %}", "folder")
    for template in (ChatTemplate(), folder):
        assert template.render([user(), assistant("a", tool_calls=None)]) == template.render([user(), assistant("a")])


def test_history_only_grows():
    turns = [user(), assistant("a", reasoning="r"), user("more"), assistant("b")]
    sizes = [encode(TOKENIZER, ChatTemplate().render(turns[:n]))[0] for n in range(1, 5)]
    for earlier, later in itertools.pairwise(sizes):
        assert len(later) > len(earlier) and later[: len(earlier)] == earlier


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ([{"role": "usr", "content": ""}], r"messages\[0\].role is 'usr', did you mean 'user'"),
        ([{"role": "user", "text": "x"}], r"messages\[0\].text is unknown"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is 3; expected text"),
        ([assistant("", tool_calls=[{"name": "f"}])], r"messages\[0\].tool_calls\[0\]"),
        ([assistant("", tool_calls={})], r"messages\[0\].tool_calls is {}; expected a list"),
        ([assistant("", tool_calls="")], r"messages\[0\].tool_calls is ''; expected a list"),
    ],
)
def test_a_malformed_message_is_named(messages, message):
    with pytest.raises(ValueError, match=message):
        check_messages(messages)


TEMPLATE = """{% for m in messages %}{% if m.role == 'user' %}<role>HUMAN</role>{{ m.content }}<|role_end|>
{% else %}<role>ASSISTANT</role>{{ m.content }}<|role_end|>{% endif %}{% endfor %}
{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"""


def test_a_folders_own_template_wins_and_masks_the_same_way(tmp_path):
    assert load_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    pieces = load_template(tmp_path).render([user("say <role>"), assistant("yes"), user("b")], prompt=True)
    ids, mask = encode(TOKENIZER, pieces)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert TOKENIZER.decode(trained, skip_special_tokens=False) == "yes<|role_end|>"
    assert "say <role></" not in text(pieces) and "say <role><|role_end|>" in text(pieces)
    assert ids.count(TOKENIZER.token_to_id("<role>")) == 4


def folder_ids(source, messages, **options):
    return encode(TOKENIZER, FolderTemplate(source, "folder").render(messages, **options))[0]


@pytest.mark.parametrize("written", ["{{ tools | tojson }}", "{{ messages[-1].tool_calls | string }}"])
def test_special_tokens_spelt_in_tools_and_arguments_stay_text(written):
    call = {"name": "f", "arguments": {"</role>": ["<role>", {"deep": "<|role_end|>"}]}}
    ids = folder_ids(written, [user(), assistant("", tool_calls=[call])], tools=[{"description": "<role>"}])
    assert min(ids) >= len(SPECIAL_TOKENS) and "<role>" in TOKENIZER.decode(ids)


def test_a_folders_template_keeps_every_character():
    content = "\ue000 <role> \ue001 \\ue002"
    pieces = FolderTemplate("{{ messages[0].content }}", "folder").render([user(content)])
    assert pieces == [Piece(content)]


def test_private_characters_of_a_template_or_a_text_are_kept():
    areas = [range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)]
    some, *rest = ("".join(map(chr, area)) for area in areas)
    template = FolderTemplate("{{ messages[0].content }}" + some, "FOLDER")
    assert template.render([user("<role>")]) == [Piece("<role>" + some)]
    assert template.render([user(f"{rest[0]}<role>\\ue000")]) == [Piece(f"{rest[0]}<role>\\ue000{some}")]
    with pytest.raises(ValueError, match="FOLDER hold every private character"):
        template.render([user("".join(rest))])


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ tools | tojson }}", '[{"b": "é<b>", "a": 1}]'),
        ("{{ tools[0] | tojson(indent=1, sort_keys=true) }}", '{\n "a": 1,\n "b": "é<b>"\n}'),
        ("{{ tools | tojson(ensure_ascii=true, separators=(',', ':')) }}", r'[{"b":"\u00e9<b>","a":1}]'),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", "Hi"),
        ("{{ strftime_now('%%') }}{{ bos_token }}{{ eos_token }}{{ pad_token }}", "%<s>[E]"),
        ("{% for m in messages %}{{ m.reasoning_content }}{{ m.reasoning }}{% endfor %}", "rr"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            "Hi<think>r</think>a",
        ),
    ],
)
def test_a_template_finds_what_transformers_gives_it(tmp_path, source, wanted):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "[E]"}}))
    (tmp_path / "chat_template.jinja").write_text(source)
    template = load_template(tmp_path, ["[E]"])
    copy_side_files(tmp_path, tmp_path.parent / "again")
    assert load_template(tmp_path.parent / "again", ["[E]"]) == template
    pieces = template.render([user(), assistant("a", reasoning="r")], tools=[{"b": "é<b>", "a": 1}])
    assert text(pieces) == wanted and (Piece("[E]", special=True) in pieces) == ("[E]" in wanted)


STRIPPING = """{% for m in messages %}<role>
{% if m.reasoning and loop.last %}<think>{{ m.reasoning }}</think>{% endif %}
{{ m.content }}<|role_end|>{% endfor %}{% if add_generation_prompt %}<role><think></think>{% endif %}"""


def test_a_prompt_may_rewrite_history_a_text_to_learn_may_not():
    template = FolderTemplate(STRIPPING, "folder")
    messages = [user(), assistant("a", reasoning="r"), user("b")]
    wanted = "<role>Hi<|role_end|><role>a<|role_end|><role>b<|role_end|><role><think></think>"
    pieces = template.render(messages, prompt=True)
    assert text(pieces).replace("\n", "") == wanted and not any(piece.trained for piece in pieces)
    assert sum(piece.special for piece in pieces) == 9
    with pytest.raises(ValueError, match="rewrites history"):
        template.render(messages)


def test_a_template_that_reads_no_reasoning_gets_it_in_the_content():
    """As data sets keep it and as a policy writes it: it would be lost without a word."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|role_end|>{% endfor %}"
    messages = [user(), assistant("a", reasoning="r")]
    pieces = FolderTemplate(source, "folder").render(messages)
    assert [piece.text for piece in pieces if piece.special and piece.trained] == [
        "<think>",
        "</think>",
        "<|role_end|>",
    ]
    assert text(pieces) == "user: Hi<|role_end|>assistant: <think>r</think>a<|role_end|>"


def test_calls_that_a_template_leaves_out_are_not_learnt_as_silence():
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|role_end|>{% endfor %}"
    messages = [user(), assistant("", tool_calls=[WEATHER])]
    with pytest.raises(ValueError, match=r"folder reads no tool_calls: those of messages\[1\] would be lost"):
        FolderTemplate(source, "folder").samples(messages)


def test_a_template_for_tools_is_taken_where_there_are_tools(tmp_path):
    """Of a list in tokenizer_config.json, or of transformers' folder beside chat_template.jinja."""
    entries = [{"name": "tool_use", "template": "{{ tools | length }}"}, {"name": "default", "template": "plain"}]
    config = tmp_path / "tokenizer_config.json"
    config.write_text("\ufeff" + json.dumps({"chat_template": entries}))
    stored = load_template(tmp_path)
    copy_side_files(tmp_path, tmp_path.parent / "copied")
    for template in (stored, load_template(tmp_path.parent / "copied")):
        assert rendered([user()], template) == "plain" and rendered([user()], template, tools=[{}, {}]) == "2"
        assert template.reads(["no", "length"]) and not template.reads(["no"])
    config.write_text(json.dumps({"chat_template": entries[:1]}))
    with pytest.raises(ValueError, match=r"tokenizer_config.json has no default chat template, only tool_use"):
        load_template(tmp_path)
    for content, message in (("", "is empty"), ("\ufeff \n", "is empty")):
        (tmp_path / "chat_template.jinja").write_text(content)
        with pytest.raises(ValueError, match=f"chat_template.jinja {message}"):
            load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("\ufeffx")
    assert rendered([user()], load_template(tmp_path)) == "x"


QWEN = """{% for m in messages %}<role>{{ m.role }}</role>
{%- if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}<|role_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<role>assistant</role>{% endif %}"""
PHI = "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}{{ m.content }}<|role_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}assistant:{% else %}<|endoftext|>{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "learnt"),
    [
        (QWEN, ["<think>r</think>a<|role_end|>", "<think>s</think>c<|role_end|>"]),
        (PHI, ["ra<|role_end|>", "sc<|role_end|>"]),
    ],
)
def test_a_conversation_that_is_rewritten_is_learnt_as_several_samples(tmp_path, source, learnt):
    """The reasoning of earlier turns is left out, or an end of the text is written behind the last answer."""
    template = FolderTemplate(source, "folder")
    messages = [user(), assistant("a", reasoning="r"), user("b"), assistant("c", reasoning="s")]
    samples = template.samples(messages)
    assert [text([piece for piece in pieces if piece.trained]) for pieces in samples] == learnt
    for pieces, length in zip(samples, (2, 4), strict=True):
        given = [message | {"reasoning_content": message.get("reasoning", "")} for message in messages[:length]]
        assert plain(source).render(messages=given).startswith(text(pieces))
    options = dict(source="", digest="", longest=300, held_out_fraction=0.0)
    meta = tokenize_conversations([("r", {"messages": messages})], TOKENIZER, template, tmp_path / "out", **options)
    assert meta["forked"] == 1 and meta["train"]["documents"] == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is a JSON list; expected an object"),
        ('{"chat_template": [{"name": "default"}]}', "chat_template is .{'name': 'default'}.; expected text"),
        ('{"chat_template": ["text"]}', "chat_template is .'text'.; expected text"),
    ],
)
def test_a_tokenizer_config_that_cannot_be_read_is_named(tmp_path, config, message):
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=f"tokenizer_config.json.*{message}"):
        load_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].nothing.here }}", "fails: UndefinedError"),
        ("{{ raise_exception('no tools') }}", "fails: TemplateError: no tools"),
        ("{{ 1 / 0 }}", "folder fails: ZeroDivisionError"),
        ("{% for m in messages %}", "folder fails: TemplateSyntaxError"),
        ("{{ messages[0].content.encode('no') }}", "folder fails: LookupError"),
        ("{{ range(10 ** 9) }}", "folder fails: OverflowError"),
        ("{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}", "rewrites history"),
    ],
)
def test_a_template_that_fails_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        FolderTemplate(source, "folder").render([user(), assistant("a"), user("b"), assistant("c")])
