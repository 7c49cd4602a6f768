"""Results of every stage, as results.json holds them, of a zoo whose answers are known."""

import itertools

from tests.lab_zoo import FAMILIES, lab_context
from wspace.lab.experiments import clusters, edges, efficient, lines, regions
from wspace.lab.settings import EdgeSettings, Experiments, LineSettings, RegionSettings
from wspace.lab.statistics import cluster_scores

FEW = Experiments(
    lines=LineSettings(alphas=5, extrapolation_steps=4),
    regions=RegionSettings(bootstrap=100),
    edges=EdgeSettings(seeds=2, plane_grid=5),
)
STARTS = ("pretrained", "centroid", "family_centroid")


def lab_results(root):
    """Clusters, lines, regions and edges by the experiments themselves; trainings made up."""
    context = lab_context(root, settings=FEW)
    experiments = {"clusters": clusters, "lines": lines, "regions": regions, "edges": edges}
    return {
        "name": "a test",
        "settings": {"base": "minilm", "tasks": list(FAMILIES)},
        "versions": {"wspace": "0"},
        "machine": {"cores": 2, "processor": "a processor"},
        "zoo": records(),
        "geometry": {"members": list(context.gram.members), "left_out": {}},
        **{name: module.run(context) for name, module in experiments.items()},
        "efficient": bitfit(0.1),
        "sizes": sizes(),
        "evaluation": {
            "lines": {"mix": 0.2, "features": 30.0, "probe": 4.0, "forward_passes": 1234}
        },
        "timings": {"finetune": 61.0, "clusters": 2.0},
    }


def records(seeds=3):
    """Of a zoo: what finetune leaves, as far as a report reads it."""
    return [
        {"name": f"{task}-{seed}", "task": task, "family": family, "seed": seed, "status": "done",
         "rows": 100, "steps": 40, "base_rate": 0.5, "test_accuracy": 0.8 + 0.01 * seed,
         "validation_accuracy": 0.82}
        for task, family in FAMILIES.items()
        for seed in range(seeds)
    ]  # fmt: skip


def bitfit(gain):
    """Centroids that gain on four of five targets, and the family's that have none on one."""
    targets = []
    for (number, (task, family)), start, rows, seed in itertools.product(
        enumerate(FAMILIES.items()), STARTS, ("all", 100), range(2)
    ):
        if start == "family_centroid" and family == "topic":
            continue
        step = 0 if start == "pretrained" else gain if number else -gain / 5
        accuracy = 0.6 + 0.02 * number + 0.005 * seed + step
        targets.append(
            {"task": task, "family": family, "start": start, "regime": "paper", "rows": rows,
             "seed": seed, "base_rate": 0.5, "accuracy": accuracy, "loss": 1 - accuracy, "steps": 9,
             "status": "done"}
        )  # fmt: skip
    summary = efficient.summary(targets)
    parts = [{"part": "new to the base"} | row for row in summary]
    failed = targets[0] | {"status": "failed: the loss is not finite", "accuracy": 0.0}
    found = {"targets": [*targets, failed], "summary": summary, "parts": parts}
    return found | {"left_out": {"snli, pretrained": failed["status"]}}


def sizes(right=True):
    names, counts = ("snli", "mnli"), (200, 400)
    models = [{"task": task, "size": size, "seed": 0} for task in names for size in counts]
    labels = [0, 0, 1, 1] if right else [0, 1, 0, 1]
    truth = {"k_tasks": [m["task"] for m in models], "k_sizes": [str(m["size"]) for m in models]}
    alike = [[1.0, 0.6, 0.1, 0.1], [0.6, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 0.5], [0.1, 0.1, 0.5, 1.0]]
    return {
        "models": models,
        "accuracy": [0.7] * 4,
        "cosines": alike,
        **{key: cluster_scores(labels, names) | {"labels": labels} for key, names in truth.items()},
        "left_out": {},
    }
