from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.compare import (
    Answers,
    Resampling,
    bootstrap_interval,
    check_same_images,
    compare,
    holm,
    mcnemar,
    read_answers,
)
from schemas.errors import DataError
from tests.support.predictions import CLASSES, write_answers

RESAMPLING = Resampling(4000, 7)


def answers(name: str, correct: np.ndarray, **changes: object) -> Answers:
    uids = np.array([row.to_bytes(16, "little") for row in range(len(correct))], "S16")
    fields = {"uids": uids, "labels": np.zeros(len(correct), np.int64), "class_names": CLASSES}
    return Answers(name=name, correct=correct, **{**fields, **changes})


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (1, 9), (30, 14), (5, 0)])
def test_mcnemar_is_a_binomial_test(only_first: int, only_second: int) -> None:
    p, mid_p = mcnemar(only_first, only_second)
    disagree = only_first + only_second
    expected = stats.binomtest(only_first, disagree, 0.5).pvalue if disagree else 1.0
    assert p == pytest.approx(expected, abs=1e-12)
    counts = np.arange(disagree + 1)
    chance = stats.binom.pmf(counts, disagree, 0.5)
    gap, given = abs(2 * counts - disagree), abs(only_first - only_second)
    halved = chance[gap > given].sum() + chance[gap == given].sum() / 2
    assert mid_p == pytest.approx(halved if disagree else 1.0, abs=1e-12)


def test_holm_is_the_step_down_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_bootstrap_is_that_of_drawing_images() -> None:
    rng = np.random.default_rng(0)
    gap = np.repeat([1, -1, 0], [40, 25, 135])
    drawn = rng.choice(gap, (20_000, len(gap))).mean(axis=1)
    low, high = bootstrap_interval(40, 25, 200, Resampling(20_000, 1), names="a/b")
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.006)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.006)


def test_the_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(3)
    shares = [0.12, 0.07, 0.81]
    covered = 0
    for trial in range(1000):
        only_first, only_second, _ = rng.multinomial(400, shares)
        resampling = Resampling(1000, trial)
        low, high = bootstrap_interval(only_first, only_second, 400, resampling, names="a/b")
        covered += low <= 0.05 <= high
    assert 930 <= covered <= 970


def test_every_pair_is_compared_and_adjusted() -> None:
    correct = [np.arange(200) < limit for limit in (160, 150, 80)]
    report = compare([answers(n, c) for n, c in zip("abc", correct, strict=True)], RESAMPLING)
    assert [(it.first, it.second) for it in report.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [it.difference_ratio for it in report.pairs] == [0.05, 0.4, 0.35]
    first = report.pairs[0]
    assert (first.only_first_correct, first.only_second_correct) == (10, 0)
    assert first.mcnemar_p == pytest.approx(2 * 0.5**10)
    assert [it.holm_p for it in report.pairs] == holm([it.mcnemar_p for it in report.pairs])
    assert first.low_ratio < first.difference_ratio < first.high_ratio
    assert [model.correct for model in report.models] == [160, 150, 80]
    assert (
        compare([answers(n, c) for n, c in zip("abc", correct, strict=True)], RESAMPLING) == report
    )


def test_a_model_and_itself_do_not_differ() -> None:
    same = np.arange(50) % 3 > 0
    (pair,) = compare([answers("a", same), answers("b", same)], RESAMPLING).pairs
    assert (pair.difference_ratio, pair.low_ratio, pair.high_ratio, pair.holm_p) == (0, 0, 0, 1)


def test_answers_are_paired_by_uid_and_not_by_order(tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    predicted = np.where(np.arange(30) < 12, labels, (labels + 1) % 3)
    write_answers(tmp_path / "a", predicted, labels)
    table = read_answers(tmp_path / "a" / "predictions.arrow", "a", CLASSES)
    assert table.correct.sum() == 12
    assert (np.sort(table.uids) == table.uids).all()
    for row, uid in enumerate(table.uids.tolist()):
        stored = int.from_bytes(uid.ljust(16, b"\0"), "little")
        assert table.correct[row] == (stored < 12)
        assert table.labels[row] == stored % 3


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"class_names": ("ant", "bee", "dog")}, "classes that differ: cat, dog"),
        ({"class_names": ("bee", "ant", "cat")}, "differ in their order"),
        ({"labels": np.array([0, 1, 0, 0])}, "call 1 images by other classes, such as 0100"),
        (
            {"uids": np.array([row.to_bytes(16, "little") for row in (0, 1, 2, 9)], "S16")},
            "1 are only of a, 1 only of b, such as 0300",
        ),
    ],
)
def test_answers_to_other_questions_are_not_compared(
    other: dict[str, object], sentence: str
) -> None:
    correct = np.ones(4, bool)
    with pytest.raises(DataError, match=sentence):
        check_same_images(answers("a", correct), answers("b", correct, **other))
