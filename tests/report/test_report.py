"""The page: complete, self-contained, escaped, without identifiers, the same for the same inputs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from matplotlib.image import imread

from medcls.report.assessed_tables import build_operating_tables
from medcls.report.content import Evaluation, Explanation, Overlay
from medcls.report.gallery import Picture, choose_worst
from medcls.report.report import write_report
from medcls.report.slider import build_slider
from medcls.statistics.assessment import Extras, Rows, assess, choose_calibration, choose_operating
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.number_text import format_number, format_threshold
from medcls.statistics.paired import compare_predictions
from medcls.statistics.predictions import KINDS, check_predictions
from medcls.statistics.thresholds import apply_operating_points, list_rules

CLASSES = {"roc", "precision_recall", "confusion", "scores", "reliability", "risk_coverage"}
FIGURES = {
    "binary": CLASSES | {"decision"},
    "multiclass": CLASSES,
    "ordinal": CLASSES,
    "multilabel": {"roc", "precision_recall", "reliability", *(f"decision_KL{k}" for k in range(4))},
    "regression": {"roc", "confusion", "values_by_grade", "residuals"},
}
TRAINING = {"history_loss", "history_validation", "history_learning_rate"}
HISTORY = [
    {"epoch": epoch, "lr": {"head": 0.1}, "train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_auc": 0.8}
    for epoch in (1, 2, 3)
]

pytestmark = pytest.mark.usefixtures("quick_figures")


class Page(HTMLParser):
    """Collects what a test asks about a page."""

    VOID = frozenset(("meta", "img", "br", "link", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.links += [found[name] for name in ("src", "href", "srcset", "data", "action") if name in found]
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def write(tmp_path_factory, make_task, make_patients):
    """Writes a page; answers its path, what is in it, and its metrics."""

    def write_page(kind, *, y_true=None, patient_ids=None, class_names=None, grades=None, **change):
        task = make_task(kind)
        given = {"y_true": y_true, "patient_ids": patient_ids, "class_names": class_names, "grades": grades}
        task |= {"patient_ids": make_patients(60)} | {k: v for k, v in given.items() if v is not None}
        task |= {"y_score": change.pop("y_score", task["y_score"])}
        patients = task.pop("patient_ids")
        one = check_predictions(**task)
        metrics = measure_predictions(one, patients, replicates=50)
        metrics |= {"n_images": 60, "n_patients": 30} | change.pop("extra", {})
        given = {"metrics": metrics, "split": "test", "store_name": "demo"} | change
        evaluation = Evaluation(predictions=one, patient_ids=patients, **given)
        path = write_report(tmp_path_factory.mktemp("report"), evaluation)
        return path, Page(path.read_text(encoding="utf-8")), metrics

    return write_page


@pytest.fixture(scope="module")
def pages(write):
    """One page of each kind of task, written once."""
    return {kind: write(kind, history=HISTORY) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_gets_its_page_and_its_figures(pages, kind):
    path, page, metrics = pages[kind]
    assert path.name == "report.html"
    assert {figure.stem for figure in (path.parent / "figures").glob("*.png")} == FIGURES[kind] | TRAINING
    assert all(imread(figure).std() > 0.01 for figure in (path.parent / "figures").glob("*.png"))
    assert page.open == []
    assert f"{metrics['accuracy']['value']:.3f}" in page.text
    assert f"{metrics['accuracy']['low']:.3f} – {metrics['accuracy']['high']:.3f}" in page.text


def test_nothing_is_loaded_and_no_script_runs_but_its_own(write, tmp_path):
    (tmp_path / "sheet.png").write_bytes(b"\x89PNG")
    path, page, _ = write("binary", history=HISTORY, contact_sheets={"Stored images": tmp_path / "sheet.png"})
    inner = {link for link in page.links if not link.startswith("data:image/")}
    assert inner
    assert all(link.startswith("#") and link[1:] in page.anchors for link in inner)
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    text = path.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert [f"script-src 'sha256-{digest}'" for digest in digests] == [policy.split("; ")[-1]]
    assert "default-src 'none'" in policy


def test_explanations_are_shown_and_escaped_the_untrusted_as_a_warning(write):
    overlays = [Overlay(row, "<b>ill", "well 0.7", PNG) for row in (3, 17)]
    given = [Explanation(name, name == "LIME", [f"{name} <i>verdict"], 9, overlays) for name in ("LIME", "Grad-CAM")]
    path, page, _ = write("binary", explanations=given, explanation_notes=["one was left out"])
    assert page.open == []
    assert {"explanations"} <= page.anchors
    for text in (
        "true: <b>ill, predicted: well 0.7, row 17",
        "LIME <i>verdict",
        "2 of 9 explained",
        "one was left out",
    ):
        assert text in page.text
    assert sum(link.startswith("data:image/png") for link in page.links) == 4
    verdicts = re.findall(r'<p class="(verdict[^"]*)">', path.read_text(encoding="utf-8"))
    assert verdicts == ["verdict", "verdict distrusted"]


def test_no_patient_is_named(pages):
    path, _, _ = pages["multiclass"]
    assert "patient-" not in path.read_text(encoding="utf-8")


def test_everything_given_is_shown_and_escaped(write):
    nasty = "<img src=x onerror=alert(1)>"
    _, page, _ = write(
        "binary",
        class_names=("healthy & well", nasty),
        store_name=nasty,
        notes=[f"opened 2 times {nasty}"],
        certificate={"sha256": "f00d", "checks": {"shared_patients": 0}, "list": [nasty]},
        split_facts=[f"dealt by {nasty}"],
        shows_ids=True,
        config_yaml=f"model: {nasty}",
        environment={"python": nasty, "gpu": None},
        intended_use=f"for {nasty}",
    )
    assert page.open == []
    assert "x" not in page.links
    assert page.text.count(nasty) >= 8
    for shown in ("healthy & well", "opened 2 times", "f00d", "shared_patients"):
        assert shown in page.text


def test_dollars_and_backslashes_in_class_names_are_plain_text(write):
    path, _, _ = write("binary", class_names=(r"$\frac{1}{2", "$$"))
    assert (path.parent / "figures" / "confusion.png").exists()


def test_an_absent_class_shows_its_reason_instead_of_a_number(write, make_task, make_patients):
    task = make_task("multiclass")
    rows = task["y_true"] != 1
    shorter = {"y_true": task["y_true"][rows], "y_score": task["y_score"][rows]}
    _, page, _ = write("multiclass", **shorter, patient_ids=make_patients(int(rows.sum())))
    assert page.text.count("no image of class KL1") >= 4


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
def test_a_split_of_one_class_and_one_patient_still_gets_a_page(write, make_task, kind):
    true = np.zeros_like(make_task(kind)["y_true"])
    path, page, _ = write(kind, y_true=true, patient_ids=["one"] * 60)
    assert not (path.parent / "figures" / "roc.png").exists()
    assert "one patient only: there is nothing to resample" in page.text
    assert "no image" in page.text


@pytest.mark.parametrize("patients_from", ["", "per_image"])
def test_the_page_and_the_checklist_say_the_same_of_the_intervals(write, patients_from):
    path, page, _ = write("binary", extra={"patients_from": patients_from})
    filled = json.loads((path.parent / "claim.json").read_text())["filled"]
    (said,) = (entry["filled"] for entry in filled if entry["item"] == "29")
    assert "Wilson for shares" in said
    assert said in page.text
    assert "percentile" not in page.text


@pytest.mark.parametrize(("kind", "matrix"), [("binary", True), ("multilabel", False)])
def test_the_decision_speaks_of_a_confusion_matrix_only_where_there_is_one(write, kind, matrix):
    _, page, _ = write(kind, extra={"decision": {"rule": "half", "words": "Decision: 0.5.", "thresholds": {}}})
    assert ("the confusion matrix and the subgroups use it" in page.text) is matrix
    assert "the subgroups use it" in page.text


def test_values_without_grades_are_plotted_against_the_truth(write):
    path, page, metrics = write("regression", class_names=(), grades=False)
    assert {figure.stem for figure in (path.parent / "figures").glob("*.png")} == {"values", "residuals"}
    assert f"{metrics['pearson']['value']:.3f}" in page.text


@pytest.mark.usefixtures("real_figures")
def test_the_same_inputs_write_the_same_bytes(write, pages):
    assert write("ordinal", history=HISTORY)[0].read_bytes() == pages["ordinal"][0].read_bytes()


def test_a_contact_sheet_must_be_an_image(write, tmp_path):
    with pytest.raises(ValueError, match=r"notes.txt is not a PNG or JPEG"):
        write("binary", contact_sheets={"Sheet": tmp_path / "notes.txt"})


PNG = cv2.imencode(".png", np.zeros((4, 8), dtype=np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.full((8, 8), 90, np.uint8))[1].tobytes()


def assess_all(rows, *, seed=0):
    """Everything that metrics.json can hold beside the metrics, with the numbers of another run."""
    rules = list_rules(sensitivity=[0.9], specificity=[0.9], cost=[3.0])
    operating, calibration = choose_operating(rows, rules=rules), choose_calibration(rows, alpha=0.2, seed=0)
    columns = {"sex": ["F", "M"] * 30, "site": ["rare <b>"] * 4 + ["large"] * 56}
    found = assess(
        rows, operating=operating, calibration=calibration, extras=Extras(columns, [0.05], 10), replicates=50
    )  # fmt: skip
    compared = compare_predictions(rows.predictions, rows.predictions, rows.patients, replicates=50)
    curve = {"unit": "degrees", "points": [{"strength": 2.0, "value": 0.8, "low": 0.7, "high": 0.9}]}
    robust = {"metric": "auc", "unchanged": {"value": 0.85, "low": 0.8, "high": 0.9}, "curves": {"rotation": curve}}
    where = {"where": "val (60 images of 30 patients)"}
    told = {"values": {"GE": 9, "Philips": 8}, "features": {"value": 0.913, "low": 0.8, "high": 0.95}}
    told["labels"] = {"value": 0.517, "low": 0.4, "high": 0.6}
    return found | {
        "shortcuts": {"manufacturer": told, "site": {"reason": "the store has no such column"}},
        "comparison": {"first": "run_a", "second": "run_b", **compared}, "robustness": robust, "chosen_on": where,
    }  # fmt: skip


@pytest.fixture(scope="module")
def full_pages(write, make_task, make_patients):
    """A page with everything, for each kind of task."""
    made = {}
    for kind in KINDS:
        predictions, patients = check_predictions(**make_task(kind)), make_patients(60)
        extra = assess_all(Rows(predictions, patients, [f"study-{row // 2}" for row in range(60)]))
        made[kind] = write(
            kind,
            history=HISTORY,
            extra=extra,
            flow=[
                {"title": "Files found", "files": 70, "left_out": [("skipped: no_image", 10)]},
                {"title": "Evaluated", "images": 60, "patients": 30, "left_out": []},
            ],
            demographics={"train": {"images": 5, "sex": "F 5"}, "test": {"images": 60, "age": "61 (50–70)"}},
            gallery=[Picture(worst, JPEG) for worst in choose_worst(predictions, count=3)],
        )
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_with_everything_shows_everything(full_pages, make_task, kind):
    path, page, metrics = full_pages[kind]
    assert page.open == []
    shown = ["Operating points: images", "Chosen on val (60 images of 30 patients); frozen", "Subgroups"]
    # The two images of a patient have different classes here: only ordered ones can be joined.
    level = "every unit has images of several classes" if kind == "multiclass" else "Operating points: patient level"
    if kind in ("multiclass", "ordinal"):
        grade = "grade " if kind == "ordinal" else ""
        names = [f"{grade}{name} against all others" for name in make_task(kind)["class_names"]]
        # In the slider, and in the table of each rule.
        assert [page.text.count(name) > 1 for name in names] == [True] * len(names)
    shown += ["Youden's rule: the largest sum of sensitivity and specificity"]
    shown += ["A rule's target was reached there and need not be reached here."]
    means = {
        "multilabel": f"mean of {len(make_task(kind)['class_names'])} labels",
        "multiclass": "classes, each against all others",
    }
    shown += [means.get(kind, "each against all others" if kind == "ordinal" else "higher is better")]
    shown += [level, "Images, studies, patients", "run_a against run_b", "site: rare <b>"]
    shown += [
        "fewer than 10 patients: suppressed",
        "10 skipped: no_image",
        "61 (50–70)",
        "Rotation",
        "Move the threshold",
    ]
    shown += ["Most uncertain"] if kind != "regression" else ["Worst"]
    if kind != "regression":
        shown += ["Recalibration", "Conformal sets and referral", "sets are meant to contain the true class in 80 %"]
    assert [text for text in shown if text not in page.text] == []
    point = metrics["operating_points"][0]
    assert format_threshold(point["threshold"]) in page.text
    assert f"{point['rates']['specificity']['value']:.3f}" in page.text
    assert (path.parent / "figures" / "robustness_rotation.png").is_file()
    assert "patient-" not in path.read_text(encoding="utf-8")


FINE = {"youden": 0.99975, "specificity": 0.99986}


def test_thresholds_that_the_decision_does_not_use_are_said_to_be_so(full_pages):
    _, _, metrics = full_pages["ordinal"]
    for thresholds, used in (({}, False), ({"KL1": 0.5}, True)):
        table = build_operating_tables({**metrics, "decision": {"rule": "highest", "thresholds": thresholds}})[0]
        assert table.caption.endswith("The decision above uses none of these thresholds.") != used


def test_the_slider_points_at_frozen_thresholds_only_if_there_are_some(pages, full_pages):
    plain, full = pages["binary"][1].text, full_pages["binary"][1].text
    assert "quote the numbers at the decision above" in plain
    assert "quote those in the table below" not in plain
    assert "quote those in the table below" in full


def test_the_slider_counts_as_the_scores_do(make_task):
    predictions = check_predictions(**make_task("binary"))
    (question,) = build_slider(predictions, [], start={})["questions"]
    score, ill = predictions.y_score[:, 0], predictions.y_true == 1
    for step in (0, 137, 500, 1000):
        assert question["true_positives"][step] == ((score >= step / 1000) & ill).sum()
        assert question["false_positives"][step] == ((score >= step / 1000) & ~ill).sum()
    assert (question["positives"], question["thresholds"][question["start"]]) == (ill.sum(), 0.5)
    all_well = check_predictions(**make_task("binary") | {"y_true": np.zeros(60)})
    assert build_slider(all_well, [], start={}) is None


def test_the_slider_counts_exactly_at_frozen_thresholds_and_opens_at_the_decision():
    """All scores are within 1/1000 of 1: a rounded threshold calls everybody, or nobody."""
    score, ill = np.linspace(0.9995, 0.99995, 20), np.arange(20) % 3 == 0
    predictions = check_predictions("binary", ill.astype(int), score, class_names=("well", "ill"))
    points = [{"question": "ill", "kind": kind, "target": None, "threshold": t} for kind, t in FINE.items()]
    (question,) = build_slider(predictions, points, start={"ill": FINE["specificity"]})["questions"]
    assert [question["thresholds"][mark["step"]] for mark in question["frozen"]] == list(FINE.values())
    for mark, threshold in zip(question["frozen"], FINE.values(), strict=True):
        assert question["true_positives"][mark["step"]] == ((score >= threshold) & ill).sum()
        assert question["false_positives"][mark["step"]] == ((score >= threshold) & ~ill).sum()
    assert question["thresholds"][question["start"]] == FINE["specificity"]
    assert [question["labels"][mark["step"]] for mark in question["frozen"]] == ["0.99975", "0.99986"]


def test_the_slider_has_the_intervals_of_the_table_at_frozen_thresholds(make_task):
    predictions = check_predictions(**make_task("binary"))
    points = [{"question": "ill", "kind": "youden", "target": None, "threshold": 0.4321}]
    applied = apply_operating_points(predictions, points, np.arange(60) // 2, replicates=100)
    slider = build_slider(predictions, applied, start={}, several_images=True)
    (mark,) = slider["questions"][0]["frozen"]
    for name, interval in mark["intervals"].items():
        number = format_number(name, applied[0]["rates"][name])
        assert interval == "; ".join(filter(None, [number.interval, number.reason]))
        assert number.interval
    assert slider["several_images"]  # so that the script gives no intervals of images elsewhere


def test_a_class_name_does_not_end_the_script(write):
    path, page, _ = write("binary", class_names=("</script><img src=x onerror=alert(1)>", "ill </script>"))
    assert page.open == []
    assert "x" not in page.links
    data = re.search(r'id="slider-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert json.loads(data)["questions"][0]["name"] == "ill </script>"


@pytest.fixture
def browse(tmp_path):
    """Runs headless Chromium on a page; answers what it wrote to its output and to its log."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")

    def run(*arguments):
        switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
        switches += " --disable-background-networking --disable-sync --hide-scrollbars --window-size=1200,1600"
        command = [browser, *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=180, text=True)
        return done.stdout, done.stderr

    return run


