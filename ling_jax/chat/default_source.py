"""The default template as Jinja source, for exported folders."""

import functools
from pathlib import Path


@functools.cache
def default_source() -> str:
    """Jinja source that renders as `ChatTemplate()`, with the options `enable_thinking` and `reasoning_effort`."""
    return Path(__file__).with_name("default_template.jinja").read_text(encoding="utf-8")
