"""Episodes of several turns, played by a scripted policy instead of a model."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from ling_jax.rl.rollouts import _episode_json, _with_history
from ling_jax.rl.runner import Ask, Player, Reader, describe, evaluate, play, rehearse, summarise

from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.chat.tool_calls import parse_either
from ling_jax.engine import Event
from ling_jax.envs import ENVIRONMENTS
from ling_jax.envs.sources import held_out_tasks
from ling_jax.rl import runner
from tests.helpers.official_forms import FORMS
from tests.helpers.rl_run import tokenizer

CONTEXT = 1200
END = next(iter(end_ids(tokenizer()) - {tokenizer().token_to_id("<|endoftext|>")}))


def reader(**fields) -> Reader:
    whole = dict(tokenizer=tokenizer(), template=ChatTemplate(), end_ids=end_ids(tokenizer()), context=CONTEXT)
    return Reader(**(whole | fields))


def tokens_of(text: str) -> list[int]:
    return tokenizer().encode(text).ids


SCRIPTS: dict[int, list[int]] = {}


class Scripted:
    """Slots whose rollouts say what SCRIPTS have under their seed; 7 tokens a piece."""

    fingerprint, version = "scripted", 0

    def __init__(self, config, *, slots, memory_bytes, row_tile, prefill_tokens):
        self.rows, self.slots = {}, slots

    @property
    def ids(self):
        return set(self.rows)

    @property
    def busy(self):
        return any(row.live for row in self.rows.values())

    def load(self, params, version):
        self.version = version

    def resume(self, snapshot):
        request = snapshot.request
        script = SCRIPTS[request.seed][snapshot.drawn :]
        left = snapshot.limit - snapshot.drawn
        assert request.id not in self.rows and len(self.rows) < self.slots
        self.rows[request.id] = SimpleNamespace(script=script, left=left, ends=request.stop_ids, live=True, first=0)

    def extend(self, id, tokens, max_new_tokens):
        self.rows[id].left, self.rows[id].live = max_new_tokens, True

    def release(self, id):
        del self.rows[id]

    def step(self):
        return [self._drawn(id, row) for id, row in self.rows.items() if row.live]

    def _drawn(self, id, row):
        ends = [i for i, token in enumerate(row.script) if token in row.ends]
        count = min(7, row.left, *(i + 1 for i in ends[:1]))
        new, row.script, row.left = row.script[:count], row.script[count:], row.left - count
        reason = "stop" if new[-1] in row.ends else "length" if row.left == 0 else None
        row.live = reason is None
        return Event(id, 0, tuple(new), (-0.5,) * count, self.version, reason)


@pytest.fixture
def played(monkeypatch):
    """`played(task, turns)`: the episode of a policy that says these turns."""
    monkeypatch.setattr(runner, "Engine", Scripted)
    monkeypatch.setattr(runner, "memory_for", lambda *_, **__: 0)

    def play_one(task, turns, *, seed=0, **fields):
        used = reader(**fields)
        monkeypatch.setitem(SCRIPTS, seed, [t for turn in turns for t in [*tokens_of(turn), END]])
        player = Player(None, used, 2)
        player.load(None, version=3)
        (episode,) = play(player, used.begin([Ask(0, 0, task, seed=seed)]))
        return episode

    return play_one


@pytest.mark.parametrize(("name", "difficulty"), [("running_sums", 3), ("ordering", 3), ("lookup", 3)])
def test_reference_solutions_solve_and_their_tokens_are_the_conversation(played, name, difficulty):
    """What the policy read and wrote, turn by turn, is the whole conversation rendered at once."""
    env = ENVIRONMENTS[name]
    task = env.make_task(5, difficulty)
    episode = played(task, env.solution(task))
    trajectory = episode.trajectory
    assert trajectory.status == "finished" and episode.outcome == 1 and tuple(episode.turns) == env.solution(task)
    ids, mask = encode(tokenizer(), ChatTemplate().render(episode.messages, tools=task.tools))
    assert episode.context == ids
    np.testing.assert_array_equal(trajectory.loss_mask, np.array(mask[len(trajectory.prompt_ids) :], bool))
    assert set(trajectory.versions) == {3} and episode.drawn == trajectory.loss_mask.sum()
    assert (len(episode.calls), episode.superfluous_calls) == (len(task.hidden.get("calls", ())), 0)


def test_superfluous_calls_are_counted(played):
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 2)
    first, *rest = env.solution(task)
    episode = played(task, (first, first, *rest))
    assert episode.outcome == 1 and episode.superfluous_calls == 1 and describe(episode)["superfluous_calls"] == 1


def test_limits_truncate(played):
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 2)
    first, *_ = env.solution(task)
    for most in (10, len(tokens_of(first)) + 1):  # in the first turn, and at its end
        episode = played(task, [first] * 30, max_tokens=most)
        assert (episode.trajectory.status, episode.drawn, episode.outcome) == ("truncated", most, 0)
    turns = played(dataclasses.replace(task, max_tokens=800), [first] * 30)
    assert turns.trajectory.status == "truncated" and len(turns.turns) == task.max_turns


def test_an_observation_that_leaves_no_room_truncates(played):
    """The policy may still write, but the row is full once it has read the answer of its call."""
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 2)
    first, *_ = env.solution(task)
    prompt = len(reader().begin([Ask(0, 0, task, 0)])[0].trajectory.prompt_ids)
    spoken = len(tokens_of(first)) + 1
    episode = played(task, [first] * 9, context=prompt + spoken + 5, max_tokens=spoken + 5)
    assert episode.trajectory.status == "truncated" and len(episode.context) == prompt + spoken


def test_a_world_that_breaks_fails_the_episode_alone(played, monkeypatch, capsys):
    task = ENVIRONMENTS["running_sums"].make_task(0, 1)
    monkeypatch.setattr(ENVIRONMENTS["running_sums"], "step", lambda state, action: 1 / 0)
    episode = played(task, ["A:1"])
    assert episode.trajectory.status == "failed" and episode.error == "ZeroDivisionError: division by zero"
    assert "rollout 0 failed: ZeroDivisionError" in capsys.readouterr().out


def test_a_special_token_in_an_answer_cannot_hide(played):
    """Left out, `A:1<role>2` would read as the answer 12."""
    task = dataclasses.replace(ENVIRONMENTS["running_sums"].make_task(0, 1), hidden={"answer": "12"})
    assert played(task, ["A:1<role>2"]).outcome == 0 and played(task, ["A:12"]).outcome == 1


def test_a_template_that_rewrites_history_fails_the_episode_alone(played, monkeypatch):
    monkeypatch.setattr(ChatTemplate, "render", forgetful(ChatTemplate.render))
    task = ENVIRONMENTS["lookup"].make_task(5, 2)
    episode = played(task, ENVIRONMENTS["lookup"].solution(task))
    assert episode.trajectory.status == "failed" and "rewrites history before an answer" in episode.error


def test_a_policys_words_that_the_template_rewrites_fail_the_episode_and_its_restored_copy(played):
    """An older template takes the reasoning of earlier turns out."""
    template = FolderTemplate(STRIPS_REASONING, "folder")
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 2)
    first, *rest = env.solution(task)
    episode = played(task, (f"<think>hm</think>{first}", *rest), template=template)
    assert episode.trajectory.status == "failed" and "rewrites history behind an answer" in episode.error
    assert played(task, (first, *rest), template=template).outcome == 1, "without reasoning it goes on"
    used = reader(template=template)
    for status in ("failed", "running"):
        (fresh,) = used.begin([Ask(0, 0, task, seed=0)])
        again = _with_history(fresh, _episode_json(episode) | {"status": status}, used)
        assert again.trajectory.status == "failed" and again.error == episode.error


@pytest.mark.parametrize("words", ["hm <tool_call>lookup", "<tool_call>lookup</tool_call>"])
def test_an_answer_that_breaks_the_templates_form_pays_no_better_than_a_wrong_one(played, words):
    """Here it never closes the reasoning that the prompt opened; no reward at all would beat an honest mistake."""
    template, task = FolderTemplate(FORMS["2.6"], "folder"), ENVIRONMENTS["lookup"].make_task(5, 2)
    episode = played(task, (words,), template=template)
    assert (episode.trajectory.status, episode.outcome) == ("truncated", 0)
    assert "writes an answer in another way" in episode.error
    used = reader(template=template)
    (fresh,) = used.begin([Ask(0, 0, task, seed=0)])
    again = _with_history(fresh, _episode_json(episode), used)
    assert (again.trajectory.status, again.error, again.outcome) == ("truncated", episode.error, 0)


@pytest.mark.parametrize("name", ["running_sums", "lookup", "tools"])
def test_a_policy_goes_on_where_every_prompt_opens_the_reasoning(played, name):
    """As the template of the 2.6 models does: what is learnt from begins behind <think>, what is judged with it."""
    template, env = FolderTemplate(FORMS["2.6"], "folder"), ENVIRONMENTS[name]
    task = env.make_task(5, 2)
    used = reader(template=template, context=5000)
    (fresh,) = used.begin([Ask(0, 0, task, seed=0)])
    assert rehearse(fresh, used).outcome == 1
    episode = played(task, [f"hm</think>{turn}" for turn in env.solution(task)], template=template, context=5000)
    assert episode.outcome == 1 and not episode.error
    assert all(parse_either(turn).reasoning == "hm" for turn in episode.turns)


STRIPS_REASONING = """{% for m in messages %}<role>{{ m.role }}</role>
{%- if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}{{ '\n<tool_call>' + call.name }}
{%- for key, value in call.arguments.items() %}{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' }}
{{- value if value is string else value | tojson }}</arg_value>{% endfor %}{{ '\n</tool_call>' }}{% endfor %}
{{- '<|role_end|>' }}{% endfor %}{% if add_generation_prompt %}<role>assistant</role>{% endif %}"""


def test_what_stands_behind_the_end_of_a_turn_is_read_and_not_trained(played):
    """A newline, here: the policy's context is the template's rendering, token for token."""
    template = FolderTemplate(NEWLINES, "folder")
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 3)
    episode = played(task, env.solution(task), template=template)
    assert episode.outcome == 1 and len(episode.turns) > 1
    ids, mask = encode(tokenizer(), template.render(episode.messages, tools=task.tools))
    assert ids == [*episode.context, *tokens_of("\n")]
    trained = np.array(mask[len(episode.trajectory.prompt_ids) :], bool)
    np.testing.assert_array_equal(episode.trajectory.loss_mask, trained[:-1])


NEWLINES = """{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}<|role_end|>{{ '\n' }}{% endfor %}
{% if add_generation_prompt %}<role>assistant</role>{% endif %}"""


def forgetful(render):
    """A template that leaves out all but the last of the assistant's turns."""

    def rendered(self, messages, **options):
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return render(self, [m for i, m in enumerate(messages) if i not in said[:-1]], **options)

    return rendered


def test_a_stored_episode_is_the_same_again(played):
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 3)
    episode = played(task, env.solution(task))
    (fresh,) = reader().begin([Ask(0, 0, task, seed=0)])
    again = _with_history(fresh, _episode_json(episode), reader())
    assert again.messages == episode.messages and again.rewards == episode.rewards and again.state == episode.state
    assert again.context == episode.context and again.trajectory.status == "finished"


