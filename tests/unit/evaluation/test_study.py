import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.study import differences, means, split_name, t_interval
from schemas.report import AccuracyRow


def row(stage: str, ratio: float, *, method: str = "model", test_set: str = "t") -> AccuracyRow:
    return AccuracyRow(
        stage=stage,
        kind="evaluate",
        artifact=f"evaluate-{stage}",
        place=0,
        method=method,
        split="test",
        test_set=test_set,
        correct=round(ratio * 1000),
        total=1000,
        top1_ratio=ratio,
        low_ratio=0.0,
        high_ratio=1.0,
    )


SEEDS = [f"seed={seed}" for seed in range(5)]
TRANSFER = [0.91, 0.93, 0.90, 0.94, 0.92]
SCRATCH = [0.90, 0.91, 0.91, 0.90, 0.89]


def measured(stage: str, ratios: list[float], *, method: str = "model") -> list[AccuracyRow]:
    return [
        row(f"{stage}[{seed}]", ratio, method=method)
        for seed, ratio in zip(SEEDS, ratios, strict=True)
    ]


def test_a_stage_name_is_taken_apart() -> None:
    assert split_name("accuracy[seed=1,model.pool=gap]") == ("accuracy", "seed=1,model.pool=gap")
    assert split_name("accuracy") == ("accuracy", None)


def test_paired_interval_is_scipys() -> None:
    (found,) = differences(measured("transfer", TRANSFER) + measured("scratch", SCRATCH))
    expected = stats.ttest_rel(TRANSFER, SCRATCH).confidence_interval(0.95)
    assert (found.first, found.second) == ("transfer", "scratch")
    assert found.variants == tuple(SEEDS)
    assert found.mean_ratio == pytest.approx(np.mean(TRANSFER) - np.mean(SCRATCH))
    assert (found.low_ratio, found.high_ratio) == pytest.approx((expected.low, expected.high))


def test_mean_interval_is_scipys() -> None:
    (found,) = means(measured("transfer", TRANSFER))
    expected = stats.ttest_1samp(TRANSFER, 0.0).confidence_interval(0.95)
    assert found.mean_ratio == pytest.approx(np.mean(TRANSFER))
    assert found.top1_ratios == tuple(TRANSFER)
    assert (found.low_ratio, found.high_ratio) == pytest.approx((expected.low, expected.high))


def test_the_order_of_variants_does_not_matter() -> None:
    rows = measured("transfer", TRANSFER) + measured("scratch", SCRATCH)[::-1]
    (found,) = differences(rows)
    assert found.mean_ratio == pytest.approx(np.mean(TRANSFER) - np.mean(SCRATCH))


def test_every_pair_of_methods_is_compared_once() -> None:
    rows = (
        measured("transfer", TRANSFER)
        + measured("pixels", SCRATCH, method="nearest_neighbour")
        + measured("pixels", SCRATCH, method="logistic_regression")
    )
    assert [(it.first, it.second) for it in differences(rows)] == [
        ("transfer", "pixels: nearest_neighbour"),
        ("transfer", "pixels: logistic_regression"),
        ("pixels: nearest_neighbour", "pixels: logistic_regression"),
    ]


def test_only_shared_variants_on_the_same_images_are_paired() -> None:
    rows = measured("transfer", TRANSFER) + measured("scratch", SCRATCH)[:3]
    assert differences(rows)[0].variants == tuple(SEEDS[:3])
    other = [row(f"upstream[{seed}]", 0.5, test_set="other") for seed in SEEDS]
    assert differences(measured("transfer", TRANSFER) + other) == ()


def test_single_results_have_no_study() -> None:
    rows = [row("accuracy", 0.9), row("pixels[seed=1]", 0.9)]
    assert means(rows) == ()
    assert differences(rows) == ()
    with pytest.raises(ValueError, match="at least 2"):
        t_interval([0.5])
