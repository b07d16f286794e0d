"""Standardise one raw volume to one stored array: a pure function of (volume, VolumeSpec).

Every step is a linear map from new voxel indices to old ones; the affine of the stored voxels is the product of
these maps behind the affine of the file, so it cannot fall out of step with the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from skimage.filters import threshold_otsu

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import check_burnt_in
from medcls.imaging.dicom.grey import build_window
from medcls.imaging.preprocess import stretch_range
from medcls.imaging.volume.geometry import compute_spacing
from medcls.imaging.volume.resample import build_weights, resample_masked
from medcls.imaging.volume.spec import HU_RANGE, MAX_VOXELS, VolumeSpec
from medcls.imaging.volume.volume import RawVolume

Floats = NDArray[np.float32]
Affine = NDArray[np.float64]
_ALIGNED = 1e-4  # of a direction cosine: 0.006 degrees, 0.05 mm over a 500 mm field of view
_ROUNDING = 1e-6  # of a voxel
_LEAST_SHARE = 0.005  # of a plane


@dataclass(frozen=True, slots=True)
class PreparedVolume:
    """One volume as stored.

    Attributes:
        pixels: (C, D, H, W), spec.dtype; d runs to superior, h to posterior, w to the patient's left.
        valid_extent: (z, y, x, depth, height, width) of the field of view inside the frame, voxels; around it the
            lowest value stands (0, or HU_RANGE[0]).
        spacing_mm: (D, H, W) distance of the stored voxels, mm.
        affine: (4, 4), float64: stored voxel index (d, h, w, 1) to mm in the patient's LPS+ axes.
    """

    pixels: NDArray[Any]
    valid_extent: tuple[int, int, int, int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Affine


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of the stored grid: stored index j lies at offset + step * j old voxels, for first <= j < end."""

    step: float
    offset: float
    first: int
    end: int

    @property
    def positions(self) -> NDArray[np.float64]:
        return self.offset + self.step * np.arange(self.first, self.end, dtype=np.float64)


def preprocess_volume(raw: RawVolume, spec: VolumeSpec) -> PreparedVolume:
    """Return the stored form of `raw`: turned to canonical orientation, resampled, scaled, cropped or padded.

    Args:
        raw: What volume.read_volume or nifti.read_nifti returned.
        spec: The store's preprocessing.

    Raises:
        ImageRefusedError: burnt_in; bad_affine; too_large or too_small for the spacing asked for; field_of_view,
            which fit="pad" would have to cut; not_hounsfield; not_finite; all_padding; flat.

    Source: own choice, docs/decisions/0009-volume-preprocessing.md; patient axes PS3.3 C.7.6.2.1.1.
    """
    check_burnt_in(raw.headers, spec.burnt_in)
    _check_unit(raw, spec)
    raw = to_canonical(raw)
    if spec.patient_axes:
        raw = to_patient_axes(raw)
    if spec.crop_margin_mm is not None:
        raw = crop_foreground(raw, margin_mm=spec.crop_margin_mm)
    axes = _plan_axes(raw, spec)
    weights = [build_weights(a.positions, size=n, step=a.step) for a, n in zip(axes, raw.values.shape, strict=True)]
    values, mask = resample_masked(raw.values, raw.mask, weights)
    stored = _quantise(_scale(values, mask, raw, spec), mask, spec)
    # Refused if nothing but one value would be stored in any channel.
    valid = stored.reshape(len(stored), -1)
    if mask is not None:
        valid = stored[:, ~mask]
    if (valid.min(axis=1) == valid.max(axis=1)).all():
        raise ImageRefusedError("flat", f"one value everywhere, of values from {values.min():g} to {values.max():g}")
    frame = np.full(spec.shape, spec.value_range[0], spec.dtype)
    frame[(slice(None), *(slice(a.first, a.end) for a in axes))] = stored
    z, y, x = axes
    affine = raw.affine @ _index_map([a.step for a in axes], [a.offset for a in axes])
    extent = (z.first, y.first, x.first, z.end - z.first, y.end - y.first, x.end - x.first)
    return PreparedVolume(frame, extent, compute_spacing(affine), affine)


