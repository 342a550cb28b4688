"""Accuracies on all images, told by those that subnets disagree about."""

import numpy as np
import pytest

from methods.prediction.disputed import Disputed


def test_by_hand():
    # Images 1 and 3 are on the fence; 0 is known by all, 2 by none, 4 by all but one of the others.
    margins = np.array([[5.0, 1.0, -4.0, -1.0, 4.0], [5.0, -1.0, -4.0, 1.5, 4.0]])
    right = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 0, 1]], dtype=bool)
    disputed = Disputed.choose(margins, right, 2)
    assert disputed.positions.tolist() == [1, 3]
    # The others know 0, 1 and 1/2 of these two, and 1/3, 2/3 and 2/3 of the three that are left:
    # a line of slope 1/3 through their means, 1/2 and 5/9.
    assert (disputed.slope, disputed.level) == pytest.approx((1 / 3, 5 / 9 - 1 / 6))
    assert disputed.top1(np.array([True, True])) == pytest.approx((2 + 3 * 13 / 18) / 5)
    assert disputed.top1(np.array([True, False])) == pytest.approx((1 + 3 * 5 / 9) / 5)


def test_an_image_with_a_small_margin_that_hardly_moves_is_no_more_disputed_than_it_moves():
    margins = np.array([[0.5, 2.0, 3.0], [0.5, -1.0, 3.0]])
    assert Disputed.choose(margins, margins > 0, 1).positions.tolist() == [1]


def test_where_the_others_are_all_alike_the_rest_is_as_they_know_it():
    margins = np.array([[5.0, 1.0, -4.0, 4.0], [5.0, -1.0, -4.0, 4.0]])
    disputed = Disputed.choose(margins, np.array([[1, 1, 0, 1], [1, 1, 0, 1]], dtype=bool), 1)
    assert disputed.slope == 0
    assert disputed.top1(np.array([False])) == pytest.approx(0.5)


def test_few_subnets_that_agree_by_chance_do_not_settle_an_image():
    # The third is the surest by far, but for how little its margins differ.
    margins = np.array([[2.0, 3.0, 0.3], [-1.0, 2.9, 0.301]])
    assert Disputed.choose(margins, margins > 0, 2).positions.tolist() == [0, 2]


def test_who_knows_more_of_these_is_never_told_to_know_less():
    margins = np.array([[1.0, 5.0, 5.0], [-1.0, 5.0, 5.0]])
    disputed = Disputed.choose(margins, np.array([[1, 0, 0], [0, 1, 1]], dtype=bool), 1)
    assert disputed.slope == 0
    assert disputed.top1(np.array([True])) > disputed.top1(np.array([False]))


def test_no_accuracy_is_beyond_all_or_none_of_the_rest():
    # Steeper than anything: the rest is all known once two of three of these are.
    margins = np.array([[1.0, 1.0, 1.0, 9.0], [-1.0, -1.0, -1.0, 9.0]])
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 1]], dtype=bool)
    disputed = Disputed.choose(margins, right, 3)
    assert disputed.slope == pytest.approx(3)
    assert disputed.top1(np.ones(3, dtype=bool)) == 1
    assert disputed.top1(np.zeros(3, dtype=bool)) == 0


def test_a_part_of_the_images_tells_the_accuracy_on_all_far_better_than_a_random_one():
    rng = np.random.default_rng(0)
    n_images = 5000
    ease = 4 * rng.standard_normal(n_images) + 4
    skill = 0.3 * rng.standard_normal((48, 1))
    margins = ease + skill + rng.standard_normal((48, n_images))
    right = margins > 0
    disputed = Disputed.choose(margins[:16], right[16:24], 1500)
    exact = right[24:].mean(axis=1)
    told = np.array([disputed.top1(row[disputed.positions]) for row in right[24:]])
    some = rng.choice(n_images, 1500, replace=False)
    sampled = right[24:, some].mean(axis=1)
    assert np.abs(told - exact).mean() < np.abs(sampled - exact).mean() / 5 < exact.std() / 5
