"""The demo's page, from a folder that is written by hand: its parts, and how it looks in a browser."""

import itertools
import re
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest

from launch.demo_figures import cache_bytes, kpop, larger_cache_below
from launch.demo_slots import Box, slot_boxes
from tests.helpers import demo_folder
from tests.helpers.browser import chromium_or_skip, figures_of, open_file, too_wide

COLOURS = """() => [getComputedStyle(document.body).backgroundColor,
  ...['body', '.muted', '.caption', '.good', '.bad'].map(one => getComputedStyle(document.querySelector(one)).color)]"""
MIN_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text of this size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo_folder.write_demo(folder)
    demo_folder.write_report(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def browser():
    with chromium_or_skip() as browser:
        yield browser


@pytest.fixture
def opened(browser, folder):
    """Opens report.html of a folder."""
    tabs = []

    def open_page(width=1200, scheme="light", folder=folder):
        tabs.append(open_file(browser, folder / "report.html", width, scheme))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.close()


def test_the_page_needs_no_network_and_logs_no_error(opened, folder):
    tab = opened()
    assert tab.errors == []
    assert tab.requests == [(folder / "report.html").as_uri()]


def test_the_page_leads_to_the_trajectories_of_all_stages(opened):
    tab = opened()
    tab.get_by_text("More of them, turn by turn and token by token").click()
    tab.wait_for_url("**/trajectories.html")
    text = tab.inner_text("nav")
    assert "kpop · digit_sums" in text and "sft · digit_sums" in text and tab.errors == []


@pytest.mark.parametrize("width", [1200, 390])
def test_no_figure_is_empty_or_cuts_its_labels_off(opened, width):
    figures = figures_of(opened(width))
    assert len(figures) >= 15
    assert [figure for figure in figures if not figure["marks"] or figure["cut_off"]] == []


def test_a_page_of_stages_with_one_step_has_no_empty_figure(opened, folder, tmp_path):
    demo_folder.write_demo(tmp_path, steps=1)
    demo_folder.write_report(tmp_path)
    figures = figures_of(opened(folder=tmp_path))
    assert len(figures) >= 15
    assert [figure for figure in figures if not figure["marks"] or figure["cut_off"]] == []


def test_a_phone_does_not_scroll_sideways(opened):
    tab = opened(390)
    assert too_wide(tab) == []


def test_text_is_readable_in_light_and_dark(opened):
    backgrounds = set()
    for scheme in ("light", "dark"):
        background, *texts = [tuple(map(int, re.findall(r"\d+", c))) for c in opened(scheme=scheme).evaluate(COLOURS)]
        assert min(contrast(background, colour) for colour in texts) >= MIN_CONTRAST, scheme
        backgrounds.add(background)
    assert len(backgrounds) == 2


def contrast(first, second) -> float:
    """Of two sRGB colours, from 1 to 21 (WCAG 2.2)."""

    def linear(channel):
        return channel / 255 / 12.92 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4

    def luminance(rgb):
        return sum(weight * linear(c) for weight, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_is_one_file_without_scripts(text):
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Reader().feed(text)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in tags}
    anchors = {attributes["href"] for tag, attributes in tags if tag == "a"}
    sections = {f"#{attributes['id']}" for tag, attributes in tags if tag == "h2"}
    assert anchors == sections | {"trajectories.html"} and len(sections) == 7
    assert "http" not in text and "url(" not in text
    assert "?55&lt;b&gt;" in text and " &amp; 2" in text


def test_the_page_has_what_the_report_found(text, folder):
    _, report = demo_folder.write_report(folder)
    assert text.count("<div class=finding>") == len(report["findings"])
    assert text.count("Why not at this size: ") == sum(f["verdict"] == "not seen" for f in report["findings"]) > 0
    assert "55.0%" in text and "45% to 64%" in text and "longer sums after kpop 41.0% (32% to 51%)" in text
    assert ">wrong<" in text and ">right<" in text and "Expected answer: <b>3</b>" in text
    assert "get(name=a)" in text and "the number is 2" in text and "wrong after the last stage" in text


def test_the_page_shows_what_was_drawn_beside_learning_where_something_was(text):
    shown = "Tokens drawn, by step"
    assert shown in text
    assert shown not in kpop([{"step": 0, "generated_tokens": 90, "tokens_beside": 0}], ())


def test_every_command_on_the_page_names_a_program(text):
    commands = re.findall(r"<code>python -m ([\w.]+)", text)
    assert commands and all(find_spec(name) for name in commands)


def test_stages_that_answer_alike_share_a_card(text):
    assert "<b>preference, kpop</b>" in text


def test_a_change_is_coloured_against_the_stage_that_one_starts_from(tmp_path):
    demo_folder.write_demo(tmp_path)
    path = tmp_path / "evaluation" / "preference" / "samples.jsonl"
    demo_folder.write_lines(path, demo_folder.answers(20, 80, 0))
    demo_folder.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    cells = dict(re.findall(r'data-stage="(\w+)"><b class="(\w*)">', text[: text.index("Sums: tokens")]))
    assert (cells["preference"], cells["kpop"], cells["evo_cot"]) == ("bad", "good", "")
    assert "Preference alignment with the focal reward costs accuracy of sums: 75.0% before, 20.0% after." in text


def test_the_slots_show_who_held_them_and_how_old_they_were():
    boxes, updates = slot_boxes(demo_folder.timeline(steps=3))
    assert updates == [0, 2, 4]
    second = [box for box in boxes if box.slot == 1]
    assert second == [Box(1, 0, 2, 1, 0), Box(1, 2, 3, 1, 1), Box(1, 3, 4, 5, 0), Box(1, 4, 6, 5, 1)]
    for slot, of_slot in itertools.groupby(boxes, lambda box: box.slot):
        assert all(a.stop <= b.start for a, b in itertools.pairwise(of_slot)), slot


def test_a_slot_that_a_rollout_leaves_is_given_to_the_next():
    spans = [(0, 0, 1), (1, 0, 2), (2, 1, 2)]
    lines = [{"rollout": i, "version": 0, "start": start, "stop": stop, "tokens": 8} for i, start, stop in spans]
    boxes, _ = slot_boxes(lines)
    assert boxes == [Box(0, 0, 1, 0, 0), Box(0, 1, 2, 2, 0), Box(1, 0, 2, 1, 0)]


def test_the_hybrids_cache_is_larger_up_to_the_context_that_the_page_names():
    models = demo_folder.MODELS
    context = larger_cache_below(models)
    assert cache_bytes(models["hybrid"], context) >= cache_bytes(models["base"], context)
    assert cache_bytes(models["hybrid"], context + 1) < cache_bytes(models["base"], context + 1)
