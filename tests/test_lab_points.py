"""Points of weight space against the formula in float64, and the distances they promise."""

import numpy as np
import pytest
import torch

import wspace as ws
from tests.lab_zoo import SHAPES, lab_context, theta
from tests.zoos import flat
from wspace.errors import WspaceError
from wspace.lab import points
from wspace.lab.points import Direction, Point


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return lab_context(tmp_path_factory.mktemp("lab"), seeds=2)


def row(*weights):
    return (*weights, *[0.0] * (10 - len(weights)))


def test_a_point_is_its_formula(lab):
    direction = Direction(seed=3, norm=2.0)
    point = Point(row(0.5, -0.25, 1.5), direction, scale=0.75)
    found = flat(points.apply(point, lab.resident))
    expected = 0.75 * (theta(lab, point.weights) + flat(direction.draw(SHAPES)))
    assert (found - expected).abs().max() <= 4e-7 * expected.abs().max()


def test_into_a_module_is_the_same(lab):
    module = torch.nn.Module()
    for name, shape in SHAPES.items():
        *path, last = name.split(".")
        at = module
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, torch.nn.Module())
            at = getattr(at, part)
        at.register_parameter(last, torch.nn.Parameter(torch.zeros(shape)))
    point = Point(row(0.5, 0.5), Direction(1, 0.5), 0.9)
    assert points.apply_into(point, lab.resident, module) == ()
    state = points.apply(point, lab.resident)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in SHAPES)


@pytest.mark.parametrize("kind", ["gaussian", "xavier", "xavier-uniform"])
def test_a_direction_has_its_norm_whatever_the_order_of_tensors(kind):
    direction = Direction(7, 3.5, kind)
    drawn = direction.draw(SHAPES)
    assert flat(drawn).norm().item() == pytest.approx(3.5, rel=1e-6)
    backwards = direction.draw(dict(reversed(SHAPES.items())))
    assert all(torch.equal(drawn[name], backwards[name]) for name in SHAPES)
    other = Direction(8, 3.5, kind).draw(SHAPES)
    cosine = flat(drawn) @ flat(other) / 3.5**2
    assert abs(cosine) < 0.2  # 1 / sqrt(1096) is 0.03


def test_xavier_follows_the_fans():
    shapes = {"wide.weight": (600, 200), "conv.weight": (50, 20, 3, 3), "v": (5000,), "s": ()}
    for kind in ("xavier", "xavier-uniform"):
        drawn = Direction(0, 1.0, kind).draw(shapes)
        expected = {"wide.weight": 2 / 800, "conv.weight": 2 / (70 * 9), "v": 1 / 5000}
        variances = {name: float(drawn[name].double().var()) for name in expected}
        ratios = [variances[name] / expected[name] for name in expected]
        assert np.ptp(ratios) < 0.1 * np.mean(ratios)
        assert Direction(0, 1.0, kind, "zero").draw(shapes)["v"].count_nonzero() == 0
    uniform = Direction(0, 1.0, "xavier-uniform").draw(shapes)["wide.weight"]
    # a uniform law ends at sqrt(3) standard deviations; a normal one does not
    assert uniform.abs().max() / uniform.std() == pytest.approx(3**0.5, rel=0.01)


def test_a_direction_of_nothing_is_refused():
    with pytest.raises(WspaceError, match=r"kind 'xavier' over 1 tensors is zero"):
        Direction(0, 1.0, vectors="zero").draw({"bias": (4,)})


def test_alpha_weighs_the_first_model():
    line = points.line(4, (2, 0), [0, 0.25, 1])
    assert [point.weights for point in line] == [(1, 0, 0, 0), (0.75, 0, 0.25, 0), (0, 0, 1, 0)]


def test_extrapolation_is_the_papers():
    alphas = points.extrapolation_alphas()
    right = [1, 1.47, 2.16, 3.17, 4.67, 6.86, 10.08, 14.81, 21.77, 32]
    assert np.round(alphas[10:], 2).tolist() == right
    assert alphas[:10] == [1 - alpha for alpha in reversed(alphas[10:])]
    assert alphas[0] == pytest.approx(-31)
    assert alphas == sorted(alphas)


