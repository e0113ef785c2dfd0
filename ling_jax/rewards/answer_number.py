r"""Numbers in answers: exact values and their units."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

MAX_EXPONENT = 100_000  # our choice: larger powers of ten go to the worker
MAX_UNIT = 60  # characters
DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)(?:\.\d*)?|\.\d+"
PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,9})?")
SIGNED = rf"[-+]?\s*(?:{DECIMAL})"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:"
    rf"(?P<whole>\d+)\s*\\frac\{{(?P<p1>\d+)\}}\{{(?P<q1>\d+)\}}"
    rf"|(?P<whole2>\d+)\s+(?P<p2>\d+)\s*/\s*(?P<q2>\d+)"
    rf"|\\frac\{{\s*(?P<p3>{SIGNED})\s*\}}\{{\s*(?P<q3>{SIGNED})\s*\}}"
    rf"|(?P<p4>{DECIMAL})\s*/\s*(?P<q4>[-+]?(?:{DECIMAL}))"
    r"|(?P<stem>\d{0,100}\.\d{0,100})(?:\\overline\{(?P<period>\d+)\}|\\dot\{(?P<dotted>\d)\}|(?P<digit>\d)(?P=digit){2,}\s*\\ldots)"
    r"|(?P<stem2>\d{0,100}\.)\((?P<bracketed>\d+)\)"  # 0.(3)
    r"|10\^\{(?P<e3>[-+]?\d{1,9})\}"
    rf"|(?P<mantissa>{DECIMAL})(?:[eE](?P<e>[-+]?\d{{1,9}})(?![\d.])|\s*\\cdot\s*10\^\{{\s*(?P<e2>[-+]?\d{{1,9}})\s*\}})?"
    r"|\((?P<inner>[-+]?[^(),]*)\)"
    r")"
)
CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "USD": "dollar", "EUR": "euro",
            "GBP": "pound", "US$": "dollar", "¢": "cent", "Rs": "rupee", "Rs.": "rupee"}  # fmt: skip
BEFORE = re.compile(r"(?P<minus>[-+]?)\s*(?P<currency>US\$|USD|EUR|GBP|Rs\.?|[$€£¥₹])\s*")
ALIASES = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "millimeter": "mm", "millimetre": "mm", "gram": "g", "kilogram": "kg", "milligram": "mg", "liter": "l",
    "litre": "l", "L": "l", "milliliter": "ml", "millilitre": "ml", "mL": "ml", "hour": "h", "hr": "h", "minute": "min",
    "second": "s", "sec": "s", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "mile": "mi", "yard": "yd",
    "pound": "pound", "lb": "pound", "ounce": "oz", "degree": "°", "deg": "°", "percent": "%", "percentage": "%",
    "usd": "dollar", "eur": "euro", "gbp": "pound", "buck": "dollar", "cent": "cent", "dollar": "dollar", "mph": "mi/h",
    "kph": "km/h",
}  # fmt: skip
SHORT_UNITS = frozenset({
    "cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "in", "oz", "lb", "hr", "yd", "mi", "min", "sec", "am", "pm",
    "mph", "kph", "usd", "USD", "EUR", "GBP", "nm", "kW", "Hz", "eV", "ms", "rad", "deg", "sq", "cu", "of"
})  # fmt: skip
CHANGING = frozenset({  # words that change the value, or leave it undetermined
    "or", "and", "not", "no", "nor", "maybe", "perhaps", "probably", "but", "if", "then", "else", "than", "more",
    "less", "least", "most", "to", "between", "versus", "vs", "instead", "rather", "either", "neither", "except",
    "without", "about", "over", "under", "below", "above", "unless", "otherwise", "is", "are", "was", "isn", "isnt",
    "wrong", "incorrect", "false", "true", "half", "halves", "quarter", "quarters", "third", "thirds", "fourth",
    "fifth", "tenth", "tenths", "hundredth", "hundredths", "score", "hundred", "hundreds",
    "thousand", "thousands", "million", "millions", "billion", "billions", "trillion", "lakh", "crore", "mil", "bn",
    "k", "squared", "cubed", "factorial", "times", "plus", "minus", "divided", "point", "zero", "one", "two", "three",
    "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy",
    "eighty", "ninety", "remainder", "mod", "pi", "sqrt", "root", "twice", "double", "triple", "sum", "product",
    "approximately", "roughly", "also", "plusminus",
})  # fmt: skip
SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7,
          "billion": 10**9, "trillion": 10**12}  # fmt: skip
SCALE = re.compile(rf"(\s*(?:\\text\{{)?)\s*({'|'.join(SCALES)})s?\b")
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
UNIT = re.compile(
    rf"{WORD.pattern}(?:\^\{{-?\d\}})?(?:(?:\s*/\s*|\s+|\s*\\cdot\s*){WORD.pattern}(?:\^\{{-?\d\}})?){{0,4}}"
)


class Quantity(NamedTuple):
    """An exact number with its unit."""

    value: Fraction
    unit: str = ""  # canonical: "cm^{2}", "dollar", "%"; "" for none


def quantity(text: str) -> Quantity | None:
    """The number of a normalised text, with its unit if it has one; None for other texts."""
    before = BEFORE.match(text)
    currency = CURRENCY[before["currency"]] if before else ""
    rest = before["minus"] + text[before.end() :] if before else text
    match = NUMBER.match(rest)
    if not match:
        return None
    value, rest = _value(match), rest[match.end() :]
    scale = SCALE.match(rest)
    if scale and value is not None:
        value, rest = value * SCALES[scale[2]], scale[1] + rest[scale.end() :]
    unit = _unit(re.sub(r"^/", " per ", rest) if currency else rest, attached=rest[:1].isalpha())
    if value is None or unit is None or (currency and unit != currency and unit[:1] not in ("", "/")):
        return None
    return Quantity(value, currency + (unit if unit != currency else ""))


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Whether two quantities have the same value and units that agree; a unit on one side only is no difference.

    Against a plain number, 50% equals 0.5, and also 50, in case the question asks for per cents.
    """
    if "" not in (answer.unit, gold.unit):
        return answer == gold
    plain, other = (answer, gold) if answer.unit == "" else (gold, answer)
    return plain.value == other.value or (other.unit == "%" and plain.value == other.value / 100)


