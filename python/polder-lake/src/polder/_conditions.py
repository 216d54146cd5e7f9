"""Row filters: PyIceberg's, with numbers written as people write them."""

from decimal import Decimal

from pyiceberg.expressions import (
    And,
    BooleanExpression,
    LiteralPredicate,
    Not,
    Or,
    SetPredicate,
)
from pyiceberg.expressions.literals import DecimalLiteral, Literal
from pyiceberg.expressions.parser import parse
from pyiceberg.expressions.visitors import bind
from pyiceberg.schema import Schema
from pyiceberg.types import DecimalType

from polder._errors import Invalid, NotFound


def parsed(condition: str | BooleanExpression) -> BooleanExpression:
    """The expression of a text. Raises `Invalid`."""
    if not isinstance(condition, str):
        return condition
    try:
        return parse(condition)
    except Exception as error:  # the parser's own errors share no class, and list its whole grammar
        place = getattr(error, "column", None)
        where = f" (at character {place})" if place else ""
        raise Invalid(f"{condition!r} is no condition{where}") from error


def fitted(condition: BooleanExpression, columns: Schema, label: str) -> BooleanExpression:
    """The condition as these columns take it: PyIceberg refuses `amount > 0.5` for a column of type
    `decimal(18, 2)` and takes `0.50`, so the zeros are added here.

    Raises `NotFound` for a column that is not there, `Invalid` for a value its column cannot hold.
    """
    try:
        found = _scaled(condition, columns)
        bind(columns, found, case_sensitive=True)
    except (ValueError, TypeError, ArithmeticError) as error:
        text = f"{label}: {error}"
        if "Could not find field" in str(error):
            raise NotFound(f"{text} (there is: {', '.join(columns.column_names)})") from error
        raise Invalid(text) from error
    return found


def _scaled(condition: BooleanExpression, columns: Schema) -> BooleanExpression:
    if isinstance(condition, And):
        return And(_scaled(condition.left, columns), _scaled(condition.right, columns))
    if isinstance(condition, Or):
        return Or(_scaled(condition.left, columns), _scaled(condition.right, columns))
    if isinstance(condition, Not):
        return Not(_scaled(condition.child, columns))
    if not isinstance(condition, (LiteralPredicate, SetPredicate)):
        return condition
    kind = condition.term.bind(columns, case_sensitive=True).ref().field.field_type
    if not isinstance(kind, DecimalType):
        return condition
    if isinstance(condition, SetPredicate):
        values = {_with_scale(value, kind.scale) for value in condition.literals}
        return type(condition)(condition.term, values)
    return type(condition)(condition.term, _with_scale(condition.literal, kind.scale))


def _with_scale(value: Literal, scale: int) -> Literal:
    """Adds zeros, never removes a digit."""
    if not isinstance(value, DecimalLiteral) or not value.value.is_finite():
        return value
    missing = scale + int(value.value.as_tuple().exponent)
    return value if missing <= 0 else DecimalLiteral(value.value.quantize(Decimal(1).scaleb(-scale)))
