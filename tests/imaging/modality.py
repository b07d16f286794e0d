"""Read one slice of DICOM in the modality's unit: the parts that a volume is read with, without its geometry."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcls.imaging.dicom.dicom_file import open_dicom, refusing_parser_errors
from medcls.imaging.dicom.frame import check_kind, check_single, decode_frame, map_values
from medcls.imaging.dicom.pixels import read_pixel_module


class ModalityImage(NamedTuple):
    """Grey values after the modality LUT or rescale, (H, W) float32, what of them is padding, and their RescaleType."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    unit: str


def read_modality_values(path: Path) -> ModalityImage:
    with refusing_parser_errors(), open_dicom(path, max_inflated_bytes=4 * (1 << 28) + (1 << 24)) as file:
        check_kind(file)
        module = read_pixel_module(file)
        check_single(file.dataset, module, 1 << 28)
        frame = decode_frame(file, module)
        assert frame.modality is not None
        return ModalityImage(map_values(frame.stored, frame.modality.apply), frame.mask, frame.modality.unit)
