"""Views of each image: what is averaged, where it lies, what is chosen for it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.data.crops import Crop, rescale
from medcls.data.store import Store
from medcls.errors import ConfigError
from medcls.evaluate.evaluate import read_request
from medcls.evaluate.image_views import ViewPlan, plan_views
from medcls.files import read_json, read_json_lines
from medcls.models.heads import compute_scores
from medcls.runs.model_file import read_model

pytestmark = pytest.mark.usefixtures("notes_for_report")

Run = Callable[..., Path]
CROP = Crop(24, 26, 32)


@pytest.fixture
def made(run_train: Run, tmp_path: Path) -> Path:
    """A finished run on crops of 24 pixels at shortest side 26 to 32."""
    return run_train(tmp_path / "run", "crop.size=24", "crop.scales=[26,32]")


def mean_score(run: Path, store: Store, image_id: str, views: Callable[[Any], list[Any]]) -> list[float]:
    """The mean of the scores of some views of an image, one by one."""
    model, _ = read_model(run / "model.safetensors")
    image = store.image(store.column("image_id").index(image_id))
    with torch.inference_mode():
        scores = [compute_scores("multiclass", model(torch.from_numpy(view.copy())[None]))[0] for view in views(image)]
    return torch.stack(scores).mean(dim=0).tolist()


def with_flips(views: list[Any]) -> list[Any]:
    return [each for view in views for each in (view, view[..., ::-1])]


def crop_all(image: Any, scales: tuple[int, ...], starts: dict[int, list[int]]) -> list[Any]:
    scaled = [(rescale(image, scale), starts[scale]) for scale in scales]
    return [one[:, y : y + 24, x : x + 24] for one, places in scaled for y in places for x in places]


def test_every_kind_averages_its_views_and_flips(made: Path, run_evaluate: Run, store: Store, tmp_path: Path) -> None:
    """A ResNet's dense form is the network on the whole image: each view can be had from the ordinary forward."""
    starts = {29: [0, 1, 3, 4, 5], 28: [0, 1, 2, 3, 4], 32: [0, 2, 4, 6, 8]}
    expected: dict[str, Callable[[Any], list[Any]]] = {
        "views=dense": lambda image: with_flips([rescale(image, 29)]),
        "views=dense scales=[32,29] flips=false": lambda image: [rescale(image, 29), rescale(image, 32)],
        "views=multicrop": lambda image: with_flips(crop_all(image, (29,), starts)),
        "views=multicrop scales=[28,32] crops_per_side=2": lambda image: with_flips(
            crop_all(image, (28, 32), {28: [0, 4], 32: [0, 8]})
        ),
        "flips=true scales=[32]": lambda image: with_flips([image[:, 4:28, 4:28]]),
    }
    for number, (arguments, views) in enumerate(expected.items()):
        folder = run_evaluate(made, f"out={tmp_path / str(number)}", "report=false", "replicates=1", *arguments.split())
        row = pq.read_table(folder / "predictions.parquet").slice(3, 1).to_pylist()[0]
        np.testing.assert_allclose(row["y_score"], mean_score(made, store, row["image_id"], views), atol=1e-6)
        again = compute_scores("multiclass", torch.tensor([row["logits"]]))
        np.testing.assert_allclose(again, [row["y_score"]], atol=1e-12)


def test_both_is_the_mean_of_dense_and_crops(made: Path, run_evaluate: Run) -> None:
    scores = {}
    for views in ("dense", "multicrop", "both"):
        folder = run_evaluate(made, f"views={views}", "scales=[26,32]", "report=false", "replicates=1")
        assert folder.name == f"store-val-{views}-q26-32"
        scores[views] = np.array(pq.read_table(folder / "predictions.parquet").column("y_score").to_pylist())
    assert np.abs(scores["dense"] - scores["multicrop"]).max() > 1e-5
    np.testing.assert_allclose(scores["both"], (scores["dense"] + scores["multicrop"]) / 2, atol=1e-6)


