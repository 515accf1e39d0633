"""What is drawn for pairs of neighbours."""

import numpy as np
import pytest

from pipeline.data.feed.mixing import Mix, draw_mix
from schemas.samples import AugmentSpec

PX = (20, 30)


def mix(pairs: int, *, step: int = 0, seed: int = 1, **alphas: float) -> Mix:
    drawn = draw_mix(AugmentSpec(**alphas), np.arange(pairs), seed=seed, step=step, image_px=PX)
    assert drawn is not None
    return drawn


def test_without_alphas_nothing_is_mixed() -> None:
    assert draw_mix(AugmentSpec(), np.arange(4), seed=1, step=0, image_px=PX) is None


def test_partners_share_what_is_drawn() -> None:
    drawn = mix(50, mixup_alpha=0.5, cutmix_alpha=1.0)
    np.testing.assert_array_equal(drawn.keep_B[::2], drawn.keep_B[1::2])
    np.testing.assert_array_equal(drawn.box_B4[::2], drawn.box_B4[1::2])


def test_a_pair_draws_the_same_whoever_asks() -> None:
    whole = mix(12, mixup_alpha=0.2, cutmix_alpha=1.0, step=7)
    own = draw_mix(
        AugmentSpec(mixup_alpha=0.2, cutmix_alpha=1.0),
        np.arange(4, 6),
        seed=1,
        step=7,
        image_px=PX,
    )
    assert own is not None
    part = whole.part(8, 12)
    np.testing.assert_array_equal(own.keep_B, part.keep_B)
    np.testing.assert_array_equal(own.box_B4, part.box_B4)


def test_steps_and_seeds_draw_anew() -> None:
    drawn = [mix(4, mixup_alpha=1.0, **key).keep_B.tobytes() for key in KEYS]
    assert len(set(drawn)) == len(KEYS)


KEYS = ({"step": 0}, {"step": 1}, {"seed": 2})


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_of_mixup_have_the_spread_of_their_beta(alpha: float) -> None:
    keep = mix(4000, mixup_alpha=alpha).keep_B[::2]
    assert (keep >= 0).all()
    assert (keep <= 1).all()
    assert keep.mean() == pytest.approx(0.5, abs=0.03)
    assert keep.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_cutmix_keeps_the_share_outside_its_rectangle() -> None:
    drawn = mix(500, cutmix_alpha=1.0)
    left, top, right, bottom = drawn.box_B4.T
    assert ((left >= 0) & (left <= right) & (right <= PX[1])).all()
    assert ((top >= 0) & (top <= bottom) & (bottom <= PX[0])).all()
    share = 1 - (right - left) * (bottom - top) / (PX[0] * PX[1])
    np.testing.assert_allclose(drawn.keep_B, share, atol=1e-6)
    assert 0.5 < drawn.keep_B.mean() < 0.75, "rectangles are cut off at the border"


def test_with_both_each_pair_takes_one_of_them() -> None:
    drawn = mix(400, mixup_alpha=1.0, cutmix_alpha=1.0)
    cut = drawn.box_B4[::2, 2] > drawn.box_B4[::2, 0]
    assert 150 < cut.sum() < 250
