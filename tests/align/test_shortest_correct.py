"""Of a teacher's right answers the shortest is kept, and pruned only where it stays right."""

from pathlib import Path

from ling_jax.align.records import converse
from ling_jax.align.shortest_correct import measured, pick, prune, without_repeats
from ling_jax.chat.template import ChatTemplate
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.data.token_bytes import token_bytes
from ling_jax.data.tokenizer import train_bpe
from ling_jax.envs import environment

BYTES = train_bpe(["a"], 263)
MERGES = train_bpe(["so the sum is right;"] * 3, 300)
STUDENT = ModelFolder(Path("memory"), None, None, BYTES, ChatTemplate())
SUMS = environment("running_sums")


def right(task, *turns):
    messages, outcome = converse(task, turns)
    assert outcome == 1
    return task, messages


def solutions(task, count=8, redundancy=0.6):
    return [right(task, *SUMS.solution(task, redundancy=redundancy, seed=seed)) for seed in range(count)]


def test_lengths_are_the_tokens_that_the_student_learns():
    task = SUMS.make_task(0, 2)
    (answer,) = measured([right(task, "one;two;A:" + task.hidden["answer"])], STUDENT)
    assert answer.candidate.tokens == len("one;two;A:" + task.hidden["answer"]) + 1  # and the end of the turn
    assert answer.candidate.derivation_tokens == len("one;two;")
    (answer,) = measured([right(task, "A:" + task.hidden["answer"])], STUDENT)
    assert answer.candidate.derivation_tokens == 0


def test_the_shortest_right_answer_of_each_task_is_picked():
    tasks = [SUMS.make_task(seed, 2) for seed in range(6)]
    answers = measured([answer for task in tasks for answer in solutions(task)], STUDENT)
    picked = pick(answers, floor_percentile=0)
    assert [answer.task for answer in picked] == tasks
    for answer in picked:
        assert answer.candidate.tokens == min(a.candidate.tokens for a in answers if a.task == answer.task)


def test_a_bare_answer_is_not_picked_and_a_task_without_another_is_dropped():
    tasks = [SUMS.make_task(seed, 2) for seed in range(2)]
    bare = [right(task, "A:" + task.hidden["answer"]) for task in tasks]
    picked = pick(measured([*bare, *solutions(tasks[0])], STUDENT), floor_percentile=0)
    assert [answer.task for answer in picked] == tasks[:1] and ";" in picked[0].turns[0]


def test_a_floor_is_of_the_tasks_of_one_kind():
    """Easy tasks have short answers: by one floor for all, every easy one would be left out."""
    easy = [SUMS.make_task(seed, 1) for seed in range(2)]
    hard = [SUMS.make_task(seed, 6) for seed in range(40)]
    answers = measured([right(task, *SUMS.solution(task)) for task in easy + hard], STUDENT)
    kept = [answer.task for answer in pick(answers, floor_percentile=20)]
    assert kept.count(easy[0]) + kept.count(easy[1]) >= 1
    assert 0.7 * 40 <= sum(task in kept for task in hard) < 40


def shortened(turns, tokenizer):
    return without_repeats(turns, [tokenizer.encode(turn).ids for turn in turns], token_bytes(tokenizer)[0])


def test_steps_that_are_written_again_are_cut():
    text = "37+85=122;c37+85=122;c37+85=122;122+12=134;c122+12=134;A:134"
    assert shortened([text], BYTES) == ["37+85=122;122+12=134;A:134"]
    assert shortened(["37+85=122;122+12=134;A:134"], BYTES) == ["37+85=122;122+12=134;A:134"]
    assert shortened([""], BYTES) == [""]
    again = "so the sum is right;" * 3
    assert len(MERGES.encode(again).ids) < len(again) / 2
    assert shortened([again + "A:122"], MERGES) == ["so the sum is right;A:122"]


def test_a_character_of_many_bytes_survives_pruning():
    assert shortened(["Äpfel und Öl。 Äpfel und Öl。 Ende"], BYTES) == ["Äpfel und Öl。 Ende"]


def test_a_call_that_is_made_again_is_cut_and_one_that_looks_alike_is_not():
    call = "<tool_call>get\n<arg_key>name</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
    turns = [call.format("ana"), call.format("ben"), call.format("ana"), "A:12"]
    assert shortened(turns, BYTES) == [turns[0], turns[1], "A:12"]


def test_pruning_keeps_what_the_environment_accepts_and_only_that():
    tasks = [SUMS.make_task(seed, 3) for seed in range(8)]
    answers = pick(measured([solutions(task, count=1, redundancy=0.8)[0] for task in tasks], STUDENT), 0)
    pruned = prune(answers, STUDENT)
    for task, answer in zip(tasks, pruned, strict=True):
        assert answer.turns == list(SUMS.solution(task)) and converse(task, answer.turns)[1] == 1
        assert answer.candidate.tokens == len(answer.turns[0]) + 1


def test_an_answer_that_pruning_would_break_stays_as_it_is():
    """Its only final answer repeats a sentence before it."""
    task = SUMS.make_task(0, 2)
    answer = task.hidden["answer"]
    (whole,) = measured([right(task, f"so A:{answer};so A:{answer}")], STUDENT)
    assert shortened(whole.turns, BYTES) == [f"so A:{answer};"]
    assert prune([whole], STUDENT) == [whole]


def test_pruning_keeps_the_end_of_the_reasoning():
    task = SUMS.make_task(0, 2)
    answer = f"A:{task.hidden['answer']}"
    (whole,) = measured([right(task, f"<think>the sum is right;the sum is right</think>;{answer}")], STUDENT)
    assert shortened(whole.turns, BYTES) == [f"<think>the sum is right;{answer}"]
    assert prune([whole], STUDENT) == [whole]


def test_tool_conversations_are_pruned_by_playing_them_again():
    tools = environment("tools")
    tasks = (tools.make_task(seed, 2) for seed in range(100))
    task = next(task for task in tasks if task.hidden["calls"][0]["name"] == "bank_balance")  # reads, changes nothing
    turns = tools.solution(task)
    twice = [turns[0], *turns]
    (answer,) = measured([right(task, *twice)], STUDENT)
    (pruned,) = prune([answer], STUDENT)
    assert pruned.turns == list(turns) and len(pruned.messages) == len(answer.messages) - 2
