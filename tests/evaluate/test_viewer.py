"""The page of trajectories, in a browser and from files that are wrong."""

import json

import pytest

from ling_jax.evaluate.viewer import read_trajectories, viewer_page
from tests.helpers.browser import chromium_or_skip, open_file, too_wide

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><!-- ]]> \u2028 {{ & '\""
COLOURS = """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"""


def trajectory(number=0, outcome=1.0, tokens=3, text="the answer", **extra):
    """One turn with a call and its result, and `tokens` tokens of two versions."""
    half = tokens // 2
    metrics = {
        "prompt_tokens": 5,
        "completion_tokens": tokens,
        "completion_token_ids": [*range(tokens)],
        "logprobs": [-0.05 if i % 2 else -3.0 for i in range(tokens)],
        "extra": {"tokens": [f"t{i} " for i in range(tokens)], "versions": [[3, half], [4, tokens - half]]},
    }
    call = {"tool_call_id": "c", "function_name": "execute_bash", "arguments": {"command": f"echo {text}"}}
    agent = {
        "source": "agent", "message": text, "reasoning_content": f"think {text}", "tool_calls": [call],
        "observation": {"results": [{"source_call_id": "c", "content": f"result {text}"}]}, "metrics": metrics,
    }  # fmt: skip
    steps = [{"source": "user", "message": f"task {number}"}, agent]
    about = {"environment": "tools", "difficulty": 2, "status": "finished", "rewards": {"outcome": outcome}} | extra
    numbered = [{"step_id": i} | step for i, step in enumerate(steps, 1)]
    return {"schema_version": "ATIF-v1.7", "session_id": str(number), "steps": numbered, "extra": about}


@pytest.fixture(scope="module")
def browser():
    with chromium_or_skip() as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of some trajectories."""
    tabs = []

    def open_page(*trajectories, **options):
        (tmp_path / "page.html").write_text(viewer_page(trajectories, "a <title>"))
        tabs.append(open_file(browser, tmp_path / "page.html", **options))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.close()


def test_the_page_shows_turns_calls_results_and_rewards(opened):
    tab = opened(trajectory(text="forty-two"))
    text = tab.inner_text("main")
    for part in (
        "forty-two",
        "execute_bash",
        "echo forty-two",
        "result forty-two",
        "outcome 1",
        "finished",
        "version 3, 4",
    ):
        assert part in text
    assert "think forty-two" not in text, "thinking is folded"
    tab.keyboard.press("h")
    tab.locator(".thinking pre").wait_for()
    assert "think forty-two" in tab.inner_text("main")
    assert tab.errors == [] and len(tab.requests) == 1, "nothing else is loaded"


def test_text_of_a_trajectory_never_becomes_markup(opened):
    """Every text of it is hostile: as a message, a call, a result, a token, a name and a title."""
    bad = trajectory(text=HOSTILE, environment=HOSTILE, status=HOSTILE, error=HOSTILE, task=HOSTILE)
    bad["steps"][1]["metrics"]["extra"]["tokens"] = [HOSTILE] * 3
    bad["steps"][1]["tool_calls"][0] |= {"function_name": HOSTILE, "arguments": {HOSTILE: {"a": HOSTILE}}}
    bad["agent"] = {"tool_definitions": [{"function": {"name": HOSTILE}}]}
    tab = opened(bad, trajectory())
    for key in "thtjk":
        tab.keyboard.press(key)
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.wait_for_timeout(50)
    assert tab.evaluate("window.hacked") is None and tab.errors == []
    assert tab.evaluate("document.scripts.length") == 2 and tab.evaluate("document.images.length") == 0
    assert HOSTILE.replace("\u2028", " ")[:60] in tab.inner_text("main").replace("\u2028", " ")


def test_a_script_that_became_markup_would_not_run(opened):
    """The page's policy allows its own script alone, whatever gets into the document."""
    tab = opened(trajectory())
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))")
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    tab.wait_for_timeout(50)
    assert tab.evaluate("window.hacked") is None
    assert any("Content Security Policy" in error for error in tab.errors)


def test_tokens_have_the_colour_of_their_log_prob_and_tell_it(opened):
    tab = opened(trajectory(tokens=4))
    assert tab.locator(".tokens span").count() == 0, "made when they are asked for"
    tab.keyboard.press("t")
    tab.locator(".tokens span").first.wait_for()
    assert [one.get_attribute("class") for one in tab.locator(".tokens span").all()] == ["p4", "p0", "p4 new", "p0"]
    tab.locator(".tokens span").nth(2).hover()
    assert all(part in tab.inner_text("#tip") for part in ("token 2", "log-prob -3.0000", "version 4", "id 2"))