@pytest.mark.oracle
@pytest.mark.parametrize(("scheme", "darkest", "brightest"), [("1", 200, 255), ("0", 0, 60)])
def test_a_browser_shows_it_light_and_dark(pages, browse, tmp_path, scheme, darkest, brightest):
    """The page and the figures inside it follow the scheme: the background of both is what one expects."""
    path, _, _ = pages["binary"]
    picture = tmp_path / "page.png"
    browse(f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}", path.as_uri())
    pixels = 255 * imread(picture)[..., :3]
    assert darkest <= np.median(pixels) <= brightest
    roc = pixels[900:1200, 100:500]  # inside the first figure
    assert darkest <= np.median(roc) <= brightest
    assert roc.std() > 5


def read_cell(dom, name):
    return re.search(rf'id="slider-{name}"[^>]*>([^<]*)<', dom)[1]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_slider_moves_the_tables(full_pages, browse, kind, make_task):
    path, _, metrics = full_pages[kind]
    predictions = check_predictions(**make_task(kind))
    known = ~np.isnan(predictions.y_true[:, 0]) if kind == "multilabel" else np.ones(60, dtype=bool)
    true = (predictions.y_true[known, 0] if kind == "multilabel" else predictions.y_true) == 1
    score = predictions.y_score[known, 0]
    for threshold in (0.2, 0.7):
        dom, _ = browse("--dump-dom", f"{path.as_uri()}#threshold={threshold}")
        called = score >= threshold
        cells = {"tp": called & true, "fp": called & ~true, "fn": ~called & true, "tn": ~called & ~true}
        assert {name: int(read_cell(dom, name)) for name in cells} == {n: int(c.sum()) for n, c in cells.items()}
        assert read_cell(dom, "sensitivity") == f"{(called & true).sum() / true.sum():.3f}"
        assert read_cell(dom, "threshold") == f"{threshold:.3f}"
    dom, _ = browse("--dump-dom", path.as_uri())
    assert read_cell(dom, "threshold") == format_threshold(metrics["operating_points"][0]["threshold"])


