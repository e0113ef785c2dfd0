"""Conversations: records -> templates -> tokens and loss masks, and what a model answers back to messages."""

from ling_jax.chat.template import ChatTemplate as ChatTemplate
from ling_jax.chat.template import Piece as Piece
from ling_jax.chat.tool_calls import Parsed as Parsed
from ling_jax.chat.tool_calls import parse_either as parse_either
