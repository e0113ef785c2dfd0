"""Whole numbers in other notations."""

ROMAN = (
    ("M", 1000), ("CM", 900), ("D", 500), ("CD", 400), ("C", 100), ("XC", 90), ("L", 50),
    ("XL", 40), ("X", 10), ("IX", 9), ("V", 5), ("IV", 4), ("I", 1),
)  # fmt: skip
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def to_roman(number):
    """From 1 to 3999."""
    if not 1 <= number <= 3999:
        raise ValueError("number must be from 1 to 3999")
    text = ""
    for letters, value in ROMAN:
        while number >= value:
            text += letters
            number -= value
    return text


def from_roman(text):
    """The number of a Roman numeral in its usual form."""
    number, at = 0, 0
    for letters, value in ROMAN:
        while text.startswith(letters, at):
            number += value
            at += len(letters)
    if at < len(text) or not text or to_roman(number) != text:
        raise ValueError(f"no Roman numeral: {text!r}")
    return number


def to_base(number, base):
    """The digits of a number in a base from 2 to 36."""
    if not 2 <= base <= len(DIGITS):
        raise ValueError("base must be from 2 to 36")
    if number < 0:
        return "-" + to_base(-number, base)
    digits = ""
    while number >= base:
        number, digit = divmod(number, base)
        digits = DIGITS[digit] + digits
    return DIGITS[number] + digits


def from_base(text, base):
    """The number of digits in a base; a letter may be large."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    number = 0
    for char in digits.lower():
        digit = DIGITS.find(char)
        if not 0 <= digit < base:
            raise ValueError(f"no digit of base {base}: {char!r}")
        number = number * base + digit
    return sign * number


def in_words(number):
    """From 0 to 999999, in English."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{SMALL[ones]}" if ones else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, size)
    words = f"{in_words(count)} {name}"
    return f"{words} {in_words(rest)}" if rest else words


def grouped(number, mark=","):
    """Digits in groups of three."""
    digits = str(abs(number))
    groups = []
    while len(digits) > 3:
        groups.insert(0, digits[-3:])
        digits = digits[:-3]
    text = mark.join([digits, *groups])
    return f"-{text}" if number < 0 else text
