from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medcls.config import ExplainJob
from medcls.config.schema import read_settings
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import Task
from medcls.errors import ConfigError, DataError
from medcls.explain.explain import explain, file_name
from medcls.explain.explanation_report import describe_sanity, summarize, write_sentences
from medcls.explain.map_checks import read_boxes
from medcls.explain.method import TECHNIQUES, Explained, Subject, Target, choose_target
from medcls.explain.sanity import check_sanity, judge_sanity
from medcls.files import read_json, read_json_lines
from medcls.models.classifier import Answer, build_classifier

RunExplain = Callable[..., Path]
QUICK = ("device=cpu", "worst=2", "sanity_images=1", "num_samples=40", "num_superpixels=8", "steps=4")


@pytest.fixture
def run_explain(compose_job: Callable[..., Any], tmp_path: Path) -> RunExplain:
    """Explains and returns the folder: run_explain(run, "method=lime")."""

    def run(folder: Path, *arguments: str, out: str = "explained") -> Path:
        given = {a.partition("=")[0]: a for a in (*QUICK, *arguments)}
        explain(compose_job("explain", f"run={folder}", f"out={tmp_path / out}", *given.values()))
        return tmp_path / out

    return run


@pytest.mark.parametrize("method", ["lime", "gradcam", "gradcam++", "integrated_gradients", "occlusion"])
def test_every_method_writes_maps_pictures_figures_and_a_page(
    run_copy: Path, run_explain: RunExplain, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_explain(run_copy, f"method={method}")
    found = read_json(folder / "explanations.json")
    assert len(found["images"]) == 2
    for row in found["images"]:
        heat = np.load(folder / "maps" / f"{file_name(row['image_id'])}.npy")
        assert heat.shape == (32, 32)
        assert heat.dtype == np.float32
        assert np.isfinite(heat).all()
        assert (folder / "images" / f"{file_name(row['image_id'])}.png").is_file()
        assert 0 <= row["score"] <= 1
        assert (method == "lime") == ("r2" in row)
        assert ("completeness_gap" in row) == (method == "integrated_gradients")
    levels = found["summary"]["sanity"]["levels"]
    assert levels[0]["scrambled"] == ["head"]
    assert levels[-1]["scrambled"][-1] == "stem"
    page = (folder / "explanation.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert "Weight-randomisation check" in page
    printed = capsys.readouterr().out
    assert found["found"][0] in printed
    assert "explanation.html" in printed


def test_choices_of_method_are_the_rows_of_techniques() -> None:
    assert read_settings(ExplainJob)["method"].choices == tuple(each.name for each in TECHNIQUES)


def test_same_seed_same_bytes_and_old_pictures_go(run_copy: Path, run_explain: RunExplain) -> None:
    first = run_explain(run_copy, "method=lime", out="a")
    second = run_explain(run_copy, "method=lime", out="b")
    for path in sorted((first / "maps").iterdir()):
        assert path.read_bytes() == (second / "maps" / path.name).read_bytes()
    ids = [row["image_id"] for row in read_json(first / "explanations.json")["images"]]
    run_explain(run_copy, "method=lime", f"images=[{ids[1]}]", out="a")
    assert [path.stem for path in (first / "maps").iterdir()] == [file_name(ids[1])]


def test_folder_with_other_files_is_refused(run_copy: Path, run_explain: RunExplain, tmp_path: Path) -> None:
    (tmp_path / "explained").mkdir()
    (tmp_path / "explained" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt"):
        run_explain(run_copy)


def test_unknown_image_is_named(run_copy: Path, run_explain: RunExplain) -> None:
    with pytest.raises(DataError, match="nobody not in split=val"):
        run_explain(run_copy, "images=[nobody]")


def test_opening_of_the_test_split_is_counted(run_copy: Path, run_explain: RunExplain) -> None:
    run_explain(run_copy, "split=test")
    run_explain(run_copy, "split=test")
    log = next((run_copy / "evaluation").glob("*-test/opened.jsonl"))
    assert len(read_json_lines(log)) == 1  # the second time the predictions were reused


def test_boxes_are_placed_in_stored_pixels_and_measured(
    run_copy: Path, run_explain: RunExplain, store: Store, tmp_path: Path
) -> None:
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "box_y", "box_x", "box_h", "box_w"])
        writer.writerows([name, 4, 6, 8, 20] for name in store.column("image_id"))
    boxes = read_boxes(tmp_path / "boxes.csv", store)
    assert set(boxes.values()) == {(4, 6, 8, 20)}
    folder = run_explain(run_copy, f"boxes={tmp_path / 'boxes.csv'}", "sanity_images=0")
    found = read_json(folder / "explanations.json")
    assert found["summary"]["n_boxes"] == 2
    assert found["summary"]["mean"]["box_share"] == pytest.approx(8 * 20 / 32**2)
    assert found["summary"]["sanity"] is None
    assert "was not made" in found["found"][0]


def test_the_page_names_images_by_row_and_by_id_only_if_asked(
    run_copy: Path, run_explain: RunExplain, store: Store
) -> None:
    ids = store.column("image_id")
    splits, _ = read_split(store, "default")
    chosen = ids[int(rows_of(splits, "val")[0])]
    folder = run_explain(run_copy, f"images=[{chosen}]", "sanity_images=0")
    page = (folder / "explanation.html").read_text()
    assert [name for name in ids if name in page] == []
    assert "Row 0 of predictions.parquet" in page
    assert "1 chosen by their ids" in page
    (row,) = read_json(folder / "explanations.json")["images"]
    assert (row["image_id"], row["row"]) == (chosen, 0)
    folder = run_explain(run_copy, f"images=[{chosen}]", "sanity_images=0", "show_ids=true")
    assert chosen in (folder / "explanation.html").read_text()


@pytest.mark.parametrize(
    "line",
    ["Mustermann,Erika,1,1,2,2", "a,Erika,1,2,2", "a,,1,2,2"],
)
def test_faulty_boxes_are_refused_without_a_cell(line: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"image_id,box_y,box_x,box_h,box_w\nb,1,1,2,2\n{line}\n")
    with pytest.raises(
        DataError, match=r"boxes=.*(as many cells in each line|expected a number in every row)"
    ) as error:
        read_boxes(tmp_path / "boxes.csv", store)
    assert "Mustermann" not in str(error.value)
    assert "Erika" not in str(error.value)


def test_boxes_of_nobody_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image_id,box_y,box_x,box_h,box_w\nnobody,1,1,2,2\n")
    with pytest.raises(DataError, match="no image_id in it is an image_id of the store"):
        read_boxes(tmp_path / "boxes.csv", store)
    (tmp_path / "boxes.csv").write_text("image_id,box_y\na,1\n")
    with pytest.raises(DataError, match="missing columns box_x, box_h, box_w"):
        read_boxes(tmp_path / "boxes.csv", store)


def test_map_drawn_from_the_image_alone_fails_the_check() -> None:
    """Edges look like an explanation and do not know the network: the reason for the check."""
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32)).astype(np.uint8)
    subject = Subject("a", 0, image, Target("binary", 1, ""), "", "")

    def edges(model: Any, image: Any, **_: Any) -> Explained:
        return Explained(np.abs(np.gradient(image[0].astype(np.float32))[0]))

    def weights(model: Any, image: Any, **_: Any) -> Explained:
        values = model.state_dict()["backbone.body.conv1.weight"].flatten()[:1024]
        return Explained(values.reshape(32, 32).numpy().copy())

    model = build_classifier("resnet18", Answer("binary", 2))
    verdicts = []
    for draw in (edges, weights):
        method: Any = SimpleNamespace(explain=draw, job=SimpleNamespace(seed=0))
        verdicts.append(check_sanity(method, model, [subject], [draw(model, image)])["verdict"])
    assert verdicts == ["failed", "passed"]


