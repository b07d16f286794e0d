"""A folder of synthetic grey images and the store made of it, through data_prep itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from omegaconf import OmegaConf

from data_prep.prepare import prepare
from medcls.config import DeidentifyConfig, ImageConfig, PatientConfig, PrepareJob, conf_folder
from medcls.data.store import Store


def make_store(folder: Path, *, size: int, count: int = 512) -> tuple[Path, Store]:
    """Returns the folder of PNG images in two class folders, and its store."""
    source = folder / f"png-{size}"
    rng = np.random.default_rng(0)
    for index in range(count):
        path = source / f"class{index % 2}" / f"p{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Blurred noise compresses like a radiograph; pure noise would make PNG decoding look slow.
        noise = cv2.GaussianBlur(rng.normal(128, 400, (size, size)).astype(np.float32), (0, 0), 3)
        cv2.imwrite(str(path), np.clip(noise, 0, 255).astype(np.uint8))
    job = PrepareJob(
        source=str(source),
        store=str(folder / f"store-{size}"),
        workers=0,
        patient_id=PatientConfig(pattern="(p[0-9]+)"),
        image=ImageConfig(size=size),
        deidentify=DeidentifyConfig(kind="declared"),
    )
    return source, prepare(job)


def radiograph_preset() -> dict[str, Any]:
    """Returns the transforms of conf/augment/radiograph.yaml."""
    preset = OmegaConf.to_container(OmegaConf.load(conf_folder() / "augment" / "radiograph.yaml"))
    return dict(preset["transforms"])
