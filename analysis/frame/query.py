"""A condition on cells, `kv_ratio<0.1 and model=="ratplus_tiny"`, as rows of a frame. Nothing in it is ever executed.

The text is parsed as a Python expression, and only names of columns, literals, comparisons, `and`, `or`, `not`, `in`
and arithmetic have a meaning here: no calls, no attributes, no variables of the program.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable
from typing import Any

import pandas as pd

LONGEST = 2_000
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_CALCULATE: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_ALLOWED = "allowed: names of columns, numbers, texts, ==, !=, <, <=, >, >=, in, and, or, not, + - * /"
_QUOTED = re.compile(r"`([^`]*)`")
_STAND_IN = "quoted_column_{}_"


class QueryError(ValueError):
    """A condition that is not understood: one line for the user."""


def select(frame: pd.DataFrame, condition: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows that meet a condition, and the columns that it names, in their order.

    A dotted name is a column (`train.adapt.lr`); any other name may stand in backquotes (`` `timing:seconds` ``). A
    comparison with what is not known (null) is false, save `== None` and `!= None`, which ask for just that.

    Raises:
        QueryError: not understood, or a column that the frame does not have (the line names the nearest).
    """
    if len(condition) > LONGEST:
        raise QueryError(f"the condition has {len(condition):,} characters, of which at most {LONGEST:,} are read")
    quoted: list[str] = []

    def stand_in(found: re.Match) -> str:
        quoted.append(found[1])
        return _STAND_IN.format(len(quoted) - 1)

    text = _QUOTED.sub(stand_in, condition.strip())
    try:
        tree = ast.parse(text, mode="eval")
        reading = _Reading(frame, condition, {_STAND_IN.format(n): name for n, name in enumerate(quoted)})
        met = reading.value(tree.body)
    except (SyntaxError, RecursionError, MemoryError, ArithmeticError, ValueError) as error:
        if isinstance(error, QueryError):
            raise
        raise QueryError(
            f"{condition!r}: not understood; write it as in 'kv_ratio < 0.1 and model == \"ratplus_tiny\"'"
        ) from None
    if not _is_condition(met):
        raise QueryError(f"{condition!r}: this is a value, not a condition; compare it with something")
    rows = met if isinstance(met, pd.Series) else pd.Series(met, index=frame.index)
    return frame[rows.astype(bool)], list(dict.fromkeys(reading.named))


