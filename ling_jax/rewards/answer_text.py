r"""Normalisation of answers: one spelling for variants of unicode, LaTeX markup, spaces and command arguments.

The result is LaTeX with few commands: `\frac{1}{2}`, `x^{2}`, `\cdot`, `\text{ cm}` for words, `°`, `%`, `$`, and
`⦃ ⦄` for the braces of a set.
"""

import re
import unicodedata

MAX_DEPTH = 40  # nested braces; our choice: no answer has more, and the parser is recursive
VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
          "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "⁄": "/", "∕": "/", "√": r"\sqrt ", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ",
    "…": "...", "º": "°", "’": "'", "，": ",", "：": ":", "。": ".", "⩽": r"\le ", "⩾": r"\ge ", "≈": "=",
}  # fmt: skip
THIN = "\u2009\u202f\u00a0\u2007"  # spaces between groups of three digits
GROUPS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:(?:\\[,!;:]|\\ |~|,\\!|\{{,\}}|[{THIN} '])\d{{3}})+(?![\d,/])")
SPACES = re.compile(rf"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\\hspace\{{[^{{}}]*\}}|[{THIN}]|\s+")
DROPPED = re.compile(
    r"\\(?:left|right)(?![a-zA-Z])\s*\.?|\\(?:[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|bf|rm|tiny|small|normalsize"
    r"|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])|\\(?:text)?color\s*\{[^{}]*\}"
)
NAMES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "bar": "overline", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "times": "cdot", "ast": "cdot", "dots": "ldots", "cdots": "ldots",
    "dotsc": "ldots", "varnothing": "emptyset", "colon": ":", "approx": "=",
    "degree": "°", "div": "/", "lt": "<", "gt": ">", "lbrace": "⦃", "rbrace": "⦄", "euro": "€", "pounds": "£",
    "textdollar": "$", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrack": "[", "rbrack": "]",
}  # fmt: skip
ESCAPED = {"%": "%", "$": "$", "#": "#", "&": "&", "_": "_", "{": "⦃", "}": "⦄"}
FONTS = frozenset({
    "text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mbox", "hbox", "mathrm", "mathbf",
    "mathit", "mathsf", "mathtt", "mathnormal", "boldsymbol", "bm", "operatorname", "emph", "underline", "boxed",
    "fbox", "ensuremath", "mathbb", "mathcal", "mathscr"
})  # fmt: skip
ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1, "overline": 1, "dot": 1, "vec": 1, "hat": 1}
SINGLE_UNITS = frozenset("mghsLlWJNVAKCF")
TOKENS = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
WRAPPED = (("**", "**"), ("__", "__"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"),
           ('"', '"'), ("“", "”"), ("*", "*"))  # fmt: skip
REAL_LINE = r"(-\infty ,\infty )"
BUILDER = re.compile(rf"⦃\s*[a-z]\s*(?:\\in {re.escape(REAL_LINE)})?\s*[|:]\s*([^|⦃⦄]*)⦄")  # set-builder notation
SAID = r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?answer\s*(?:is|:|=)\s*:?\s*"
LABEL = re.compile(rf"^\s*(?:\\text\{{\s*{SAID}\}}\s*|{SAID})", re.IGNORECASE)


class TooDeep(ValueError):
    """Braces are nested more than `MAX_DEPTH` deep."""


def normalise(text: str) -> str:
    """The normalised answer, in time linear in its length. Raises TooDeep for more than `MAX_DEPTH` nested brackets."""
    text = re.sub(f"([{''.join(VULGAR)}])", lambda match: " " + VULGAR[match[1]], text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda match: f"^{{{match[0].translate(SUPERSCRIPTS)}}}", text)
    for symbol, latex in SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = "".join(
        c if c in THIN else unicodedata.normalize("NFKC", c) for c in text if unicodedata.category(c) != "Cf"
    )
    text = _unwrapped(re.sub(r"\\thinspace(?![a-zA-Z])\s*", r"\\,", text.replace("−", "-")))
    text = GROUPS.sub(lambda match: re.sub(r"\D", "", match[0]), _unwrapped(text))
    text = re.sub(r"\{([,:=<>])\}", r"\1", text).replace("**", "^" if re.search(r"[\w)}]\*\*[\w({]", text) else "")
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", "°", text)
    text = re.sub(r"<=|=<", r"\\le ", re.sub(r">=", r"\\ge ", re.sub(r"(?<![\w)])!=", r"\\ne ", text)))
    text = SPACES.sub(" ", DROPPED.sub("", text)).replace("...", r"\ldots ")
    tokens = TOKENS.findall(re.sub(r"(?<![\\a-zA-Z])sqrt\s*(?=\()", r"\\sqrt", text))
    _check_depth(tokens)
    return _tidy(_spelled(tokens))


def squeeze(text: str) -> str:
    """The text with only the spaces between two digits or between two letters."""
    return re.sub(r"(?<![^\W_])\s+|\s+(?![^\W_])|(?<=\d)\s+(?=[^\W\d_])|(?<=[^\W\d_])\s+(?=\d)", "", text)


def _unwrapped(text: str) -> str:
    """The text without markup around all of it: dollar signs, stars, quotes, a full stop."""
    before = None
    while before != text:
        before = text
        if not text.endswith("..."):
            text = text.strip().removesuffix("\\.").rstrip(".;\\").strip()
        for opening, closing in WRAPPED:
            inner = text[len(opening) : -len(closing)]
            is_whole = text.startswith(opening) and text.endswith(closing) and inner.strip()
            if is_whole and opening not in inner.replace(f"\\{opening}", ""):
                text = inner
                break
    return text


def _check_depth(tokens: list[str]) -> None:
    depth = 0
    for token in tokens:
        depth += (token in "{([") - (token in "})]")
        if depth > MAX_DEPTH:
            raise TooDeep(f"brackets are nested more than {MAX_DEPTH} deep")


def _spelled(tokens: list[str]) -> str:
    """The tokens as text with canonical commands, without fonts, and with every argument in braces."""
    out, at = [], 0
    while at < len(tokens):
        piece, at = _next(tokens, at, "".join(out[-3:]))
        out.append(piece)
    return "".join(out)


def _next(tokens: list[str], at: int, before: str) -> tuple[str, int]:
    """(the next construct as canonical text, index of the construct after it)."""
    token = tokens[at]
    name = NAMES.get(token[1:], token[1:]) if token[0] == "\\" else ""
    if name in FONTS:
        content, at = _argument(tokens, at + 1)
        return _unfonted(token[1:], content, before), at
    if name in ARGUMENTS:
        pieces, at = ["\\" + name], at + 1
        if name == "sqrt" and _skip(tokens, at) < len(tokens) and tokens[_skip(tokens, at)] == "[":
            stop = tokens.index("]", at) if "]" in tokens[at:] else len(tokens) - 1
            pieces.append(f"[{_spelled(tokens[_skip(tokens, at) + 1 : stop])}]")
            at = stop + 1
        for _ in range(ARGUMENTS[name]):
            content, at = _argument(tokens, at, "{(" if name == "sqrt" else "{")  # √(3), as people write it
            pieces.append(f"{{{_spelled(content)}}}")
        return "".join(pieces), at
    if token in ("^", "_"):
        content, at = _argument(tokens, at + 1, "{(" if token == "^" else "{")
        return f"{token}{{{_spelled(content)}}}", at
    if token == "{" and not re.search(r"\\[a-zA-Z]+ $|\}$", before):  # braces without a command
        content, at = _argument(tokens, at)
        inner = _spelled(content)
        return (f"⦃{inner}⦄" if "," in inner else f"({inner})"), at
    if token == "*":
        return r"\cdot ", at + 1
    if not name:
        return token, at + 1
    if not name[0].isalpha():
        return ESCAPED.get(name, name if name in "/°:=<>⦃⦄€£$|[]" else token), at + 1
    return f"\\{name} ", at + 1


def _argument(tokens: list[str], at: int, opening: str = "{") -> tuple[list[str], int]:
    """(tokens of the argument that starts here, its end): a bracketed group or one token."""
    at = _skip(tokens, at)
    if at >= len(tokens):
        return [], at
    if tokens[at] not in opening:
        if tokens[at] == "-" and at + 1 < len(tokens):  # x^-1, as people type it
            stop = at + 1
            while stop < len(tokens) and tokens[stop].isdecimal():
                stop += 1
            return tokens[at:stop], stop
        return tokens[at : at + 1], at + 1
    left, right = ("{", "}") if tokens[at] == "{" else ("(", ")")
    depth, stop = 0, at
    while stop < len(tokens):
        depth += (tokens[stop] == left) - (tokens[stop] == right)
        if depth == 0:
            break
        stop += 1
    return tokens[at + 1 : stop], stop + 1


def _skip(tokens: list[str], at: int) -> int:
    while at < len(tokens) and tokens[at].isspace():
        at += 1
    return at


def _unfonted(name: str, content: list[str], before: str) -> str:
    r"""`\text{ cm}` for words; only the content if it has no words: `\text{13}`, `\mathrm{e}`, `\textbf{(B)}`."""
    inner = _spelled(content)
    if name == "mathbb" and inner == "R":
        return REAL_LINE
    if name in ("boxed", "fbox", "ensuremath", "underline") or re.search(r"[\\\d,;]|\b(?:and|or)\b", inner):
        return inner
    is_unit = inner.strip() in SINGLE_UNITS and re.search(r"[\d}]\s*$", before) and name.startswith(("text", "math"))
    return f"\\text{{{inner}}}" if is_unit or re.search(r"[^\W\d_]{2}", inner) else inner


def _tidy(text: str) -> str:
    text = LABEL.sub("", text)
    text = re.sub(r"(?<=[\d.])\s+(?=[.,]\d)", "", re.sub(r"\s+", " ", text)).strip()
    text = re.sub(r" ?(&|\\\\)(?:\[[\d.]+ ?[a-z]{2}\])? ?", r"\1", text)  # between the entries of a matrix
    text = re.sub(r"(\\begin \{[^{}]*\}(?:\{[^{}]*\})?) ", r"\1", re.sub(r"(?:\\\\)? ?(?=\\end )", "", text))
    text = BUILDER.sub(r"\1", text) if BUILDER.fullmatch(text) else text.replace("⦃⦄", r"\emptyset ")
    return _unwrapped(re.sub(r"^[+=\s]+(?=[-\w\\.($])", "", text))
