r"""Equality of two answers: numbers, lists, sets, tuples, intervals, equations and words.

Normalised texts are split from the outside inwards until numbers, words or expressions remain; the caller compares
expressions. A text that cannot be split equals only the same text.
"""

import re
from collections.abc import Callable

from ling_jax.rewards.answer_number import CHANGING, WORD, decimal, decimal_value, quantity, same_quantity, split_unit
from ling_jax.rewards.answer_text import TooDeep, normalise, squeeze

MAX_CHARACTERS = 4000  # our choice: a longer answer is right only if it is the gold text or a number
MAX_EXPRESSION = 600  # characters of an expression to evaluate; our choice
MAX_PARTS = 64  # of a list; our choice
OPENING, CLOSING = "([{⦃", ")]}⦄"
SEPARATOR = re.compile(r",|;|\b(?:and|or)\b")
LINK = re.compile(r";|\b(?:and|or)\b")
OR = re.compile(r"\bor\b")
RELATION = re.compile(r"=|<|>|\\le |\\ge |\\ne |\\in ")
INEQUALITY = re.compile(r"<|>|\\le |\\ge ")
MIRRORED = {"<": ">", ">": "<", "\\le ": "\\ge ", "\\ge ": "\\le "}
NAME = re.compile(  # x, x_{1}, f(x), f^{-1}(x), P(A), |AB|, (x, y), \theta, \angle ABC, \text{Area}
    r"[A-Za-z](?:_\{\w+\})?'*(?:(?:\^\{-1\})?\([a-z](?:,[a-z])*\))?|[fghPE](?:\^\{-1\})?\([^()]*\)"
    r"|\|[A-Z]{2}\||\\overline\{[A-Z]{2}\}|\([a-z](?:, ?[a-z])+\)|m?\\[a-z]+ ?[A-Z]{0,3}(?:_\{\w+\})?"
    r"|(?:\\text\{[^{}]*\}|[A-Za-z ]{2,40}):?"
)
SUM = re.compile(r"[a-zA-Z](?: ?[-+] ?[a-zA-Z])+|\\frac\{[a-z]\}\{[a-z]\}")  # a+b, m/n: what a question asks for
TIME = re.compile(r"(?=.*[:m])(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*([ap]\.?m\.?)?", re.IGNORECASE)
MONTH = (
    r"jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|june?|july?|aug(?:ust|\.)?|sep(?:tember|\.)?"
    r"|oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?"
)
DATE = re.compile(
    rf"(?:({MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?|(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({MONTH}))(?:,? (\d{{4}}))?",
    re.IGNORECASE,
)
RATIO = re.compile(r"([\d.,]+):([\d.,]+)")
COMMANDS = frozenset({
    "frac", "sqrt", "binom", "cdot", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan",
    "sinh", "cosh", "tanh", "ln", "log", "lg", "exp", "lfloor", "rfloor", "lceil", "rceil", "infty", "sum", "prod",
    "int", "begin", "end", "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta",
    "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega"
})  # fmt: skip
PRODUCT = re.compile(r"[a-np-z]{1,3}")  # letters that may be variables; our choice: "no" and "on" are words
CHOICES = frozenset("ABCDEFGH")
LETTERED = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice) )?(?:\(([A-H])\)|([A-H])[.):](?= |$)|(?<= )([A-H])$)\s*(.*)")

Equal = Callable[[str, str], bool]  # (answer, gold) -> whether two LaTeX expressions are the same mathematics


def same_answer(answer: str, gold: str, equal: Equal) -> bool:
    """Whether `answer` and `gold` mean the same. `equal` decides for expressions that are not plain numbers."""
    if answer.strip() == gold.strip():
        return True
    plain = decimal(answer), decimal(gold)
    if None not in plain:
        return plain[0] == plain[1]
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    try:
        return _same(normalise(answer), normalise(gold), equal)
    except (TooDeep, RecursionError):
        return False


