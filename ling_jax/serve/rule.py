"""How answers are drawn that are learnt from, whatever the program asks that they are for."""

import dataclasses
import hashlib
from typing import Any, TypeVar

from ling_jax.engine.request import Request
from ling_jax.serve.errors import ApiError
from ling_jax.serve.protocol import ChatBody, CompletionBody, ResponseFormat

OVER = "episode_over"
# Nothing is cut off and no token is forced: the log-probs are those of what was drawn from.
PLAIN = dict(
    model=None, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, logit_bias={}, min_tokens=0, ignore_eos=False
)
B = TypeVar("B", CompletionBody, ChatBody)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The limits and the sampling of an episode's answers."""

    seed: int
    temperature: float
    max_tokens: int  # of all answers together; those under way count with what they have drawn
    max_calls: int  # answers
    priority: int = 0

    def check(self, begun: int, drawn: int, count: int) -> None:
        """Raises ApiError where, after so many answers and tokens, `count` answers more are too many."""
        if begun + count > self.max_calls:
            raise ApiError(
                400,
                f"the episode has had {begun} of its {self.max_calls} answers, and {count} more are asked",
                code=OVER,
            )
        if drawn + count > self.max_tokens:
            raise ApiError(
                400,
                f"the episode has had {drawn} of its {self.max_tokens} tokens, and {count} answers more are asked",
                code=OVER,
            )

    def body(self, body: B) -> B:
        """The body without what would change the sampling, and without a length, which `room` says."""
        plain: dict[str, Any] = dict(PLAIN)
        if isinstance(body, CompletionBody):
            plain |= {"max_tokens": 0} if body.echo and body.logprobs else {}  # a score has no answer beside it
        else:
            choice = body.tool_choice if body.tool_choice == "none" else "auto"
            plain |= {"tool_choice": choice, "response_format": ResponseFormat(type="text")}
        return body.model_copy(update=plain)

    def room(self, asked: int, left: int, drawn: int, count: int) -> int:
        """Tokens of each of `count` answers: at most what is asked, what the context has left, and an equal share of
        what the episode has left. At least one, unless none is asked."""
        return min(asked, max(1, min(left, (self.max_tokens - drawn) // count)))

    def request(self, request: Request, prompt: bytes, before: int) -> Request:
        """The request with the seed of its place in the episode: its prompt, and how often that was asked `before`."""
        numbers = self.seed.to_bytes(8, "little") + before.to_bytes(8, "little")
        seed = int.from_bytes(hashlib.blake2b(numbers + prompt, digest_size=4).digest(), "little")
        return dataclasses.replace(request, seed=seed, temperature=self.temperature, priority=self.priority)
