"""The page: complete, self-contained, escaped, without identifiers, the same for the same inputs."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from medcls.evaluation.intervals import compute_intervals
from medcls.evaluation.predictions import KINDS
from medcls.evaluation.report import Evaluation, write_report

FIGURES = {
    "binary": {"roc", "precision_recall", "confusion", "scores", "reliability", "decision"},
    "multiclass": {"roc", "precision_recall", "confusion", "scores", "reliability"},
    "ordinal": {"roc", "precision_recall", "confusion", "scores", "reliability"},
    "multilabel": {"roc", "precision_recall", "reliability"},
    "regression": {"roc", "confusion", "values_by_grade", "residuals"},
}
TRAINING = {"history_loss", "history_validation", "history_learning_rate"}
HISTORY = [
    {"epoch": epoch, "lr": {"head": 0.1}, "train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_auc": 0.8}
    for epoch in (1, 2, 3)
]


class Page(HTMLParser):
    """Collects what a test asks about a page."""

    VOID = frozenset(("meta", "img", "br", "link"))

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
        settings = {name: task[name] for name in ("patient_ids", "class_names")}
        metrics = compute_intervals(
            kind, task["y_true"], task["y_score"], grades=task.get("grades", False), replicates=50, **settings
        )
        metrics |= {"n_images": 60, "n_patients": 30}
        evaluation = Evaluation(**({"metrics": metrics, "split": "test", "store_name": "demo"} | task | change))
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


def test_nothing_is_loaded_and_nothing_runs(write, tmp_path):
    (tmp_path / "sheet.png").write_bytes(b"\x89PNG")
    _, page, _ = write("binary", history=HISTORY, contact_sheets={"Stored images": tmp_path / "sheet.png"})
    inner = {link for link in page.links if not link.startswith("data:image/")}
    assert inner
    assert all(link.startswith("#") and link[1:] in page.anchors for link in inner)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}


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


def test_values_without_grades_are_plotted_against_the_truth(write):
    path, page, metrics = write("regression", class_names=(), grades=False)
    assert {figure.stem for figure in (path.parent / "figures").glob("*.png")} == {"values", "residuals"}
    assert f"{metrics['pearson']['value']:.3f}" in page.text


def test_the_same_inputs_write_the_same_bytes(write, pages):
    assert write("ordinal", history=HISTORY)[0].read_bytes() == pages["ordinal"][0].read_bytes()


def test_a_contact_sheet_must_be_an_image(write, tmp_path):
    with pytest.raises(ValueError, match=r"notes.txt is no PNG or JPEG"):
        write("binary", contact_sheets={"Sheet": tmp_path / "notes.txt"})


@pytest.mark.oracle
@pytest.mark.parametrize(("scheme", "darkest", "brightest"), [("1", 200, 255), ("0", 0, 60)])
def test_a_browser_shows_it_light_and_dark(pages, tmp_path, scheme, darkest, brightest):
    """The page and the figures inside it follow the scheme: the background of both is what one expects."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    path, _, _ = pages["binary"]
    picture = tmp_path / "page.png"
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
    switches += " --disable-background-networking --disable-sync --hide-scrollbars --window-size=1200,1600"
    command = [browser, *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", path.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = 255 * imread(picture)[..., :3]
    assert darkest <= np.median(pixels) <= brightest
    roc = pixels[900:1200, 100:500]  # inside the first figure
    assert darkest <= np.median(roc) <= brightest
    assert roc.std() > 5


def test_figures_carry_a_dark_scheme(pages):
    _, page, _ = pages["binary"]
    encoded = [link.split(",", 1)[1] for link in page.links if link.startswith("data:image/svg+xml")]
    assert len(encoded) == len(FIGURES["binary"] | TRAINING)
    for svg in (base64.b64decode(text).decode() for text in encoded):
        assert "prefers-color-scheme:dark" in svg
        assert re.search(r"(fill|stroke): var\(--c0\)", svg)
        assert "#1d2733" not in svg.replace("--c0:#1d2733", "")