def _same(answer: str, gold: str, equal: Equal) -> bool:
    if squeeze(answer) == squeeze(gold):
        return bool(answer)
    if not answer or not gold:
        return False
    dates = _date(answer), _date(gold)
    if None not in dates:
        return dates[0] == dates[1]
    numbers = quantity(answer), quantity(gold)
    if None not in numbers:
        same = same_quantity(*numbers)
        if same or "," not in answer + gold:
            return same
    for number, one in zip(numbers, (answer, gold), strict=True):
        if number and "," in one:  # 1,234 may be one number or two
            whole = one.replace(",", "")
            if _same(*((whole, gold) if one is answer else (answer, whole)), equal):
                return True
    for look in (_by_parts, _by_choice, _by_relation, _by_brackets, _by_clock, _by_words, _by_unit):
        verdict = look(answer, gold, equal)
        if verdict is not None:
            return verdict
    return _is_expression(answer) and _is_expression(gold) and equal(answer, gold)


def _by_parts(answer: str, gold: str, equal: Equal) -> bool | None:
    r"""Lists without brackets, in any order unless `\ldots` continues them, and `\pm` as a list of two."""
    unions = _union(answer), _union(gold)
    if unions != (answer, gold) and all("\\cup " in union for union in unions):
        return _same(*unions, equal)
    links = [set(re.findall(r"\b(?:and|or)\b", text)) for text in (answer, gold) if INEQUALITY.search(text)]
    if len(links) == 2 and all(links) and links[0] != links[1]:  # x < 1 and x > 2 is empty, x < 1 or x > 2 is a union
        return False
    found, wanted = _parts(answer), _parts(gold)
    if len(found) == len(wanted) == 1 and (found, wanted) == ([answer], [gold]):
        return None
    if len(wanted) > 1 and len(found) == 1 and (inner := _inside(answer)):  # \{1,2\} or (1,2) for the list 1,2
        found = _parts(inner[1])
        if inner[0] != "⦃⦄":
            return inner[0] == "()" and _match_ordered(found, wanted, equal)
    elif len(found) > 1 and len(wanted) == 1 and (inner := _inside(gold)):
        wanted = _parts(inner[1])
        if inner[0] != "⦃⦄":
            return inner[0] == "()" and _match_ordered(found, wanted, equal)
    in_order = "\\ldots" in answer + gold or _names(found) != _names(wanted)
    return (_match_ordered if in_order else _match_any_order)(found, wanted, equal)


def _names(parts: list[str]) -> bool:
    """Whether equations of a list are about several things: x = 1, y = 2."""
    sides = [_split(part, RELATION) for part in parts]
    return len({squeeze(side[0]) for side in sides if len(side) > 1 and NAME.fullmatch(side[0])}) > 1


def _by_relation(answer: str, gold: str, equal: Equal) -> bool | None:
    found, wanted = (_split(text, RELATION) for text in (answer, gold))
    if len(found) == len(wanted) == 1:
        return None
    equations = [all(sign == "=" for sign in _signs(text)) for text in (answer, gold)]
    if all(equations):
        return _same_equation(found, wanted, equal)
    intervals = [_interval(text) for text in (answer, gold)]
    if None not in intervals and intervals != [answer, gold]:
        return _same(*intervals, equal)
    if len(found) != len(wanted):
        return False
    signs = _signs(answer), _signs(gold)
    if signs[0] == signs[1]:
        return _match_ordered(found, wanted, equal)
    mirrored = [MIRRORED.get(sign, sign) for sign in reversed(signs[0])]
    return mirrored == signs[1] and _match_ordered(found[::-1], wanted, equal)


