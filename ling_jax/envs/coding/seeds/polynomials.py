"""Polynomials with whole coefficients, the constant first: [1, 0, 3] is 1 + 3x^2."""


def trimmed(p):
    """Without zeros at the end."""
    p = list(p)
    while p and p[-1] == 0:
        p.pop()
    return p


def degree(p):
    """That of the zero polynomial is -1."""
    return len(trimmed(p)) - 1


def add(p, q):
    """The sum."""
    size = max(len(p), len(q))
    p, q = list(p) + [0] * (size - len(p)), list(q) + [0] * (size - len(q))
    return trimmed(a + b for a, b in zip(p, q, strict=True))


def multiply(p, q):
    """The product."""
    if not p or not q:
        return []
    product = [0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    return trimmed(product)


def evaluate(p, x):
    """The value at x."""
    value = 0
    for coefficient in reversed(p):
        value = value * x + coefficient
    return value


def derivative(p):
    """The slope as a polynomial."""
    return trimmed(i * a for i, a in enumerate(p) if i > 0)


def divide(p, q):
    """(quotient, remainder) by a polynomial whose highest coefficient is 1."""
    p, q = trimmed(p), trimmed(q)
    if not q or q[-1] != 1:
        raise ValueError("the highest coefficient must be 1")
    quotient = [0] * max(0, len(p) - len(q) + 1)
    while len(p) >= len(q):
        shift, factor = len(p) - len(q), p[-1]
        quotient[shift] = factor
        for i, b in enumerate(q):
            p[shift + i] -= factor * b
        p = trimmed(p)
    return quotient, p


def compose(p, q):
    """The polynomial p(q(x))."""
    result = []
    for coefficient in reversed(p):
        result = add(multiply(result, q), [coefficient])
    return result


def roots(p, low, high):
    """The whole numbers from low to high at which it is 0."""
    return [x for x in range(low, high + 1) if evaluate(p, x) == 0]


def show(p):
    """As text, the highest power first."""
    terms = []
    for power in range(degree(p), -1, -1):
        a = p[power]
        if a == 0:
            continue
        sign = "-" if a < 0 else "+" if terms else ""
        size = "" if abs(a) == 1 and power > 0 else str(abs(a))
        letter = "" if power == 0 else "x" if power == 1 else f"x^{power}"
        terms.append(sign + size + letter)
    return "".join(terms) or "0"
