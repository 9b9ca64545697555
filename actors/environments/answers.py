r"""Finds the final answer in a response, and the number that it is.

"so it is \boxed{\text{- 1,234.50 dollars}}" -> "\text{- 1,234.50 dollars}" -> "-1234.5"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|(?=[^\s{]))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character of the answer, and closes nothing
MARK = "####"
HEADING = re.compile(r"\s*[A-Za-z]{2}")  # of what follows it, where something does
THOUGHTS = re.compile(r"</think(?:ing)?>")
BULLET = re.compile(r"^\s*[-*\u2022]\s+", re.MULTILINE)

TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}(\s*\^\s*(?:\d|\{\d+\}))?")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))")
LEFT_OUT = re.compile(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[$%,!;: ]|[$%`*]")
MINUS = str.maketrans("\u2212\u2013\u00a0\u202f\u2009", "--   ")
EXPONENT = r"(?:[eE][+-]?\d{1,3}(?!\w|\.\d))?"
PLAIN = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d{{1,3}}(?: \d{{3}})+(?! ?\d)|\d+)(?:\.\d+)?{EXPONENT}|\.\d+{EXPONENT}"
SIGNED = rf"(?:(?<!\w)-\s*)?(?:{PLAIN})"
NUMBER = re.compile(rf"({SIGNED})(?:\s+(\d+)\s*/\s*(\d+)|\s*/\s*({SIGNED}))?", re.ASCII)
OUT_OF = re.compile(r"\s*(?:/|(?:out\s+)?of)\s*", re.IGNORECASE)
LONGEST_NUMBER = 40  # characters


def said(text: str) -> str:
    """What a model says after its thoughts, if it thinks; all of it where no thought ends."""
    return THOUGHTS.split(text)[-1]


def boxed(text: str) -> str | None:
    r"""The inside of the last whole `\boxed{}`; None where there is none. One whose brace never closes, because the
    response was cut, does not undo the one before it. `\boxed 5` and `\fbox{5}` count, too."""
    found = _box(text)
    return None if found is None else found[1]


def all_boxed(text: str) -> list[str]:
    r"""The insides of all whole `\boxed{}`, the last one first."""
    return [inside for _, inside in _boxes(text)]


def _box(text: str) -> tuple[int, str] | None:
    """Where the last whole box begins, and its inside."""
    return next(_boxes(text), None)


def _boxes(text: str) -> Iterator[tuple[int, str]]:
    for box in reversed(list(BOX.finditer(text))):
        inside = _braced(text, box.end()) if box[1] else text[box.end() :].split(maxsplit=1)[0].partition("$")[0]
        if inside is not None:
            yield box.start(), inside


def _braced(text: str, begin: int) -> str | None:
    depth = 1
    for mark in BRACE.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return text[begin : mark.start()]
    return None


def final_answer(text: str) -> str | None:
    r"""What stands after the last `####` (to the end of its line) or in the last `\boxed{}`, whichever is later."""
    marked, box = _mark(text), _box(text)
    if marked > (-1 if box is None else box[0]):
        return text[marked + len(MARK) :].partition("\n")[0]
    return None if box is None else box[1]


def headed(text: str) -> str | None:
    """The line of a `####` that begins the text, also where more follows; None where there is none."""
    before, mark, after = text.partition(MARK)
    return after.partition("\n")[0] if mark and not before.strip() else None


def _mark(text: str) -> int:
    """Where the last `####` begins that marks an answer, -1 where none does: in Markdown it begins headings, too."""
    marked = text.rfind(MARK)
    while marked >= 0:
        line, _, after = text[marked + len(MARK) :].partition("\n")
        if not (after.strip() and HEADING.match(line)):
            break
        marked = text.rfind(MARK, 0, marked)
    return marked


def number(text: str | None) -> str | None:
    """The one number in an answer, canonical: "$1,234.50 dollars" -> "1234.5", "3 1/2" -> "3.5", "10/4" -> "2.5",
    "2/6" -> "1/3". Of an equation the last side counts. None where there is none, or several."""
    if text is None:
        return None
    found = NUMBER.findall(_spelled(text).rpartition("=")[2])
    return canonical(_value(*found[0])) if len(found) == 1 else None


def last_number(text: str) -> str | None:
    """The last number of a text, canonical; None where there is none. A bullet of a list is no sign."""
    found = NUMBER.findall(_spelled(BULLET.sub("", text) if "\n" in text.strip() else text))
    return canonical(_value(*found[-1])) if found else None


def last_mark(text: str, best: float) -> float | None:
    """The last number of a text as a mark of at most `best`: of "8/10" and "8 out of 10" it is the 8, where 10 is the
    best. None where there is none, or where it is a mark out of something else."""
    spelled = _spelled(text)
    found = list(NUMBER.finditer(spelled))
    if not found:
        return None
    whole, above, below, divisor = found[-1].groups("")
    if divisor and best != 1:
        value = _value(whole, "", "", "") if _value(divisor, "", "", "") == best else None
    else:
        value = _value(whole, above, below, divisor)
        if len(found) > 1 and value == best and OUT_OF.fullmatch(spelled, found[-2].end(), found[-1].start()):
            value = _value(*found[-2].groups(""))
    return None if value is None else float(value)


def _spelled(text: str) -> str:
    """Without what surrounds numbers; with fractions as a/b."""
    text = LEFT_OUT.sub("", text.translate(MINUS).replace("{,}", ","))
    text = TEXT.sub(lambda unit: f" {unit[1]} " if re.search(r"\d", unit[1]) else " ", text)
    return FRACTION.sub(lambda parts: f" {parts[1] or parts[2]}/{parts[3] or parts[4]} ", text)


def _value(whole: str, above: str, below: str, divisor: str) -> Fraction | None:
    """Of the parts of NUMBER: a number, one with a fraction behind it, or one divided by another."""
    if max(map(len, (whole, above, below, divisor))) > LONGEST_NUMBER:
        return None
    try:
        value = _fraction(whole)
        if above:
            part = Fraction(int(above), int(below))
            return value - part if whole.startswith("-") else value + part
        return value / _fraction(divisor) if divisor else value
    except ZeroDivisionError:
        return None


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[,\s]", "", digits))


def canonical(value: Fraction | None) -> str | None:
    """A number as a decimal where it has one, else as a fraction: equal for equal numbers."""
    if value is None:
        return None
    rest, places = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest, count = rest // factor, count + 1
        places = max(places, count)
    if rest != 1:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
