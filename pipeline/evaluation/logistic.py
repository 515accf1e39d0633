"""Multinomial logistic regression whose L2 penalty is chosen on held-out training rows.

Shared by the baselines on pixels and the probes of features; what differs is which rows are held
out. Axes: N training rows, M others, D dimensions, E of them after rotation.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss

from schemas.errors import DataError

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse strengths of the L2 penalty that are tried, for standardised numbers."""
FALLBACK_C = 1.0
"""Taken where no row can be held out, because a class would be left without any."""
_MAX_ITERATIONS = 1000

Fold = tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " m"]]
"""Rows to learn from, and the rows that are held out meanwhile."""


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier of raw numbers."""

    mean: Float[np.ndarray, " D"]
    scale: Float[np.ndarray, " D"]
    basis: Float[np.ndarray, "D E"] | None
    """Axes of the span of the training rows, where they are fewer than dimensions."""
    model: Any
    chosen: dict[str, float]
    """The penalty, and the held-out log loss of each that was tried."""

    def predict(self, rows_MD: Num[np.ndarray, "M D"]) -> Integer[np.ndarray, " M"]:
        """The most probable class of each row."""
        standard_MD = (rows_MD - self.mean) / self.scale
        turned = standard_MD if self.basis is None else standard_MD @ self.basis
        return np.asarray(self.model.predict(turned))


def fit_logistic(
    train_ND: Num[np.ndarray, "N D"], label_N: Integer[np.ndarray, " N"], folds: Sequence[Fold]
) -> Logistic:
    """Choose the penalty by the mean log loss of the held-out rows, then learn from all rows.

    Each dimension is standardised by all training rows. For each fold 7 fits, and one more, each of
    N x min(N, D) x K multiplications an iteration; 8 x D x N bytes, three times.

    Raises:
        DataError: If the labels name fewer than two classes.
    """
    if len(np.unique(label_N)) < 2:
        raise DataError("the training split has images of one class only; this needs two")
    mean_D, std_D = train_ND.mean(axis=0), train_ND.std(axis=0)
    scale_D = np.where(std_D > 0, std_D, 1.0)  # what is constant stays 0
    turned_NE, basis = _rotate((train_ND - mean_D) / scale_D)
    with warnings.catch_warnings():
        # Weak penalties on separable rows have no finite optimum; the held-out losses judge them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds:
            model, chosen = _cross_validate(turned_NE, label_N, folds)
        else:
            model = LogisticRegression(C=FALLBACK_C, max_iter=_MAX_ITERATIONS)
            model, chosen = model.fit(turned_NE, label_N), {"C": FALLBACK_C}
    return Logistic(mean_D, scale_D, basis, model, chosen)


def _cross_validate(
    train_NE: Float[np.ndarray, "N E"], label_N: Integer[np.ndarray, " N"], folds: Sequence[Fold]
) -> tuple[Any, dict[str, float]]:
    search = LogisticRegressionCV(
        Cs=C_GRID,
        l1_ratios=(0.0,),
        cv=folds,
        scoring=_negative_log_loss,
        max_iter=_MAX_ITERATIONS,
        use_legacy_attributes=False,
    ).fit(train_NE, label_N)
    losses = -search.scores_.reshape(len(folds), len(C_GRID)).mean(axis=0)
    tried = {f"log_loss[C={c:g}]": float(loss) for c, loss in zip(C_GRID, losses, strict=True)}
    return search, {"C": float(search.C_), **tried}


def _negative_log_loss(
    model: Any, rows_ME: Float[np.ndarray, "M E"], label_M: Integer[np.ndarray, " M"]
) -> float:
    """Of held-out rows, among which a rare class may be missing."""
    return -float(log_loss(label_M, model.predict_proba(rows_ME), labels=model.classes_))


def _rotate(
    train_ND: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, "N E"], Float[np.ndarray, "D E"] | None]:
    """Coordinates in the span of the training rows, where they are fewer than dimensions.

    The optimum of an L2-penalised model lies in that span and does not change when the axes turn,
    so answers stay the same while a fit gets D / N times cheaper.
    """
    if train_ND.shape[0] >= train_ND.shape[1]:
        return train_ND, None
    basis_DE, train_EN = np.linalg.qr(train_ND.T)
    return train_EN.T, basis_DE
