"""Messages between a sandbox's client and its spawn server.

A frame is a JSON object and byte strings behind it: 4 bytes with the length of the JSON, the JSON, the byte strings.
The JSON is {"body": ..., "sizes": [...]}, where `sizes` are the lengths of the byte strings.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any


def packed(body: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """A frame as bytes. Lone surrogates, which stand for bytes of file names, pass through JSON's escapes."""
    head = json.dumps({"body": body, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join((len(head).to_bytes(4, "big"), head, *blobs))


def parsed(head: bytes) -> tuple[dict[str, Any], list[int]]:
    """The body of a frame, and the lengths of the byte strings behind it."""
    frame = json.loads(head)
    return frame["body"], frame["sizes"]


def unpacked(take: Callable[[int], bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """The next frame of a stream; `take(n)` gives its next n bytes."""
    body, sizes = parsed(take(int.from_bytes(take(4), "big")))
    return body, [take(size) for size in sizes]