def test_failed_check_says_so() -> None:
    levels = [
        {"scrambled": ["head"], "rank_correlation": 0.97, "undefined": 0},
        {"scrambled": ["head", "a"], "rank_correlation": 0.8, "undefined": 0},
    ]
    assert judge_sanity(levels) == "failed"
    sanity = {"levels": levels, "limit": 0.5, "images": 3, "verdict": "failed"}
    assert "FAILED the weight-randomisation check" in describe_sanity(sanity)
    assert "do not use them" in describe_sanity(sanity)
    assert "0.800 in 3 images; limit" in describe_sanity(sanity)
    levels[-1]["undefined"] = 2
    assert "0.800 in 1 of 3 images, the others have a constant map; limit" in describe_sanity(sanity)
    levels[-1]["rank_correlation"] = 0.2
    assert judge_sanity(levels) == "passed"
    levels[-1]["rank_correlation"] = None
    assert judge_sanity(levels) == "undecided"


LOGITS = torch.tensor([[0.3, -0.8], [2.0, 1.0]])


def test_target_of_each_task() -> None:
    names = ["none", "mild", "severe"]
    probabilities = LOGITS.double().sigmoid()
    expected = choose_target(Task("ordinal", names, ["label"]), np.array([0.2, 0.5, 0.3]))
    assert expected.words == "expected grade"
    above = probabilities.cumprod(dim=1)
    torch.testing.assert_close(expected.score(LOGITS), above.sum(dim=1))
    severe = choose_target(Task("ordinal", names, ["label"]), np.zeros(3), target="severe")
    torch.testing.assert_close(severe.score(LOGITS), above[:, 1])
    torch.testing.assert_close(severe.slope(LOGITS).sigmoid(), above[:, 1])
    joint = torch.tensor([[0.3, -0.8, 1.1, 1.4]])
    grade = choose_target(Task("ordinal", names, ["label"], ordinal="joint"), np.zeros(3))
    chances = joint[:, :3].double().softmax(dim=1)
    torch.testing.assert_close(grade.score(joint), chances[:, 1] + 2 * chances[:, 2])
    grades = Task("multiclass", names, ["label"])
    predicted = choose_target(grades, np.array([0.1, 0.7, 0.2]))
    assert (predicted.index, predicted.words) == (1, "probability of mild")
    torch.testing.assert_close(predicted.score(LOGITS), LOGITS.double().softmax(dim=1)[:, 1])
    torch.testing.assert_close(predicted.slope(LOGITS), LOGITS[:, 1])
    finding = choose_target(Task("multilabel", ["a", "b"], ["label_a", "label_b"]), np.zeros(2), target="b")
    torch.testing.assert_close(finding.score(LOGITS), probabilities[:, 1])
    one = LOGITS[:, :1]
    two = Task("binary", ["no", "yes"], ["label"])
    torch.testing.assert_close(choose_target(two, np.zeros(1)).score(one), probabilities[:, 0])
    no = choose_target(two, np.zeros(1), target="no")
    torch.testing.assert_close(no.score(one), 1 - probabilities[:, 0])
    torch.testing.assert_close(no.slope(one), -one[:, 0])
    value = choose_target(Task("regression", [], ["label"]), np.zeros(1))
    torch.testing.assert_close(value.slope(one), one[:, 0])
    assert value.score(one).tolist() == pytest.approx(one[:, 0].tolist())


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("ordinal", "none", "every image has this grade"),
        ("multiclass", "sever", r"target=sever: expected auto or one of none, mild, severe \(nearest: severe\)"),
        ("regression", "mild", "has one value"),
    ],
)
def test_targets_without_a_score_are_refused(kind: str, target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_target(Task(kind, ["none", "mild", "severe"], ["label"]), np.zeros(3), target=target)


def test_ordinal_expected_grade_is_differentiable() -> None:
    logits = LOGITS.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(Target("ordinal", -1, "").slope(logits).sum(), logits)
    assert (slopes > 0).all()


def test_file_names_are_plain_and_apart() -> None:
    assert file_name("a3f9") == "a3f9"
    assert file_name("images/p1.png").startswith("images_p1.png-")
    assert file_name("images/p1") != file_name("images_p1")
    assert "/" not in file_name("../../etc/passwd")
    assert not file_name("../x").startswith(".")


def explained_rows(gains: list[float], *, blank: int = 0) -> list[dict[str, Any]]:
    curves = [
        {"blank": False, "deletion_auc": 0.4 - gain, "deletion_auc_random": 0.4}
        | {"insertion_auc": 0.4 + gain, "insertion_auc_random": 0.4}
        for gain in gains
    ]
    return curves + [{"blank": True}] * blank


def patients_of(number: int) -> list[str]:
    return [f"p{n}" for n in range(number)]


def test_verdict_of_the_curves_is_of_a_test_over_patients() -> None:
    sure = summarize(explained_rows([0.1] * 8), None, patients=patients_of(8), seed=0)
    assert sure["chance"]["deletion"]["verdict"] == "beat chance"
    assert sure["chance"]["deletion"]["p_value"] == pytest.approx(2 / 2**8)
    assert "The maps beat chance (p 0.008, sign flips over 8 images of 8 patients)." in write_sentences(sure)[1]
    worse = summarize(explained_rows([-0.1] * 8), None, patients=patients_of(8), seed=0)
    assert "The maps are WORSE than chance" in write_sentences(worse)[2]
    mixed = summarize(
        explained_rows([0.1, -0.1, 0.2, -0.1, 0.1, -0.1, 0.05, -0.1]), None, patients=patients_of(8), seed=0
    )
    assert "Undecided: this difference may be chance" in write_sentences(mixed)[1]
    one = summarize(explained_rows([0.1] * 8), None, patients=["one"] * 8, seed=0)
    assert "Undecided: 8 images of 1 patient, too few for a test" in write_sentences(one)[1]


def test_blank_maps_are_called_blank_and_take_no_part() -> None:
    found = summarize(explained_rows([0.1] * 6, blank=4), None, patients=patients_of(10), seed=0)
    assert found["n_blank"] == 4
    assert found["chance"]["deletion"]["images"] == 6
    assert "4 of 10 maps are BLANK" in write_sentences(found)[1]
    nothing = write_sentences(summarize(explained_rows([], blank=3), None, patients=patients_of(3), seed=0))
    assert "3 of 3 maps are BLANK" in nothing[1]
    assert len(nothing) == 2


def test_curves_can_be_left_out_and_the_time_is_said_beforehand(
    run_copy: Path, run_explain: RunExplain, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_explain(run_copy, "curves=false", "sanity_images=0")
    found = read_json(folder / "explanations.json")
    assert "chance" not in found["summary"]
    assert not any("deletion_auc" in row for row in found["images"])
    assert not list((folder / "figures").glob("*.png"))
    printed = capsys.readouterr()
    assert "2 images explained in about " in printed.err + printed.out
    assert "No curves (curves=false)" in printed.out
