"""What logits say of each image, as a few numbers from which every figure follows.

Axes: B batch, N images, K classes.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from schemas.objectives import Probabilities


@dataclass(frozen=True)
class Answers:
    """A model's answers to some images; 48 bytes for each."""

    labels: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, " N"]
    ranks: Int[np.ndarray, " N"]
    """Classes that come before the true one: 0 where the answer is right. Of equal logits the class
    of the lower number comes first."""
    confidences: Float[np.ndarray, " N"]
    """Probability of the answer."""
    nlls: Float[np.ndarray, " N"]
    """Negative log-likelihood of what is true of the image, in nats."""
    briers: Float[np.ndarray, " N"]
    """Squared distance of probabilities and truth, summed over classes."""

    @classmethod
    def of(
        cls,
        logits_BK: Float[np.ndarray, "B K"],
        label_B: Int[np.ndarray, " B"],
        probabilities: Probabilities,
    ) -> Self:
        """The answers of one batch; logits are finite."""
        rows = np.arange(len(label_B))
        true_B = logits_BK[rows, label_B]
        equal_BK = logits_BK == true_B[:, None]
        before_BK = np.arange(logits_BK.shape[1]) < label_B[:, None]
        predicted_B = logits_BK.argmax(axis=1)
        log_BK = log_probabilities(logits_BK, probabilities)
        odds_BK = np.exp(log_BK)
        confidence_B = odds_BK[rows, predicted_B]
        nll_B = -log_BK[rows, label_B]
        if probabilities == "sigmoid":
            nll_B = np.logaddexp(0.0, logits_BK.astype(np.float64)).sum(axis=1) - true_B
        odds_BK[rows, label_B] -= 1.0
        return cls(
            label_B.astype(np.int64),
            predicted_B,
            ((logits_BK > true_B[:, None]) | (equal_BK & before_BK)).sum(axis=1),
            confidence_B,
            nll_B,
            np.square(odds_BK).sum(axis=1),
        )

    @property
    def right(self) -> Bool[np.ndarray, " N"]:
        """Whether the answer is right."""
        right: np.ndarray = self.ranks == 0
        return right


def log_probabilities(
    logits_BK: Float[np.ndarray, "B K"], probabilities: Probabilities
) -> Float[np.ndarray, "B K"]:
    """Logarithms, in float64: of the softmax over classes, or of each class's own sigmoid."""
    wide_BK = logits_BK.astype(np.float64)
    if probabilities == "sigmoid":
        log_BK: np.ndarray = -np.logaddexp(0.0, -wide_BK)
    else:
        wide_BK -= wide_BK.max(axis=1, keepdims=True)
        log_BK = wide_BK - np.log(np.exp(wide_BK).sum(axis=1, keepdims=True))
    return log_BK


def read_answers(table: pa.Table, probabilities: Probabilities) -> Answers:
    """The answers of a table of `schemas.records.PREDICTIONS`; one record batch at a time."""
    parts = []
    for batch in table.select(["label", "logits"]).to_batches():
        label_B = batch["label"].to_numpy().astype(np.int64)
        logits_BK = batch["logits"].flatten().to_numpy().reshape(len(label_B), -1)
        parts.append(Answers.of(logits_BK, label_B, probabilities))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Answers(*(np.concatenate(column) for column in columns))


def right_of_sets(
    table: pa.Table,
) -> tuple[Bool[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Whether each answer is in the image's set of right classes, and how large the set is.

    The size is -1 where the outside file says nothing of the image.
    """
    right, size = [], []
    for batch in table.select(["predicted", "labels"]).to_batches():
        predicted = batch["predicted"].to_numpy()
        sets = batch["labels"].to_pylist()
        size += [-1 if it is None else len(it) for it in sets]
        right += [answer in (it or ()) for answer, it in zip(predicted.tolist(), sets, strict=True)]
    return np.array(right, np.bool_), np.array(size, np.int64)
