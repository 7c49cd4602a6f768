"""Statistics of experiments against numbers worked out by hand, and against SciPy."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from wspace.lab import statistics as st


def test_perfect_clusters_have_perfect_scores_whatever_their_numbers():
    scores = st.cluster_scores([2, 2, 0, 0, 1], ["a", "a", "b", "b", "c"])
    assert scores["majority"]["accuracy"] == scores["hungarian"]["accuracy"] == 1
    assert scores["ari"] == scores["nmi"] == 1
    assert scores["perfect"] == 3
    assert scores["majority"]["names"] == {"2": "a", "0": "b", "1": "c"}


def test_two_clusters_may_share_a_majority_label_but_not_an_assigned_one():
    # a a | a b | b b b ; three clusters, two groups
    labels, truth = [0, 0, 1, 1, 2, 2, 2], ["a", "a", "a", "b", "b", "b", "b"]
    scores = st.cluster_scores(labels, truth)
    assert scores["majority"]["names"] == {"0": "a", "1": "a", "2": "b"}
    assert scores["majority"]["accuracy"] == pytest.approx(6 / 7)
    # precision and recall: a 3/4 and 1, b 1 and 3/4
    assert scores["majority"]["f1"] == pytest.approx({"a": 6 / 7, "b": 6 / 7})
    # one cluster stays without a group
    assert scores["hungarian"]["accuracy"] == pytest.approx(5 / 7)
    assert scores["hungarian"]["f1"] == pytest.approx({"a": 4 / 5, "b": 6 / 7})
    assert scores["perfect"] == 0


def test_the_one_to_one_scoring_is_the_best_there_is():
    # cluster 0 is mostly a, and so is cluster 1, but only one of them may have it
    labels, truth = [0, 0, 0, 1, 1, 1, 1, 1], ["a", "a", "b", "a", "a", "a", "b", "b"]
    scores = st.cluster_scores(labels, truth)
    assert scores["majority"]["accuracy"] == pytest.approx(5 / 8)
    assert scores["hungarian"]["accuracy"] == pytest.approx(4 / 8)
    assert scores["majority"]["f1"]["b"] == 0


def test_probability_of_better_counts_ties_as_told():
    one, two = [1.0, 2.0], [2.0, 3.0, 0.5]
    # pairs below: 1<2, 1<3, 2<3; tie: 2=2
    assert st.probability_better(one, two)["p"] == pytest.approx(4 / 6)
    assert st.probability_better(one, two, strict=True)["p"] == pytest.approx(3 / 6)
    found = st.probability_better(one, two)
    assert found["half_tie"] == pytest.approx(3.5 / 6)
    assert (found["n"], found["m"], found["ties"]) == (2, 3, 1)


def test_half_ties_are_mann_whitneys():
    draw = np.random.default_rng(0)
    one, two = draw.integers(0, 9, 30), draw.integers(1, 10, 25)
    found = st.probability_better(one, two)
    expected = mannwhitneyu(-one, -two).statistic / (30 * 25)
    assert found["half_tie"] == pytest.approx(expected)


def test_the_interval_is_that_of_drawing_both_groups_anew():
    draw = np.random.default_rng(1)
    one, two = draw.normal(0, 1, 20), draw.normal(0.7, 1, 15)
    found = st.probability_better(one, two, bootstrap=4000)
    again = [(draw.choice(one, 20)[:, None] <= draw.choice(two, 15)).mean() for _ in range(4000)]
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(again, [0.025, 0.975]), abs=0.02
    )
    assert found["low"] < found["p"] < found["high"]
    assert found == st.probability_better(one, two, bootstrap=4000)


def test_a_loss_that_is_no_number_is_worse_than_all():
    found = st.probability_better([1.0], [float("nan"), float("inf"), 0.0])
    assert found["p"] == pytest.approx(2 / 3)
    assert found["not_finite"] == 2
    assert st.probability_better([float("nan")], [5.0])["p"] == 0


def test_a_line_by_hand():
    # ends 2 (alpha 0) and 1 (alpha 1); a bump at 0.25 and a hollow at 0.75
    found = st.line_statistics([0, 0.25, 0.5, 0.75, 1], [2.0, 2.5, 1.2, 0.5, 1.0])
    assert found["barrier"] == pytest.approx(2.5 - 1.75)
    assert found["midpoint_gain"] == pytest.approx(1.0 - 1.2)
    assert found["mean_gain"] == pytest.approx(1.5 - 1.2)
    assert found["best_alpha"] == 0.75
    assert found["best_gain"] == pytest.approx(0.5)
    # 0.525 is reached 0.025/0.7 of the way to 0.5, and 0.025/0.5 of the way to 1
    assert found["flat_width"] == pytest.approx(0.25 * (0.025 / 0.7 + 0.025 / 0.5))


def test_a_flat_line_is_flat():
    found = st.line_statistics([0, 0.5, 1], [1.0, 1.0, 1.0])
    assert found["flat_width"] == 1
    assert found["barrier"] == found["midpoint_gain"] == 0


def test_beyond_the_ends():
    alphas = [-3, -1, 0, 1, 2, 4]
    found = st.outside_statistics(alphas, [float("nan"), 3.0, 1.0, 1.5, 2.0, 6.0], limit=2.5)
    assert found["left_reach"] == pytest.approx(0.75)
    assert found["right_reach"] == pytest.approx(1 + 2 * 0.5 / 4)
    assert found["above_ends"] == 1
    calm = st.outside_statistics(alphas, [1.0] * 6, limit=2.5)
    assert calm["left_reach"] is calm["right_reach"] is None
    assert calm["above_ends"] == 0
    assert calm["flat_width"] == 7


def test_paired_starts_by_hand():
    found = st.paired_summary([0.5, 0.6, 0.7, 0.8], [0.6, 0.8, 0.7, 0.75])
    assert (found["wins"], found["ties"], found["losses"], found["n"]) == (2, 1, 1, 4)
    assert found["mean_gain"] == pytest.approx(0.0625)
    assert found["sd"] == pytest.approx(np.std([0.1, 0.2, 0, -0.05], ddof=1))
    assert found["sign_p"] == 1
    # ranks 2, 3 against 1: of the 8 signs, 2 are as far down and 2 as far up
    assert found["wilcoxon_p"] == pytest.approx(0.5)


def test_ten_of_ten_is_no_accident():
    found = st.paired_summary([0.5] * 10, [0.5 + 0.01 * k for k in range(1, 11)])
    assert found["sign_p"] == pytest.approx(2 / 2**10)
    assert found["wilcoxon_p"] == pytest.approx(2 / 2**10)


def test_sums_in_another_order_are_ties():
    found = st.paired_summary([0.1 + 0.2], [0.3])
    assert (found["ties"], found["sign_p"], found["sd"]) == (1, None, None)
