"""Failures of environments, machinery and rewards that are too many for a run to go on."""

from collections.abc import Sequence

FAILURES_SEEN = (32, 128)  # rollouts that are seen before failures are judged, and the last ones that are; our choice


class TooManyFailures(RuntimeError):
    """Environments, machinery or rewards fail so often that the run had better end."""


class FailureShare:
    """The share of failures among the last of something."""

    def __init__(self, most: float, sentence: str):
        """`sentence` is the error's, with places for the numbers of failures and of what was seen."""
        self.most, self.sentence = most, sentence
        self._last: list[str] = []  # "" where nothing failed

    def note(self, errors: Sequence[str]) -> None:
        """Adds what came of the newest ones, "" where nothing failed.

        Raises TooManyFailures where the share is larger than `most`, `train.max_failed_share`.
        """
        self._last = [*self._last, *errors][-FAILURES_SEEN[1] :]
        failed = [error for error in self._last if error]
        if errors and len(self._last) >= FAILURES_SEEN[0] and len(failed) > self.most * len(self._last):
            raise TooManyFailures(
                f"{self.sentence.format(len(failed), len(self._last))}, and train.max_failed_share is {self.most}; the "
                f"last error: {failed[-1]}"
            )
