"""Templates that loop, grow or break: each is one line in bounded time, and the next template is rendered."""

import os
import signal
import threading
import time

import pytest

from ling_jax.chat import renderer
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.renderer import Renderer
from ling_jax.chat.template import Piece

HI = [{"role": "user", "content": "Hi"}]
GROWS = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}{% endfor %}{{ ns.x }}"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "loops in loops": (NESTED + "{% endfor %}", "runs longer than 1 s"),
    "a range": ("{% for i in range(10 ** 9) %}{% endfor %}", "fails: OverflowError: Range too big"),
    "a power that is folded by the compiler": ("{{ 9 ** (9 ** 9) }}", "runs longer than 1 s"),
    "a string of 40 GB": ("{{ 'x' * 40000000000 }}", "needs more than 1 GiB of memory"),
    "a string of 20 MB": ("{{ 'x' * 20000000 }}", "writes more than 16 million characters"),
    "a string that doubles": (GROWS, ""),  # out of memory or out of time
    "a list that doubles": ("{{ ([0] * 10000000000) | length }}", "needs more than 1 GiB of memory"),
    "a width": ("{{ '%9999999999d' % 1 }}", "needs more than 1 GiB of memory"),
    "output in a loop": ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than 16 million"),
    "macros in macros": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "fails: RecursionError"),
    "brackets": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", ""),
    "a filter": ("{{ range(99999) | list | batch(1) | list | join('x' * 9999) }}", ""),
    "a way out": ("{{ messages.__class__.__mro__ }}", "fails: SecurityError"),
    "an include": ("{% include '/etc/passwd' %}", "fails: TypeError: no loader"),
    "half a character": ("{{ '\\ud83d' }}", "fails: UnicodeEncodeError"),
    "a refusal of many lines": ("{{ raise_exception('no\\n\\ntools') }}", "fails: TemplateError: no tools"),
}


@pytest.fixture
def quick(monkeypatch):
    """A renderer of its own that waits for a second of processor time."""
    own = Renderer(seconds=1.0)
    monkeypatch.setattr("ling_jax.chat.folder_template.RENDERER", own)
    yield own
    own.close()


def test_a_hostile_template_is_one_line_in_bounded_time(quick):
    good = FolderTemplate("{{ messages[0].content }}", "good")
    for name, (source, message) in HOSTILE.items():
        with pytest.raises(ValueError, match="the chat template of FOLDER ") as raised:
            FolderTemplate(source, "FOLDER").render(HI)
        assert message in str(raised.value) and "\n" not in str(raised.value), (name, raised.value)
        assert good.render(HI) == [Piece("Hi")], name


def process_of(quick) -> int:
    quick.texts("", [], {}, [(0, False)])  # starts it
    return quick._worker.pid


def test_the_time_of_a_template_is_its_own_not_the_machines(quick):
    """It is of the processor: a template that waits its turn is not blamed."""
    template = FolderTemplate("{{ messages[0].content }}", "folder")
    process, begun = process_of(quick), time.monotonic()
    os.kill(process, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (process, signal.SIGCONT)).start()
    assert template.render(HI) == [Piece("Hi")] and time.monotonic() - begun > 0.9


def test_a_machine_that_never_answers_is_one_line(quick, monkeypatch):
    template = FolderTemplate("{{ messages[0].content }}", "FOLDER")
    os.kill(process_of(quick), signal.SIGSTOP)
    monkeypatch.setattr(renderer, "SILENCE_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"the chat template of FOLDER gives no text in 0.2 s"):
        template.render(HI)


def test_a_process_that_was_ended_is_started_again(quick):
    template = FolderTemplate("{{ messages[0].content }}", "folder")
    os.kill(process_of(quick), signal.SIGKILL)
    assert template.render(HI) == [Piece("Hi")]
    before = process_of(quick)
    os.kill(before, signal.SIGINT)  # Ctrl-C goes to it, too, and is for the program alone
    assert template.render(HI) == [Piece("Hi")] and process_of(quick) == before


def test_several_threads_may_render_at_once(quick):
    found = {}

    def render(number):
        template = FolderTemplate("{{ messages[0].content }}" + str(number), "folder")
        found[number] = [template.render([{"role": "user", "content": f"{number} "}]) for _ in range(20)]

    threads = [threading.Thread(target=render, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [[Piece(f"{number} {number}")]] * 20 for number in range(6)}


def test_a_conversation_of_many_turns_is_one_request(quick, monkeypatch):
    sent = []
    texts = quick.texts
    monkeypatch.setattr(quick, "texts", lambda *request: sent.append(request) or texts(*request))
    messages = [{"role": role, "content": "x"} for _ in range(50) for role in ("user", "assistant")]
    template = FolderTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", "folder")
    assert [piece.trained for piece in template.render(messages)] == [False, True] * 50 and len(sent) == 1


def test_all_texts_of_a_conversation_together_are_bounded():
    """Each alone is within the limit; a template that rewrites its history gives them all anew."""
    template = FolderTemplate("{{ messages | length }}{{ 'x' * 16000000 }}", "FOLDER")
    with pytest.raises(ValueError, match="FOLDER writes more than 64 million characters in the texts of one conv"):
        template.renderings(HI * 6, [(count, False) for count in range(1, 7)])


def test_what_is_no_json_and_what_is_nested_too_deeply_is_one_line(quick):
    template = FolderTemplate("{{ messages }}", "FOLDER")
    deep = []
    for _ in range(5_000):
        deep = [deep]
    for tools, message in (([{"f": {1}}], "is no JSON"), ([{"f": deep}], "nested too deeply")):
        with pytest.raises(ValueError, match=message):
            template.render(HI, tools=tools)
