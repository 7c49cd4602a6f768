"""Linear methods as mixing weights, and the check that all mixing weights pass."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wspace import mixing
from wspace.errors import WeightsError
from wspace.grams import Gram
from wspace.weights import check_weights


def vectors(n: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def assert_rows(found: torch.Tensor, expected: list[list[float]]):
    assert found.dtype == torch.float64
    assert found.tolist() == expected


# Rows that need nothing but numbers


def test_uniform():
    assert_rows(mixing.uniform(4), [[0.25] * 4])
    assert_rows(mixing.uniform(1), [[1]])


@pytest.mark.parametrize("n", [0, -2])
def test_a_zoo_of_no_models_is_refused(n):
    for call in (mixing.uniform, lambda n: mixing.task_arithmetic(n, 1.0)):
        with pytest.raises(ValueError, match=f"n is {n}: expected the number of models"):
            call(n)


def test_lerp_by_hand():
    assert_rows(mixing.lerp(0.25), [[0.75, 0.25]])
    assert_rows(mixing.lerp([0, 1, 0.5]), [[1, 0], [0, 1], [0.5, 0.5]])
    assert_rows(mixing.lerp([-31, 32]), [[32, -31], [-31, 32]])
    assert_rows(mixing.lerp(0.25, 4, pair=(3, 1)), [[0, 0.25, 0, 0.75]])


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, np.float32])
def test_steps_in_any_form(form):
    assert_rows(mixing.lerp(form([0.5, 2])), [[0.5, 0.5], [-1, 2]])


def test_lerp_is_the_line_through_two_models():
    base, x = vectors(1, 50, seed=1), vectors(3, 50)
    for t, row in zip((-2.0, 0.1, 7), mixing.lerp([-2, 0.1, 7], 3, pair=(2, 0)), strict=True):
        expected = (1 - t) * x[2] + t * x[0]
        torch.testing.assert_close((base + row @ (x - base))[0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pair", [(0, 0), (0, 3), (-1, 0), (0, 1, 2)])
def test_a_pair_outside_the_zoo_is_refused(pair):
    message = rf"pair is \({', '.join(map(str, pair))}\), but the zoo has 3 models: expected two "
    with pytest.raises(ValueError, match=message + "different indices from 0 to 2"):
        mixing.lerp(0.5, 3, pair=pair)
    with pytest.raises(ValueError, match=message):
        mixing.slerp(torch.eye(3).double(), 0.5, pair=pair)


def test_one_model_has_no_pair():
    with pytest.raises(ValueError, match=r"pair is \(0, 1\), but the zoo has 1 models"):
        mixing.lerp(0.5, 1)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ([], r"at least one, got shape \[0\]"),
        ([[0.5]], r"t: expected a number or \[n_mixes\] numbers, .* got shape \[1, 1\]"),
        (math.nan, "t: expected finite numbers, got nan"),
        ([0, math.inf], r"t: expected finite numbers, got \[0, inf\]"),
        ("half", "t: expected numbers, got 'half'"),
    ],
)
def test_steps_that_are_no_numbers_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        mixing.lerp(t)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (0.3, [[0.3] * 3]),
        (-1, [[-1] * 3]),
        ([0.5, -1, 0], [[0.5, -1, 0]]),
        ([[0.5, -1, 0], [1, 1, 1]], [[0.5, -1, 0], [1, 1, 1]]),
        ([[0.5], [2]], [[0.5] * 3, [2] * 3]),
    ],
)
def test_task_arithmetic(scales, expected):
    for form in (scales, np.array(scales), torch.tensor(scales, dtype=torch.float64)):
        assert_rows(mixing.task_arithmetic(3, form), expected)


def test_task_arithmetic_of_one_model():
    assert_rows(mixing.task_arithmetic(1, [0.5]), [[0.5]])
    assert_rows(mixing.task_arithmetic(1, [[0.5], [2]]), [[0.5], [2]])


def test_task_arithmetic_rows_are_their_own_memory():
    scales = torch.ones(1, 3, dtype=torch.float64)
    rows = mixing.task_arithmetic(3, scales)
    rows[0, 0] = 5
    assert scales.tolist() == [[1, 1, 1]]
    rows = mixing.task_arithmetic(3, 1.0)
    rows[0, 0] = 5
    assert rows.tolist() == [[5, 1, 1]]


@pytest.mark.parametrize("scales", [[0.5], [0.5, 1], [[0.5, 1]], [[[1.0] * 3]], [], [[]]])
def test_scales_of_another_shape_are_refused(scales):
    message = (
        r"scales: expected one number, \[3\] numbers .* got shape \[" + str(np.shape(scales))[1]
    )
    with pytest.raises(ValueError, match=message):
        mixing.task_arithmetic(3, scales)


# Groups


@pytest.mark.parametrize(
    "labels",
    [
        [7, -1, 7, 7],
        np.array([7, -1, 7, 7], dtype=np.int32),
        torch.tensor([7, -1, 7, 7]),
        ["snli", "mnli", "snli", "snli"],
        np.array(["snli", "mnli", "snli", "snli"]),
    ],
    ids=["list", "numpy", "torch", "strings", "numpy-strings"],
)
def test_centroids_in_ascending_order_of_labels(labels):
    assert_rows(mixing.centroids(labels), [[0, 1, 0, 0], [1 / 3, 0, 1 / 3, 1 / 3]])
    assert_rows(mixing.leave_group_out(labels), [[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]])


def test_leaving_a_group_out_averages_the_other_models_or_the_other_groups():
    labels = ["a", "b", "b", "c", "c", "c"]
    assert_rows(
        mixing.leave_group_out(labels),
        [[0, 0.2, 0.2, 0.2, 0.2, 0.2], [0.25, 0, 0, 0.25, 0.25, 0.25], [1 / 3] * 3 + [0] * 3],
    )
    equally = mixing.leave_group_out(labels, groups_equally=True)
    expected = [[0, 3, 3, 2, 2, 2], [6, 0, 0, 2, 2, 2], [6, 3, 3, 0, 0, 0]]
    torch.testing.assert_close(equally, torch.tensor(expected).double() / 12)
    # the paper's tables: (sum of the datasets' means - own mean) / (number of datasets - 1)
    means = mixing.centroids(labels)
    torch.testing.assert_close(equally, (means.sum(dim=0) - means) / 2)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
@settings(max_examples=60)
def test_groups_in_any_order_of_the_zoo(labels, data):
    order = data.draw(st.permutations(range(len(labels))))
    permuted = [labels[i] for i in order]
    methods = [mixing.centroids]
    if len(set(labels)) > 1:
        methods += [
            mixing.leave_group_out,
            lambda given: mixing.leave_group_out(given, groups_equally=True),
        ]
    for method in methods:
        rows = method(labels)
        assert torch.equal(method(permuted), rows[:, order])
        assert rows.shape == (len(set(labels)), len(labels))
        assert (rows.sum(dim=1) - 1).abs().max() < 1e-14 and (rows >= 0).all()
    for group, label in enumerate(sorted(set(labels))):
        inside = torch.tensor([own == label for own in labels])
        for method, used in zip(methods, (inside, ~inside, ~inside), strict=False):
            assert torch.equal(method(labels)[group] > 0, used)


@pytest.mark.parametrize("method", [mixing.centroids, mixing.leave_group_out])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: expected one for each model, got none"),
        ([1, "a"], "labels: expected a number or string for each model"),
        ([1, None], "labels: expected a number or string for each model"),
        ([1.0, math.nan], "NaN is no label"),
        (torch.zeros(2, 2), "labels: expected a number or string for each model"),
        (np.zeros((2, 2)), "labels: expected a number or string for each model"),
        (torch.tensor(3), "labels: expected a number or string for each model"),
        (5, "labels: expected a number or string for each model"),
    ],
)
def test_labels_that_are_none_are_refused(method, labels, message):
    with pytest.raises(ValueError, match=message):
        method(labels)


def test_the_only_group_cannot_be_left_out():
    with pytest.raises(ValueError, match="every model is in group 'mnli'; leaving it out leaves"):
        mixing.leave_group_out(["mnli", "mnli"])


# Spherical interpolation


def turned(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """``a`` turned towards ``b`` by the part ``t`` of the angle between them; equal lengths."""
    unit = a / a.norm()
    across = b - (b @ unit) * unit
    across = across / across.norm()
    angle = math.atan2(float(b @ across), float(b @ unit))
    return a.norm() * (math.cos(t * angle) * unit + math.sin(t * angle) * across)


@pytest.mark.parametrize("angle", [1e-5, 1e-4, 5e-3, 1.0, math.pi / 2, 3.0])
def test_slerp_turns_task_vectors_of_one_length(angle):
    a, b = vectors(2, 40)
    unit = a / a.norm()
    across = b - (b @ unit) * unit
    b = a.norm() * (math.cos(angle) * unit + math.sin(angle) * across / across.norm())
    x = torch.stack([vectors(1, 40, seed=3)[0], b, a])
    steps = [-0.5, 0.0, 0.3, 0.5, 1.0, 2.0]
    rows = mixing.slerp(x @ x.T, steps, pair=(2, 1))
    assert rows[:, 0].tolist() == [0] * 6
    for t, row in zip(steps, rows, strict=True):
        # the cosine's rounding moves the angle by eps / angle, and the result by that of its length
        torch.testing.assert_close(row @ x, turned(a, b, t), rtol=0, atol=1e-13 / math.sin(angle))


def test_slerp_by_hand():
    rows = mixing.slerp(torch.tensor([[4.0, 0], [0, 9]]).double(), [0, 1 / 3, 0.5, 1])
    expected = [[1, 0], [math.sqrt(3) / 2, 0.5], [math.sqrt(0.5)] * 2, [0, 1]]
    torch.testing.assert_close(
        rows, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert rows[[0, 3]].tolist() == [[1, 0], [0, 1]]


def test_slerp_does_not_see_lengths():
    x = vectors(2, 30)
    lengths = torch.tensor([[3.0], [0.01]]).double()
    rows, scaled = (mixing.slerp(y @ y.T, [0.2, 0.7]) for y in (x, lengths * x))
    torch.testing.assert_close(rows, scaled, rtol=1e-13, atol=0)


@given(st.floats(0.01, 3.1), st.floats(-3, 4))
@settings(max_examples=60)
def test_slerp_backwards_is_slerp_of_the_pair_turned_round(angle, t):
    gram = torch.tensor([[1, math.cos(angle)], [math.cos(angle), 1]], dtype=torch.float64)
    forwards, backwards = mixing.slerp(gram, t), mixing.slerp(gram, 1 - t, pair=(1, 0))
    torch.testing.assert_close(forwards, backwards, rtol=0, atol=1e-12 / math.sin(angle))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 5e-8, 2e-7, 1e-6])
def test_slerp_of_nearly_parallel_task_vectors_is_lerp(angle):
    x = torch.tensor([[1, 0], [2 * math.cos(angle), 2 * math.sin(angle)]], dtype=torch.float64)
    steps = [-3, 0, 0.5, 1, 4]
    found = mixing.slerp(x @ x.T, steps)
    torch.testing.assert_close(found, mixing.lerp(steps), rtol=0, atol=1e-10)
    if angle < mixing.PARALLEL_RADIANS / 2:
        assert torch.equal(found, mixing.lerp(steps))


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_where_rounding_takes_the_cosine_past_one(sign):
    above = math.nextafter(1, 2) * sign
    gram = torch.tensor([[1, above], [above, 1]], dtype=torch.float64)
    if sign > 0:
        assert torch.equal(mixing.slerp(gram, 0.3), mixing.lerp(0.3))
    else:
        with pytest.raises(ValueError, match="opposite"):
            mixing.slerp(gram, 0.3)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 5e-5])
def test_slerp_of_opposite_task_vectors_is_refused(angle):
    x = torch.tensor([[1, 0], [-2 * math.cos(angle), 2 * math.sin(angle)]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"models 0 and 1 point in opposite .* \(cosine -[01]\."):
        mixing.slerp(x @ x.T, 0.5)


def test_slerp_near_the_opposite_still_meets_in_the_middle():
    angle = math.pi - 1e-3
    x = torch.tensor([[1, 0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    middle = mixing.slerp(x @ x.T, 0.5)[0] @ x
    expected = torch.tensor([math.cos(angle / 2), math.sin(angle / 2)], dtype=torch.float64)
    torch.testing.assert_close(middle, expected, rtol=0, atol=1e-9)


def test_slerp_of_a_model_that_equals_the_base_is_refused():
    with pytest.raises(
        ValueError, match=r"model 2 equals the base: .* so there is no arc; use lerp"
    ):
        mixing.slerp(torch.diag(torch.tensor([1.0, 1, 0])).double(), 0.5, pair=(0, 2))


def test_slerp_takes_a_gram_and_needs_its_base():
    x = vectors(2, 9)
    gram, without = (
        Gram(x @ x.T, None, (), ("a", "b"), has_base, {}) for has_base in (True, False)
    )
    assert torch.equal(mixing.slerp(gram, 0.3), mixing.slerp(x @ x.T, 0.3))
    with pytest.raises(ValueError, match="slerp turns task vectors, but gram has no base: pass"):
        mixing.slerp(without, 0.3)


# The check


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor, lambda w: torch.tensor(w).double(), np.float32]
)
def test_checked_weights_are_float64_rows(form):
    for weights in ([[0.5, 0.25, 0.25], [2, -1, 0]], [0.5, 0.25, 0.25]):
        checked = check_weights(form(weights), 3, has_base=False)
        assert isinstance(checked, np.ndarray)
        assert checked.dtype == np.float64 and checked.flags.c_contiguous
        assert checked.tolist() == np.atleast_2d(weights).tolist()


def test_checked_weights_are_a_copy_in_order():
    weights = np.asfortranarray([[1.0, 0], [0, 1]])
    checked = check_weights(weights, 2, has_base=True)
    weights[0, 0] = 9
    assert checked.tolist() == [[1, 0], [0, 1]] and checked.flags.c_contiguous


def test_with_a_base_rows_may_sum_to_anything():
    weights = [[0, 0], [32, -30], [0.1, 0.1]]
    assert check_weights(weights, 2, has_base=True).tolist() == weights


def test_without_a_base_rows_sum_to_one_within_rounding_and_are_not_rescaled():
    third = np.full((1, 3), 1 / 3, dtype=np.float32)
    assert check_weights(third, 3, has_base=False).tolist() == third.astype(np.float64).tolist()
    near = [0.5, 0.5 + 0.9e-6]
    assert check_weights(near, 2, has_base=False).tolist() == [near]
    for row, shown in (
        ([0.5, 0], "0.5000"),
        ([0.5, 0.5 + 1.1e-6], "1.000001100"),
        ([0.5, 0.5 - 1e-5], "0.999990000"),
        ([0, 0], "0.0000"),
    ):
        message = (
            f"^weights row 1 sums to {shown}; without a base each row must sum to 1 "
            r"\(pass base=\.\.\. or rescale\)$"
        )
        with pytest.raises(WeightsError, match=message):
            check_weights([[1, 0], row], 2, has_base=False)


def test_a_sum_is_taken_exactly():
    # added from the left, 1e16 + 1 loses the 1
    assert check_weights([1e16, 1, -1e16], 3, has_base=False).tolist() == [[1e16, 1, -1e16]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 0.5]], r"expected shape \[n_mixes, 3\], one column .* got \[1, 2\]"),
        ([1.0], r"expected shape \[n_mixes, 3\], .* got \[1\]"),
        (1.0, r"got \[\]"),
        ([[[1, 0, 0]]], r"got \[1, 1, 3\]"),
        (np.zeros((0, 3)), "expected at least one row, one for each mix, got none"),
        ([[1, 0, 0], [1, math.nan, 0]], "row 1 has nan for model 1; weights must be finite"),
        ([[1, 0, -math.inf]], "row 0 has -inf for model 2; weights must be finite"),
        ([["1", "0", "0"]], "expected real numbers, got <U1"),
        ([[1j, 0, 0]], "expected real numbers, got complex128"),
        ([[True, False, False]], "expected real numbers, got bool"),
        ([[1, 0, 0], [1]], r"expected numbers \[n_mixes, 3\]; numpy says: "),
        (torch.ones(1, 3, requires_grad=True), r"expected numbers \[n_mixes, 3\]; numpy says: "),
    ],
)
@pytest.mark.parametrize("has_base", [True, False])
def test_weights_that_mean_nothing_are_refused(weights, message, has_base):
    with pytest.raises(ValueError, match=message) as refusal:
        check_weights(weights, 3, has_base=has_base)
    assert isinstance(refusal.value, WeightsError)
    assert "\n" not in str(refusal.value)


def test_the_check_imports_no_torch():
    program = "import sys, wspace.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_method_passes_the_check():
    x = vectors(4, 20)
    for rows in (
        mixing.uniform(4),
        mixing.lerp([0, 0.5, 32], 4, pair=(1, 3)),
        mixing.centroids([0, 0, 0, 1]),
        mixing.leave_group_out([0, 1, 2, 2]),
    ):
        assert torch.equal(torch.from_numpy(check_weights(rows, 4, has_base=False)), rows)
    for rows in (mixing.slerp(x @ x.T, [0, 0.5, 32]), mixing.task_arithmetic(4, 0.3)):
        assert torch.equal(torch.from_numpy(check_weights(rows, 4, has_base=True)), rows)
