"""Text in lines of a given width."""


def wrap(text, width):
    """Lines of whole words, at most `width` characters each; a longer word has a line of its own."""
    if width < 1:
        raise ValueError("width must be positive")
    lines, line = [], ""
    for word in text.split():
        if not line:
            line = word
        elif len(line) + 1 + len(word) <= width:
            line += " " + word
        else:
            lines.append(line)
            line = word
    if line:
        lines.append(line)
    return lines


def justify(line, width):
    """The line with blanks between its words so that it is `width` wide; those to the left get more."""
    words = line.split()
    if len(words) < 2:
        return line
    blanks = width - sum(len(word) for word in words)
    gaps = len(words) - 1
    if blanks < gaps:
        return line
    each, more = divmod(blanks, gaps)
    parts = []
    for i, word in enumerate(words[:-1]):
        parts.append(word + " " * (each + (1 if i < more else 0)))
    return "".join(parts) + words[-1]


def paragraph(text, width, indent=2):
    """All lines justified but the last; the first is indented."""
    lines = wrap("x" * indent + text, width) if indent else wrap(text, width)
    if indent and lines:
        lines[0] = " " * indent + lines[0][indent:]
    full = [lines[0]] if indent and len(lines) > 1 else []
    full += [justify(line, width) for line in lines[len(full) : -1]]
    return full + lines[-1:]


def box(lines, border="#"):
    """The lines in a frame."""
    width = max((len(line) for line in lines), default=0)
    edge = border * (width + 4)
    middle = [f"{border} {line.ljust(width)} {border}" for line in lines]
    return [edge, *middle, edge]


def shorten(text, width, mark="..."):
    """The text, or as many whole words as fit in front of the mark."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    room = width - len(mark)
    kept = ""
    for word in text.split():
        longer = f"{kept} {word}" if kept else word
        if len(longer) > room:
            break
        kept = longer
    return kept + mark