def test_hull_points_are_convex_and_seeded():
    members = (1, 3, 4)
    found = points.hull(6, members, 5, seed=2)
    rows = np.array([point.weights for point in found])
    assert rows.shape == (5, 6)
    assert (rows >= 0).all()
    assert np.abs(rows.sum(axis=1) - 1).max() < 1e-15
    assert not rows[:, [0, 2, 5]].any()
    assert points.hull(6, members, 5, seed=2) == found != points.hull(6, members, 5, seed=3)


@pytest.mark.parametrize(
    ("law", "expected"), [("dirichlet", 2 / 6), ("normalised-uniform", 4 / 15)]
)
def test_hull_laws_are_as_central_as_they_should_be(law, expected):
    rows = np.array([p.weights for p in points.hull(5, range(5), 4000, law=law)])
    assert (rows**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.03)
    assert rows.mean(axis=0) == pytest.approx([0.2] * 5, abs=0.01)


def test_concentration_moves_the_draws_to_the_middle():
    rows = np.array([p.weights for p in points.hull(5, range(5), 200, concentration=50)])
    assert (rows**2).sum(axis=1).mean() < 0.21


def test_centroids():
    assert points.centroid(5, [1, 4]).weights == (0, 0.5, 0, 0, 0.5)
    labels = ["a", "b", "a", "c", "b", "b"]
    expected = ws.leave_group_out(labels, groups_equally=True)[1]  # without b
    kept = [label if label != "b" else None for label in labels]
    assert points.centroid_of_groups(kept).weights == pytest.approx(expected.tolist())
    with pytest.raises(WspaceError, match="every one of them is left out"):
        points.centroid_of_groups([None, None])


def test_random_directions_lie_on_their_spheres(lab):
    center = points.centroid(10, [0, 1])
    found = points.random_directions(center, 2.0, [0.5, 3], [4, 5], kind="gaussian")
    start = theta(lab, center.weights)
    radii = [float((flat(points.apply(p, lab.resident)) - start).norm()) for p in found]
    assert radii == pytest.approx([1, 6, 1, 6], rel=1e-5)
    steps = [flat(points.apply(p, lab.resident)) - start for p in found]
    same = torch.nn.functional.cosine_similarity(steps[0], steps[1], dim=0)
    assert same == pytest.approx(1, abs=1e-6)
    assert torch.nn.functional.cosine_similarity(steps[0], steps[2], dim=0).abs() < 0.2


def test_outward_goes_through_the_model(lab):
    center, member = points.centroid(10, [0, 1, 2]), points.vertex(10, 2)
    start, end = theta(lab, center.weights), theta(lab, member.weights)
    size = float((end - start).norm())
    found = points.outward(center, member, lab.gram, [size, 3.0])
    assert found[0].weights == pytest.approx(member.weights, abs=1e-9)
    distance = (theta(lab, found[1].weights) - start).norm()
    assert float(distance) == pytest.approx(3.0, rel=1e-6)


def test_towards_the_origin(lab):
    center = points.centroid(10, [0, 1])
    norm = points.length(center, lab.resident)
    assert norm == pytest.approx(float(theta(lab, center.weights).norm()), rel=1e-6)
    (found,) = points.towards_origin(center, norm, [1.5])
    assert points.length(found, lab.resident) == pytest.approx(norm - 1.5, rel=1e-6)


def test_a_plane_keeps_distances(lab):
    made = points.plane(lab.gram, (0, 3, 7), grid=4, margin=0.25)
    assert (len(made.points), len(made.x), len(made.y)) == (16, 4, 4)
    at = np.array([(x, y) for y in made.y for x in made.x] + made.corners)
    models = [points.vertex(10, i) for i in (0, 3, 7)]
    rows = torch.tensor([p.weights for p in [*made.points, *models]], dtype=torch.float64)
    apart = ws.distances(ws.geometry.mixed_gram(lab.gram, rows)).numpy()
    expected = np.linalg.norm(at[:, None] - at[None], axis=-1)
    assert np.abs(apart - expected).max() < 1e-6 * expected.max()
    assert made.x[0] == pytest.approx(-0.25 * (max(at[16:, 0]) - min(at[16:, 0])))


def test_a_plane_of_a_line_is_refused(lab):
    with pytest.raises(WspaceError, match="lie on a line"):
        points.plane(lab.gram, (0, 1, 0))
