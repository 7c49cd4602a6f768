"""Geometry on the Gram matrix, against the same quantities computed from the rows themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csgraph
from sklearn.cluster import KMeans, SpectralClustering
from threadpoolctl import threadpool_limits

from wspace import geometry
from wspace.grams import Gram


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for one another on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


SIZES = [(1, 3), (2, 1), (5, 8), (30, 100)]
EPS = torch.finfo(torch.float64).eps


def rows(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random models, with offset and scales that differ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None] + 0.3


def gram_of(x: torch.Tensor, *, splits: list[int] | None = None, has_base: bool = True) -> Gram:
    parts = [part @ part.T for part in x.split(splits or [x.shape[1]], dim=1)]
    return Gram(
        total=torch.stack(parts).sum(dim=0),
        per_tensor=torch.stack(parts),
        tensors=tuple(f"tensor.{t}" for t in range(len(parts))),
        members=tuple(f"model-{i}" for i in range(len(x))),
        has_base=has_base,
        left_out={},
    )


def blobs(sizes: list[int], *, spread: float, width: int = 20, seed: int = 0) -> torch.Tensor:
    """Groups of models about centres of length 1, which are orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64)
    return torch.eye(width, dtype=torch.float64)[groups] + spread * noise


def renumbered(labels) -> list[int]:
    """Labels by order of first appearance: two clusterings are then equal lists or different."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(label), len(seen)) for label in labels]


def integer_rows(max_models: int = 7) -> st.SearchStrategy[torch.Tensor]:
    """Models whose Gram matrix, distances squared and sums are exact in float64."""
    shape = st.tuples(st.integers(1, max_models), st.integers(1, 4))
    return shape.flatmap(
        lambda s: st.lists(
            st.lists(st.integers(-9, 9), min_size=s[1], max_size=s[1]),
            min_size=s[0],
            max_size=s[0],
        )
    ).map(lambda values: torch.tensor(values, dtype=torch.float64))


# Distances, norms, angles


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_distances_norms_and_cosines_are_those_of_the_rows(n, width):
    x = rows(n, width)
    gram = gram_of(x)
    distances = (x[:, None] - x).norm(dim=2)
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x, dim=2)
    # a square's error is of the size of its terms; the root of an error of eps is 1e-8 near zero
    bound = width * EPS * (x.norm(dim=1)[:, None] + x.norm(dim=1)) ** 2
    assert ((geometry.squared_distances(gram) - distances**2).abs() <= bound).all()
    torch.testing.assert_close(geometry.distances(gram), distances, rtol=1e-12, atol=1e-7)
    torch.testing.assert_close(geometry.norms(gram), x.norm(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(geometry.cosines(gram), cosines, rtol=0, atol=width * EPS)
    for measure in (geometry.distances, geometry.norms, geometry.cosines):
        assert torch.equal(measure(gram), measure(gram.total))
        assert measure(gram).dtype == torch.float64


def test_distances_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert geometry.distances(x @ x.T).tolist() == [[0, 5, 4], [5, 0, 3], [4, 3, 0]]
    assert geometry.norms(x @ x.T).tolist() == [5, 0, 3]
    assert geometry.cosines(x @ x.T).tolist() == [[1, 0, 0.6], [0, 1, 0], [0.6, 0, 1]]


def test_measures_of_every_tensor():
    x = rows(4, 12)
    gram = gram_of(x, splits=[5, 1, 6])
    for measure in (geometry.distances, geometry.norms, geometry.cosines, geometry.directions):
        expected = [measure(part @ part.T) for part in x.split([5, 1, 6], dim=1)]
        assert torch.equal(measure(gram, per_tensor=True), torch.stack(expected))


def test_copies_are_at_distance_zero_and_the_bits_are_symmetric():
    x = rows(6, 50)
    x[4] = x[1]
    # a product of a matrix with itself may round the two halves differently
    gram = x @ x.T
    gram[0, 3] = torch.nextafter(gram[3, 0], torch.tensor(math.inf, dtype=torch.float64))
    gram[4, :], gram[:, 4], gram[4, 4], gram[1, 4] = gram[1], gram[:, 1], gram[1, 1], gram[1, 1]
    for matrix in (geometry.distances(gram), geometry.cosines(gram), geometry.gram_matrix(gram)):
        assert torch.equal(matrix, matrix.T)
    assert geometry.distances(gram)[1, 4] == 0
    assert (geometry.distances(gram).diagonal() == 0).all()
    assert (geometry.cosines(gram).diagonal() == 1).all()


def test_a_square_that_rounding_makes_negative_is_zero():
    above = math.nextafter(1, 2)
    gram = torch.tensor([[1, above], [above, 1]], dtype=torch.float64)
    assert geometry.distances(gram).tolist() == [[0, 0], [0, 0]]


def test_a_zero_task_vector_has_cosine_zero_with_every_other_model():
    x = rows(4, 10)
    x[1], x[3] = 0, 0
    cosines = geometry.cosines(x @ x.T)
    assert cosines[1].tolist() == [0, 1, 0, 0]
    assert cosines[3].tolist() == [0, 0, 0, 1]
    assert geometry.directions(x @ x.T).diagonal()[[1, 3]].tolist() == [0, 0]


def test_cosines_stay_within_one_and_do_not_underflow():
    x = torch.tensor([[0.1, 0.7], [0.3, 2.1], [-0.1, -0.7]], dtype=torch.float64)
    for scale in (1.0, 1e-150, 1e150):
        cosines = geometry.cosines((scale * x) @ (scale * x).T)
        assert cosines.abs().max() <= 1
        torch.testing.assert_close(
            cosines[0], torch.tensor([1.0, 1, -1], dtype=torch.float64), rtol=1e-15, atol=0
        )


@given(integer_rows(), st.data())
@settings(max_examples=60)
def test_permuting_the_zoo_permutes_and_shifting_it_changes_no_distance(x, data):
    order = data.draw(st.permutations(range(len(x))))
    shift = torch.tensor(data.draw(st.lists(st.integers(-99, 99), min_size=x.shape[1])))
    gram, permuted = x @ x.T, x[order] @ x[order].T
    shifted = x + shift[: x.shape[1]]
    for measure in (geometry.distances, geometry.cosines):
        assert torch.equal(measure(permuted), measure(gram)[order][:, order])
    assert torch.equal(geometry.norms(permuted), geometry.norms(gram)[order])
    assert torch.equal(geometry.distances(shifted @ shifted.T), geometry.distances(gram))
    assert torch.equal(geometry.distances(4.0**5 * gram), 2.0**5 * geometry.distances(gram))
    assert torch.equal(geometry.cosines(4.0**5 * gram), geometry.cosines(gram))


# Mixes


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_distances_and_products_of_mixes_are_those_of_the_mixed_rows(n, width):
    x, weights = rows(n, width), rows(3, n, seed=1)
    mixes = weights @ x
    scale = (1 + weights.abs().sum()) * x.norm()
    to_mixes = geometry.distances_to_centroid(gram_of(x), weights)
    torch.testing.assert_close(
        to_mixes**2, (mixes[:, None] - x).norm(dim=2) ** 2, rtol=0, atol=float(50 * EPS * scale**2)
    )
    torch.testing.assert_close(
        geometry.mixed_gram(gram_of(x), weights), mixes @ mixes.T,
        rtol=0, atol=float(50 * EPS * scale**2),
    )  # fmt: skip
    mixed = geometry.mixed_gram(gram_of(x), weights)
    assert torch.equal(mixed, mixed.T)


def test_a_model_is_at_distance_zero_from_itself_and_from_the_centroid_of_its_copies():
    x = rows(5, 40)
    x[1] = x[2] = x[4]
    gram = geometry.gram_matrix(x @ x.T).clone()
    gram[[1, 2]], gram[:, [1, 2]] = gram[[4, 4]], gram[:, [4, 4]]
    gram[1:3, 1:3] = gram[4, 4]
    gram[1:3, 4] = gram[4, 1:3] = gram[4, 4]
    copies = torch.tensor([0, 1, 1, 0, 1], dtype=torch.float64) / 3
    rows_of_weights = torch.cat([torch.eye(5, dtype=torch.float64), copies[None]])
    to_mixes = geometry.distances_to_centroid(gram, rows_of_weights)
    assert (to_mixes[:5].diagonal() == 0).all()
    assert to_mixes[5, [1, 2, 4]].tolist() == [0, 0, 0]


def test_the_base_is_a_mix_of_no_model():
    gram = gram_of(rows(4, 9))
    assert torch.equal(
        geometry.distances_to_centroid(gram, torch.zeros(4))[0], geometry.norms(gram)
    )


@pytest.mark.parametrize("of_mixes", [geometry.distances_to_centroid, geometry.mixed_gram])
def test_mixes_without_a_base_must_sum_to_one(of_mixes):
    gram = gram_of(rows(3, 9), has_base=False)
    of_mixes(gram, torch.tensor([0.5, 1.5, -1]))
    with pytest.raises(ValueError, match=r"weights row 0 sums to 1\.5000; without a base"):
        of_mixes(gram, torch.tensor([0.5, 0.5, 0.5]))


# k-means


def inertia_of(x: torch.Tensor, labels) -> float:
    labels, points = np.asarray(labels), x.numpy()
    groups = [points[labels == label] for label in set(labels.tolist())]
    return float(sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups))


def scikit_kmeans(x: torch.Tensor, k: int, seed: int) -> KMeans:
    # its stubs know n_init="auto" only
    return KMeans(k, n_init=10, random_state=seed).fit(x.numpy())  # pyright: ignore


def partitions(n: int, k: int) -> list[tuple[int, ...]]:
    """Every way to part ``n`` models into ``k`` groups, as labels by order of first appearance."""
    found = [()]
    for _ in range(n):
        found = [(*p, label) for p in found for label in range(min(k, max(p, default=-1) + 2))]
    return [p for p in found if len(set(p)) == k]


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_the_groups_that_scikit_learn_finds(seed):
    x = blobs([7, 3, 11, 2], spread=0.05, seed=seed)[torch.randperm(23)]
    found = geometry.kmeans(gram_of(x), 4, seed=seed)
    theirs = scikit_kmeans(x, 4, seed)
    assert found.labels.tolist() == renumbered(theirs.labels_)
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    assert found.labels.dtype == torch.int64
    for label in range(4):
        mean = x[found.labels == label].mean(dim=0)
        torch.testing.assert_close(found.weights[label] @ x, mean, rtol=0, atol=1e-14)


def test_kmeans_is_as_good_as_scikit_learn_where_there_are_no_groups():
    ours, theirs = [], []
    for seed in range(5):
        x = rows(40, 4, seed=seed)
        found = geometry.kmeans(x @ x.T, 6, seed=seed)
        assert found.inertia == pytest.approx(inertia_of(x, found.labels), rel=1e-9)
        ours.append(found.inertia)
        theirs.append(scikit_kmeans(x, 6, seed).inertia_)
    assert np.mean(ours) <= np.mean(theirs)


@given(integer_rows(max_models=6), st.integers(0, 3), st.data())
@settings(max_examples=60)
def test_kmeans_finds_the_best_partition_of_a_small_zoo(x, seed, data):
    n = len(x)
    k = data.draw(st.integers(1, n))
    found = geometry.kmeans(x @ x.T, k, seed=seed, restarts=30)
    assert found.labels.tolist() == renumbered(found.labels)
    assert set(found.labels.tolist()) == set(range(k))
    best = min(inertia_of(x, p) for p in partitions(n, k))
    assert found.inertia == pytest.approx(inertia_of(x, found.labels), abs=1e-9)
    assert found.inertia == pytest.approx(best, abs=1e-9)
    assert torch.equal((found.weights > 0).sum(dim=0), torch.ones(n, dtype=torch.int64))
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(k, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_no_model_gains_by_moving_among_nearly_orthogonal_models(seed):
    # each is nearest to the centroid it is part of: Lloyd's iteration alone stops where it starts
    x = blobs([5, 5, 5, 5], spread=0.1, width=1000)
    found = geometry.kmeans(x @ x.T, 4, seed=seed, restarts=1)
    for model, label in itertools.product(range(20), range(4)):
        moved = found.labels.clone()
        moved[model] = label
        assert inertia_of(x, moved) >= found.inertia * (1 - 1e-9)
    best = geometry.kmeans(x @ x.T, 4, seed=seed)
    assert best.labels.tolist() == torch.arange(4).repeat_interleave(5).tolist()


def test_the_best_restart_is_kept():
    x = rows(60, 4)
    found = [geometry.kmeans(x @ x.T, 9, seed=1, restarts=r).inertia for r in range(1, 13)]
    assert found == sorted(found, reverse=True) and len(set(found)) > 1


@pytest.mark.parametrize("seed", range(10))
def test_one_start_finds_groups_that_are_far_apart(seed):
    x = blobs([3] * 12, spread=1e-4)
    found = geometry.kmeans(x @ x.T, 12, seed=seed, restarts=1)
    assert found.labels.tolist() == torch.arange(12).repeat_interleave(3).tolist()


def test_no_model_is_nearer_to_another_centroid():
    x = rows(60, 3)
    found = geometry.kmeans(x @ x.T, 7, restarts=1)
    to_centroids = (x[:, None] - found.weights @ x).norm(dim=2)
    assert found.labels.tolist() == to_centroids.argmin(dim=1).tolist()
    assert found.iterations > 1


def test_kmeans_of_one_group_and_of_every_model_its_own():
    x = rows(5, 10)
    one, all_apart = geometry.kmeans(gram_of(x), 1), geometry.kmeans(gram_of(x), 5)
    assert one.labels.tolist() == [0] * 5
    assert one.weights.tolist() == [[0.2] * 5]
    assert one.inertia == pytest.approx(inertia_of(x, [0] * 5))
    assert all_apart.labels.tolist() == [0, 1, 2, 3, 4]
    assert all_apart.weights.tolist() == torch.eye(5).tolist()
    assert all_apart.inertia == 0


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_no_cluster_is_empty_when_models_are_copies(k):
    x = torch.tensor([[0.0], [5.0], [0.0], [0.0], [5.0], [0.0]], dtype=torch.float64)
    found = geometry.kmeans(x @ x.T, k)
    assert found.labels.bincount().min() > 0 and found.labels.max() == k - 1
    if k == 2:
        assert found.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert found.inertia == (0 if k > 1 else pytest.approx(100 / 3))


def test_kmeans_on_directions_ignores_lengths():
    angles = torch.tensor([0.0, 0.1, 1.5, 1.6, 0.05, 1.55], dtype=torch.float64)
    lengths = torch.tensor([1.0, 50, 1, 50, 20, 20], dtype=torch.float64)
    x = lengths[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)
    found = geometry.kmeans(x @ x.T, 2, normalize=True)
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert found.inertia == pytest.approx(inertia_of(x / lengths[:, None], found.labels))
    assert found.weights[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3, 0])
    assert geometry.kmeans(x @ x.T, 2).labels.tolist() != found.labels.tolist()


def test_models_equal_to_the_base_are_one_group_by_direction():
    x = blobs([3, 3], spread=0.01)
    x = torch.cat([x, torch.zeros(2, 20, dtype=torch.float64)])
    found = geometry.kmeans(x @ x.T, 3, normalize=True)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert found.inertia < 0.1  # the two do not differ, as two directions would


def test_kmeans_does_not_see_the_order_of_the_zoo_nor_its_origin():
    x = blobs([4, 9, 6], spread=0.05)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(5))
    truth = geometry.kmeans(x @ x.T, 3)
    permuted = geometry.kmeans(x[order] @ x[order].T, 3)
    shifted = geometry.kmeans((x + 7) @ (x + 7).T, 3)
    assert permuted.labels.tolist() == renumbered(truth.labels[order])
    assert shifted.labels.tolist() == truth.labels.tolist()
    assert shifted.inertia == pytest.approx(truth.inertia, rel=1e-10)


def test_one_seed_gives_one_result_whatever_the_threads_and_leaves_torch_alone():
    x = rows(200, 6)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = geometry.kmeans(x @ x.T, 9, seed=11, restarts=3)
        torch.set_num_threads(2)
        second = geometry.kmeans(geometry.gram_matrix(x @ x.T), 9, seed=11, restarts=3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first.labels, second.labels)
    assert first.inertia == pytest.approx(second.inertia, rel=1e-13)
    assert torch.equal(torch.get_rng_state(), before)
    others = [geometry.kmeans(x @ x.T, 9, seed=s, restarts=1).inertia for s in range(4)]
    assert len(set(others)) > 1


def test_ties_fall_the_same_way_under_rounding():
    # every split of the square along a side is equally good
    square = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    truth = geometry.kmeans(square @ square.T, 2, seed=4)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(4, 4, generator=generator, dtype=torch.float64) * 1e-15
        found = geometry.kmeans(square @ square.T + noise + noise.T, 2, seed=4)
        assert found.labels.tolist() == truth.labels.tolist()


@pytest.mark.parametrize("cluster", [geometry.kmeans, geometry.spectral_clustering])
@pytest.mark.parametrize("k", [0, -1, 7])
def test_k_out_of_range_is_refused(cluster, k):
    message = f"k is {k}, but the zoo has 5 models: choose 1 to 5"
    with pytest.raises(ValueError, match=message):
        cluster(gram_of(rows(5, 10)), k)


def test_no_restarts_are_refused():
    with pytest.raises(ValueError, match="restarts is 0: expected 1 or more"):
        geometry.kmeans(gram_of(rows(5, 10)), 2, restarts=0)


# Spectral clustering


@pytest.mark.parametrize("affinity", ["clipped", "shifted"])
@pytest.mark.parametrize("seed", range(3))
def test_spectral_clusters_are_those_of_scikit_learn(affinity, seed):
    lengths = torch.linspace(0.1, 9, 21, dtype=torch.float64)[torch.randperm(21)]
    x = blobs([8, 8, 5], spread=0.1, seed=seed) * lengths[:, None]
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x, dim=2)
    matrix = cosines.clamp_min(0) if affinity == "clipped" else (1 + cosines) / 2
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit(matrix.numpy())
    found = geometry.spectral_clustering(x @ x.T, 3, affinity=affinity, seed=seed)
    assert found.labels.tolist() == renumbered(theirs.labels_) == [0] * 8 + [1] * 8 + [2] * 5
    torch.testing.assert_close(found.weights[2] @ x, x[16:].mean(dim=0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("affinity", ["clipped", "shifted"])
def test_spectral_inertia_is_that_of_the_eigenvectors_of_the_laplacian(affinity):
    x = torch.cat([blobs([6, 5, 4], spread=0.3), torch.zeros(1, 20, dtype=torch.float64)])
    cosines = geometry.cosines(x @ x.T).numpy()
    links = np.maximum(cosines, 0) if affinity == "clipped" else (1 + cosines) / 2
    laplacian, roots = csgraph.laplacian(links, normed=True, return_diag=True)
    embedded = torch.from_numpy(np.linalg.eigh(laplacian)[1][:, :4] / roots[:, None])
    found = geometry.spectral_clustering(x @ x.T, 4, affinity=affinity)
    assert found.inertia == pytest.approx(inertia_of(embedded, found.labels), rel=1e-8)


def test_opposite_task_vectors_are_not_alike():
    x = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1, 0, 0]]
    x[4:] *= -1
    assert geometry.spectral_clustering(x @ x.T, 3).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_spectral_clustering_follows_chains_that_kmeans_cuts():
    def arc(start: float, models: int) -> torch.Tensor:
        angles = torch.linspace(start, start + 1.2, models, dtype=torch.float64)
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    # two arcs in two planes, one long and one short
    zeros = torch.zeros(30, 2, dtype=torch.float64)
    x = torch.cat([torch.cat([arc(0, 30), zeros], 1), torch.cat([zeros, arc(0, 30)], 1)])
    assert geometry.spectral_clustering(x @ x.T, 2).labels.tolist() == [0] * 30 + [1] * 30


def test_a_model_without_affinity_is_a_component_of_its_own():
    x = blobs([4, 4], spread=0.01)
    x = torch.cat([x.abs(), torch.zeros(1, 20, dtype=torch.float64)])
    assert geometry.spectral_clustering(x @ x.T, 3).labels.tolist() == [0] * 4 + [1] * 4 + [2]


def test_spectral_clustering_of_one_group_and_of_every_model_its_own():
    x = rows(4, 10)
    assert geometry.spectral_clustering(x @ x.T, 1).labels.tolist() == [0, 0, 0, 0]
    assert geometry.spectral_clustering(x @ x.T, 4).labels.tolist() == [0, 1, 2, 3]
    assert geometry.spectral_clustering(x[:1] @ x[:1].T, 1).labels.tolist() == [0]


def test_an_unknown_affinity_is_refused():
    with pytest.raises(ValueError, match="affinity is 'rbf': expected 'clipped' or 'shifted'"):
        geometry.spectral_clustering(gram_of(rows(4, 9)), 2, affinity="rbf")  # pyright: ignore


# Medians


@given(integer_rows(), st.data())
@settings(max_examples=60)
def test_the_medoid_has_the_least_sum_of_distances(x, data):
    sums = (x[:, None] - x).norm(dim=2).sum(dim=1)
    found = geometry.medoid(x @ x.T)
    assert sums[found] <= sums.min() * (1 + 1e-12)
    assert (sums[:found] > sums[found]).all()


def test_the_first_of_equal_medoids():
    x = torch.tensor([[9.0, 0], [0, 0], [0.1, 0], [0, 0], [-0.1, 0]], dtype=torch.float64)
    assert geometry.medoid(x @ x.T) == 1
    # models 1 and 2 mirror each other; summed in order, the second comes out less by the last bit
    x = torch.tensor([[7, 8], [-3, 2], [3, -2], [-7, -8]], dtype=torch.float64)
    assert geometry.medoid(x @ x.T) == 1
    assert geometry.medoid(x[:1] @ x[:1].T) == 0


def assert_geometric_median(x: torch.Tensor, weights: torch.Tensor, *, tolerance: float = 1e-9):
    """Non-negative weights of a point where the pulls balance, or that holds its own models."""
    assert weights.shape == (1, len(x)) and weights.dtype == torch.float64
    assert (weights >= 0).all() and abs(float(weights.sum()) - 1) < 1e-14
    point = weights[0] @ x
    away = x - point
    distance = away.norm(dim=1)
    here = distance <= 1e-9 * x.norm(dim=1).max()
    units = (away / distance[:, None])[~here]
    assert units.sum(dim=0).norm() <= here.sum() + tolerance * len(x)


@given(integer_rows())
@settings(max_examples=150)
def test_at_the_geometric_median_the_pulls_balance(x):
    assert_geometric_median(x, geometry.geometric_median(x @ x.T), tolerance=1e-6)


@pytest.mark.parametrize("seed", [*range(12), 83, 91, 299])
def test_geometric_median_of_uneven_zoos(seed):
    generator = torch.Generator().manual_seed(seed)
    n, width = 3 + seed % 9, 2 + seed % 4
    spread = torch.randn(n, 1, generator=generator, dtype=torch.float64).exp() ** 2
    x = torch.randn(n, width, generator=generator, dtype=torch.float64) * spread
    # Weiszfeld's steps alone may take thousands
    assert_geometric_median(x, geometry.geometric_median(x @ x.T, max_iterations=15))


def test_geometric_median_of_many_models():
    x = rows(100, 300)
    assert_geometric_median(x, geometry.geometric_median(gram_of(x)))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        pytest.param([[3, 4]], [1], id="one"),
        pytest.param([[3, 4], [0, 1]], [1 / 2, 1 / 2], id="two"),
        pytest.param([[2, 2]] * 4, [1 / 4] * 4, id="copies"),
        pytest.param([[0], [1], [100]], [0, 1, 0], id="odd-line"),
        pytest.param([[0], [1], [3], [100]], [0, 1 / 2, 1 / 2, 0], id="even-line"),
        pytest.param([[0, 0], [5, 1], [-5, 1]], [1, 0, 0], id="obtuse"),
        pytest.param([[0, 0], [9, 1], [-5, 1], [0, 0]], [1 / 2, 0, 0, 1 / 2], id="obtuse-copies"),
        pytest.param([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1 / 3] * 3, id="equilateral"),
        pytest.param([[1, 1], [1, -1], [-1, 1], [-1, -1]], [1 / 4] * 4, id="square"),
    ],
)
def test_geometric_median_by_hand(x, expected):
    x = torch.tensor(x, dtype=torch.float64)
    assert geometry.geometric_median(x @ x.T)[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("others", [4, 6], ids=["rounded", "exact"])
def test_geometric_median_starts_on_a_model_that_is_no_median(others):
    # the average is model 0, where all others but one pull one way; of 8 models, exactly so
    x = torch.tensor([[0, 0], [10, 2], [10, -1], [10, -3], [11, 1], [12, 2], [9, 0]][: others + 1])
    x = torch.cat([x, -x.sum(dim=0, keepdim=True)]).double()
    assert (x.mean(dim=0) == 0).all()
    weights = geometry.geometric_median(x @ x.T)
    assert_geometric_median(x, weights)
    assert (weights @ x).norm() > 5


def test_geometric_median_close_to_a_model():
    # the angle at model 0 is just under 120 degrees, where Weiszfeld alone takes 1e5 steps
    half = math.radians(59.99)
    x = torch.tensor([[0, 0], [math.cos(half), math.sin(half)], [math.cos(half), -math.sin(half)]])
    x = x.double()
    weights = geometry.geometric_median(x @ x.T, max_iterations=50)
    assert_geometric_median(x, weights)
    assert 0.99 < weights[0, 0] < 1


def test_geometric_median_does_not_follow_an_outlier():
    x = rows(12, 30)
    far = x.clone()
    far[3] *= 1e6
    moved = geometry.geometric_median(far @ far.T) @ far - geometry.geometric_median(x @ x.T) @ x
    assert moved.norm() < (x - x.mean(dim=0)).norm(dim=1).mean()


def test_geometric_median_permutes_shifts_and_scales_with_the_zoo():
    x = rows(9, 5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    truth = geometry.geometric_median(x @ x.T)
    for other, expected in [
        (x[order], truth[:, order]),
        (x + 3, truth),
        (1e-6 * x, truth),
        (1e6 * x, truth),
    ]:
        found = geometry.geometric_median(other @ other.T)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_geometric_median_that_does_not_arrive_says_so():
    with pytest.raises(ValueError, match=r"after 1 iterations .* above the tolerance of 1e-10"):
        geometry.geometric_median(gram_of(rows(9, 5)), max_iterations=1)


# The matrix itself


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.eye(3)[:2].double(), r"expected shape \[n, n\] with n of 1 or more, got \[2, 3\]"),
        (torch.zeros(0, 0).double(), r"got \[0, 0\]"),
        (torch.zeros(2, 3, 3).double(), r"got \[2, 3, 3\]"),
        (torch.tensor([[1, math.nan], [0, 1]]).double(), r"entry \[0, 1\] is nan, no inner"),
        (torch.tensor([[1, 0], [0, math.inf]]).double(), r"entry \[1, 1\] is inf, no inner"),
        (torch.tensor([[1, 0], [0, -2]]).double(), r"entry \[1, 1\] is -2, no inner product"),
        (
            torch.tensor([[1.0, 0.25], [0.5, 1]]).double(),
            r"symmetric matrix, but entry \[0, 1\] is 0.25 and its mirror image 0.5",
        ),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram, message):
    with pytest.raises(ValueError, match=message):
        geometry.distances(gram)


def test_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"a float64 tensor \[n, n\], got torch.float32"):
        geometry.cosines(torch.eye(3))
    with pytest.raises(TypeError, match="got ndarray"):
        geometry.cosines(np.eye(3))  # pyright: ignore


def test_per_tensor_needs_a_gram_that_has_it():
    without = Gram(torch.eye(2).double(), None, (), ("a", "b"), True, {})
    for gram in (without, torch.eye(2).double()):
        with pytest.raises(ValueError, match="needs a Gram that was made with per_tensor=True"):
            geometry.distances(gram, per_tensor=True)
