"""What an experiment is: a YAML file read into frozen dataclasses. Every open choice is a setting.

The defaults are those of the paper (arXiv 2302.04863), or of the recipe its group published for the
same model and data (ColD Fusion, arXiv 2212.01378) where the paper is silent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wspace.lab.schema import SettingsError, build, nearest

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TaskSource:
    """Where one data set comes from: a folder (default: of its name under ``data``), or the Hub."""

    name: str
    family: str | None = None  # default: what dataset.json says, else the name itself
    path: str | None = None
    hub: str | None = None  # id of a Hub data set; ``subset`` and ``revision`` go with it
    subset: str | None = None
    revision: str | None = None
    # columns; "{question} {answer}" joins some
    text: str = "text"
    text_pair: str | None = "text_pair"  # used where the data have it
    label: str = "label"
    labels: tuple[str, ...] = ()  # what the column says, in order; default: numbers from 0
    # where a split is named otherwise
    splits: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None  # default: finetune.max_length
    # column -> value: only rows that have it
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How a model is trained: by transformers' Trainer, AdamW, linear decay."""

    method: Literal["full", "bitfit"] = "full"
    batch: int = 256
    accumulate: int = 1  # batches of ``batch / accumulate`` rows added to one step
    learning_rate: float = 5e-5
    head_learning_rate: float | None = None  # default: the same
    schedule: str = "linear"
    warmup: float = 0.0  # share of all steps
    weight_decay: float = 0.0
    dropout: float | None = None  # default: the base's own
    epochs: float = 10
    steps: int | None = None  # instead of epochs
    patience: int | None = 3  # epochs without a gain, after which training stops; null: never
    min_gain: float = 0.001  # of validation accuracy, that counts as a gain
    rows: int | None = None  # at most so many training rows, the same share of every class
    checkpoint_steps: int | None = None  # save so often, to go on inside a model


@dataclass(frozen=True)
class Finetune(Training):
    """The zoo: every task times every seed."""

    batch: int = 32
    seeds: int = 5
    head: Literal["linear", "mlp"] = "linear"  # mlp: dense, tanh, out, as RoBERTa's
    max_length: int = 128
    validation_rows: int | None = None  # at most so many are scored
    test_rows: int | None = None


@dataclass(frozen=True)
class Probe:
    """Generalized loss: what a fresh head reaches on features of the frozen encoder."""

    kind: Literal["linear", "mlp"] = "linear"
    l2: float = 1e-4
    train_rows: int | None = 10_000
    test_rows: int | None = None
    pooling: Literal["auto", "mean", "first"] = "auto"  # auto: what the fine-tuning head used


@dataclass(frozen=True)
class Levels:
    """The three levels of granularity: whose models, and on what data the loss is taken."""

    dataset: str | None = None  # same data set: its models, its loss
    family: str | None = None  # same task: the family's models, mean loss over its sets
    family_without: tuple[str, ...] = ()  # sets of the family whose loss is left out of the mean
    family_pair: tuple[str, ...] = ()  # two sets whose models are paired
    general_pair: tuple[str, ...] = ()  # the same, of two families
    general_tasks: tuple[str, ...] = ()  # sets of the general level; default: all


@dataclass(frozen=True)
class ClusterSettings:
    affinity: Literal["positive", "shifted"] = "positive"  # max(cos, 0), or (1 + cos) / 2
    families: tuple[tuple[str, ...], ...] = ()  # runs with these families; default: all at once
    keep_below_base_rate: bool = False  # models that do no better than the commonest label
    exclude: tuple[str, ...] = ()  # tensors that take no part, as name patterns
    perplexity: float | None = None  # of t-SNE; default min(30, n / 4)
    seed: int = 0


@dataclass(frozen=True)
class LineSettings:
    alphas: int | tuple[float, ...] = 11  # a number of even steps from 0 to 1, or the list
    extrapolation_steps: int = 10
    extrapolation_limit: float = 32.0
    pairs: int | None = None  # at most so many pairs a level; default all
    extrapolation_pairs: int | None = None  # default: as ``pairs``


@dataclass(frozen=True)
class RegionSettings:
    hull: Literal["dirichlet", "normalised-uniform"] = "dirichlet"
    concentration: float = 1.0  # of the Dirichlet law
    inside: int | None = None  # models of In a level (a subsample); default all
    outside: int | None = None  # models of Ex a level; default all, at the general level as In
    exterior: Literal["xavier", "xavier-uniform", "gaussian"] = "xavier"
    exterior_vectors: Literal["gaussian", "zero"] = "gaussian"  # 1-D tensors of that direction
    ties: Literal["counted", "strict"] = "counted"
    bootstrap: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class EdgeSettings:
    radii: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # times the members' mean radius
    seeds: int = 5
    kind: Literal["xavier", "xavier-uniform", "gaussian"] = "gaussian"
    plane: tuple[str, ...] = ()  # three models; default: of three data sets
    plane_grid: int = 9  # points a side; 0: no plane
    plane_margin: float = 0.35  # beyond the three models, in sides of their triangle


@dataclass(frozen=True)
class PaperRegime(Training):
    """What the paper most likely did: the recipe of full fine-tuning, which leaves BitFit short."""

    method: Literal["full", "bitfit"] = "bitfit"


