"""Pydantic AI, which knows nothing of this project, runs an agent against the server."""

import contextlib
import random

import pytest
from pydantic import BaseModel

from tests.helpers.served import NAME

pydantic_ai = pytest.importorskip("pydantic_ai", reason="pip install 'ling-jax[agents]'")


class Answer(BaseModel):
    """What the agent is to come to."""

    right: bool


def agent_of(server, **options):
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server.url}/sessions/library/v1", api_key="none")
    settings = {"max_tokens": 200, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    return pydantic_ai.Agent(OpenAIChatModel(NAME, provider=provider), model_settings=settings, **options)


@pytest.mark.slow
def test_an_agent_calls_its_tool_and_comes_to_an_answer_of_its_schema(server):
    """The model is random: the library forces calls, and the grammar makes them fit its schemas."""
    agent, thrown = agent_of(server, output_type=Answer, retries=5), []

    @agent.tool_plain
    def throw(die: bool) -> int:
        """Throws a die, or a coin."""
        thrown.append(random.Random(len(thrown)).randrange(6 if die else 2))
        return thrown[-1]

    found = []
    for seed in range(10):
        with contextlib.suppress(pydantic_ai.exceptions.AgentRunError):  # it goes on throwing, or writes blanks
            limits = pydantic_ai.UsageLimits(request_limit=6)
            found += [agent.run_sync("Throw it", model_settings={"seed": seed}, usage_limits=limits).output]
    assert found and all(isinstance(output, Answer) for output in found)
    assert thrown, "no tool was called"
    calls = next(s for s in server.get("/v1/sessions").json()["sessions"] if s["name"] == "library")["calls"]
    assert calls >= 10, "an answer may have several calls of tools"


@pytest.mark.slow
def test_a_stream_of_an_agent_is_the_answer(server):
    agent = agent_of(server)
    streamed = agent.run_stream_sync("some words", model_settings={"seed": 1, "temperature": 0.0})
    whole = agent.run_sync("some words", model_settings={"seed": 1, "temperature": 0.0})
    assert "".join(streamed.stream_text(delta=True, debounce_by=None)) == whole.output