_MEASURE = """<script>onload = () => { const wide = [...document.querySelectorAll(".card, .classes")];
const cut = wide.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.className);
const page = document.documentElement.scrollWidth - document.documentElement.clientWidth;
parent.postMessage(JSON.stringify({page, cut}), "*"); };</script></body>"""


@pytest.mark.oracle
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("kind", ["binary", "ordinal", "multilabel"])
def test_the_page_does_not_scroll_sideways_nor_cut_cards_off(full_pages, browse, tmp_path, kind, width):
    """On a telephone wide tables scroll inside their box; on a screen they fit."""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", full_pages[kind][0].read_text(encoding="utf-8"))
    (tmp_path / "inner.html").write_text(text.replace("</body>", _MEASURE), encoding="utf-8")
    frame = f'<iframe width="{width}" height="900" style="border:0" src="inner.html"></iframe><pre></pre>'
    script = "<script>onmessage = (said) => { document.querySelector('pre').textContent = said.data; };</script>"
    (tmp_path / "outer.html").write_text(script + frame, encoding="utf-8")
    dom, _ = browse("--virtual-time-budget=5000", "--dump-dom", (tmp_path / "outer.html").as_uri())
    found = json.loads(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1])
    assert found["page"] == 0
    assert [name for name in found["cut"] if width > 1000 or name == "card"] == []


