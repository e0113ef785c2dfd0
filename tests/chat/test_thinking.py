import pytest

from ling_jax.chat.conversations import tokenize_conversations
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, opens_reasoning
from ling_jax.chat.thinking import check_thinking, with_reasoning, with_thinking
from ling_jax.data import train_bpe
from ling_jax.data.packing import open_documents
from tests.helpers.official_forms import FORMS, LING_2_6

HI = [{"role": "user", "content": "Hi"}]
SWITCHES = (
    "{{ enable_thinking is defined }} {{ enable_thinking }} {{ reasoning_effort is defined }} {{ reasoning_effort }}"
)


def text(template, messages=HI, **options):
    return "".join(piece.text for piece in template.render(messages, **options))


def test_a_folders_template_gets_no_switch_unless_asked():
    template = FolderTemplate(SWITCHES, "folder")
    assert text(template) == text(with_thinking(template)) == "False  False "
    assert text(with_thinking(template, "on")) == "True True False "
    assert text(with_thinking(template, "off", "high")) == "True False True high"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking", "reasoning_effort", "thinking_effort"])
def test_the_names_that_templates_read(name):
    template = with_thinking(
        FolderTemplate(f"{{# enable_thinking reasoning_effort #}}{{{{ {name} }}}}", "f"), "on", "x"
    )
    assert text(template) == ("x" if "effort" in name else "True")


def test_the_default_template_is_off_unless_asked():
    off, on = "<role>SYSTEM</role>detailed thinking off<", "<role>SYSTEM</role>detailed thinking on"
    assert text(ChatTemplate()).startswith(off) and text(with_thinking(ChatTemplate(), "off")).startswith(off)
    assert text(with_thinking(ChatTemplate(), "on", "xhigh")).startswith(on + "\nthinking effort: xhigh<|role_end|>")


def test_defaults_of_the_forms():
    """Newer templates are on where the switch is undefined."""
    switches = {name: text(FolderTemplate(form, name)).partition("thinking ")[2][:2] for name, form in FORMS.items()}
    assert switches == {"2.0": "of", "Ring-1T": "on", "2.6": "on"}


def test_a_conversation_with_reasoning_is_written_with_thinking_on():
    reasons = [*HI, {"role": "assistant", "content": "b", "reasoning": "r"}]
    for template in (ChatTemplate(), FolderTemplate(LING_2_6, "2.6"), FolderTemplate(FORMS["2.0"], "2.0")):
        assert "detailed thinking on" in text(with_reasoning(template, reasons), reasons)
        assert with_reasoning(template, HI) == template
        off = with_thinking(template, "off")
        assert with_reasoning(off, reasons) == off


def test_records_with_reasoning_can_be_learnt(tmp_path):
    """With the form of 2.6, whose prompt opens the reasoning or closes an empty one."""
    tokenizer = train_bpe([], 263)
    records = [("r", {"messages": [*HI, {"role": "assistant", "content": "b", "reasoning": "r"}]})]
    told = dict(source="", digest="", longest=300, held_out_fraction=0.0)
    tokenize_conversations(records, tokenizer, FolderTemplate(LING_2_6, "2.6"), tmp_path / "out", **told)
    documents = open_documents(tmp_path / "out" / "train")
    trained = tokenizer.decode(documents.doc(0)[documents.trained].tolist(), skip_special_tokens=False)
    assert trained == "r</think>b<|role_end|>"


@pytest.mark.parametrize(
    ("thinking", "effort", "message"),
    [
        ("of", "", "thinking is 'of', did you mean 'off'"),
        ("default", "high\n", "effort is 'high"),
        ("on", "", "thinking is 'on', and the chat template of FOLDER reads none of enable_thinking, thinking"),
        ("default", "high", "effort is 'high', and the chat template of FOLDER reads none of reasoning_effort"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(thinking, effort, message):
    with pytest.raises(ValueError, match=message):
        with_thinking(FolderTemplate("{{ messages }}", "FOLDER"), thinking, effort)
    check_thinking("off", "high")


def test_a_prompt_that_opens_the_reasoning_is_seen():
    template = FolderTemplate(LING_2_6, "2.6")
    for thinking, opens in (("default", True), ("on", True), ("off", False)):
        assert opens_reasoning(with_thinking(template, thinking).render(HI, prompt=True)) == opens
