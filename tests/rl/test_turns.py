"""Episodes of several turns, played by a scripted policy instead of a model."""

import dataclasses
import re

import numpy as np
import pytest

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, encode
from ling_jax.chat.tool_calls import parse_either
from ling_jax.envs import PureSession, environment
from ling_jax.envs.base import InfraError
from ling_jax.rl.episode import EpisodeRequest, Refused
from ling_jax.rl.evaluation import describe
from ling_jax.rl.turns import rehearse
from tests.helpers.official_forms import FORMS
from tests.helpers.rl_run import tokenizer
from tests.helpers.scripted_policy import begin, reader, tokens_of
from tests.helpers.slow_sessions import Sleeper


@pytest.mark.parametrize(("name", "difficulty"), [("running_sums", 3), ("ordering", 3), ("lookup", 3)])
def test_reference_solutions_solve_and_their_tokens_are_the_conversation(played, name, difficulty):
    """What the policy read and wrote, turn by turn, is the whole conversation rendered at once."""
    env = environment(name)
    task = env.make_task(5, difficulty)
    episode = played(task, env.solution(task))
    trajectory = episode.trajectory
    assert trajectory.status == "finished" and episode.outcome == 1 and tuple(episode.turns) == env.solution(task)
    ids, mask = encode(tokenizer(), ChatTemplate().render(episode.messages, tools=task.tools))
    assert episode.context == ids
    np.testing.assert_array_equal(trajectory.loss_mask, np.array(mask[len(trajectory.prompt_ids) :], bool))
    assert set(trajectory.versions) == {3} and episode.drawn == trajectory.loss_mask.sum()
    assert len(episode.calls) == len(task.hidden.get("calls", ())) and not episode.rewards.get("superfluous_calls")


def test_superfluous_calls_are_counted(played):
    env = environment("lookup")
    task = env.make_task(5, 2)
    first, *rest = env.solution(task)
    episode = played(task, (first, first, *rest))
    assert episode.outcome == 1 and describe(episode)["rewards"]["superfluous_calls"] == 1


def test_limits_truncate(played):
    env = environment("lookup")
    task = env.make_task(5, 2)
    first, *_ = env.solution(task)
    for most in (10, len(tokens_of(first)) + 1):  # in the first turn, and at its end
        episode = played(task, [first] * 30, max_tokens=most)
        assert (episode.trajectory.status, episode.drawn, episode.outcome) == ("truncated", most, 0)
    turns = played(dataclasses.replace(task, max_tokens=800), [first] * 30)
    assert turns.trajectory.status == "truncated" and len(turns.turns) == task.max_turns


def test_an_observation_that_leaves_no_room_truncates(played):
    """The policy may still write, but the row is full once it has read the answer of its call."""
    env = environment("lookup")
    task = env.make_task(5, 2)
    first, *_ = env.solution(task)
    prompt = len(begin(task).trajectory.prompt_ids)
    spoken = len(tokens_of(first)) + 1
    episode = played(task, [first] * 9, context=prompt + spoken + 5, max_tokens=spoken + 5)
    assert episode.trajectory.status == "truncated" and len(episode.context) == prompt + spoken


def test_a_world_that_breaks_fails_the_episode_alone(played, monkeypatch, capsys):
    task = environment("running_sums").make_task(0, 1)
    monkeypatch.setattr(environment("running_sums"), "session", lambda: PureSession(lambda *_: 0, lambda *_: 1 / 0))
    episode = played(task, ["A:1"])
    assert episode.trajectory.status == "env_failed" and episode.error == "ZeroDivisionError: division by zero"
    assert episode.rewards == {} and "rollout 0 env_failed: ZeroDivisionError" in capsys.readouterr().out


def test_a_special_token_in_an_answer_cannot_hide(played):
    """Left out, `A:1<role>2` would read as the answer 12."""
    task = dataclasses.replace(environment("running_sums").make_task(0, 1), hidden={"answer": "12"})
    assert played(task, ["A:1<role>2"]).outcome == 0 and played(task, ["A:12"]).outcome == 1


def test_a_template_that_rewrites_history_fails_the_episode_alone(played, monkeypatch):
    monkeypatch.setattr(ChatTemplate, "render", forgetful(ChatTemplate.render))
    task = environment("lookup").make_task(5, 2)
    episode = played(task, environment("lookup").solution(task))
    assert episode.trajectory.status == "infra_failed" and "rewrites history before an answer" in episode.error


