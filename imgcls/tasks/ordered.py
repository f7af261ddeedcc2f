from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcls.errors import UserError
from imgcls.tasks.base import Metric
from imgcls.tasks.single_label import SingleLabel

if TYPE_CHECKING:
    from torch import nn

    from imgcls.losses import Labels

AT_START, ANYWHERE = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\d+(?:\.\d+)?")
SHOWN = 10
NOTE = "Those of mae and qwk are the middle ones of what resampled images give."


class Ordered(SingleLabel):
    """Each image is of one class, and classes have an order, such as grades."""

    labels: Labels = "ordered classes"
    resampled = "mae", "qwk", "within_one"
    meaning: Mapping[str, str] = {
        "loss": "",
        "acc": "share of images predicted right",
        "within_one": "right, or a neighbour of it",
        "mae": "classes between it and the prediction",
        "qwk": "quadratic weighted kappa",
    }

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

    def scores(self, num_classes: int, stage: str) -> nn.Module:  # noqa: D102
        from imgcls.evaluate.ordinal_scores import OrdinalScores

        return OrdinalScores(num_classes, stage)

    def evaluation(  # noqa: D102
        self,
        logits: np.ndarray,
        label: np.ndarray,
        class_names: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        cut: np.ndarray | None = None,
        temperature: float = 1.0,
        class_counts: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        from imgcls.evaluate.ordinal import ordinal_scores

        found = super().evaluation(logits, label, class_names, columns, cut, temperature, class_counts)
        found["metrics"] |= ordinal_scores(self.decided(logits, cut), label, len(class_names))
        return {**found, "note": f"{found['note']} {NOTE}"}

    def resample(self, metric: str, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> Metric:  # noqa: D102
        from imgcls.evaluate.resampled import mean, quadratic_weighted_kappa

        decided = self.decided(logits, cut)
        if metric == "qwk":
            return quadratic_weighted_kappa(decided, label)
        distance = np.abs(decided - label)
        return mean(distance if metric == "mae" else distance <= 1)


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
        raise UserError(
            f"--data.ordered: {' and '.join(told)}; name each class once, from the lowest to the highest, in quotes "
            "where YAML reads something else, such as no or 01"
        )