def to_canonical(raw: RawVolume) -> RawVolume:
    """Return the volume with its axes permuted and flipped to the nearest patient axes; no value is changed.

    d runs from inferior to superior, h from anterior to posterior, w from right to left. Of two equally near
    orders (45 degrees) the first in the order of the file's axes is taken.

    Raises:
        ImageRefusedError: bad_affine.

    Source: own choice; the axial convention of PS3.3 C.7.6.2.1.1 with slices upwards.
    """
    linear = raw.affine[:3, :3]
    if raw.affine.shape != (4, 4) or not np.isfinite(raw.affine).all() or not np.abs(np.linalg.det(linear)) > 1e-9:
        raise ImageRefusedError("bad_affine", "the voxels do not span a volume")
    cosines = (linear / np.linalg.norm(linear, axis=0))[::-1]  # rows z, y, x, as d, h, w shall run
    orders = list(permutations(range(3)))
    near = [sum(abs(cosines[row, axis]) for row, axis in enumerate(order)) for order in orders]
    order = orders[int(np.argmax(np.round(near, 9)))]
    index_map = np.zeros((4, 4))
    index_map[3, 3] = 1
    turn = [slice(None)] * 3
    for row, axis in enumerate(order):
        index_map[axis, row] = 1
        if cosines[row, axis] < 0:
            index_map[axis, row], index_map[axis, 3] = -1, raw.values.shape[axis] - 1
            turn[row] = slice(None, None, -1)
    mask = raw.mask
    if mask is not None:
        mask = mask.transpose(order)[tuple(turn)]
    return _put(raw, raw.values.transpose(order)[tuple(turn)], mask, raw.affine @ index_map)


def to_patient_axes(raw: RawVolume) -> RawVolume:
    """Return a canonical volume on a grid along the patient's axes, with the same spacing, around all of it.

    By trilinear interpolation; what the file does not cover is masked. One that is aligned already comes back.

    Raises:
        ImageRefusedError: too_large.
    """
    spacing = np.array(compute_spacing(raw.affine))
    straight = np.zeros((3, 3))
    straight[[2, 1, 0], [0, 1, 2]] = spacing
    if np.abs(raw.affine[:3, :3] - straight).max() <= _ALIGNED * spacing.min():
        return raw
    last = np.array(raw.values.shape) - 1
    corners = np.array([[*(last * bits), 1] for bits in np.ndindex(2, 2, 2)]) @ raw.affine.T
    low, high = corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)
    shape = np.floor((high - low)[::-1] / spacing + _ROUNDING).astype(int) + 1
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ImageRefusedError("too_large", f"{shape.tolist()} voxels along the patient's axes; limit {MAX_VOXELS}")
    affine = np.eye(4)
    affine[:3, :3] = straight
    affine[:3, 3] = (low + high) / 2 - straight @ ((shape - 1) / 2)
    back = np.linalg.inv(raw.affine) @ affine
    grid = {"matrix": back[:3, :3], "offset": back[:3, 3], "output_shape": tuple(shape), "order": 1}
    grid["mode"] = "grid-constant"  # zeros beyond the edge: the weight falls to a half where the last voxel ends
    seen = np.ones(raw.values.shape, np.float32)
    if raw.mask is not None:
        seen[raw.mask] = 0
    weight = affine_transform(seen, **grid)
    outside = weight < 0.5
    values = affine_transform(raw.values * seen, **grid) / np.where(outside, np.float32(1), weight)
    values = np.where(outside, np.float32(0), values)
    if not outside.any():
        return _put(raw, values, None, affine)
    return _put(raw, values, outside, affine)


def crop_foreground(raw: RawVolume, *, margin_mm: float) -> RawVolume:
    """Return the part of a volume that holds its foreground, and a margin around it, within the volume.

    Foreground is what lies above Otsu's threshold of the values without padding; a plane belongs to it where at least
    one voxel in 200 does, so that specks of noise and ghosts do not count. A brain with its skull, or a body on its
    table, comes out with what surrounds it: this is no segmentation.

    Source: Otsu 1979; the share of a plane is own choice.
    """
    values, mask = raw.values, raw.mask
    if mask is not None:
        values = values[~mask]
    if values.size == 0 or values.min() == values.max():
        return raw  # refused later, by name
    above = raw.values > threshold_otsu(values)  # type: ignore[no-untyped-call]
    if mask is not None:
        above &= ~mask
    spacing = compute_spacing(raw.affine)
    starts, box = [], []
    for axis, length in enumerate(above.shape):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(above.mean(axis=others) >= _LEAST_SHARE)
        if not len(planes):
            return raw
        margin = int(np.ceil(margin_mm / spacing[axis] - _ROUNDING))
        starts.append(float(max(0, int(planes[0]) - margin)))
        box.append(slice(int(starts[-1]), min(length, int(planes[-1]) + 1 + margin)))
    if mask is not None:
        mask = mask[tuple(box)]
    return _put(raw, raw.values[tuple(box)], mask, raw.affine @ _index_map([1.0] * 3, starts))


