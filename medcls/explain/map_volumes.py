"""A map of a volume as NIfTI, to lie over the scan in any viewer."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medcls.files import write_bytes


def write_nifti(path: Path, heat: NDArray[np.float32], *, affine: NDArray[np.float64]) -> None:
    """Writes the map as .nii.gz; the same map gives the same bytes.

    Args:
        path: Ends in .nii.gz.
        heat: (D, H, W) float32.
        affine: (4, 4): index (d, h, w, 1) to millimetres, x to the right, y to the front, z to the head (RAS+), as
            NIfTI has it. A DICOM affine (LPS) has its first two rows negated first.

    Raises:
        ValueError: not three axes, or the affine is no invertible 4 x 4 matrix.

    Source: NIfTI-1.1, method 3 (sform).
    """
    if heat.ndim != 3 or affine.shape != (4, 4) or abs(np.linalg.det(affine)) < 1e-12:
        raise ValueError(f"map {heat.shape}, affine {affine.shape}: expected (D, H, W) and an invertible (4, 4)")
    image = nibabel.Nifti1Image(heat.astype(np.float32), affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))
