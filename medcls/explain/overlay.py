"""Maps as pictures over their images, and maps of volumes as NIfTI files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medcls.data.crops import Box
from medcls.files import write_bytes

# Beyond this share of its largest values a map is drawn in full colour: one bright pixel would hide the rest.
_TOP = 99.5


def write_overlay(
    path: Path, image: NDArray[Any], heat: NDArray[np.float32], *, title: str, legend: str, box: Box | None = None
) -> None:
    """Write a PNG: left the image, right the image under the map, with a colour bar.

    Of a volume the slice with the largest absolute value is shown. The more a pixel is marked, the less transparent it
    is; maps with negative values are drawn in red (for) and blue (against), others from dark to bright.

    Args:
        path: Path of the PNG.
        image: (C, H, W) or (C, D, H, W), 1 or 3 channels. Unsigned integers by their type's range, others by their own.
        heat: (H, W) or (D, H, W).
        title: Over the picture, such as the predicted score.
        legend: Text at the colour bar.
        box: (y, x, height, width) drawn dashed: where the sign is known to be.
    """
    if heat.ndim == 3:
        depth = int(np.abs(heat).max(axis=(1, 2)).argmax())
        image, heat, title = image[:, depth], heat[depth], f"{title}, slice {depth}"
    grey = _to_rgb(image)
    rows, columns = heat.shape
    figure = Figure(figsize=(7.2, 3.3 * rows / columns + 0.55), layout="constrained")
    plain, marked = figure.subplots(1, 2)
    limit = float(np.percentile(np.abs(heat), _TOP)) or float(np.abs(heat).max()) or 1.0
    signed = bool((heat < 0).any())
    plain.imshow(grey)
    marked.imshow(grey)
    drawn = marked.imshow(
        heat,
        cmap="seismic" if signed else "inferno",
        vmin=-limit if signed else 0.0,
        vmax=limit,
        alpha=np.clip(0.75 * (np.abs(heat) / limit) ** 0.7, 0, 0.75),
        interpolation="nearest",
    )
    for axes in (plain, marked):
        axes.set_axis_off()
        if box is not None:
            y, x, height, width = box
            frame = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor="#35d0ba", linewidth=1.2)
            frame.set_linestyle("--")
            axes.add_patch(frame)
    figure.colorbar(drawn, ax=marked, fraction=0.05, label=legend)
    figure.suptitle(title, fontsize=9.5, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _to_rgb(image: NDArray[Any]) -> NDArray[np.float64]:
    """(C, H, W) to (H, W, 3) in [0, 1]; two channels or more than three show their first."""
    low, high = (0, np.iinfo(image.dtype).max) if image.dtype.kind == "u" else (image.min(), image.max())
    scaled = (image.astype(np.float64) - float(low)) / (float(high) - float(low) or 1.0)
    if len(scaled) != 3:
        scaled = np.repeat(scaled[:1], 3, axis=0)
    return np.moveaxis(scaled, 0, -1)


def write_nifti(path: Path, heat: NDArray[np.float32], *, affine: NDArray[np.float64]) -> None:
    """Write the map as .nii.gz; the same map gives the same bytes.

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
