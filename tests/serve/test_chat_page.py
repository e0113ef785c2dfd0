"""The page at `/` in a browser, against the program with two models of random weights."""

import json
import re
import time

import httpx2
import pytest

from ling_jax.serve.static import POLICY, page_files
from tests.helpers.browser import chromium_or_skip, too_wide
from tests.helpers.served import process, write_model

# Thinks where an effort is asked for, as the models do: the prompt ends with <think>.
TEMPLATE = """{% for message in messages %}{{ message.role }}: {{ message.reasoning_content }}{{ message.content }}
{% endfor %}{{ tools and '' }}{% if add_generation_prompt and reasoning_effort is defined -%}
{{ '<think>' if enable_thinking is not false }}{% endif %}"""
MARKUP = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\"><b>bold</b>"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of the models after and before."""
    folders = [tmp_path_factory.mktemp("models") / name for name in ("after", "before")]
    for seed, folder in enumerate(folders):
        write_model(folder, seed)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folders


@pytest.fixture(scope="module")
def address(models):
    """Of a server of both."""
    with process(models[0], f"--compare={models[1]}") as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser():
    with chromium_or_skip() as found:
        yield found


class Page:
    """The page in a tab, what it asks the server, and what its console says."""

    def __init__(self, browser, address: str, width: int, scheme: str):
        self.tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.errors, self.bodies, self.added = [], [], {}
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.route("**/v1/chat/completions", self._send_on)
        self.tab.goto(address)
        self.tab.set_default_timeout(20_000)
        self.tab.get_by_text("after and before").wait_for()

    def _send_on(self, route) -> None:
        """Notes the body, and sends it on with `self.added`."""
        self.bodies.append(json.loads(route.request.post_data))
        route.continue_(post_data=json.dumps(self.bodies[-1] | self.added))

    def set(self, **settings) -> None:
        for name, value in settings.items():
            field = self.tab.locator(f"#form [name={name}]")
            if isinstance(value, bool):
                field.set_checked(value)
            elif name == "reasoning_effort":
                field.select_option(value)
            else:
                field.fill(str(value))

    def say(self, text: str) -> None:
        self.tab.fill("#text", text)
        self.tab.press("#text", "Enter")

    def wait(self) -> None:
        """Until the answers have ended."""
        self.tab.locator("#stop").wait_for(state="hidden")

    def answer(self, i: int = -1):
        return self.tab.locator(".answer").nth(i)


@pytest.fixture
def open_page(browser, address):
    """Opens a page; at the end none of them may have logged anything, nor have a task of the server left."""
    pages = []

    def opened(width: int = 1200, scheme: str = "light", *, both: bool = False) -> Page:
        page = Page(browser, address, width, scheme)
        pages.append(page)
        if width > 760:
            page.set(both=both)
        return page

    yield opened
    for page in pages:
        page.tab.close()
        assert page.errors == []


def test_an_answer_streams_and_its_thinking_is_folded(open_page):
    page = open_page()
    page.set(reasoning_effort="high", temperature=0.5, top_p=0.9, max_tokens=120, seed=3, system="some words")
    page.added = {"ignore_eos": True}
    page.say("hello")
    thinking = page.answer().locator(".thinking summary")
    thinking.wait_for()
    early = int(re.search(r"\d+", thinking.inner_text())[0])
    page.tab.locator("#stop").wait_for()
    page.wait()
    assert int(re.search(r"\d+", thinking.inner_text())[0]) > early > 0
    hidden = page.answer().locator(".thinking pre")
    assert not hidden.is_visible()
    thinking.click()
    assert hidden.is_visible()
    facts = page.answer().locator(".facts").inner_text()
    assert re.fullmatch(
        r"120 tokens · [\d.]+ tokens/s · first token after [\d.]+ s · weight version \d · length", facts
    ), facts
    (body,) = page.bodies
    asked = {"reasoning_effort": "high", "temperature": 0.5, "top_p": 0.9, "max_tokens": 120, "seed": 3}
    assert asked.items() <= body.items() and [message["role"] for message in body["messages"]] == ["system", "user"]


def test_the_effort_changes_and_the_conversation_goes_on(open_page):
    page = open_page()
    page.set(max_tokens=5, seed=1, reasoning_effort="high")
    page.say("first")
    page.wait()
    page.set(reasoning_effort="none")
    page.tab.fill("#text", "second")
    page.tab.press("#text", "Shift+Enter")
    page.tab.keyboard.type("line")
    page.tab.press("#text", "Enter")
    page.wait()
    assert [body["reasoning_effort"] for body in page.bodies] == ["high", "none"]
    first, answer, second = page.bodies[1]["messages"]
    assert (first["content"], second["content"]) == ("first", "second\nline") and answer["reasoning_content"]
    assert page.answer().locator(".text").inner_text()  # nothing is thought
    page.tab.click("#new")
    assert page.tab.locator(".answer").count() == 0
    page.say("third")
    page.wait()
    assert [message["content"] for message in page.bodies[2]["messages"]] == ["third"]


def test_a_token_shows_its_log_prob_and_version(open_page):
    page = open_page()
    page.set(max_tokens=8, seed=1)
    page.say("hello")
    page.wait()
    tokens = page.answer().locator("details.tokens")
    tokens.locator("summary").click()
    assert tokens.locator("span").count() == 8
    tokens.locator("span").nth(2).hover()
    tip = tokens.locator(".tip").inner_text()
    assert re.match(r'token 2: ".*" · id \d+ · log-prob -\d+\.\d{4} \([\d.e-]+ %\) · weight version \d$', tip), tip


def test_escape_stops_an_answer_and_its_text_stays(open_page, address):
    page = open_page()
    page.added = {"ignore_eos": True}
    page.say("hello")
    page.answer().locator(".text:not(:empty)").wait_for()
    page.tab.keyboard.press("Escape")
    page.wait()
    assert page.answer().locator(".facts").inner_text().endswith("stopped")
    said = page.answer().locator(".text").text_content()
    page.added = {}
    page.set(max_tokens=2)
    page.say("more")
    page.wait()
    assert page.bodies[1]["messages"][1] == {"role": "assistant", "content": said}
    end = time.monotonic() + 20
    while httpx2.get(f"{address}/health").json()["slots_in_use"]:
        assert time.monotonic() < end


def test_text_of_a_model_is_never_markup(open_page):
    page = open_page()
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": MARKUP}}}
    page.added = {"response_format": schema, "max_tokens": 200}
    page.say(MARKUP)
    page.wait()
    assert page.answer().locator(".text").text_content() == json.dumps(MARKUP)
    assert page.tab.locator(".asked").text_content() == MARKUP
    assert page.tab.locator("main :is(script, img, b)").count() == 0 and page.tab.title() != "ran"


def test_calls_are_shown_and_their_results_sent(open_page):
    page = open_page()
    named = {"type": "object", "properties": {"text": {"const": MARKUP}}, "required": ["text"]}
    tool = {**TOOL, "function": {**TOOL["function"], "parameters": named | {"additionalProperties": False}}}
    page.set(tools=json.dumps([tool]), max_tokens=300)
    page.added = {"tool_choice": "required", "parallel_tool_calls": False}
    page.say("hello")
    page.wait()
    call = page.tab.locator(".call")
    assert call.locator("b").inner_text() == "look_up"
    assert json.loads(call.locator("pre").text_content()) == {"text": MARKUP}
    call.locator("textarea").fill("found")
    page.added = {}
    page.set(max_tokens=2)
    page.say("")
    page.wait()
    _, answer, result = page.bodies[1]["messages"]
    assert result == {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "found"}
    assert not call.locator("textarea").is_editable()
    assert page.tab.locator("main :is(script, img)").count() == 0


def test_two_models_answer_side_by_side(open_page):
    page = open_page(scheme="dark", both=True)
    page.set(max_tokens=12, seed=1)
    page.say("hello")
    page.wait()
    boxes = [page.answer(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert [body["model"] for body in page.bodies] == ["after", "before"]
    assert [page.answer(i).locator("p").first.inner_text() for i in (0, 1)] == ["after", "before"]
    assert page.answer(0).locator(".text").inner_text() != page.answer(1).locator(".text").inner_text()
    page.tab.click("#server summary")
    tables = page.tab.locator("#statistics table")
    tables.nth(1).wait_for()
    assert tables.locator("caption").all_inner_texts() == ["after", "before"]
    assert "slots in use\t0 of 64" in tables.nth(1).inner_text()


def test_a_phone_has_all_of_it_without_scrolling_sideways(open_page):
    page = open_page(width=360, both=True)
    assert not page.tab.locator("#form").is_visible()
    page.tab.click("#settings summary")
    page.set(max_tokens=30, seed=1, both=True)
    page.tab.click("#server summary")
    page.tab.locator("#statistics table").nth(1).wait_for()
    page.say("a long word: " + "x" * 300)
    page.wait()
    page.answer(0).locator("details.tokens summary").click()
    assert page.tab.locator(".answer").count() == 2 and too_wide(page.tab) == []
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 360


def test_what_the_server_refuses_is_said_and_can_be_asked_again(open_page):
    page = open_page()
    page.set(tools="[1")
    page.say("hello")
    assert "tools are no JSON" in page.tab.locator(".bad").inner_text()
    page.set(tools="[1]")
    page.tab.press("#text", "Enter")
    page.answer().locator(".bad").wait_for()
    assert page.answer().locator(".bad").inner_text().startswith("tools[0] is 1")
    assert page.tab.input_value("#text") == "hello"
    assert [error for error in page.errors if "400" not in error] == []
    page.errors.clear()
    page.set(tools="", max_tokens=1)
    page.tab.press("#text", "Enter")
    page.wait()
    assert [message["content"] for message in page.bodies[1]["messages"]] == ["hello"]


def test_the_page_comes_from_the_package_alone_and_under_its_policy(address):
    for path, (content, media_type) in page_files().items():
        response = httpx2.get(address + path)
        assert response.content == content and response.headers["content-type"].startswith(media_type)
        assert response.headers["content-security-policy"] == POLICY
        assert not re.search(rb"""(?:src|href|from|import|url)\W+https?:|\sstyle=|\son\w+=""", content)
    sources = b"".join(content for content, _ in page_files().values())
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser", sources)


@pytest.mark.slow
def test_a_key_is_asked_for_and_used(browser, tmp_path):
    with process(write_model(tmp_path), "--api_key_variable=KEY", env={"KEY": "secret"}) as (_, url):
        page = browser.new_page()
        page.goto(url)
        page.get_by_text("the header Authorization has no valid key: Bearer KEY").wait_for()
        page.fill("[name=key]", "secret")
        page.fill("[name=max_tokens]", "3")
        page.fill("#text", "hello")
        page.press("#text", "Enter")
        page.locator(".facts", has_text="3 tokens").wait_for()
        assert page.locator("#names").inner_text() == tmp_path.name
        assert not page.locator("#both").is_visible()  # there is one model


def test_a_newer_weight_version_is_marked_in_the_answer_that_it_meets(open_page, address, models):
    page = open_page()
    page.added = {"ignore_eos": True}
    page.say("hello")
    page.answer().locator(".text:not(:empty)").wait_for()
    update = {"path": str(models[1]), "version": 7}
    for phase, body in (("init", {}), ("start", {}), ("update", update), ("finish", {})):
        assert httpx2.post(f"{address}/v1/weights/{phase}", json=body, timeout=30).status_code == 200
    first = page.answer().locator(".tokens .new")
    first.wait_for(state="attached")
    page.tab.keyboard.press("Escape")
    page.wait()
    assert first.count() == 1 and "weight version 0, 7" in page.answer().locator(".facts").inner_text()
    page.answer().locator(".tokens summary").click()
    first.hover()
    assert page.answer().locator(".tip").inner_text().endswith("weight version 7")
