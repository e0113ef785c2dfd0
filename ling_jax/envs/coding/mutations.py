"""Small mistakes that can be put into a Python source: one place, another text there, all else as it was."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "%"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
ACTS = (ast.Expr, ast.AugAssign, ast.Delete)  # statements that can be forgotten


class Mutation(NamedTuple):
    """The characters `start` to `stop` of a source become `text`."""

    start: int
    stop: int
    text: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]


def mutations(source: str) -> list[Mutation]:
    """All that are known here, by place, each once; the source, in ASCII, still compiles with any of them.

    They change an operator, a number, a truth value, the order of two arguments, min to max and the like, or leave a
    statement out. Raises SyntaxError where the source does not compile.
    """
    assert source.isascii(), "offsets of the parser are in bytes"
    text = _Text(source)
    found = {mutation for node in ast.walk(ast.parse(source)) for mutation in _of_node(node, text)}
    return sorted(each for each in found if each.applied(source) != source and _compiles(each.applied(source)))


class _Text:
    """A source and the places of its nodes."""

    def __init__(self, source: str):
        self.source = source
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def start(self, node: ast.AST) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.AST) -> int:
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        return self.source[self.start(node) : self.stop(node)]

    def replaced(self, node: ast.AST, text: str) -> Mutation:
        return Mutation(self.start(node), self.stop(node), text)

    def operator(self, left: ast.AST, operator: ast.AST, right: ast.AST) -> Iterator[Mutation]:
        """Another operator between two operands."""
        if type(operator) in OPERATORS:
            old, new = OPERATORS[type(operator)]
            at = self.source.index(old, self.stop(left), self.start(right))
            yield Mutation(at, at + len(old), new)


def _of_node(node: ast.AST, text: _Text) -> Iterator[Mutation]:
    match node:
        case ast.BinOp():
            yield from text.operator(node.left, node.op, node.right)
        case ast.AugAssign():
            yield from text.operator(node.target, node.op, node.value)
        case ast.Compare():
            operands = [node.left, *node.comparators]
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                yield from text.operator(left, operator, right)
        case ast.BoolOp():
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from text.operator(left, node.op, right)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield text.replaced(node, text.of(node.operand))
        case ast.Constant(value=bool()):
            yield text.replaced(node, str(not node.value))
        case ast.Constant(value=int()):
            yield text.replaced(node, str(node.value + 1))
            if node.value > 0:
                yield text.replaced(node, str(node.value - 1))
        case ast.Name(id="min" | "max" | "any" | "all"):
            yield text.replaced(node, FUNCTIONS[node.id])
        case ast.Call(args=[first, second], keywords=[]):
            swapped = f"{text.of(second)}{text.source[text.stop(first) : text.start(second)]}{text.of(first)}"
            yield Mutation(text.start(first), text.stop(second), swapped)
        case ast.Break():
            yield text.replaced(node, "continue")
        case ast.Continue():
            yield text.replaced(node, "break")
    for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
        if isinstance(body, list):
            yield from _forgotten(body, text)


def _forgotten(body: list[ast.stmt], text: _Text) -> Iterator[Mutation]:
    """Statements left out together with their lines, where another one stays."""
    for statement in body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if len(body) > 1 and isinstance(statement, ACTS) and not is_text:
            start = text.source.rindex("\n", 0, text.start(statement)) + 1
            yield Mutation(start, text.source.index("\n", text.stop(statement)) + 1, "")


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True