def split_unit(text: str) -> tuple[str, str]:
    r"""(text before the unit, unit), as of `16\pi \text{ cm}^{2}`; ("", "") if the text ends in no unit."""
    for match in re.finditer(r"\\text\{|(?<=[\d})!]) (?=[a-zA-Z]{2})|(?<=\\pi ) ?(?=[a-zA-Z]{2})", text):
        unit = _unit(text[match.start() :], attached=False)
        if unit and match.start():
            return text[: match.start()].strip(), unit
    return "", ""


def decimal(text: str) -> Decimal | None:
    """The exact value of a plain decimal number of any length; None for other texts."""
    if not PLAIN.fullmatch(text.strip()):
        return None
    try:
        return Decimal(text.strip())
    except InvalidOperation:  # an exponent of more digits than Decimal has
        return None


def decimal_value(text: str) -> Fraction | None:
    """The exact value of a decimal number, commas allowed; None for other texts and for huge numbers."""
    number = decimal(re.sub(r"^([-+])\s+", r"\1", text.replace(",", "")))
    if number is None or abs(number.adjusted()) > MAX_EXPONENT or len(text) > MAX_EXPONENT:
        return None
    return Fraction(number)


def _value(match: re.Match) -> Fraction | None:
    found = {name: text for name, text in match.groupdict().items() if text is not None}
    sign = -1 if found.pop("sign") == "-" else 1
    whole = found.get("whole", found.get("whole2", "0"))
    if "inner" in found:
        inner = quantity(found["inner"].strip())
        return sign * inner.value if inner and not inner.unit else None
    top, bottom = (next((found[name + n] for n in "1234" if name + n in found), None) for name in "pq")
    if top is not None and bottom is not None:
        parts = [decimal_value(part) for part in (whole, top, bottom)]
        return sign * (parts[0] + parts[1] / parts[2]) if None not in parts and parts[2] else None
    if "stem" in found or "stem2" in found:
        return _repeating(sign, found)
    exponent = found.get("e") or found.get("e2") or found.get("e3") or "0"
    value = decimal_value(f"{found.get('mantissa', '1').rstrip('.')}e{exponent}")
    return None if value is None else sign * value


def _repeating(sign: int, found: dict[str, str]) -> Fraction | None:
    stem = found.get("stem") or found["stem2"]
    period = next(found[name] for name in ("period", "dotted", "digit", "bracketed") if name in found)
    if len(stem) > 100 or len(period) > 100 or stem == ".":
        return None
    places = len(stem.partition(".")[2])
    return sign * (Fraction(stem.rstrip(".") or "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places))


def _unit(text: str, attached: bool) -> str | None:
    """The canonical unit of the text after a number; None if it is no unit."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    is_marked, unit = plain != text, plain.strip().rstrip(".")
    unit = re.sub(r"\s+(?=\^)", "", re.sub(r"\b(sq|cu)\.", r"\1", unit))
    if is_marked:
        unit = re.sub(r"^\((.*)\)$", r"\1", unit)  # 18 \text{ (cm)}
    unit = re.sub(r"^/\s*(?=[a-z]{3})", "per ", unit)
    if not unit:
        return ""
    if len(unit) > MAX_UNIT:
        return None
    if unit in ("%", "°"):
        return unit
    if unit in CURRENCY:
        return CURRENCY[unit]
    if re.fullmatch(r"°\s*[CFK]", unit):
        return f"°{unit[-1]}"
    words = WORD.findall(re.sub(r"\^\{-?\d\}", "", unit))
    if not UNIT.fullmatch(unit) or any(part in CHANGING for word in words for part in re.split("['-]", word.lower())):
        return None
    if not is_marked and not all(_is_plain_unit(word, attached, first=i == 0) for i, word in enumerate(words)):
        return None
    return _canonical_unit(unit)


def _is_plain_unit(word: str, attached: bool, first: bool) -> bool:
    """Whether a word outside `\\text` is a unit and not a product of variables."""
    if not word.isascii():  # 18元
        return True
    if len(word) == 1:
        return not (attached and first) and word in "mghsLla"
    return word in SHORT_UNITS or (len(word) > 2 and not (attached and first)) or word.rstrip("s") in ALIASES


def _canonical_unit(unit: str) -> str:
    unit = re.sub(r"\bsq(?:uare)?\s+(\w+)", r"\1^{2}", re.sub(r"\bcu(?:bic)?\s+(\w+)", r"\1^{3}", unit))
    unit = re.sub(r"\s+(\w+)\^\{-(\d)\}", r"/\1^{\2}", unit).replace("^{1}", "")
    unit = re.sub(r"\s*(?:\bper\b|/)\s*", "/", unit)

    def canonical(match: re.Match) -> str:
        word = match[0]
        lower = word.lower() if len(word) > 1 else word
        single = lower[:-1] if lower.endswith("s") and len(lower) > 2 else lower
        return ALIASES.get(word) or ALIASES.get(lower) or ALIASES.get(single) or single

    unit = re.sub(r"\s*\\cdot\s*|\s+|-", " ", WORD.sub(canonical, unit))
    return {"° celsius": "°C", "° fahrenheit": "°F"}.get(unit, unit)
