r"""Parses the numbers of final answers. ``docs/grading.md`` documents the grammar; ambiguous text is not a number.

    number = [name "="] [filler words] [sign] [currency] [sign] magnitude [scale word] [unit]

A magnitude is an integer, a decimal, a fraction, a mixed number or a number in scientific notation, in plain text or
LaTeX. All input is limited to ``MAX_LENGTH`` characters, so every step below has a bounded cost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 1000  # characters of an answer
MAX_DIGITS = 400  # of an integer; Python converts up to 4,300 digits
MAX_EXPONENT = 400  # of ten
MAX_WRAPPERS = 8  # nested delimiters around a number
MAX_UNIT_WORDS = 8

THIN_SPACE = "\u2009"
_SPELLINGS: dict[str, str | None] = {
    **dict.fromkeys("\u2212\u2010\u2011\u2013\ufe63\uff0d", "-"),  # minus signs, hyphens, en dash
    **dict.fromkeys("\u00a0\u2002\u2003\u3000\t\r\n", " "),
    **dict.fromkeys("\u202f\u2006\u2008", THIN_SPACE),
    **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff", None),  # invisible
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},  # full-width digits
    **dict(zip("\uff0b\uff0e\uff0c\uff0f\uff05\uff04", "+.,/%$", strict=True)),
    **dict.fromkeys("\u00d7\u00b7\u22c5\u2217", "*"),
    "\u2044": "/",  # fraction slash
    "\u2215": "/",
    "\u2019": "'",
    "\u00b0": " degrees ",
    "\u00a2": " cents ",
}
_CHARACTERS = str.maketrans(_SPELLINGS)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {
    character: Fraction(value)
    for character, value in zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        ("1/2", "1/3", "2/3", "1/4", "3/4", "1/5", "2/5", "3/5", "4/5", "1/6", "5/6", "1/8", "3/8", "5/8", "7/8"),
        strict=True,
    )
}
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|textit|mathit|mbox|operatorname)\s?\{([^{}]*)\}")
_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|limits)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"\\,"), THIN_SPACE),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[;: ]|(?<=[\w}%])~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\([$%€£])"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])"), " degrees "),
    (re.compile(r"\\(?:pounds|euro)(?![A-Za-z])"), ""),
)
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), ("{", "}"), ("**", "**"),
               ("`", "`"), ('"', '"'), ("“", "”"), ("'", "'"))  # fmt: skip

_INT = rf"(?:[1-9]\d{{0,2}}(?:(?:,\d{{3}})+|(?:{THIN_SPACE}\d{{3}})+|(?:'\d{{3}})+)|\d+)"
_DECIMAL = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_ARGUMENT = rf"(?:\{{\s?([+-]?{_DECIMAL})\s?\}}|\s?(\d))"  # of \frac
_POWER = r"(?:\^\s?(?:\{\s?([+-]?\d+)\s?\}|([+-]?\d+)|\(([+-]?\d+)\))|([⁻⁺]?[⁰¹²³⁴-⁹]+))"
_MAGNITUDES = {
    "mixed": re.compile(
        rf"({_INT})(?:\s?\\frac\s?{_ARGUMENT}\s?{_ARGUMENT}|\s(?:and\s)?({_INT})\s?/\s?({_INT}))", re.ASCII
    ),
    "mixed vulgar": re.compile(rf"({_INT})?\s?([{''.join(_VULGAR)}])", re.ASCII),
    "latex fraction": re.compile(rf"\\frac\s?{_ARGUMENT}\s?{_ARGUMENT}", re.ASCII),
    "fraction": re.compile(rf"({_DECIMAL})\s?/\s?({_DECIMAL})", re.ASCII),
    "power of ten": re.compile(rf"(?:({_DECIMAL})\s?[*x]\s?)?10\s?{_POWER}", re.ASCII),
    "exponent": re.compile(rf"({_DECIMAL})[eE]([+-]?\d+)", re.ASCII),
    "decimal": re.compile(rf"({_DECIMAL})", re.ASCII),
}
_SIGN = re.compile(r"([+-])\s?")
_CURRENCY = re.compile(r"(US\$|[$€£¥₹₩]|(?:USD|EUR|GBP|JPY|INR|CNY|CAD|AUD|CHF)(?=[\s\d]))\s?")
_NAME = re.compile(r"([A-Za-z][A-Za-z ]{0,40})=\s?")
_FILLER = re.compile(
    r"(?:(?:a|an|the|total|of|exactly|only|just|simply|therefore|thus|equals?|equal to|is|answer)\s)*", re.I
)
_WORD = re.compile(r"([^\W\d_⁰¹²³⁴-⁹]+(?:'[^\W\d_]+)?)\.?(?:[²³]|\s?\^\s?(?:\{[23]\}|[23]))?")
_SEPARATOR = re.compile(r"\s?[/*·-]\s?|\s+")

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Units of which two different ones contradict each other. All other words are accepted as a unit and ignored.
_UNITS = {
    "%": "% percent percents pct",
    "dollar": "$ us$ usd dollar dollars buck bucks",
    "cent": "cent cents ¢",
    "euro": "€ eur euro euros",
    "sterling": "£ gbp",
    "yen": "¥ jpy yen",
    "rupee": "₹ inr rupee rupees",
    "won": "₩ won",
    "millimetre": "mm millimeter millimeters millimetre millimetres",
    "centimetre": "cm cms centimeter centimeters centimetre centimetres",
    "metre": "m meter meters metre metres",
    "kilometre": "km kms kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yds yard yards",
    "mile": "mi mile miles",
    "milligram": "mg milligram milligrams",
    "gram": "g gram grams",
    "kilogram": "kg kgs kilogram kilograms",
    "ounce": "oz ounce ounces",
    "lb": "lb lbs",
    "ton": "ton tons tonne tonnes",
    "millilitre": "ml milliliter milliliters millilitre millilitres",
    "litre": "l liter liters litre litres",
    "gallon": "gal gallon gallons",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "degree": "degree degrees",
    "mph": "mph",
    "km/h": "kph kmh",
    "am": "am",
    "pm": "pm",
}
_CANONICAL = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split()}
# Common words of two letters that may follow a number with a space between.
_SHORT_WORDS = frozenset(
    ("of", "in", "on", "at", "as", "my", "he", "us", "we", "up", "sq", "cu", "kb", "mb", "gb", "kw")
)
# Words that change or question the number, or belong to another one.
_NOT_IN_A_UNIT = frozenset(
    """
    or nor and not no never to than minus plus divided equals is isn't was are if but maybe perhaps either
    between about approximately approx around roughly almost nearly wrong incorrect false instead half halves
    quarter quarters third thirds dozen dozens gross negative positive remainder mod modulo factorial infinity
    inf nan pi sin cos tan log exp sqrt root lim zero one two three four five six seven eight nine ten eleven
    twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy
    eighty ninety hundreds thousands millions billions
    """.split()  # noqa: SIM905  shorter than a list
)
_NOT_FIRST_IN_A_UNIT = frozenset(("over", "squared", "cubed", "ln"))


@dataclass(frozen=True)
class Number:
    """A parsed final answer."""

    value: Fraction
    plain: str  # the magnitude without separators, such as "1072", "-25.50" or "1/2"
    unit: str | None = None  # canonical, if it is one of ``_UNITS``
    name: str | None = None  # the variable before "="

    def equals(self, other: Number) -> bool:
        """Equal values whose units and variables, if both numbers have a known one, agree."""
        return (
            self.value == other.value
            and (self.unit == other.unit or None in (self.unit, other.unit))
            and (self.name == other.name or None in (self.name, other.name))
        )


def parse_number(text: str) -> Number | None:
    """The number that ``text`` denotes; None if it does not denote exactly one. Never raises."""
    if len(text) > MAX_LENGTH:
        return None
    rest = normalize(text)
    name = None
    if match := _NAME.match(rest):
        name, rest = match[1].strip(), rest[match.end() :]
        rest = _unwrap(rest)
    filler = _FILLER.match(rest)
    rest = rest[filler.end() :] if filler else rest
    sign, unit, rest = _signs(rest)
    magnitude = _magnitude(rest)
    if magnitude is None or sign is None:
        return None
    value, plain, rest = magnitude
    tail = _tail(rest, attached=rest[:1].strip() != "")
    if tail is None or (unit and tail.unit in ("%", "cent")):
        return None
    short_name = name if name is not None and len(name) == 1 else None
    plain = plain if tail.scale == 1 else str(value * tail.scale)
    return Number(sign * value * tail.scale, ("-" if sign < 0 else "") + plain, unit or tail.unit, short_name)


def normalize(text: str) -> str:
    """Without delimiters and LaTeX spelling, single-spaced."""
    rest = _unwrap(text.translate(_CHARACTERS).strip())
    for _ in range(MAX_WRAPPERS):
        inner = _TEXT.sub(r" \1 ", rest)
        if inner == rest:
            break
        rest = inner
    for pattern, replacement in _LATEX:
        rest = pattern.sub(replacement, rest)
    return _unwrap(re.sub(r" +", " ", rest).strip())


def _unwrap(text: str) -> str:
    """Without the delimiters around ``text`` and the punctuation after it."""
    for _ in range(MAX_WRAPPERS):
        bare = text.strip()
        if len(bare) > 1 and bare[-1] in ".,;:" and bare[-2] not in (bare[-1], "\\"):
            bare = bare[:-1].rstrip()
        for opening, closing in _DELIMITERS:
            inner = bare[len(opening) : len(bare) - len(closing)]
            enclosed = len(bare) > len(opening) + len(closing) and bare.startswith(opening) and bare.endswith(closing)
            if enclosed and _balanced(inner, opening, closing):
                bare = inner.strip()
                break
        if bare == text:
            break
        text = bare
    return text


def _balanced(inner: str, opening: str, closing: str) -> bool:
    """Whether the delimiters around ``inner`` belong to each other."""
    if opening == closing:
        return opening not in re.sub(r"\\.", "", inner)
    depth = 0
    for token in re.findall(r"\\.|[{}]", inner) if closing == "}" else ():
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth < 0:
            return False
    return depth == 0 and (closing == "}" or closing not in inner)


def _signs(text: str) -> tuple[int | None, str | None, str]:
    """Sign (None if there are two), currency and the remaining text."""
    signs: list[str] = []
    unit = None
    for pattern in (_SIGN, _CURRENCY, _SIGN):
        if match := pattern.match(text):
            text = text[match.end() :]
            if pattern is _SIGN:
                signs.append(match[1])
            else:
                unit = _CANONICAL.get(match[1].lower(), match[1].lower())
    if len(signs) > 1:
        return None, unit, text
    return (-1 if signs == ["-"] else 1), unit, text


def _magnitude(text: str) -> tuple[Fraction, str, str] | None:
    """The value at the start of ``text``, its plain spelling, and the rest."""
    for kind, pattern in _MAGNITUDES.items():
        match = pattern.match(text)
        if match is None:
            continue
        if any(len(group) > MAX_DIGITS for group in match.groups() if group):
            return None
        parsed = _value(kind, [group for group in match.groups() if group is not None])
        return None if parsed is None else (*parsed, text[match.end() :])
    return None


def _value(kind: str, groups: list[str]) -> tuple[Fraction, str] | None:
    """The value of one of ``_MAGNITUDES`` from its groups."""
    if kind == "mixed":
        whole, top, bottom = (_decimal(group) for group in groups)
        if not 0 < top < bottom or whole == 0:
            return None
        return whole + top / bottom, f"{_digits(groups[0])} {_digits(groups[1])}/{_digits(groups[2])}"
    if kind == "mixed vulgar":
        value = (_decimal(groups[0]) if len(groups) == 2 else 0) + _VULGAR[groups[-1]]
        return value, str(value)
    if kind in ("latex fraction", "fraction"):
        top, bottom = (_decimal(group) for group in groups)
        return None if bottom == 0 else (top / bottom, f"{_digits(groups[0])}/{_digits(groups[1])}")
    if kind in ("power of ten", "exponent"):
        factor = _decimal(groups[0]) if len(groups) == 2 else Fraction(1)
        exponent = groups[-1].translate(_SUPERSCRIPTS)
        if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
            return None
        value = factor * Fraction(10) ** int(exponent)
        return value, str(value)
    return _decimal(groups[0]), _digits(groups[0])


def _digits(text: str) -> str:
    return re.sub(rf"[,'{THIN_SPACE}+]", "", text)


def _decimal(text: str) -> Fraction:
    return Fraction(_digits(text))


@dataclass(frozen=True)
class _Tail:
    unit: str | None
    scale: int = 1


def _tail(text: str, *, attached: bool) -> _Tail | None:
    """Scale and unit after a magnitude; None if the text there is neither."""
    scale = 1
    unit: str | None = None
    words = 0
    text = text.strip()
    if re.match(r"/\s?[A-Za-z]", text):  # a rate, such as 5/day
        text = text[1:].strip()
    while text:
        if words == 0 and text[0] in "%$€£¥₹₩":
            word, end = text[0], 1
        elif match := _WORD.match(text):
            word, end = match[1].lower(), match.end()
            if word in SCALES and unit is None and words == 0:
                scale, text = scale * SCALES[word], text[end:].strip()
                if scale > 10**15:
                    return None
                continue
            if not _is_unit_word(word, attached=attached and words == 0 and scale == 1, first=words == 0):
                return None
        else:
            return None
        words += 1
        if words > MAX_UNIT_WORDS:
            return None
        unit = unit or (_CANONICAL.get(word) if words == 1 else None)
        text = text[end:]
        if text and (separator := _SEPARATOR.match(text)):
            text = text[separator.end() :]
            if not text:
                return None
        elif text and word not in "%$€£¥₹₩":
            return None
    return _Tail(unit, scale)


def _is_unit_word(word: str, *, attached: bool, first: bool) -> bool:
    """Whether ``word`` may be part of a unit: one or two letters may be variables, so only known ones are accepted."""
    if word in _NOT_IN_A_UNIT or word in SCALES or (first and word in _NOT_FIRST_IN_A_UNIT):
        return False
    if not word.replace("'", "").isalpha():
        return False
    if not word.isascii():
        return True
    if len(word) == 1:
        return word in "mgshl" and not attached if first else word in "amgshlcf"
    return len(word) > 2 or word in _CANONICAL or (not attached and word in _SHORT_WORDS)