def test_a_world_that_breaks_while_an_episode_is_restored_makes_it_failed(played, monkeypatch):
    env = ENVIRONMENTS["lookup"]
    task = env.make_task(5, 3)
    record = _episode_json(played(task, env.solution(task)))
    (fresh,) = reader().begin([Ask(0, 0, task, seed=0)])
    monkeypatch.setattr(env, "step", lambda state, action: 1 / 0)
    for status in ("finished", "running"):
        again = _with_history(fresh, record | {"status": status}, reader())
        assert again.trajectory.status == "failed" and again.error == "ZeroDivisionError: division by zero"
        assert again.drawn == sum(stop - start for start, stop in record["turns"])


def test_the_solution_is_tried_on_the_template_before_the_work_starts(monkeypatch):
    task = ENVIRONMENTS["lookup"].make_task(5, 2)
    (fresh,) = reader().begin([Ask(0, 0, task, seed=0)])
    assert rehearse(fresh, reader()).outcome == 1
    monkeypatch.setattr(ChatTemplate, "render", forgetful(ChatTemplate.render))
    with pytest.raises(ValueError, match="rewrites history"):
        rehearse(fresh, reader())


def test_a_context_without_room_is_refused_with_what_to_change():
    task = ENVIRONMENTS["running_sums"].make_task(0, 2)
    with pytest.raises(ValueError, match=r"has a prompt of \d+ tokens and may write 96; the context has 100: raise"):
        reader(context=100).begin([Ask(0, 0, task, 0)])


def test_evaluation_is_in_order_and_summed_up(monkeypatch):
    """Ten held-out tasks in two slots; the policy solves those with an even number."""
    monkeypatch.setattr(runner, "Engine", Scripted)
    monkeypatch.setattr(runner, "memory_for", lambda *_, **__: 0)
    tasks = held_out_tasks("running_sums", (1, 2), 10)
    for i, task in enumerate(tasks):
        answer = ENVIRONMENTS["running_sums"].solution(task)[0] if i % 2 == 0 else "A:0"
        monkeypatch.setitem(SCRIPTS, i, [*tokens_of(answer), END])
    records = evaluate(Player(None, reader(), 2, temperature=0.0), None, tasks)
    assert [record["outcome"] for record in records] == [1, 0] * 5
    assert [record["task"] for record in records] == [task.id for task in tasks]
    accuracy, tokens, calls = summarise(records)
    assert (accuracy.name, accuracy.value, accuracy.n) == ("running_sums/accuracy", 0.5, 10)
    low, high = accuracy.interval
    assert 0.2 < low < 0.5 < high < 0.8 and tokens.value > 4 and calls.value == 0
