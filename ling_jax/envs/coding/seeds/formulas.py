"""Formulas as text: tokens, a tree, a value."""

OPERATORS = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 3}
RIGHT = {"^"}


class FormulaError(ValueError):
    """A text that is no formula."""


def tokenize(text):
    """Numbers as ints, names and operators as text."""
    tokens, i = [], 0
    while i < len(text):
        char = text[i]
        if char.isspace():
            i += 1
        elif char.isdigit():
            j = i
            while j < len(text) and text[j].isdigit():
                j += 1
            tokens.append(int(text[i:j]))
            i = j
        elif char.isalpha() or char == "_":
            j = i
            while j < len(text) and (text[j].isalnum() or text[j] == "_"):
                j += 1
            tokens.append(text[i:j])
            i = j
        elif char in OPERATORS or char in "()":
            tokens.append(char)
            i += 1
        else:
            raise FormulaError(f"unexpected {char!r} at {i}")
    return tokens


def parse(text):
    """A tree of (operator, left, right), numbers and names; ^ groups from the right, the others from the left."""
    tokens = tokenize(text)
    tree, rest = _expression(tokens, 0, 1)
    if rest != len(tokens):
        raise FormulaError(f"unexpected {tokens[rest]!r}")
    return tree


def _expression(tokens, at, level):
    left, at = _operand(tokens, at)
    while at < len(tokens) and OPERATORS.get(tokens[at], 0) >= level:
        operator = tokens[at]
        next_level = OPERATORS[operator] + (0 if operator in RIGHT else 1)
        right, at = _expression(tokens, at + 1, next_level)
        left = (operator, left, right)
    return left, at


def _operand(tokens, at):
    if at >= len(tokens):
        raise FormulaError("unexpected end")
    token = tokens[at]
    if token == "(":
        tree, at = _expression(tokens, at + 1, 1)
        if at >= len(tokens) or tokens[at] != ")":
            raise FormulaError("expected )")
        return tree, at + 1
    if token == "-":
        tree, at = _expression(tokens, at + 1, 3)
        return ("-", 0, tree), at
    if token in OPERATORS or token == ")":
        raise FormulaError(f"unexpected {token!r}")
    return token, at + 1


def evaluate(tree, names):
    """The value of a tree; / rounds down."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return names[tree]
    operator, left, right = tree
    a, b = evaluate(left, names), evaluate(right, names)
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if operator == "/":
        return a // b
    return a**b


def free_names(tree):
    """The names in a tree, sorted, each once."""
    if isinstance(tree, tuple):
        return sorted(set(free_names(tree[1])) | set(free_names(tree[2])))
    return [tree] if isinstance(tree, str) else []