@dataclass(frozen=True)
class TunedRegime(Training):
    """A learning rate that suits BitFit."""

    method: Literal["full", "bitfit"] = "bitfit"
    batch: int = 32
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class EfficientSettings:
    """BitFit from a centroid of other data sets' models, against BitFit from the base."""

    targets: tuple[str, ...] = ()  # default: all tasks
    starts: tuple[str, ...] = ("pretrained", "centroid", "family_centroid")
    rows: tuple[int | None, ...] = (None, 1000)  # null: all; else drawn per seed, stratified
    seeds: int = 5
    sources: Literal["groups", "models"] = "groups"  # what counts equally in a centroid
    source_seeds: int | None = None  # models of a set in a centroid; default all
    paper: PaperRegime | None = PaperRegime()
    tuned: TunedRegime | None = TunedRegime()
    validation_rows: int | None = None  # at most so many are scored
    test_rows: int | None = None


@dataclass(frozen=True)
class SizeSettings:
    """One model for each task and number of training rows."""

    tasks: tuple[str, ...] = ()  # default: those with enough rows
    sizes: tuple[int, ...] = (200, 400, 800, 1600, 3000)
    training: Training | None = None  # default: that of ``finetune``


@dataclass(frozen=True)
class Experiments:
    levels: Levels = Levels()
    clusters: ClusterSettings | None = ClusterSettings()
    lines: LineSettings | None = LineSettings()
    regions: RegionSettings | None = RegionSettings()
    edges: EdgeSettings | None = EdgeSettings()
    efficient: EfficientSettings | None = EfficientSettings()
    sizes: SizeSettings | None = SizeSettings()


@dataclass(frozen=True)
class Settings:
    """One experiment. ``null`` for a stage leaves it out."""

    name: str
    tasks: tuple[TaskSource, ...]
    base: str = "minilm"  # a folder, a Hub id, or the packaged sentence encoder
    base_tuned_on: tuple[str, ...] = ()  # tasks the base has seen; shown apart in the report
    pooling: Literal["auto", "mean", "first"] = "auto"
    data: str | None = None  # a folder with a folder for each task, or "bundle"
    bf16: Literal["auto", "yes", "no"] = "auto"  # auto: where the device is faster for it
    seed: int = 0
    finetune: Finetune = Finetune()
    probe: Probe = Probe()
    experiments: Experiments = Experiments()

    def hash(self) -> str:
        """Twelve hex digits of everything here but where the data lie."""
        content = dataclasses.asdict(self) | {"data": None}
        return digest(content)


def digest(content: Any) -> str:
    """Twelve hex digits of a value's JSON, the same on every machine."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_settings(
    source: str | Path | Mapping[str, Any], changes: Sequence[str] = (), data: str | None = None
) -> Settings:
    """Settings from a YAML file, the name of a built-in one (``demo``, ``paper``...) or a mapping.

    ``changes``: texts such as ``finetune.seeds=2``, each a setting's place and its value in YAML.
    ``data``: the folder of the data sets, in place of the one named there. Relative folders are
    seen from the current folder. Raises SettingsError for a setting that does not exist (with the
    nearest that does) or a value of another kind; WspaceError for a file that cannot be read.
    """
    place, content = _read(source) if isinstance(source, str | Path) else ("settings", source)
    if not isinstance(content, Mapping):
        raise SettingsError(f"{place}: expected a mapping of settings, got {content!r}")
    tree = json.loads(json.dumps(content, default=str))
    described = _described(tree)
    for change in changes:
        _change(tree, change)
    # a task may be given by its name alone: it is the one described there, or a folder of that name
    tasks = tree.get("tasks")
    if isinstance(tasks, list):
        tree["tasks"] = [
            described.get(task, {"name": task}) if isinstance(task, str) else task for task in tasks
        ]
    if data is not None:
        tree["data"] = str(data)
    settings = build(Settings, tree, place)
    names = [task.name for task in settings.tasks]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{place}: tasks names {name!r} twice")
    if not names:
        raise SettingsError(f"{place}: tasks is empty; name at least one data set")
    _check_names(settings, names, place)
    return settings


def _read(source: str | Path) -> tuple[str, Any]:
    import yaml

    path = Path(source)
    if not path.exists() and (CONFIGS / f"{source}.yml").exists():
        path = CONFIGS / f"{source}.yml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yml")))
        raise SettingsError(f"{source}: no such file; the built-in settings are {known}")
    try:
        return str(path), yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _described(tree: Mapping[str, Any]) -> dict[str, Any]:
    tasks = tree.get("tasks")
    found = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    return {str(task.get("name")): task for task in found}


def _change(tree: dict[str, Any], change: str) -> None:
    import yaml

    key, equals, text = change.partition("=")
    if not equals:
        raise SettingsError(f"{change!r}: expected a setting and its value, as finetune.seeds=2")
    *above, last = key.strip().split(".")
    for part in above:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = yaml.safe_load(text)


def _check_names(settings: Settings, names: list[str], place: str) -> None:
    """Tasks that experiments name must be among the tasks."""
    levels, stages = settings.experiments.levels, settings.experiments
    named = [levels.dataset, *levels.family_without, *levels.family_pair, *levels.general_pair]
    named += [*levels.general_tasks]
    named += [*(stages.efficient.targets if stages.efficient else ())]
    named += [*(stages.sizes.tasks if stages.sizes else ())]
    for name in named:
        if name is not None and name not in names:
            raise SettingsError(f"{place}: {name!r} is not among the tasks{nearest(name, names)}")
    for title in ("family_pair", "general_pair"):
        if len(getattr(levels, title)) not in (0, 2):
            raise SettingsError(f"{place}: {title} takes two data sets")