def _same_equation(found: list[str], wanted: list[str], equal: Equal) -> bool:
    """Every side that is not just a name must equal the gold's value: 9·2 = 18 equals 18, 17 = 18 does not."""
    if len(found) == 2 and NAME.fullmatch(found[1]) and not NAME.fullmatch(found[0]):
        found = found[::-1]
    if len(wanted) == 1 and len(found) > 1 and SUM.fullmatch(found[0]):
        found = found[1:]
    names = [sides[0] if len(sides) > 1 and NAME.fullmatch(sides[0].strip()) else None for sides in (found, wanted)]
    both = ["=".join(sides) for sides in (found, wanted)]
    if len(wanted) > 1 and names[1] is None:  # an equation that is no definition: 2x + y = 3
        return len(found) == len(wanted) == 2 and all(map(_is_expression, both)) and equal(*both)
    if None not in names and squeeze(names[0]) != squeeze(names[1]):
        return False
    if names[0] is None and len(found) == len(wanted) == 2 and re.search("[a-z]", wanted[1]):
        return all(map(_is_expression, both)) and equal(*both)  # 2x - y = 1 for y = 2x - 1
    values = found[1:] if names[0] else found
    target = wanted[-1]
    return all(value and _same(value, target, equal) for value in values)


def _by_brackets(answer: str, gold: str, equal: Equal) -> bool | None:
    """Sets (unordered), tuples and intervals (ordered), and their unions."""
    unions = [_split(text, re.compile(r"\\cup ")) for text in (answer, gold)]
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        return _match_any_order(*unions, equal)
    found, wanted = _inside(answer), _inside(gold)
    if found and wanted:
        parts = [_parts(inner) for _, inner in (found, wanted)]
        if found[0] != wanted[0]:
            return False
        if wanted[0] == "⦃⦄":
            return _same_sets(*parts, equal)
        if len(parts[0]) > 1 or len(parts[1]) > 1:
            return _match_ordered(*parts, equal)
    for one, text in ((found, answer), (wanted, gold)):
        if one and one[0] == "()" and len(_parts(one[1])) == 1 and one[1].strip():
            return _same(*((one[1], gold) if text == answer else (answer, one[1])), equal)
    if bool(found and found[0] == "⦃⦄") != bool(wanted and wanted[0] == "⦃⦄"):
        only = found if found and found[0] == "⦃⦄" else wanted
        parts = _parts(only[1])
        if len(parts) != 1 or not parts[0]:
            return False
        return _same(*((parts[0], gold) if only is found else (answer, parts[0])), equal)
    return False if any(one and len(_parts(one[1])) > 1 for one in (found, wanted)) else None


def _by_choice(answer: str, gold: str, equal: Equal) -> bool | None:
    """Choice letters, alone or with their text: (B) 18 equals B, and 18."""
    if gold.strip("().: ") in CHOICES and len(answer) < 4:
        return answer.strip("().: ").upper() == gold.strip("().: ")
    (letter, meant), (right, wanted) = (_lettered(text) for text in (answer, gold))
    if not letter and not right:
        return None
    if letter and right:
        return letter == right and (_same(meant, wanted, equal) if meant and wanted else not _is_hedge(meant))
    return _same(meant, gold, equal) if letter else _same(answer, wanted, equal)


def _lettered(text: str) -> tuple[str, str]:
    """(choice letter, the text after it); ("", text) if there is no letter."""
    if text.strip("().: ") in CHOICES:
        return text.strip("().: "), ""
    match = LETTERED.fullmatch(_without_fonts(text))
    return ("".join(filter(None, match.groups()[:3])), match[4]) if match else ("", text)


def _is_hedge(text: str) -> bool:
    """Whether a text contains a word that qualifies the answer, or another choice letter."""
    return any(word in CHOICES or word.lower() in CHANGING for word in WORD.findall(text))