class _Reading:
    """One condition on one frame; `named` collects the columns that it names."""

    def __init__(self, frame: pd.DataFrame, condition: str, quoted: dict[str, str]):
        self._frame, self._condition, self._quoted = frame, condition, quoted
        self.named: list[str] = []

    def value(self, node: ast.expr) -> Any:
        """A column, a constant, or True and False by row."""
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._column(node)
        if isinstance(node, ast.BoolOp):
            parts = [self._condition_of(part) for part in node.values]
            met = parts[0]
            for part in parts[1:]:
                met = met & part if isinstance(node.op, ast.And) else met | part
            return met
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            met = self._condition_of(node.operand)
            return ~met if isinstance(met, pd.Series) else not met
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            number = self._number(node.operand)
            return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.BinOp) and type(node.op) in _CALCULATE:
            return _CALCULATE[type(node.op)](self._number(node.left), self._number(node.right))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        raise self._refused(node)

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if value is None or isinstance(value, (bool, str, float)):
            return value
        if isinstance(value, int):
            return float(value) if abs(value) >= 1 << 53 else value
        raise self._refused(node)

    def _column(self, node: ast.Name | ast.Attribute) -> pd.Series:
        name = ast.unparse(node)
        name = self._quoted.get(name, name)
        if re.fullmatch(r"[\w.]+", name) is None and not any(name == own for own in self._quoted.values()):
            raise self._refused(node)
        if name not in self._frame.columns:
            raise QueryError(f"{self._condition!r}: {unknown_column(name, list(self._frame.columns))}")
        self.named.append(name)
        return plain_column(self._frame[name])

    def _condition_of(self, node: ast.expr) -> Any:
        met = self.value(node)
        if not _is_condition(met):
            raise QueryError(f"{self._condition!r}: {self._text(node)} is no condition; compare it with something")
        return met

    def _number(self, node: ast.expr) -> Any:
        value = self.value(node)
        dtype = getattr(value, "dtype", None)
        if isinstance(value, (str, bool)) or value is None or (dtype is not None and dtype.kind not in "fiu"):
            raise QueryError(f"{self._condition!r}: {self._text(node)} is no number to calculate with")
        return value

    def _comparison(self, node: ast.Compare) -> Any:
        met: Any = None
        left_node = node.left
        for sign, right_node in zip(node.ops, node.comparators):
            part = self._one_comparison(left_node, sign, right_node)
            met = part if met is None else met & part
            left_node = right_node
        return met

    def _one_comparison(self, left_node: ast.expr, sign: ast.cmpop, right_node: ast.expr) -> Any:
        left = self.value(left_node)
        if isinstance(sign, (ast.In, ast.NotIn)):
            return self._membership(left, sign, right_node)
        if type(sign) not in _COMPARE:
            raise self._refused(right_node)
        right = self.value(right_node)
        if left is None or right is None:
            other = right if left is None else left
            if type(sign) not in (ast.Eq, ast.NotEq) or not isinstance(other, pd.Series):
                raise QueryError(f"{self._condition!r}: None is compared with == and != alone, and with a column")
            return other.isna() if isinstance(sign, ast.Eq) else other.notna()
        try:
            met = _COMPARE[type(sign)](left, right)
        except TypeError:
            raise QueryError(
                f"{self._condition!r}: {self._text(left_node)} and {self._text(right_node)} cannot be compared: one is "
                "a text, the other a number"
            ) from None
        known = [side.notna() for side in (left, right) if isinstance(side, pd.Series)]
        for part in known:
            met = met & part
        return met.astype(bool) if isinstance(met, pd.Series) else bool(met)

    def _membership(self, left: Any, sign: ast.cmpop, right_node: ast.expr) -> Any:
        if not isinstance(left, pd.Series) or not isinstance(right_node, (ast.List, ast.Tuple, ast.Set)):
            raise QueryError(
                f"{self._condition!r}: `in` asks whether a column is one of a list: pattern in ['D16', 'D64']"
            )
        values = [self.value(item) for item in right_node.elts]
        if any(isinstance(value, pd.Series) for value in values):
            raise QueryError(f"{self._condition!r}: a list holds numbers and texts alone")
        met = left.isin([value for value in values if value is not None])
        return met if isinstance(sign, ast.In) else ~met & left.notna()

    def _text(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        return self._quoted.get(text, text)

    def _refused(self, node: ast.expr) -> QueryError:
        return QueryError(f"{self._condition!r}: {self._text(node)!r} is not allowed in a condition; {_ALLOWED}")


def _is_condition(value: Any) -> bool:
    if isinstance(value, pd.Series):
        return value.dtype == bool
    return isinstance(value, bool)


def plain_column(column: pd.Series) -> pd.Series:
    """A column as it is compared: numbers as float64, also where some are null; texts and truth values as they are."""
    if column.dtype == bool:
        return column
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.astype("float64")
    known = column.dropna()
    kinds = set(map(type, known))
    if known.empty or kinds <= {int, float}:
        return pd.to_numeric(column.astype(object), errors="coerce").astype("float64")
    if kinds == {bool} and len(known) == len(column):
        return column.astype(bool)
    return column.astype(object)


def unknown_column(name: str, columns: list[str]) -> str:
    """What is said of a column that does not exist: the nearest that does."""
    close = difflib.get_close_matches(name, columns, cutoff=0.5)
    near = f"did you mean {' or '.join(close)}?" if close else "`ratplus ls --json` shows all columns"
    return f"there is no column {name!r}; {near}"
