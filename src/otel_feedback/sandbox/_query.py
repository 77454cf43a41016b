"""Weave's query language, as much as reading feedback needs: `$expr` over a list of rows. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


class QueryError(ValueError):
    """An expression that the sandbox cannot read."""


def select(rows: Sequence[Row], request: Row) -> tuple[list[Row], int]:
    """Filter, sort, cut and project rows; answer them and how many there were before the cut."""
    expression = (request.get("query") or {}).get("$expr")
    found = [row for row in rows if expression is None or evaluate(expression, row)]
    for order in reversed(request.get("sort_by") or []):
        found.sort(key=_sort_key(order["field"]), reverse=order["direction"] == "desc")
    start = request.get("offset") or 0
    limit = request.get("limit")
    cut = found[start:] if limit is None else found[start : start + limit]
    names = request.get("fields")
    return [dict(row) if names is None else {name: field(row, name) for name in names} for row in cut], len(found)


def _sort_key(name: str) -> Callable[[Row], str]:
    """Sort by a field as text: ids and times, which are what feedback is sorted by, are text."""
    return lambda row: str(field(row, name))


def evaluate(expression: object, row: Row) -> Any:
    """Answer what an expression says about a row."""
    if not isinstance(expression, Mapping) or len(expression) != 1:
        raise QueryError("an expression is an object with one operator")
    ((name, operand),) = expression.items()
    if name == "$literal":
        return operand
    if name == "$getField":
        return field(row, str(operand))
    try:
        rule = _OPERATORS[name]
    except KeyError:
        raise QueryError(f"the sandbox does not know the operator {name!r}") from None
    return rule(operand, row)


def field(row: Row, path: str) -> Any:
    """Answer a field by its dotted path; None where there is none."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _operands(operand: object, row: Row) -> list[Any]:
    if not isinstance(operand, list):
        raise QueryError("an operator takes a list")
    return [evaluate(each, row) for each in operand]


def _compare(rule: Callable[[Any, Any], Any]) -> Callable[[object, Row], bool]:
    def compare(operand: object, row: Row) -> bool:
        operands = _operands(operand, row)
        if len(operands) != 2:
            raise QueryError("a comparison takes two operands")
        left, right = operands
        try:
            return bool(rule(left, right))
        except TypeError:
            return False  # null and text have no order

    return compare


def _in(operand: object, row: Row) -> bool:
    if not isinstance(operand, list) or len(operand) != 2 or not isinstance(operand[1], list):
        raise QueryError("$in takes a value and a list")
    return evaluate(operand[0], row) in [evaluate(each, row) for each in operand[1]]


def _contains(operand: object, row: Row) -> bool:
    if not isinstance(operand, Mapping) or not {"input", "substr"} <= set(operand):
        raise QueryError("$contains takes an object with input and substr")
    text, part = str(evaluate(operand["input"], row)), str(evaluate(operand["substr"], row))
    return part.lower() in text.lower() if operand.get("case_insensitive") else part in text


_OPERATORS: Mapping[str, Callable[[Any, Row], Any]] = {
    "$and": lambda operand, row: all(_operands(operand, row)),
    "$or": lambda operand, row: any(_operands(operand, row)),
    "$not": lambda operand, row: not all(_operands(operand, row)),
    "$eq": _compare(operator.eq),
    "$gt": _compare(operator.gt),
    "$gte": _compare(operator.ge),
    "$lt": _compare(operator.lt),
    "$lte": _compare(operator.le),
    "$in": _in,
    "$contains": _contains,
}


def ids_compared(expression: object) -> set[str] | None:
    """Answer the ids of an expression that only compares the id, once or joined by or; None for any other."""
    match expression:
        case {"$or": list(alternatives)} if alternatives:
            found = [ids_compared(each) for each in alternatives]
            return None if None in found else {each for ids in found if ids for each in ids}
        case {"$eq": [{"$getField": "id"}, {"$literal": str(value)}]}:
            return {value}
        case _:
            return None
