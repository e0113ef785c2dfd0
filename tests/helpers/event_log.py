"""What a log of events says, worked out again without the code that wrote it."""

REWARDED = ("finished", "truncated")


def check_log(events, *, max_staleness: int, max_retention: int, prompts_per_step: int, group_size: int) -> dict:
    """{rollout: [[weight version, tokens], …]} of all rollouts that have left, as the log tells it.

    Fails where a rollout was thrown away that was not too old or paused too often, where one was used that was, where
    one has tokens of versions that did not draw it, and where more prompts were outstanding than may be.
    """
    version = 0
    runs: dict[int, list[list[int]]] = {}  # of the rollouts that have left
    drawn: dict[int, int] = {}  # prompt -> version
    closed, gone = set(), set()

    def members(prompt: int) -> range:
        return range(prompt * group_size, (prompt + 1) * group_size)

    def leave(i: int, of_rollout: list[list[int]]) -> None:
        assert i not in runs, f"rollout {i} left twice"
        versions = [number for number, _ in of_rollout]
        assert versions == sorted(set(versions)) and all(count > 0 for _, count in of_rollout)
        assert all(drawn[i // group_size] <= number <= version for number in versions)
        runs[i] = of_rollout

    for event in events:
        match event["kind"]:
            case "prompt":
                drawn[event["prompt"]] = version
                left = {p for p in drawn.keys() - closed if not set(members(p)) <= gone}
                assert len(left) <= (max_staleness + 1) * prompts_per_step
            case "taken":
                assert len(event["prompts"]) <= prompts_per_step
                rollouts = {int(i): record for i, record in event["rollouts"].items()}
                prompts = event["prompts"] + event["broken"]
                assert rollouts.keys() == {i for prompt in prompts for i in members(prompt)} - gone
                for i, record in rollouts.items():
                    leave(i, record["runs"])
                for prompt in prompts:
                    assert prompt not in closed
                    rewarded = [i for i in members(prompt) if i in rollouts and rollouts[i]["status"] in REWARDED]
                    assert bool(rewarded) == (prompt in event["prompts"])
                    assert all(version - runs[i][0][0] <= max_staleness for i in rewarded)
                    closed.add(prompt)
            case "version":
                version += 1
                assert event["version"] == version
                for name, of_rollout in event["discarded"].items():
                    leave(i := int(name), of_rollout)
                    stale = of_rollout and version - of_rollout[0][0] > max_staleness
                    # It may have had its slot long before its first token.
                    assert stale or version - drawn[i // group_size] > max_retention, f"rollout {i} left early"
                    gone.add(i)
    return runs
