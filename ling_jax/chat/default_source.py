"""The default template as Jinja, for the folders that we export."""

import functools
from pathlib import Path


@functools.cache
def default_source() -> str:
    """What `ChatTemplate()` renders; `enable_thinking` and `reasoning_effort` are its options."""
    return Path(__file__).with_name("default_template.jinja").read_text(encoding="utf-8")
