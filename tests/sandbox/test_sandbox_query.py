import pytest

from otel_feedback.sandbox._query import QueryError, evaluate, ids_compared, select

ROW = {"id": "b", "n": 2, "payload": {"note": "Spot on"}}


def field(name):
    return {"$getField": name}


def literal(value):
    return {"$literal": value}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ({"$eq": [field("payload.note"), literal("Spot on")]}, True),
        ({"$eq": [field("payload.note.deeper"), literal(None)]}, True),
        ({"$gt": [field("n"), literal(1)]}, True),
        ({"$gte": [field("n"), literal(2)]}, True),
        ({"$lt": [field("n"), literal(2)]}, False),
        ({"$lte": [field("n"), literal(2)]}, True),
        ({"$lt": [field("missing"), literal(2)]}, False),
        ({"$not": [{"$eq": [field("id"), literal("b")]}]}, False),
        ({"$and": [literal(True), literal(False)]}, False),
        ({"$or": [literal(True), literal(False)]}, True),
        ({"$in": [field("id"), [literal("a"), literal("b")]]}, True),
        ({"$contains": {"input": field("payload.note"), "substr": literal("spot")}}, False),
        ({"$contains": {"input": field("payload.note"), "substr": literal("spot"), "case_insensitive": True}}, True),
    ],
)
def test_an_expression_says_whether_a_row_is_meant(expression, result):
    """
    Operators compare fields by their dotted path with literals.
    """
    assert result == evaluate(expression, ROW)


@pytest.mark.parametrize(
    "expression",
    [
        1,
        {},
        {"$eq": 1, "$gt": 2},
        {"$near": []},
        {"$eq": 1},
        {"$eq": [literal(1)]},
        {"$and": 1},
        {"$in": [literal(1)]},
        {"$in": [literal(1), literal([1])]},
        {"$contains": 1},
        {"$contains": {"input": literal("x")}},
    ],
)
def test_what_is_no_expression_is_refused(expression):
    """
    An expression that cannot be read raises, and says so.
    """
    with pytest.raises(QueryError):
        evaluate(expression, ROW)


def test_rows_are_sorted_cut_and_projected():
    """
    Sorting comes first, then the cut, then the choice of fields; the count is of all.
    """
    rows = [{"id": each, "kind": kind} for each, kind in (("a", "x"), ("b", "y"), ("c", "x"))]
    request = {
        "sort_by": [{"field": "kind", "direction": "asc"}, {"field": "id", "direction": "desc"}],
        "offset": 1,
        "limit": 1,
        "fields": ["id"],
    }

    assert ([{"id": "a"}], 3) == select(rows, request)


def test_without_a_wish_all_rows_come_as_they_are():
    """
    An empty request answers every row.
    """
    assert ([ROW], 1) == select([ROW], {"query": None})


def test_ids_are_read_from_alternatives():
    """
    Comparisons with the id joined by or, nested too, name all their ids.
    """
    one, two = ({"$eq": [field("id"), literal(each)]} for each in "ab")

    assert {"a", "b"} == ids_compared({"$or": [one, {"$or": [two]}]})
