"""Conversations: records -> chat templates -> tokens and loss masks, and answers of a model -> messages."""

from ling_jax.chat.records import normalise_conversation as normalise_conversation
from ling_jax.chat.records import normalise_messages as normalise_messages
from ling_jax.chat.records import normalise_prompt as normalise_prompt
from ling_jax.chat.records import read_conversations as read_conversations
from ling_jax.chat.template import ChatTemplate as ChatTemplate
from ling_jax.chat.template import Piece as Piece
from ling_jax.chat.template import opens_reasoning as opens_reasoning
from ling_jax.chat.tool_calls import Parsed as Parsed
from ling_jax.chat.tool_calls import as_message as as_message
from ling_jax.chat.tool_calls import parse_either as parse_either
from ling_jax.chat.tool_calls import render_call as render_call
