"""Arithmetic that a model wrote: as Python spells it, evaluated exactly, never executed."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

LONGEST = 200  # characters of an expression, which bounds its depth, too
LONGEST_WRITTEN = 10 * LONGEST  # as it was written: \left( and \times are six for one
SIGNS = str.maketrans("\u00d7\u00b7\u22c5\u2217\u00f7\u2212\u2013[]{}", "****/--()()", "`$")
SPELLINGS = tuple(
    (re.compile(pattern), other)
    for pattern, other in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\(?:times|cdot)(?![A-Za-z])|(?<=[\d)]) ?[xX] ?(?=[\d(])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\[dt]?frac ?(\(.*?\)) ?(\(.*?\))", r"(\1/\2)"),
        (r"\) ?\(", ")*("),
    )
)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value and the numbers of an expression of integers, + - * / and brackets; nothing is executed.

    Raises ValueError for anything else, and for a division by zero.
    """
    if len(expression) > LONGEST or not re.fullmatch(r"[\d+\-*/() ]+", expression, re.ASCII):
        raise ValueError("not an arithmetic expression")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("not an arithmetic expression") from None
    numbers: list[int] = []
    return _value(tree, numbers), numbers


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(ast.UAdd() | ast.USub() as sign, operand):
            value = _value(operand, numbers)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            a, b = _value(left, numbers), _value(right, numbers)
            if b == 0 and isinstance(sign, ast.Div):
                raise ValueError("division by zero")
            return OPERATORS[type(sign)](a, b)
    raise ValueError(f"{type(node).__name__} is not allowed")


def answer_in(text: str) -> str:
    """The expression that a response gives: between the last <answer> tags, else its last line, as Python spells it. Of
    an equation the first side counts."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return plain(text.strip().rpartition("\n")[2])
    return plain(text[start + len("<answer>") :].partition("</answer>")[0])


def plain(expression: str) -> str:
    """Signs and brackets as Python has them: `$3 \\times [5 − 2] = 9$` -> `3 * (5 - 2)`.

    What is longer than LONGEST_WRITTEN comes back as it is: it is no expression, and not worth the search.
    """
    expression = expression.partition("=")[0]
    if len(expression) > LONGEST_WRITTEN:
        return expression
    expression = " ".join(expression.translate(SIGNS).split())
    for pattern, other in SPELLINGS:
        expression = pattern.sub(other, expression)
    return expression.strip()
