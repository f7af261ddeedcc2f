from __future__ import annotations

import re
from collections.abc import Sequence

from imgcls.errors import UserError
from imgcls.tasks.single_label import SingleLabel

AT_START, ANYWHERE = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\d+(?:\.\d+)?")
SHOWN = 10


class Ordered(SingleLabel):
    """Each image is of one class, and classes have an order, such as grades."""

    def class_order(self, names: Sequence[str], order: Sequence[str] | None = None) -> list[str]:
        """As asked for, else by the numbers in the names: each begins with one, or has but one, such as `grade_2`.

        Raises:
            UserError: The order is that of other classes, or there is none and the numbers leave it open.
        """
        if order is not None:
            _refuse_others(names, order)
            return list(order)
        number = {name: _number(name) for name in names}
        if None in number.values() or len(set(number.values())) < len(number):
            shown = ", ".join(names[:SHOWN]) + (f" … ({len(names)})" if len(names) > SHOWN else "")
            raise UserError(
                f"--data.ordered: the names of the classes, {shown}, do not tell their order by a number each; "
                "give it, --data.ordered=[lowest,…,highest]"
            )
        return sorted(names, key=number.__getitem__)  # type: ignore[arg-type]


def _number(name: str) -> float | None:
    """That which a name begins with, or the only one in it."""
    if first := AT_START.match(name):
        return float(first[0])
    found = ANYWHERE.findall(name)
    return float(found[0]) if len(found) == 1 else None


def _refuse_others(names: Sequence[str], order: Sequence[str]) -> None:
    wrong = {
        "lacks": [name for name in names if name not in order],
        "has what is no class of the data,": [name for name in order if name not in names],
        "has twice": sorted({name for name in order if order.count(name) > 1}),
    }
    told = [f"it {what} {', '.join(of[:SHOWN])}" for what, of in wrong.items() if of]
    if told:
        raise UserError(f"--data.ordered: {' and '.join(told)}; name each class once, from the lowest to the highest")