def _without_fonts(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()


def _date(text: str) -> tuple[str, int, str | None] | None:
    """(month, day, year) of `June 20, 2020` or `20th of June`."""
    match = DATE.fullmatch(_without_fonts(text))
    if not match:
        return None
    return (match[1] or match[4]).lower()[:3], int(match[2] or match[3]), match[5]


def _by_clock(answer: str, gold: str, equal: Equal) -> bool | None:
    """Times compare by hours and minutes, ratios by value."""
    del equal
    if ":" not in answer + gold:
        return None
    answer, gold = (_without_fonts(text) for text in (answer, gold))
    times = TIME.fullmatch(answer), TIME.fullmatch(gold)
    if None not in times:
        first, second = ([int(part or 0) for part in time.groups()[:3]] for time in times)
        if None in (times[0][4], times[1][4]) and first == second:
            return True
        for time, parts in zip(times, (first, second), strict=True):
            if time[4]:
                parts[0] = parts[0] % 12 + 12 * (time[4][0] in "pP")
        return first == second
    if TIME.fullmatch(gold):
        return False
    values = [_ratio(text) for text in (answer, gold)]
    return None not in values and values[0] == values[1]


def _ratio(text: str):
    match = RATIO.fullmatch(text)
    if not match:
        number = quantity(text)
        return number.value if number and not number.unit else None
    top, bottom = decimal_value(match[1]), decimal_value(match[2])
    return top / bottom if top is not None and bottom else None


def _by_words(answer: str, gold: str, equal: Equal) -> bool | None:
    """Words, ignoring case and punctuation."""
    del equal
    found, wanted = _words(answer), _words(gold)
    plain, target = (squeeze(_without_fonts(text)).lower() for text in (answer, gold))
    if plain == target and re.search("[a-z]{3}", target) and "\\" not in target:
        return True  # Statement 1
    both = [text for text in (found, wanted) if text]
    if not both or (found != wanted and "\\text" not in answer + gold and all(map(PRODUCT.fullmatch, both))):
        return None
    return found is not None and found == wanted


def _by_unit(answer: str, gold: str, equal: Equal) -> bool | None:
    r"""Expressions with units, such as `16\pi \text{ cm}^2`; a unit on one side only is no difference."""
    (value, unit), (target, wanted) = split_unit(answer), split_unit(gold)
    if not unit and not wanted:
        return None
    return (unit == wanted or not unit or not wanted) and _same(value or answer, target or gold, equal)


def _words(text: str) -> str | None:
    r"""A text of words only, in lower case; None for other texts and for products of a few letters."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"[\s\"'“”.!?]+", " ", plain).strip().lower()
    return plain if re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", plain) and re.search(r"[^\W\d_]{2}", plain) else None


def _is_expression(text: str) -> bool:
    """Whether a text may be mathematics: it has no words, no adjacent numbers and no units."""
    if len(text) > MAX_EXPRESSION or "\\text" in text or not COMMANDS.issuperset(re.findall(r"\\([a-zA-Z]+)", text)):
        return False
    if re.search(r"[\d}]\s+\d|[⦃⦄$€£¥#@\"?~`%:']", re.sub(r"[_^]\{-?\w+\}", "", text)):
        return False
    plain = re.sub(r"\\(?:begin|end) \{[a-z]+\}|\\[a-zA-Z]+", " ", text)
    return not re.search(r"[^\W\d_]{4,}", plain) and plain.count("|") % 2 == 0


def _interval(text: str) -> str | None:
    r"""The interval of x > 3, 0 \le x < 5 or x \in I; intervals stay; None for other texts."""
    sides, signs = [side.strip() for side in _split(text, RELATION)], _signs(text)
    if not signs:
        return text if _inside(text) or "\\cup" in text else None
    if signs == ["\\in "]:
        return sides[1]
    if signs == ["\\ne "] and NAME.fullmatch(sides[0]):
        return f"(-\\infty ,{sides[1]})\\cup ({sides[1]},\\infty )"
    if any(sign not in MIRRORED for sign in signs):
        return None
    if signs[0] in (">", "\\ge "):
        sides, signs = sides[::-1], [MIRRORED[sign] for sign in reversed(signs)]
    if any(sign in (">", "\\ge ") for sign in signs):
        return None
    is_name = [bool(NAME.fullmatch(side)) and side not in ("\\infty", "\\pi", "e") for side in sides]
    left, right = ("(" if signs[0] == "<" else "["), (")" if signs[-1] == "<" else "]")
    if is_name == [True, False]:
        return f"(-\\infty ,{sides[1]}{right}"
    if is_name == [False, True]:
        return f"{left}{sides[0]},\\infty )"
    return f"{left}{sides[0]},{sides[2]}{right}" if is_name == [False, True, False] else None


def _union(text: str) -> str:
    r"""x < 1 or x > 2 as a union of intervals; other texts stay."""
    parts = _split(text, OR)
    intervals = [_interval(part) for part in parts if _signs(part)]
    return "\\cup ".join(intervals) if len(intervals) == len(parts) > 1 and None not in intervals else text


def _parts(text: str) -> list[str]:
    r"""The parts of a list without brackets, with both values of each `\pm`."""
    parts = [text] if _is_one_number(text) else _split(text, SEPARATOR)
    groups = _split(text, LINK)
    if len(groups) > 1 and all(map(quantity, groups)):  # 1,000 and 2,000
        parts = groups
    if len(parts) > 1:
        parts = [part for part in parts if part]  # "1, 2, and 3"
    both = []
    for part in parts:
        if "\\pm" in part or "\\mp" in part:
            for plus, minus in (("+", "-"), ("-", "+")):
                both.append(re.sub(r"\\pm ?", plus, re.sub(r"\\mp ?", minus, part)))
        else:
            both.append(part)
    return [part.strip("+ ") if part.startswith("+") else part.strip() for part in both]


def _is_one_number(text: str) -> bool:
    return "," not in text and quantity(text) is not None


def _inside(text: str) -> tuple[str, str] | None:
    """(brackets, content) of a text that is one pair of brackets; None for other texts."""
    text = text.strip()
    if len(text) < 2 or text[0] not in "([⦃" or text[-1] not in ")]⦄":
        return None
    depth = 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0:
            return (text[0] + text[-1], text[1:-1]) if i == len(text) - 1 else None
    return None


def _split(text: str, separator: re.Pattern) -> list[str]:
    """The text between the separators that are outside of brackets."""
    ends = _outside(text, separator)
    starts = [0, *(match.end() for match in ends)]
    return [text[i:j].strip() for i, j in zip(starts, [*(match.start() for match in ends), len(text)], strict=True)]


def _signs(text: str) -> list[str]:
    return [match[0] for match in _outside(text, RELATION)]


def _outside(text: str, pattern: re.Pattern) -> list[re.Match]:
    """The matches outside of brackets."""
    matches, depth, at = [], 0, 0
    while at < len(text):
        match = pattern.match(text, at) if depth == 0 else None
        if match:
            matches.append(match)
            at = match.end()
        else:
            depth += (text[at] in OPENING) - (text[at] in CLOSING)
            at += 1
    return matches


def _match_ordered(found: list[str], wanted: list[str], equal: Equal) -> bool:
    return len(found) == len(wanted) and all(_same(a, g, equal) for a, g in zip(found, wanted, strict=True))


def _match_any_order(found: list[str], wanted: list[str], equal: Equal) -> bool:
    """Whether the lists match one to one in some order."""
    if len(found) != len(wanted) or len(wanted) > MAX_PARTS:
        return False
    left = list(found)
    for gold in wanted:
        match = next((i for i, answer in enumerate(left) if _same(answer, gold, equal)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_sets(found: list[str], wanted: list[str], equal: Equal) -> bool:
    """Whether the lists are equal as sets, without multiplicity."""
    if max(len(found), len(wanted)) > MAX_PARTS:
        return False
    covers = all(any(_same(answer, gold, equal) for answer in found) for gold in wanted)
    return covers and all(any(_same(answer, gold, equal) for gold in wanted) for answer in found)
