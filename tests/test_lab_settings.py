"""Settings: built-in ones, changes, and one line for each mistake."""

import json

import pytest

from wspace.lab.schema import SettingsError
from wspace.lab.settings import CONFIGS, Settings, load_settings

SMALL = {"name": "small", "tasks": ["a", "b"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yml")))
def test_built_in_settings_are_settings(name):
    settings = load_settings(name)
    assert isinstance(settings, Settings) and len(settings.tasks) > 1


def test_paper_small_is_the_reference_table():
    settings = load_settings("paper-small")
    assert (len(settings.tasks), settings.finetune.seeds, settings.base) == (20, 5, "minilm")
    families = [task.family for task in settings.tasks]
    assert {family: families.count(family) for family in families} == {
        "nli": 5, "paraphrase": 3, "sentiment": 4, "topic_intent": 4, "twitter": 4,
    }  # fmt: skip


def test_paper_is_roberta_on_its_own_data():
    settings = load_settings("paper")
    assert settings.base == "FacebookAI/roberta-base"
    assert (settings.finetune.batch, settings.finetune.learning_rate) == (256, 5e-5)
    assert len(settings.tasks) == 34 and all(task.hub for task in settings.tasks)
    assert "anli" in settings.experiments.levels.family_without


def test_changes_are_yaml_and_reach_any_setting():
    settings = load_settings(
        SMALL, ["finetune.seeds=2", "tasks=[a, b, c]", "experiments.sizes=null", "bf16=no"]
    )
    assert settings.finetune.seeds == 2 and [task.name for task in settings.tasks] == [
        "a",
        "b",
        "c",
    ]
    assert settings.experiments.sizes is None
    assert settings.hash() != load_settings(SMALL).hash()
    assert load_settings(SMALL, data="here").hash() == load_settings(SMALL).hash()


def test_some_of_the_tasks_by_name_keep_what_is_said_of_them():
    settings = load_settings("paper-small", ["tasks=[imdb, snli, mnli, sst2, mine]"])
    found = {task.name: (task.family, task.max_length) for task in settings.tasks}
    assert found["imdb"] == ("sentiment", 256) and found["mine"] == (None, None)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ({"tasks": ["a"]}, [], r"settings: the setting 'name' is missing"),
        (SMALL | {"tasks": []}, [], r"tasks is empty; name at least one data set"),
        (SMALL | {"tasks": ["a", "a"]}, [], r"tasks names 'a' twice"),
        (SMALL | {"fine_tune": {}}, [], r"unknown setting 'fine_tune'; did you mean 'finetune'"),
        (SMALL, ["finetune.seeds=two"], r"seeds: expected a whole number, got 'two'"),
        (SMALL, ["finetune.seeds"], r"expected a setting and its value, as finetune.seeds=2"),
        (SMALL, ["bf16=maybe"], r"bf16: expected auto or yes or no, got 'maybe'"),
        (SMALL, ["experiments.levels.dataset=c"], r"'c' is not among the tasks; .*a, b"),
        (SMALL, ["experiments.levels.family_pair=[a]"], r"family_pair takes two data sets"),
        (["a"], [], r"expected a mapping of settings, got"),
    ],
)
def test_mistakes(content, changes, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(content, changes)


def test_files_that_are_no_settings(tmp_path):
    with pytest.raises(
        SettingsError, match=r"no such file; the built-in settings are .*paper-small"
    ):
        load_settings(tmp_path / "nothing.yml")
    (tmp_path / "bad.yml").write_text("a: [1")
    with pytest.raises(SettingsError, match=r"bad.yml: not YAML"):
        load_settings(tmp_path / "bad.yml")
    (tmp_path / "good.yml").write_text(json.dumps(SMALL))
    assert load_settings(tmp_path / "good.yml") == load_settings(SMALL)
