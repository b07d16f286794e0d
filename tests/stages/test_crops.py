"""A run that was trained on crops is validated, evaluated, predicted and explained on the middle of each image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medcls.config import TrainJob
from medcls.data.crops import Crop
from medcls.data.store import Store
from medcls.errors import ConfigError
from medcls.explain.explain import explain
from medcls.files import read_json
from medcls.predict.predict import predict
from medcls.runs.model_file import read_model
from tests.stages.conftest import open_training

CROP = Crop(24, 26, 32)


@pytest.fixture(scope="session")
def cropped(run_train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on crops; do not write into it."""
    folder = tmp_path_factory.mktemp("cropped") / "run"
    return run_train(folder, "crop.size=24", "crop.scales=[26,32]")


def test_training_takes_random_crops_and_validation_the_middle(
    compose_train: Callable[..., TrainJob], store: Store, tmp_path: Path
) -> None:
    settings = ("crop.size=24", "crop.scales=[26,32]", "augment=none")
    data = open_training(compose_train(tmp_path / "run", *settings))
    assert data.train.crop == data.val.crop == CROP
    assert (data.train.read_image(0, 3) != data.train.read_image(1, 3)).any()
    middle = CROP.take_center(store.image(int(data.val.rows[3])))
    assert (data.val.read_image(1, 3) == middle).all()
    assert data.train.shape == (1, 24, 24)


def test_a_store_that_is_too_small_is_refused(compose_train: Callable[..., TrainJob], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop.scales=\[256,256\]: the store has images of 32 x 32"):
        open_training(compose_train(tmp_path / "run", "crop=vgg_fixed"))


def test_evaluate_and_predict_see_the_middle(
    cropped: Path, run_evaluate: Callable[..., Path], compose_job: Callable[..., Any], store: Store, tmp_path: Path
) -> None:
    folder = run_evaluate(cropped, f"out={tmp_path / 'val'}", "report=false", "robustness=true")
    evaluated = pq.read_table(folder / "predictions.parquet")
    model, card = read_model(cropped / "model.safetensors")
    assert card.crop == CROP
    ids = evaluated.column("image_id").to_pylist()
    places = [store.column("image_id").index(name) for name in ids]
    images = torch.from_numpy(np.stack([CROP.take_center(store.image(place)) for place in places]))
    with torch.inference_mode():
        logits = model(images)
    np.testing.assert_allclose(evaluated.column("logits").to_pylist(), logits, atol=1e-5)
    robustness = read_json(folder / "metrics.json")["robustness"]["curves"]
    assert len(robustness) == 6  # the perturbed crops fit the network, too

    out = tmp_path / "predictions.parquet"
    raw = store.folder.parent / "raw"
    predict(compose_job("predict", f"run={cropped}", f"source={raw}", f"out={out}", "workers=0", "device=cpu"))
    predicted = {row["image_id"]: row["logits"] for row in pq.read_table(out).to_pylist() if row["level"] == "image"}
    np.testing.assert_allclose([predicted[name] for name in ids], logits, atol=1e-5)


def test_explain_draws_on_the_middle_and_moves_the_boxes_there(
    cropped: Path, compose_job: Callable[..., Any], store: Store, tmp_path: Path
) -> None:
    rows = "".join(f"{name},4,6,8,20\n" for name in store.column("image_id"))
    (tmp_path / "boxes.csv").write_text(f"image_id,box_y,box_x,box_h,box_w\n{rows}")
    given = ("method=gradcam", "worst=1", "sanity_images=0", "device=cpu", f"boxes={tmp_path / 'boxes.csv'}")
    explain(compose_job("explain", f"run={cropped}", f"out={tmp_path / 'out'}", *given))
    (heat,) = (np.load(path) for path in (tmp_path / "out" / "maps").iterdir())
    assert heat.shape == (24, 24)
    box = CROP.place_box((4, 6, 8, 20), store.shape)
    assert box is not None
    found = read_json(tmp_path / "out" / "explanations.json")
    assert found["summary"]["mean"]["box_share"] == pytest.approx(box[2] * box[3] / 24**2)