def _put(raw: RawVolume, values: Floats, mask: NDArray[np.bool_] | None, affine: Affine) -> RawVolume:
    """Return the volume on another grid."""
    return replace(raw, values=values, mask=mask, affine=affine, spacing_mm=compute_spacing(affine))


def _index_map(steps: list[float], offsets: list[float]) -> Affine:
    """Old index = step * new index + offset, as a matrix."""
    matrix = np.diag([*steps, 1.0])
    matrix[:3, 3] = offsets
    return matrix


def _plan_axes(raw: RawVolume, spec: VolumeSpec) -> list[_Axis]:
    """Return the stored grid along each axis, with the middle of the field of view in the middle of the frame."""
    old, frame = np.array(raw.values.shape), np.array(spec.shape[1:])
    spacing = np.array(compute_spacing(raw.affine))
    if spec.spacing_mm is not None:
        steps = np.array(spec.spacing_mm) / spacing
        sizes = np.rint(old / steps).astype(int)
    else:  # the slices fill the depth; rows and columns fit by one scale
        steps = old / frame
        in_plane = steps[1:] * spacing[1:]
        if spec.fit == "pad":
            steps[1:] = in_plane.max() / spacing[1:]
        elif spec.fit == "crop":
            steps[1:] = in_plane.min() / spacing[1:]
        sizes = np.maximum(1, np.rint(old / steps).astype(int))
    extent = " x ".join(f"{each:.4g}" for each in old * spacing)
    if sizes.min() < 1:
        raise ImageRefusedError("too_small", f"{extent} mm is less than a voxel of image.spacing_mm")
    if spec.fit == "pad" and (sizes > frame).any():
        detail = f"{extent} mm need {sizes.tolist()} voxels, image.size is {frame.tolist()}; image.fit=crop cuts"
        raise ImageRefusedError("field_of_view", detail)
    axes = []
    for length, held, step, size in zip(old.tolist(), frame.tolist(), steps.tolist(), sizes.tolist(), strict=True):
        start = (held - size) // 2
        offset = (length - 1) / 2 - step * (start + (size - 1) / 2)
        axes.append(_Axis(step, offset, max(0, start), min(held, start + size)))
    return axes


def _check_unit(raw: RawVolume, spec: VolumeSpec) -> None:
    """Windows in HU, and HU kept, need a CT with a rescale, or a NIfTI file that the user says is in HU."""
    if spec.intensity in ("window", "hounsfield"):
        modality = raw.headers.get("Modality", "")
        if modality not in ("CT", "") or raw.unit != "HU":
            detail = f"image.intensity={spec.intensity} needs a CT in HU"
            if not modality:
                detail += "; image.nifti_unit=HU if NIfTI files contain HU"
            raise ImageRefusedError("not_hounsfield", detail)


def _scale(values: Floats, mask: NDArray[np.bool_] | None, raw: RawVolume, spec: VolumeSpec) -> Floats:
    """(C, D, H, W): HU, or [0, 1]."""
    if not np.isfinite(values).all():
        raise ImageRefusedError("not_finite", "voxels hold NaN or infinity")
    if mask is not None and mask.all():
        raise ImageRefusedError("all_padding", "no voxel outside the padding")
    if spec.intensity == "hounsfield":
        return values[None]
    if spec.intensity == "window":
        displays = [build_window("LINEAR", center, width) for center, width in spec.windows_hu]
        return np.stack([display(values.astype(np.float64)) for display in displays]).astype(np.float32)
    limits = spec.percentiles
    if spec.intensity == "minmax":
        limits = (0.0, 100.0)
    stretched = stretch_range(values[None], mask, limits=limits)
    if raw.photometric == "MONOCHROME1":
        return 1 - stretched
    return stretched


def _quantise(scaled: Floats, mask: NDArray[np.bool_] | None, spec: VolumeSpec) -> NDArray[Any]:
    """Values as stored, the lowest where masked."""
    if spec.intensity == "hounsfield":
        stored = np.clip(np.rint(scaled), *HU_RANGE)
    elif spec.dtype == "float16":
        stored = np.clip(scaled, 0, 1)
    else:
        stored = np.rint(np.clip(scaled, 0, 1) * np.iinfo(spec.dtype).max)
    if mask is not None:
        stored = np.where(mask, np.float32(spec.value_range[0]), stored)
    return stored.astype(spec.dtype)
