"""What a log of events says, worked out again without the code that wrote it."""

REWARDED = ("finished", "truncated")


def check_log(events, *, max_staleness: int, max_retention: int, prompts_per_step: int, group_size: int) -> dict:
    """{rollout: [[weight version, tokens], …]} of all rollouts, as the log tells it.

    Fails where a rollout was thrown away that was not too old or paused too often, where one was used that was, where
    one went on after its end, and where more prompts were outstanding than may be.
    """
    version = 0
    drew: dict[int, list[list[int]]] = {}  # rollout -> runs of (version, tokens)
    drawn: dict[int, int] = {}  # prompt -> version
    closed, gone, ended = set(), set(), {}
    members = lambda prompt: range(prompt * group_size, (prompt + 1) * group_size)  # noqa: E731
    for event in events:
        match event["kind"]:
            case "prompt":
                drawn[event["prompt"]] = version
                left = {p for p in drawn.keys() - closed if not set(members(p)) <= gone}
                assert len(left) <= (max_staleness + 1) * prompts_per_step
            case "generated":
                assert event["version"] == version
                for name, (start, stop, count, status) in event["rollouts"].items():
                    i = int(name)
                    assert i not in ended and i not in gone and i // group_size in drawn, f"rollout {i} cannot go on"
                    assert 0 <= start <= stop <= event["pieces"]
                    if count:
                        drew.setdefault(i, []).append([version, count])
                    if status != "running":
                        ended[i] = status
            case "taken":
                assert len(event["prompts"]) <= prompts_per_step
                for prompt in event["prompts"] + event["broken"]:
                    assert prompt not in closed
                    kept = [i for i in members(prompt) if i not in gone]
                    assert all(i in ended for i in kept), f"prompt {prompt} was used before it was complete"
                    rewarded = [i for i in kept if ended[i] in REWARDED]
                    assert bool(rewarded) == (prompt in event["prompts"])
                    assert all(version - drew[i][0][0] <= max_staleness for i in rewarded)
                    closed.add(prompt)
            case "version":
                version += 1
                assert event["version"] == version
                alive = {i for i in drew if i not in gone and i // group_size not in closed}
                stale = {i for i in alive if version - drew[i][0][0] > max_staleness}
                assert stale <= set(event["discarded"]), "a rollout was kept that is too old"
                for i in set(event["discarded"]) - stale:  # it may have had its slot long before its first token
                    assert i not in ended and version - drawn[i // group_size] > max_retention, (
                        f"rollout {i} left early"
                    )
                gone |= set(event["discarded"])
    return drew
