"""What a log of events says, worked out again without the code that wrote it."""


def check_log(events, *, max_staleness: int, max_retention: int, consumer_batch_size: int, slots: int) -> dict:
    """{rollout: [[weight version, tokens], …]} of all rollouts, as the slices tell it.

    Fails where a rollout was thrown away that was not too old or paused too often, where one was kept that was, where
    more ran or started than may, and where one went on after its end.
    """
    version, accepted = 0, 0
    drew: dict[int, list[list[int]]] = {}  # rollout -> runs of (version, tokens)
    running, used, ended, purged, gone, pauses = set(), set(), {}, set(), set(), {}
    for event in events:
        match event["kind"]:
            case "slice":
                assert event["version"] == version
                for name, (count, status) in event["rollouts"].items():
                    i = int(name)
                    assert i in running and i not in ended, f"rollout {i} goes on after its end"
                    runs = drew.setdefault(i, [])
                    if runs and runs[-1][0] == version:
                        runs[-1][1] += count
                    else:
                        runs.append([version, count])
                    if status != "running":
                        ended[i] = status
            case "iteration":
                assert event["version"] == version and event["generated_tokens"] == tokens_of(drew, version)
                assert purged == set(event["purged"])
                purged = set()
                for i in event["purged"]:
                    assert pauses[i] == max_retention and i not in ended, f"rollout {i} left after {pauses[i]} pauses"
                for i, tokens, retention in event["paused"]:
                    pauses[i] = pauses.get(i, -1) + 1
                    assert retention == pauses[i] <= max_retention
                    assert tokens == sum(count for _, count in drew.get(i, []))
            case "staleness":
                change, discarded = event["event"], set(event["discarded"])
                if change["op"] == "finish":
                    running.discard(change["id"])
                    accepted += change["accepted"]
                    if change["id"] not in ended:
                        purged.add(change["id"])
                    if not change["accepted"]:
                        assert change["id"] in purged, f"rollout {change['id']} ended, and its place is free"
                        gone.add(change["id"])
                elif change["op"] == "consume":
                    for i in change["ids"]:
                        assert i in ended or i in purged, f"rollout {i} has not ended"
                        assert version - drew[i][0][0] <= max_staleness
                    used |= set(change["ids"])
                elif change["op"] == "version":
                    version += 1
                    alive = {i for i in drew if i not in used and i not in gone}
                    assert discarded == {i for i in alive if version - drew[i][0][0] > max_staleness}
                    accepted -= len(discarded - running)
                    running -= discarded
                    gone |= discarded
                running |= set(event["admitted"])
                assert len(running) <= slots
                assert accepted + len(running) <= (max_staleness + version + 1) * consumer_batch_size
    return drew


def tokens_of(drew, version: int) -> int:
    return sum(count for runs in drew.values() for v, count in runs if v == version)
