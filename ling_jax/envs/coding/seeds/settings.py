"""Settings as text: sections, keys, values of several kinds."""


class SettingsError(ValueError):
    """A line that cannot be read, by its number."""


def parse(text):
    """{section: {key: value}}; keys before the first section are in the section ""."""
    found, section = {"": {}}, ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = strip_comment(line).strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]") or not line[1:-1].strip():
                raise SettingsError(f"line {number}: bad section")
            section = line[1:-1].strip()
            found.setdefault(section, {})
            continue
        key, separator, value = line.partition("=")
        key = key.strip()
        if not separator or not key:
            raise SettingsError(f"line {number}: expected key = value")
        if key in found[section]:
            raise SettingsError(f"line {number}: {key} stands twice")
        found[section][key] = parse_value(value.strip())
    return found


def strip_comment(line):
    """The line up to a # that is not inside quotes."""
    quoted = False
    for i, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char == "#" and not quoted:
            return line[:i]
    return line


def parse_value(text):
    """A list in brackets, quoted text, true or false, a whole number, or the text itself."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return [parse_value(part.strip()) for part in inner.split(",")] if inner else []
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    digits = text[1:] if text.startswith("-") else text
    if digits.isdigit():
        return int(text)
    return text


def render(settings):
    """The text of settings, sections and keys sorted; it reads back as the same."""
    lines = []
    for section in sorted(settings):
        if section:
            lines.append(f"[{section}]")
        for key in sorted(settings[section]):
            lines.append(f"{key} = {render_value(settings[section][key])}")
    return "\n".join(lines)


def render_value(value):
    """A value as text; text that would read as something else is quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    if parse_value(value) != value or value != value.strip() or "#" in value:
        return f'"{value}"'
    return value


def merge(base, over):
    """Settings of which the second win, key by key."""
    merged = {section: dict(keys) for section, keys in base.items()}
    for section, keys in over.items():
        merged.setdefault(section, {}).update(keys)
    return merged
