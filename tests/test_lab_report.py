"""The report: whole for every set of stages, its words as its numbers, and nothing from outside."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from tests.lab_results import bitfit, lab_results, records, sizes
from wspace.lab.report import write_report
from wspace.lab.report.comparison import comparison
from wspace.lab.report.formats import listed, number, percent, seconds
from wspace.lab.report.words import findings

STAGES = ("zoo", "clusters", "lines", "regions", "edges", "efficient", "sizes")
VOID = {"meta", "use", "path", "br", "image"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    # as they are read back from the file
    return json.loads(json.dumps(lab_results(tmp_path_factory.mktemp("lab"))))


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(results, folder)


class Page(HTMLParser):
    """Whether every element that is opened is closed, and which addresses there are."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._attributes(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._attributes(attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def _attributes(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                self.addresses.append(value)


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))  # figures do not take each other's clip paths
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    assert '<td>lines</td><td class="n">1,234</td><td class="n">0.2 s</td>' in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_figures_are_files_too_and_take_the_ink_of_the_page(report):
    text = report.read_text(encoding="utf-8")
    names = re.findall(r'<figure id="([^"]+)"', text)
    files = {path.name for path in (report.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    wanted = {"zoo-accuracy", "clusters-same-dataset-tsne", "clusters-families-3-mds",
              "clusters-tree", "clusters-layers", "interpolation-same-dataset",
              "extrapolation-general", "regions-same-task", "edges-directions", "edges-plane",
              "bitfit-paper-all", "bitfit-paper-100", "sizes-cosines"}  # fmt: skip
    assert wanted <= set(names)
    assert "var(--ink)" in text and "#1b1f24" not in text.replace("--ink: #1b1f24", "")
    assert (report.parent / "figures" / "zoo-accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_results_give_the_same_page(results, report, tmp_path):
    few = {key: results[key] for key in results if key not in STAGES or key == "lines"}
    texts = [write_report(few, tmp_path / name).read_bytes() for name in "ab"]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_were_not_run_are_said_to_be_so(results, stage, tmp_path):
    few = {key: results[key] for key in results if key not in STAGES or key == stage}
    page = Page(text := write_report(few, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert text.count("<li>Not run: ") == len(STAGES) - 1
    assert set(findings(few)) == {stage}


def test_a_name_is_a_text_and_no_markup(results, tmp_path):
    changed = copy.deepcopy({k: results[k] for k in results if k not in STAGES[1:]})
    changed["name"] = changed["zoo"][0]["task"] = "<b>&amp;"
    changed["settings"]["base"] = "<script>"
    text = write_report(changed, tmp_path).read_text(encoding="utf-8")
    assert "<b>" not in text and "<script>" not in text
    assert "&lt;b&gt;&amp;amp;" in text


def test_losses_that_are_not_finite_are_drawn_around(results, tmp_path):
    few = copy.deepcopy({k: results[k] for k in results if k not in STAGES[:2]})
    level = few["lines"]["levels"][0]
    level["outside"]["mean"][0] = level["outside"]["sd"][0] = "nan"
    for group in few["regions"]["levels"][0]["groups"].values():
        group["loss"] = ["nan"] * len(group["loss"])
    few["edges"]["plane"]["loss"][0][0] = "inf"
    assert Page(write_report(few, tmp_path).read_text(encoding="utf-8")).open == []


def test_words_follow_the_clusters(results):
    found = copy.deepcopy(results["clusters"])
    text = " ".join(findings({"clusters": found})["clusters"])
    assert "15 models in 5 clusters: every one lies in a cluster of its own data set" in text
    assert "15 models in 3 clusters: every one lies in a cluster of its own family" in text
    assert "the nearer the data, the nearer the weights" in text
    assert "affinity" not in text  # both ways agree
    found["runs"][0]["scores"]["majority"]["accuracy"] = 0.4
    found["cosines"]["across"]["mean"] = 0.99
    text = " ".join(findings({"clusters": found})["clusters"])
    assert "in 5 clusters: 40 % lies in" in text
    assert "becomes an affinity: 40 % by max(cos, 0) and 100 % by (1 + cos) / 2." in text
    assert "not in that order" in text


def test_words_follow_the_lines(results):
    found = copy.deepcopy(results["lines"])
    first, second, *_ = findings({"lines": found})["lines"]
    assert re.search(r"^Same data set .* % below the mean of the ends", first)
    assert second.startswith("Beyond the two models 100 % of the points are worse than both")
    inside = found["levels"][0]["inside"]
    inside["mean"] = [2 * inside["mean"][0] - value for value in inside["mean"]]
    for line in inside["lines"]:
        line["midpoint_gain"] = -1.0
    text = findings({"lines": found})["lines"][0]
    assert "above the mean of the ends" in text and "on 0 of 3 lines" in text


def test_words_follow_the_regions(results):
    found = copy.deepcopy(results["regions"])
    text = findings({"regions": found})["regions"][0]
    assert text.count("clearly better") == 3
    rows = found["levels"][0]["better"]
    rows[0] |= {"p": 0.1, "low": 0.0, "high": 0.3}
    rows[1] |= {"p": 0.5, "low": 0.2, "high": 0.8}
    text = findings({"regions": found})["regions"][0]
    assert "0.10 [0.00 to 0.30], clearly worse" in text
    assert "0.50 [0.20 to 0.80], no clear difference" in text


def test_words_follow_the_edges(results):
    found = copy.deepcopy(results["edges"])
    text = findings({"edges": found})["edges"]
    assert "below the models' own" in text[0]
    found["radius"]["centroid"]["loss"] = [99.0]
    assert "above the models' own" in findings({"edges": found})["edges"][0]


def test_words_follow_the_starts():
    better = findings({"efficient": bitfit(0.1)})["efficient"]
    assert better[0].startswith("BitFit from the centroid of all others, paper-like regime, all")
    assert "better than from the pretrained model by +7.6 points" in better[0]
    assert "4 won, 0 tied, 1 lost, not beyond chance" in better[0]
    worse = findings({"efficient": bitfit(-0.1)})["efficient"]
    assert "worse than from the pretrained model by -7.6 points" in worse[0]
    assert "1 won, 0 tied, 4 lost" in worse[0]


def test_words_follow_the_kinds_of_targets():
    found = bitfit(0.1)
    row = found["summary"][0]
    seen = row | {"part": "seen by the base", "n": 2, "mean_gain": -0.02, "wins": 0}
    said = findings({"efficient": found | {"parts": [seen]}})["efficient"]
    assert said[1] == "Of these -2.0 points over 2 targets seen by the base (0 won)."
    whole = seen | {"n": row["n"]}  # all targets are of that kind: nothing to add
    assert len(findings({"efficient": found | {"parts": [whole]}})["efficient"]) == len(said) - 1


def test_words_tell_of_rows_that_another_data_set_has_too():
    shared = [{"test": "sick", "train": "snli", "rows": 20, "of": 2000}]
    said = findings({"zoo": records(), "overlaps": shared})["zoo"][-1]
    assert said == (
        "Seen elsewhere: 20 of 2,000 test rows of sick share a text with the training rows of snli."
    )


def test_words_follow_the_sizes():
    assert "100 % are in a cluster of their data set" in findings({"sizes": sizes()})["sizes"][0]
    assert "follow the data set, not" in findings({"sizes": sizes()})["sizes"][0]
    assert "do not follow" in findings({"sizes": sizes(right=False)})["sizes"][0]
    none = {"models": [], "reason": "fewer than two data sets", "left_out": {}}
    assert findings({"sizes": none})["sizes"] == ["Not run: fewer than two data sets."]


def test_words_of_a_zoo_name_the_failures():
    zoo = records()
    assert findings({"zoo": zoo})["zoo"] == [
        "15 models of 5 data sets in 3 families; 15 of them beat the commonest label on the test "
        "rows."
    ]
    zoo[3] |= {"status": "failed: the loss is not finite"}
    zoo[0]["test_accuracy"] = 0.5
    first, second = findings({"zoo": zoo})["zoo"]
    assert first.startswith("14 models") and "13 of them beat" in first
    assert second == f"1 training failed: {zoo[3]['name']}."


def test_claims_agree_or_not_by_their_numbers(results):
    claims = {claim.claim: claim for claim in comparison(results)}
    assert claims["models cluster by data set (k = 5)"].agrees
    assert claims["P_B(In', In), same data set"].paper == "0.88"
    title = "BitFit from the centroid of all others, paper-like regime, all rows"
    assert claims[title].agrees and claims[title].paper == "+4.0; 9 won, 2 tied, 1 lost"
    turned = copy.deepcopy(results) | {"efficient": bitfit(-0.1), "sizes": sizes(right=False)}
    turned["clusters"]["runs"][0]["scores"]["majority"]["accuracy"] = 0.5
    turned["edges"]["radius"]["ways"]["random"]["mean"] = [0.0] * 6
    other = {claim.claim: claim.agrees for claim in comparison(turned)}
    changed = {name for name, claim in claims.items() if claim.agrees and not other[name]}
    assert {
        "models cluster by data set (k = 5)",
        title,
        "clusters follow the data set, not the number of rows",
        "random directions: as the models to their radius, worse beyond",
    } <= changed


def test_numbers_are_shown_with_care():
    assert [number(x) for x in (0.12345, 0, 1e-5, 2e6, "nan", None)] == [
        "0.123", "0.000", "1e-05", "2e+06", "nan", "–",
    ]  # fmt: skip
    assert percent(0.975, 1) == "97.5 %"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert [seconds(s) for s in (59, 120, 7200)] == ["59 s", "2 min", "2.0 h"]
