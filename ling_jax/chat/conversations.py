"""Conversations as token folders with a loss mask on the assistant's tokens: the data of supervised fine-tuning."""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.records import normalise_conversation
from ling_jax.chat.template import ChatTemplate, Piece, encode_all
from ling_jax.chat.thinking import with_reasoning
from ling_jax.data.packing import Document, write_documents

Record = dict[str, Any]
POLICIES = ("drop", "error")
BATCH_SIZE = 4096  # conversations that are encoded at once, on all threads


def tokenize_conversations(
    records: Iterable[tuple[str, Record]],
    tokenizer: Tokenizer,
    template: ChatTemplate | FolderTemplate,
    folder: str | Path,
    *,
    source: str,
    digest: str,
    longest: int,
    too_long: str = "drop",
    unusable: str = "error",
    held_out_fraction: float,
    replace: bool = False,
    padding: int | None = None,
) -> dict:
    """Writes <folder>/train and <folder>/held_out as `data.tokenize` does; returns <folder>/meta.json.

    `records` are pairs of ("file, line n", {"messages", "tools"}) as in `chat.records`; `source` and `digest` identify
    them. The loss is on the assistant's words and ends of turn. Conversations with the same prompt are on the same side
    of the split. `too_long` ("drop" or "error") is for those of more than `longest` tokens, `unusable` for malformed
    ones and those without words of the assistant. Dropped ones are printed and counted in meta["dropped"]. A
    conversation whose earlier turns the template rewrites is several documents; meta["forked"] counts all but the
    first. `padding` is the token of padding, for a tokenizer without <|endoftext|>.
    """
    for name, policy in (("too_long", too_long), ("unusable", unusable)):
        if policy not in POLICIES:
            raise ValueError(f"{name} is {policy!r}; it is one of {', '.join(POLICIES)}")
    about = {"source": source, "template": repr(template), "held_out_fraction": held_out_fraction}
    about |= {} if padding is None else {"eos_id": padding}
    about |= {"longest": longest, "too_long": too_long, "unusable": unusable}
    dropped = _Dropped({"too_long": too_long, "unusable": unusable})

    def documents() -> Iterator[Document]:
        kept, forked, usable = 0, 0, _usable(records, template, dropped)
        while batch := list(itertools.islice(usable, BATCH_SIZE)):
            encoded = encode_all(tokenizer, [sample.pieces for sample in batch])
            for (where, record, number, _), (ids, mask) in zip(batch, encoded, strict=True):
                if not any(mask):
                    dropped.add("unusable", f"{where}: no token to learn: the assistant says nothing")
                elif len(ids) > longest:
                    dropped.add("too_long", f"{where}: {len(ids)} tokens; a row has {longest}")
                else:
                    kept, forked = kept + 1, forked + bool(number)
                    yield Document(prompt_of(record), np.asarray(ids, np.uint32), np.asarray(mask, bool))
        about.update(dropped=dropped.counts(), forked=forked)
        counts = " ".join(f"{reason}={count}" for reason, count in about["dropped"].items())
        print(f"conversations: {kept=} {forked=} dropped: {counts}", flush=True)
        if not kept:
            raise ValueError(f"{source} has no conversation that can be learnt ({counts}); name another source")

    return write_documents(documents(), tokenizer, folder, about, digest=digest, replace=replace)


def prompt_of(record: Record) -> str:
    """The messages before the assistant's first one, and the tools, as canonical JSON."""
    before = itertools.takewhile(lambda message: message["role"] != "assistant", record["messages"])
    return json.dumps([list(before), list(record.get("tools", ()))], sort_keys=True, ensure_ascii=False)


class _Sample(NamedTuple):
    where: str
    record: Record
    number: int  # of the record's samples
    pieces: list[Piece]


def _usable(records, template, dropped: "_Dropped") -> Iterator[_Sample]:
    """The samples of the records that the template can render."""
    for where, record in records:
        try:
            record = normalise_conversation(record, where)
            asking = with_reasoning(template, record["messages"])
            samples = asking.samples(record["messages"], tools=record.get("tools", ()))
        except ValueError as error:
            dropped.add("unusable", str(error) if str(error).startswith(where) else f"{where}: {error}")
            continue
        yield from (_Sample(where, record, number, pieces) for number, pieces in enumerate(samples))


class _Dropped:
    """Counts dropped records by reason; raises ValueError where the policy of the reason is "error"."""

    def __init__(self, policies: dict[str, str]):
        self._policies, self._counts = policies, collections.Counter()

    def add(self, reason: str, message: str) -> None:
        if self._policies[reason] == "error":
            raise ValueError(f"{message}; correct or remove it, or let {reason} be 'drop'")
        if not self._counts[reason]:
            print(f"conversations: first dropped as {reason}: {message}", flush=True)
        self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        return {reason: self._counts[reason] for reason in self._policies}
