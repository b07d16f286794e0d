"""Read one slice of DICOM in the modality's unit: the parts that a volume is read with, without its geometry."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcls.imaging.dicom.dicom_file import refusing_parser_errors
from medcls.imaging.dicom.frame import map_values, read_frame


class ModalityImage(NamedTuple):
    """Grey values after the modality LUT or rescale, (H, W) float32, what of them is padding, and their RescaleType."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    unit: str


def read_modality_values(path: Path) -> ModalityImage:
    frame = read_frame(path, max_pixels=1 << 28)
    assert frame.modality is not None
    with refusing_parser_errors():
        return ModalityImage(map_values(frame.stored, frame.modality.apply), frame.mask, frame.modality.unit)