def find_requests(log):
    """Addresses that the page itself asked for, out of the browser's network log; the browser's own are left out."""
    found = re.findall(r'"initiator":"([^"]*)".*?"url":"([^"]*)"', log.read_text(encoding="utf-8"))
    return [url for initiator, url in found if initiator != "not an origin" and not url.startswith("file:")]


@pytest.mark.oracle
def test_the_page_loads_without_errors_and_asks_nothing_of_the_network(full_pages, browse, tmp_path):
    (tmp_path / "bad.html").write_text('<img src="http://example.invalid/x.png"><script>missing()</script>')
    pages = [tmp_path / "bad.html", full_pages["binary"][0], full_pages["multilabel"][0]]
    found = []
    for path in pages:
        log = tmp_path / "network.json"
        dom, messages = browse(f"--log-net-log={log}", "--dump-dom", path.as_uri())
        assert len(dom) > 50
        found.append((find_requests(log), [line for line in messages.splitlines() if ":CONSOLE" in line]))
    # What would be an error is seen as one: the first page has both.
    assert found[0][0] == ["http://example.invalid/x.png"]
    assert "missing is not defined" in found[0][1][0]
    assert found[1:] == [([], []), ([], [])]


def test_figures_carry_a_dark_scheme(pages):
    _, page, _ = pages["binary"]
    encoded = [link.split(",", 1)[1] for link in page.links if link.startswith("data:image/svg+xml")]
    assert len(encoded) == len(FIGURES["binary"] | TRAINING)
    for svg in (base64.b64decode(text).decode() for text in encoded):
        assert "prefers-color-scheme:dark" in svg
        assert re.search(r"(fill|stroke): var\(--c0\)", svg)
        assert "#1d2733" not in svg.replace("--c0:#1d2733", "")