def test_keys_and_filter_choose_a_trajectory(opened):
    tab = opened(*(trajectory(i, outcome=float(i != 1), text=f"say {i}") for i in range(3)))
    tab.keyboard.press("j")
    assert "say 1" in tab.inner_text("main") and "outcome 0" in tab.inner_text("main")
    tab.keyboard.press("k")
    tab.keyboard.press("/")
    tab.keyboard.type("wrong")
    assert tab.inner_text("#count") == "1 of 3 trajectories"
    tab.keyboard.press("Enter")
    tab.keyboard.press("j")
    assert "say 1" in tab.inner_text("main")


def test_fifty_thousand_tokens_are_shown_within_seconds(opened):
    tab = opened(*(trajectory(i, tokens=50_000) for i in range(10)))
    milliseconds = tab.evaluate(
        "() => { const begun = performance.now(); document.querySelector('.with-tokens').open = true;"
        " return new Promise(done => setTimeout(() => done(performance.now() - begun), 0)) }"
    )
    assert milliseconds < 5000
    assert tab.locator(".tokens span").count() == 20_000
    tab.get_by_text("30,000 more tokens").click()
    assert tab.locator(".tokens span").count() == 40_000


def test_light_and_dark_differ_and_a_phone_does_not_scroll_sideways(opened):
    light, dark = (opened(trajectory(), scheme=scheme).evaluate(COLOURS) for scheme in ("light", "dark"))
    assert light[0] != dark[0] and light[1] != dark[1]
    assert too_wide(opened(trajectory(text="long" * 300), width=390)) == []


def test_trajectories_of_other_tools_are_shown(opened, tmp_path):
    """The least that the format asks for, and contents in parts."""
    parts = [{"type": "text", "text": "see"}, {"type": "image", "source": {"path": "a.png"}}]
    steps = [
        {"step_id": 1, "source": "system", "message": "rules"},
        {"step_id": 2, "source": "agent", "message": parts},
    ]
    record = {"schema_version": "ATIF-v1.4", "session_id": "s", "agent": {"name": "a", "version": "1"}, "steps": steps}
    (tmp_path / "trajectory.json").write_text(json.dumps(record))
    tab = opened(*read_trajectories(tmp_path / "trajectory.json"))
    assert "see" in tab.inner_text("main") and "[image a.png]" in tab.inner_text("main") and tab.errors == []


def test_a_folder_gives_the_trajectories_of_all_its_files(tmp_path):
    (tmp_path / "run" / "trajectories").mkdir(parents=True)
    (tmp_path / "run" / "trajectories" / "000000.jsonl").write_text(json.dumps(trajectory(0)) + "\n")
    (tmp_path / "run" / "samples.jsonl").write_text('{"no": "trajectory"}\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectories.jsonl").write_text(f"{json.dumps(trajectory(1))}\n{json.dumps(trajectory(2))}\n")
    (tmp_path / "trial" / "agent").mkdir(parents=True)
    (tmp_path / "trial" / "agent" / "trajectory.json").write_text(json.dumps(trajectory(3)))
    assert sorted(found["session_id"] for found in read_trajectories(tmp_path)) == ["0", "1", "2", "3"]
    assert [found["session_id"] for found in read_trajectories(tmp_path / "run" / "trajectories")] == ["0"]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"schema_version": "2.0"}, r"line 1: schema_version is '2.0'; expected ATIF-v1.0"),
        ({"schema_version": "ATIF-v1.7"}, r"line 1: steps is None; expected a list"),
        (
            {"schema_version": "ATIF-v1.7", "steps": [{"source": "tool"}]},
            r"steps\[0\].source is 'tool'; expected one of",
        ),
        ({"schema_version": "ATIF-v1.7", "steps": ["say"]}, r"steps\[0\].source is 'say'"),
    ],
)
def test_what_is_no_trajectory_is_named(record, problem, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=problem):
        list(read_trajectories(tmp_path / "a.jsonl"))


def test_a_folder_without_trajectories_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trajectories; name a run's workdir"):
        list(read_trajectories(tmp_path))