def test_a_policys_words_that_the_template_rewrites_fail_the_episode(played):
    """An older template takes the reasoning of earlier turns out."""
    template = FolderTemplate(STRIPS_REASONING, "folder")
    env = environment("lookup")
    task = env.make_task(5, 2)
    first, *rest = env.solution(task)
    episode = played(task, (f"<think>hm</think>{first}", *rest), template=template)
    assert episode.trajectory.status == "infra_failed" and "rewrites history behind an answer" in episode.error
    assert played(task, (first, *rest), template=template).outcome == 1, "without reasoning it goes on"


@pytest.mark.parametrize("words", ["hm <tool_call>lookup", "<tool_call>lookup</tool_call>"])
def test_an_answer_that_breaks_the_templates_form_pays_no_better_than_a_wrong_one(played, words):
    """Here it never closes the reasoning that the prompt opened; no reward at all would beat an honest mistake."""
    template, task = FolderTemplate(FORMS["2.6"], "folder"), environment("lookup").make_task(5, 2)
    episode = played(task, (words,), template=template)
    assert (episode.trajectory.status, episode.outcome) == ("truncated", 0)
    assert "writes an answer in another way" in episode.error


@pytest.mark.parametrize("name", ["running_sums", "lookup", "tools"])
def test_a_policy_goes_on_where_every_prompt_opens_the_reasoning(played, name):
    """As the template of the 2.6 models does: what is learnt from begins behind <think>, what is judged with it."""
    template, env = FolderTemplate(FORMS["2.6"], "folder"), environment(name)
    task = env.make_task(5, 2)
    used = reader(template=template, context=5000)
    rehearsed = begin(task, template=template, context=5000)
    rehearse(rehearsed, used)
    assert rehearsed.outcome == 1
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
    env = environment("lookup")
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


def test_the_solution_is_tried_on_the_template_before_the_work_starts(monkeypatch):
    task = environment("lookup").make_task(5, 2)
    episode = begin(task)
    rehearse(episode, reader())
    assert episode.outcome == 1
    monkeypatch.setattr(ChatTemplate, "render", forgetful(ChatTemplate.render))
    with pytest.raises(ValueError, match="rewrites history"):
        rehearse(begin(task), reader())


def test_an_environment_that_cannot_play_its_own_solution_is_named_before_the_work_starts(monkeypatch):
    task = environment("lookup").make_task(5, 2)
    monkeypatch.setattr(environment("lookup"), "session", lambda: PureSession(lambda *_: 0, lambda *_: 1 / 0))
    with pytest.raises(InfraError, match=f"task {task.id} of lookup: ZeroDivisionError"):
        rehearse(begin(task), reader())


def test_a_session_that_hangs_in_rehearsal_has_its_deadline(monkeypatch):
    task = environment("lookup").make_task(5, 2)
    monkeypatch.setattr(environment("lookup"), "session", Sleeper)
    with pytest.raises(InfraError, match=f"task {task.id} of lookup: its session gave no answer in 0.2 s"):
        rehearse(begin(task), reader(), 0.2)


def test_a_context_without_room_is_refused_with_what_to_change():
    """The other requests have their episodes all the same."""
    fits, task = (environment("running_sums").make_task(0, difficulty) for difficulty in (1, 2))
    requests = [EpisodeRequest(i, 0, task, seed=0) for i, task in enumerate((fits, task, fits))]
    first, refused, last = reader(context=120).begin(requests)
    assert (first.id, last.id) == (0, 2) and isinstance(refused, Refused) and refused.request == requests[1]
    message = r"has a prompt of \d+ tokens and may write 96; the context has 120: raise"
    assert re.search(message, refused.reason)
    with pytest.raises(ValueError, match=message):
        reader(context=120).begin_all(requests)


def test_a_prompt_that_the_template_cannot_write_is_refused_alone():
    good = environment("running_sums").make_task(0, 1)
    bad = dataclasses.replace(good, messages=[*good.messages, {"role": "system", "content": "later"}])
    refused, episode = reader().begin([EpisodeRequest(i, 0, task, seed=0) for i, task in enumerate((bad, good))])
    assert episode.id == 1 and "cannot be rendered: messages[1].role is 'system'" in refused.reason