def test_choices_are_frozen_for_each_kind_of_views(made: Path, run_evaluate: Run) -> None:
    plain = run_evaluate(made, "split=val")
    frozen = (made / "operating_points.json").read_bytes()
    dense = run_evaluate(made, "split=val", "views=dense", "alpha=0.3")
    assert (plain.name, dense.name) == ("store-val", "store-val-dense")
    assert (made / "operating_points.json").read_bytes() == frozen
    kept = read_json(made / "operating_points-dense.json")
    views = {"kind": "dense", "scales": [29], "flips": True, "crops_per_side": None}
    assert kept["chosen_on"]["views"] == read_json(dense / "inputs.json")["views"] == views
    assert kept["settings"]["alpha"] == read_json(made / "calibration-dense.json")["conformal"]["alpha"] == 0.3
    thresholds = [point["threshold"] for point in read_json(dense / "metrics.json")["operating_points"]]
    assert thresholds == [point["threshold"] for point in kept["levels"]["image"]["points"]]
    assert thresholds != [point["threshold"] for point in read_json(plain / "metrics.json")["operating_points"]]
    assert "views of each image: densely on the whole image" in (dense / "report.html").read_text()
    assert "views" not in read_json(plain / "inputs.json")


def test_every_opening_is_counted_in_one_place_whatever_the_views(made: Path, run_evaluate: Run) -> None:
    run_evaluate(made, "split=test", "report=false", "replicates=1")
    folder = run_evaluate(made, "split=test", "views=dense")
    run_evaluate(made, "split=test", "views=dense")
    log = read_json_lines(made / "evaluation" / "store-test" / "opened.jsonl")
    assert ["views" in row["key"] for row in log] == [False, True]
    assert not (folder / "opened.jsonl").exists()
    assert read_json(folder / "metrics.json")["openings"] == 2
    report = (folder / "report.html").read_text()
    assert "split test was opened 2 times by this run" in report
    # The test split was known to the plain evaluation before thresholds for these views were chosen.
    assert "chosen on validation after a test split had been opened 1 time" in report
    with pytest.raises(ConfigError, match=r"operating_points-dense.json was frozen with other settings"):
        run_evaluate(made, "split=test", "views=dense", "alpha=0.4")


def test_names_say_what_is_not_usual(compose_job: Callable[..., Any]) -> None:
    def name(*arguments: str, crop: Crop | None = CROP) -> str:
        return plan_views(read_request(compose_job("evaluate", *arguments)).views, crop=crop, stored=(1, 32, 40)).name

    assert name() == name("scales=[29]") == name("flips=false") == ""
    assert name("scales=[32]") == "center-q32"
    assert name("flips=true") == "center-flips"
    assert name("views=dense") == name("views=dense", "scales=[29]", "flips=true") == "dense"
    assert name("views=both", "scales=[32,26,26]", "flips=false", "crops_per_side=3") == "both-q26-32-noflips-3x3"
    assert name("views=multicrop", crop=None) == "multicrop"


REFUSED = [
    (
        "views=dense scales=[33]",
        CROP,
        (1, 32, 32),
        r"scales=\[33\]: the store has images of 32 x 32, which are never enlarged",
    ),
    ("views=dense scales=[20]", CROP, (1, 32, 32), r"scales=\[20\]: the model was trained on 24 x 24 pixels"),
    ("views=dense scales=[28]", None, (1, 32, 48), r"trained on 32 x 48 pixels: scales may not be smaller"),
    ("views=dense", None, (1, 32, 32, 32), r"views=dense: the store holds volumes"),
]


@pytest.mark.parametrize(("arguments", "crop", "stored", "part"), REFUSED, ids=[each[0] for each in REFUSED])
def test_views_that_the_images_do_not_have_are_refused(
    arguments: str, crop: Crop | None, stored: tuple[int, ...], part: str, compose_job: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=part):
        plan_views(read_request(compose_job("evaluate", *arguments.split())).views, crop=crop, stored=stored)


def test_views_are_not_mirrored_if_labels_are_sides(compose_job: Callable[..., Any]) -> None:
    def plan(*arguments: str, sides: tuple[str, ...] = ("left", "right")) -> ViewPlan:
        wanted = read_request(compose_job("evaluate", *arguments)).views
        return plan_views(wanted, crop=CROP, stored=(1, 32, 40), sides=sides)

    assert plan("views=dense", sides=()).flips
    assert not plan("views=dense").flips
    assert plan("views=dense").name == "dense-noflips"
    with pytest.raises(ConfigError, match=r"labels name sides \(left, right\): set flips=false"):
        plan("flips=true")


def test_refused_before_anything_is_opened(made: Path, run_evaluate: Run) -> None:
    with pytest.raises(ConfigError, match="never enlarged"):
        run_evaluate(made, "split=test", "views=multicrop", "scales=[256]")
    assert not (made / "evaluation").exists()
