"""The experiments on a zoo whose every answer is known: what they find, refuse, and leave out."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

import wspace as ws
from tests.lab_zoo import NOISE, lab_context, theta
from wspace.errors import WspaceError
from wspace.lab.experiments import clusters, edges, lines, regions
from wspace.lab.experiments.context import balanced, levels
from wspace.lab.settings import (
    ClusterSettings,
    EdgeSettings,
    Experiments,
    Levels,
    LineSettings,
    RegionSettings,
)

MODULES = {"clusters": clusters, "lines": lines, "regions": regions, "edges": edges}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return lab_context(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def found(lab):
    return {name: module.run(lab) for name, module in MODULES.items()}


def with_settings(lab, **settings):
    return dataclasses.replace(lab, settings=Experiments(**settings))


@pytest.mark.parametrize("name", MODULES)
def test_results_are_json_and_the_same_again(lab, found, name):
    text = json.dumps(found[name], allow_nan=False)
    assert json.dumps(MODULES[name].run(lab), allow_nan=False) == text


def test_levels_are_the_papers(lab):
    same, family, general = levels(lab)[0]
    assert (same.tasks, len(same.members), len(same.pairs)) == (("snli",), 3, 3)
    assert same.exterior is not None and len(same.exterior) == 12
    assert family.tasks == ("snli", "mnli")
    assert (len(family.members), len(family.pairs)) == (6, 9)
    assert family.exterior is not None and len(family.exterior) == 9
    assert (len(general.members), len(general.pairs), len(general.tasks)) == (15, 9, 5)
    assert general.exterior is None
    assert {lab.task_of[i] for pair in general.pairs for i in pair} == {"snli", "sst2"}


def test_levels_as_the_settings_name_them(lab):
    wanted = Levels(
        dataset="imdb", family="sentiment", family_without=("sst2",),
        family_pair=("imdb", "sst2"), general_pair=("trec", "mnli"), general_tasks=("trec", "mnli"),
    )  # fmt: skip
    same, family, general = levels(with_settings(lab, levels=wanted))[0]
    assert same.tasks == ("imdb",)
    assert family.tasks == ("imdb",) and len(family.members) == 6
    assert lab.task_of[family.pairs[0][0]] == "imdb"
    assert general.tasks == ("trec", "mnli") and len(general.members) == 6
    assert lab.task_of[general.pairs[0][0]] == "trec"


def test_one_model_where_a_spread_is_asked_for_is_refused(tmp_path):
    lonely = lab_context(tmp_path, seeds=1, settings=Experiments(levels=Levels(dataset="mnli")))
    for module in (lines, regions, edges):
        with pytest.raises(WspaceError, match=r"'mnli' has 1 model; .* raise finetune.seeds"):
            module.run(lonely)
    unnamed = dataclasses.replace(lonely, settings=Experiments())
    assert "no data set has two models" in lines.run(unnamed)["left_out"]["same-dataset"]
    skipped = clusters.run(unnamed)
    assert [run["name"] for run in skipped["runs"] if run["method"] == "ward"] == ["families-3"] * 3
    assert "one of two models" in skipped["left_out"]["same-dataset"]


def test_a_level_without_models_is_refused(lab):
    wanted = Levels(family="poetry")
    with pytest.raises(WspaceError, match=r"'poetry' has models of 0 data sets.*nli, sentiment"):
        levels(with_settings(lab, levels=wanted))
    with pytest.raises(WspaceError, match="no finished model of 'poem'"):
        levels(with_settings(lab, levels=Levels(family_pair=("snli", "poem"))))


def test_balanced_takes_turns(lab):
    assert balanced(lab, range(15), 6) == (0, 1, 3, 6, 9, 12)
    assert balanced(lab, range(15), None) == tuple(range(15))


def test_models_cluster_by_data_set_and_family(found):
    runs = {
        (run["name"], run["metric"], run["method"], run["affinity"]): run
        for run in found["clusters"]["runs"]
    }
    assert len(runs) == 22
    for name, k in (("same-dataset", 5), ("families-3", 3)):
        run = runs[name, "cosine", "spectral", "positive"]
        assert run["k"] == k
        assert run["scores"]["majority"]["accuracy"] == run["scores"]["ari"] == 1
        assert np.array(run["embedding"]["tsne"]).shape == (15, 2)
        assert len(runs[name, "cosine", "ward", None]["linkage"]) == 14
    assert found["clusters"]["affinities_agree"] == {"same-dataset": True, "families-3": True}
    cosines = found["clusters"]["cosines"]
    # of the squares, a data set's models share 2 of 2 + NOISE^2, a family 1
    assert cosines["same-dataset"]["mean"] == pytest.approx(2 / (2 + NOISE**2), abs=0.02)
    assert cosines["same-family"]["mean"] == pytest.approx(1 / (2 + NOISE**2), abs=0.05)
    assert cosines["across"]["mean"] == pytest.approx(0, abs=0.05)
    assert found["clusters"]["raw_cosines"]["across"]["min"] > 0.98


def test_mds_keeps_the_distances_it_can(found):
    run = found["clusters"]["runs"][0]
    flat = np.array(run["embedding"]["mds"])
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    same = np.equal.outer(run["tasks"], run["tasks"])
    assert apart[same].max() < apart[~same].min()


def test_raw_cosines_are_those_of_the_weights(lab, found):
    rows = torch.stack([theta(lab, row) for row in torch.eye(15).tolist()])
    rows = torch.nn.functional.normalize(rows)
    own = [
        float(rows[i] @ rows[j])
        for i, j in itertools.combinations(range(15), 2)
        if i // 3 == j // 3
    ]
    assert found["clusters"]["raw_cosines"]["same-dataset"]["mean"] == pytest.approx(np.mean(own))
    assert found["clusters"]["raw_cosines"]["same-dataset"]["max"] < 1 - 1e-6


def test_models_that_learned_nothing_are_left_out_and_named(lab):
    records = [dict(record) for record in lab.records]
    records[4] |= {"test_accuracy": 0.5, "validation_accuracy": 0.5}
    records[5]["test_accuracy"] = 0.5  # a shifted test split: validation is fine
    weak = dataclasses.replace(lab, records=records)
    result = clusters.run(weak)
    assert list(result["left_out"]) == [lab.gram.members[4]]
    assert len(result["runs"][0]["members"]) == 14
    kept = clusters.run(
        dataclasses.replace(
            weak, settings=Experiments(clusters=ClusterSettings(keep_below_base_rate=True))
        )
    )
    assert kept["left_out"] == {}


def test_clusters_without_a_base_rate_beaten(lab):
    records = [record | {"base_rate": 1.0} for record in lab.records]
    with pytest.raises(WspaceError, match=r"0 of 15 models beat the base rate"):
        clusters.run(dataclasses.replace(lab, records=records))


def test_families_named_in_the_settings(lab):
    chosen = ClusterSettings(families=(("nli", "topic"), ("nli", "sentiment", "topic")))
    result = clusters.run(with_settings(lab, clusters=chosen))
    sizes = {run["name"]: len(run["members"]) for run in result["runs"]}
    assert sizes == {"same-dataset": 15, "families-2": 9, "families-3": 15}
    with pytest.raises(
        WspaceError, match=r"no model of the family 'poetry'.*nli, sentiment, topic"
    ):
        clusters.run(with_settings(lab, clusters=ClusterSettings(families=(("nli", "poetry"),))))


def test_layers_and_tensors(lab, found):
    layers = {row["layer"]: row for row in found["clusters"]["per_layer"]}
    assert list(layers) == ["embeddings", "0", "1", "other"]
    assert layers["0"]["tensors"] == 2 and layers["0"]["accuracy"] == 1
    assert sum(row["square"] for row in layers.values()) == pytest.approx(
        float(lab.gram.total.diagonal().mean())
    )
    assert len(found["clusters"]["per_tensor"]) == 6
    part = clusters.run(with_settings(lab, clusters=ClusterSettings(exclude=("layer.*",))))
    assert [row["layer"] for row in part["per_layer"]] == ["embeddings", "other"]
    assert part["cosines"] != found["clusters"]["cosines"]
    assert "layer.0.dense.bias" in part["tensors_left_out"]


def test_the_middle_of_a_line_is_better_and_its_far_ends_are_poor(found):
    for level in found["lines"]["levels"]:
        inside, outside = level["inside"], level["outside"]
        assert inside["summary"]["midpoint_gain"]["min"] > 0
        assert inside["summary"]["barrier"]["max"] <= 1e-12  # the loss is convex
        assert np.argmin(inside["mean"]) == 5
        assert outside["summary"]["above_ends"]["min"] == 1
        assert outside["alphas"][9:11] == [0, 1]
        # both walks meet at the models
        assert outside["mean"][9] == pytest.approx(inside["mean"][0], rel=1e-6)
        assert outside["mean"][10] == pytest.approx(inside["mean"][-1], rel=1e-6)
        assert np.shape(inside["loss"]) == (len(inside["pairs"]), 11)


def test_losses_on_a_line_are_those_of_its_points(lab, found):
    level = found["lines"]["levels"][2]
    names = level["inside"]["pairs"][4]
    pair = [lab.gram.members.index(name) for name in names]
    weights = [0.0] * 15
    weights[pair[0]], weights[pair[1]] = 0.3, 0.7
    at, best, base = theta(lab, weights), lab.evaluator.best["trec"], lab.evaluator.base
    expected = float((at - best).square().sum() / (best - base).square().sum())
    loss = level["inside"]["tasks"]["trec"]["loss"][4][3]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert level["pretrained"]["tasks"]["trec"]["loss"] == pytest.approx([1], rel=1e-5)
    own = level["inside"]["tasks"]
    mean = np.mean([own[name]["loss"][4][3] for name in level["tasks"]])
    assert level["inside"]["loss"][4][3] == pytest.approx(mean)


def test_pairs_and_steps_as_told(lab):
    few = LineSettings(alphas=(0.5,), extrapolation_steps=3, pairs=4, extrapolation_pairs=2)
    for level in lines.run(with_settings(lab, lines=few))["levels"]:
        assert level["inside"]["alphas"] == [0, 0.5, 1]
        assert len(level["inside"]["pairs"]) == min(4, 3 if level["name"] == "same-dataset" else 4)
        assert len(level["outside"]["pairs"]) == 2
        assert len(level["outside"]["alphas"]) == 6


def test_regions_are_better_inside(found):
    same, family, general = found["regions"]["levels"]
    for level in (same, family, general):
        better = {(row["first"], row["second"]): row for row in level["better"]}
        assert better["inside", "ex"]["p"] == 1
        assert better["inside", "in"]["p"] > 0.8
        assert better["in", "ex"]["n"] == len(level["members"]["in"])
        assert len(level["members"]["inside"]) == len(level["members"]["in"])
    assert (len(same["members"]["ex"]), len(family["members"]["ex"])) == (12, 9)
    assert general["exterior"] == "random" and len(general["members"]["ex"]) == 15
    assert general["groups"]["ex"]["distances"] is None


def test_distances_in_a_region_come_out_right(lab, found):
    level = found["regions"]["levels"][0]
    center = theta(lab, [1 / 3] * 3 + [0] * 12)
    expected = [float((theta(lab, row) - center).norm()) for row in torch.eye(15).tolist()]
    assert level["groups"]["in"]["distances"] == pytest.approx(expected[:3], rel=1e-5)
    assert level["groups"]["ex"]["distances"] == pytest.approx(expected[3:], rel=1e-5)
    # inside is nearer than the corners
    assert max(level["groups"]["inside"]["distances"]) < max(expected[:3])


def test_random_models_are_as_far_out_as_the_trained(lab, monkeypatch):
    asked = []
    spy = lab.evaluator.losses

    def losses(points, tasks):
        asked.extend(points)
        return spy(points, tasks)

    monkeypatch.setattr(lab.evaluator, "losses", losses)
    regions.run(with_settings(lab, regions=RegionSettings(outside=2)))
    drawn = [point.direction for point in asked if point.direction]
    assert len(drawn) == 2 and drawn[0].seed != drawn[1].seed
    assert drawn[0].norm == pytest.approx(float(ws.norms(lab.gram).mean()))


def test_subsampled_regions(lab):
    result = regions.run(with_settings(lab, regions=RegionSettings(inside=4, outside=5)))
    sizes = [[len(group) for group in level["members"].values()] for level in result["levels"]]
    assert sizes == [[3, 3, 5], [4, 4, 5], [4, 4, 5]]


def test_the_edge_is_at_the_members_radius(lab, found):
    radius = found["edges"]["radius"]
    center = theta(lab, [1 / 3] * 3 + [0] * 12)
    expected = [float((theta(lab, row) - center).norm()) for row in torch.eye(15).tolist()[:3]]
    assert radius["member_radii"] == pytest.approx(expected, rel=1e-5)
    assert radius["member_radius"] == pytest.approx(np.mean(expected), rel=1e-5)
    members = radius["members"]["spread"]["mean"]
    for way in radius["ways"].values():
        curve = np.array(way["mean"])
        assert (np.diff(curve) > 0).all()
        # the loss is a square: at the members' radius it is theirs, whatever the direction
        assert curve[2] == pytest.approx(members, rel=0.1)
    assert np.shape(radius["ways"]["random"]["loss"]) == (5, 6)
    assert np.shape(radius["ways"]["origin"]["loss"]) == (1, 6)


def test_the_plane_has_its_models_on_it(lab, found):
    plane = found["edges"]["plane"]
    assert [name.rpartition("-")[0] for name in plane["models"]] == ["snli", "mnli", "sst2"]
    assert np.shape(plane["loss"]) == (9, 9)
    named = EdgeSettings(plane=("trec-1", "imdb-0", "snli-2"), plane_grid=3)
    other = edges.run(with_settings(lab, edges=named))["plane"]
    assert other["models"] == ["trec-1", "imdb-0", "snli-2"]
    assert np.shape(other["tasks"]["trec"]["loss"]) == (3, 3)
    none = edges.run(with_settings(lab, edges=EdgeSettings(plane_grid=0)))
    assert none["plane"] is None and "not asked for" in none["left_out"]["plane"]
    wrong = EdgeSettings(plane=("trec-1", "imdb-0", "snli-9"))
    with pytest.raises(WspaceError, match=r"three models of the zoo, got trec-1, imdb-0, snli-9"):
        edges.run(with_settings(lab, edges=wrong))


def test_losses_that_are_not_finite_are_kept(lab, monkeypatch):
    plain_losses = lab.evaluator.losses

    def losses(points, tasks):
        rows = plain_losses(points, tasks)
        return [
            {
                name: dataclasses.replace(
                    value, loss=float("nan") if value.loss > 50 else value.loss
                )
                for name, value in row.items()
            }
            for row in rows
        ]

    monkeypatch.setattr(lab.evaluator, "losses", losses)
    level = lines.run(lab)["levels"][0]
    assert level["outside"]["loss"][0][0] == "nan"
    assert level["outside"]["mean"][0] == "nan"
    assert level["outside"]["summary"]["above_ends"]["min"] == 1
