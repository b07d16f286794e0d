"""Read a NIfTI or Analyze file to a volume with its affine in DICOM patient coordinates, or a named refusal."""

from __future__ import annotations

import gzip
import io
import math
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import BoundedReader, refusing_parser_errors
from medcls.imaging.scan_file import NIFTI_MILLIMETRES
from medcls.imaging.volume.geometry import FARTHEST_MM, compute_spacing
from medcls.imaging.volume.volume import RawVolume

_VERSIONS = {348: ("Nifti1Header", 344, b"n+1\0", b"ni1\0"), 540: ("Nifti2Header", 4, b"n+2\0", b"ni2\0")}
"""By the size of the header: nibabel's class, place of the magic, of one file, of a header beside its image."""

_ANALYZE_BYTES = 348
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ANGLE = 1e-2
"""Largest cosine between two axes: single precision leaves up to 0.004 in real files. A meant shear has more."""

_HABITUAL_AXES = "LAS"
"""Where i, j and k grow to in NIfTI files that do not say it: what nibabel, FSL and SPM take."""

_MAX_HEADER_BYTES = 1 << 24

_RESAMPLE = "resample the image to a grid at right angles (nibabel.processing.resample_to_output with voxel_sizes)"
_CORRECT = "save the image with a correct header (nibabel: header.set_sform, header.set_zooms)"
_PIECE_BYTES, _TAIL_BYTES = 1 << 24, 1 << 18
_AGREEMENT = 0.5
"""Fraction of the smallest voxel edge by which two affines of one file may place a corner differently."""


def read_nifti(
    path: Path,
    *,
    image: Path | None = None,
    analyze_axes: str = "",
    form: str = "auto",
    volume: int | None = None,
    max_voxels: int = 1 << 28,
) -> RawVolume:
    """Return the volume of a NIfTI-1, NIfTI-2 or Analyze 7.5 file, compressed or not, known by its content alone.

    Args:
        path: One file with header and image (.nii, .nii.gz), or the header of a pair (.hdr).
        image: The other file of a pair (.img).
        analyze_axes: Where i, j and k grow to in files that do not say it, such as "LAS": Analyze files, whose orient
            byte is not written, or written wrong, by most programs ("" refuses them); and NIfTI files whose
            sform_code and qform_code are both 0 ("" takes LAS and notes axes_assumed).
        form: Which affine is taken if both are there and lead to different spaces, and noted as sform_taken or
            qform_taken: "sform", "qform", "auto" (the sform, unless the two name other directions for the axes:
            then one of them mirrors or turns the patient, and the file is refused), or "refuse".
        volume: Which volume of a file with several is read, counted from 0; None refuses such files.
        max_voxels: Limit of voxels, checked in the header before any data is read.

    Returns:
        Axes d, h, w are the file's third, second and first; scl_slope and scl_inter applied; NaN is masked; the affine
        leads to LPS+ where the file's leads to RAS+. No unit: NIfTI states none. The middle of an Analyze volume lies
        at the origin, and SPM's scale factor is applied.

    Raises:
        ImageRefusedError: not_nifti, nifti_pair, time, vector, zero_pixels, too_few_slices, too_large, colour,
            complex_values, bit_depth, rescale, not_finite, all_padding, truncated, affine_conflict, orientation,
            malformed_element.

    Source: nifti1.h of 2005, "METHOD 1 to 3" and scl_slope; sform first as nibabel, FSL and SPM; choices in
        docs/decisions/0058-places-of-nifti-files.md.
    """
    with refusing_parser_errors(), ExitStack() as files:
        stream = _open(files, path)
        header = _read_header(stream, pair=image is not None)
        shape, place = _find_shape(header, volume)
        if math.prod(shape) > max_voxels:
            raise ImageRefusedError("too_large", f"{math.prod(shape)} voxels; the limit is {max_voxels}")
        notes: tuple[str, ...] = ()
        if _is_analyze(header):
            affine = _declare_affine(header, shape, analyze_axes, scale=1.0)
        else:
            affine, notes = _find_affine(header, shape, axes=analyze_axes, form=form)
        start = int(header["sizeof_hdr"])
        if image is not None:
            stream, start = _open(files, image), 0
        values, mask = _read_values(stream, header, shape, start=start, place=place)
        return RawVolume(
            values=values,
            mask=mask,
            affine=affine,
            unit="",
            spacing_mm=compute_spacing(affine),
            photometric="",
            headers={},
            notes=notes,
        )


def _open(files: ExitStack, path: Path) -> IO[bytes]:
    """Return the content of a file, inflated where it is in gzip."""
    raw = files.enter_context(BoundedReader(path))
    compressed = raw.peek(2)[:2] == b"\x1f\x8b"
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw) if compressed else raw)


def _read_header(stream: IO[bytes], *, pair: bool) -> Any:
    """Return the header object of nibabel, unchecked: its own checks repair in silence or print what they find."""
    import nibabel  # here and not above: 40 ms of every worker's start, for those who have NIfTI

    start = stream.read(4)
    size = int.from_bytes(start, "little")
    if size not in _VERSIONS:
        size = int.from_bytes(start, "big")
    if size not in _VERSIONS:
        raise ImageRefusedError("not_nifti", "no NIfTI header")
    name, place, single, double = _VERSIONS[size]
    start += stream.read(size - 4)
    magic = start[place : place + 4]
    if len(start) < size:
        raise ImageRefusedError("truncated", "no whole NIfTI header")
    if magic != single and pair and magic != double and size == _ANALYZE_BYTES:
        name = "Spm99AnalyzeHeader"
    elif magic == double and not pair:
        raise ImageRefusedError("nifti_pair", "header and image in two files, .hdr and .img; one of them is missing")
    elif magic != (double if pair else single):
        raise ImageRefusedError("not_nifti", "no NIfTI header")
    return getattr(nibabel, name).from_fileobj(io.BytesIO(start), check=False)


def _find_shape(header: Any, volume: int | None) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Return voxels along i, j, k, and which volume is read of how many."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ImageRefusedError("not_nifti", f"{count} axes; expected 1 to 7")
    sizes = [int(size) for size in header["dim"][1 : count + 1]] + [1] * (7 - count)
    if min(sizes) < 1:
        raise ImageRefusedError("zero_pixels", f"axes of {sizes[:count]} voxels")
    if sizes[3] > 1 and volume is None:
        raise ImageRefusedError(
            "time", f"{sizes[3]} volumes in one file; expected one: image.nifti_volume=0 takes the first"
        )
    place = 0 if volume is None or sizes[3] == 1 else volume
    if place >= sizes[3]:
        raise ImageRefusedError(
            "time", f"{sizes[3]} volumes in one file: image.nifti_volume={place} expected to be 0 to {sizes[3] - 1}"
        )
    if max(sizes[4:]) > 1:
        raise ImageRefusedError("vector", f"{max(sizes[4:])} values a voxel; expected one")
    if min(sizes[:3]) < 2:
        raise ImageRefusedError("too_few_slices", f"{sizes[0]} x {sizes[1]} x {sizes[2]} voxels are not a volume")
    return (sizes[0], sizes[1], sizes[2]), (place, sizes[3])


def _read_values(
    stream: IO[bytes], header: Any, shape: tuple[int, int, int], *, start: int, place: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Values (k, j, i) after the rescale, and where they are none."""
    dtype = _find_dtype(header)
    slope, intercept = _find_rescale(header)
    behind = int(header["vox_offset"]) - start
    if not 0 <= behind <= _MAX_HEADER_BYTES:
        raise ImageRefusedError("malformed_element", f"the image starts {behind} bytes behind the header")
    size = math.prod(shape) * dtype.itemsize
    index, count = place
    whole = len(stream.read(behind)) == behind and _skip(stream, index * size)
    if not whole or len(data := _read_pieces(stream, size)) < size or not _skip(stream, (count - 1 - index) * size):
        raise ImageRefusedError("truncated", f"{count} x {size} bytes of voxels expected, fewer are there")
    while isinstance(cast(object, stream), gzip.GzipFile) and stream.read(_TAIL_BYTES):
        pass  # a gzip stream's checksum is compared at its end, and wrong bits may have put more before it
    stored = np.frombuffer(data, dtype).reshape(shape[::-1])
    values = np.empty(stored.shape, np.float32)
    for plane, rows in enumerate(stored):  # plane by plane: doubles of a whole volume are large
        values[plane] = rows.astype(np.float64) * slope + intercept
    mask = np.isnan(values)
    if np.isinf(values).any():
        raise ImageRefusedError("not_finite", "voxels hold infinity")
    if mask.all():
        raise ImageRefusedError("all_padding", "every voxel is NaN")
    if not mask.any():
        return values, None
    values[mask] = values[~mask].min()
    return values, mask


def _read_pieces(stream: IO[bytes], size: int) -> bytearray:
    """At most size bytes, with memory for what is there and not for what a header promises."""
    data = bytearray()
    while piece := stream.read(min(_PIECE_BYTES, size - len(data))):
        data += piece
    return data


def _skip(stream: IO[bytes], size: int) -> bool:
    """Read so many bytes without keeping them; return whether they are there."""
    while size and (piece := stream.read(min(_PIECE_BYTES, size))):
        size -= len(piece)
    return not size


def _find_dtype(header: Any) -> np.dtype[Any]:
    """Integers and floats of up to 64 bits."""
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except Exception as error:
        raise ImageRefusedError("bit_depth", f"data type {int(header['datatype'])} is unknown") from error
    if dtype.names:
        raise ImageRefusedError("colour", "RGB voxels; expected grey values")
    if dtype.kind == "c":
        raise ImageRefusedError("complex_values", "complex voxels; expected grey values")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageRefusedError("bit_depth", f"voxels of {dtype.name}; expected integers or floats up to 64 bits")
    return dtype


def _find_rescale(header: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN says that there is none (nifti1.h, scl_slope)."""
    slope, intercept = float(header["scl_slope"]), 0.0
    if not _is_analyze(header):
        intercept = float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise ImageRefusedError("rescale", f"scl_slope {slope:g}, scl_inter {intercept:g}")
    return slope, intercept


def _is_analyze(header: Any) -> bool:
    return "scl_inter" not in header.keys()  # noqa: SIM118 (not a dict)


def _declare_affine(header: Any, shape: tuple[int, int, int], axes: str, *, scale: float) -> NDArray[np.float64]:
    """Return voxel (k, j, i, 1) to mm, LPS+, with axes named from outside and the middle of the volume at the origin.

    Args:
        header: With pixdim, all that the file says of its place.
        shape: Voxels along i, j, k.
        axes: Such as "LAS".
        scale: Of the file's unit of length, mm.

    Source: nifti1.h, "METHOD 1" (the Analyze way).
    """
    if not axes:
        raise ImageRefusedError(
            "orientation",
            "an Analyze file does not record which side is left: set image.analyze_axes=LAS or its like to say where "
            "i, j, k grow to",
        )
    spacing = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * scale
    if not (np.isfinite(spacing).all() and spacing.min() > 1 / FARTHEST_MM and spacing.max() < FARTHEST_MM):
        raise ImageRefusedError("orientation", "an axis of the file has no length")
    linear = np.zeros((3, 3))
    for axis, letter in enumerate(axes):
        if letter in "LPS":
            linear["LPS".index(letter), axis] = spacing[axis]
        else:
            linear["RAI".index(letter), axis] = -spacing[axis]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2)
    return affine[:, [2, 1, 0, 3]]


def _find_affine(
    header: Any, shape: tuple[int, int, int], *, axes: str, form: str
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return voxel (k, j, i, 1) to mm, LPS+, and notes of what the file left open."""
    import nibabel

    find_codes: Any = nibabel.aff2axcodes

    def name_axes(affine: Any) -> Any:  # the directions of the patient that the axes run nearest to
        return find_codes(np.nan_to_num(np.asarray(affine, np.float64)))

    scale = NIFTI_MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        raise ImageRefusedError("malformed_element", "xyzt_units is not a unit of length")
    known = {name: affine for name, (affine, code) in _read_forms(header).items() if code > 0}
    if not known:
        notes = () if axes else ("axes_assumed",)
        return _declare_affine(header, shape, axes or _HABITUAL_AXES, scale=scale), notes
    name = form if form in known else next(iter(known))
    other = next((each for each in known if each != name), "")
    try:
        chosen = _check_form(header, known[name], scale=scale)
    except ImageRefusedError as error:
        remedy = ""
        if other:
            with suppress(ImageRefusedError):
                _check_form(header, known[other], scale=scale)
                remedy = f", or image.nifti_affine={other} takes the {other}"
        raise ImageRefusedError(error.reason, f"{name}: {error.detail}{remedy}") from error
    apart = _measure_distance(chosen, known[other], shape) if other else 0.0
    is_apart = apart > _AGREEMENT * min(compute_spacing(chosen))
    if is_apart and (form == "refuse" or (form == "auto" and name_axes(chosen) != name_axes(known[other]))):
        where = f"place a corner {apart * scale:.4g} mm apart" if math.isfinite(apart) else "disagree, so one is wrong"
        detail = f"sform and qform {where}: image.nifti_affine=sform or image.nifti_affine=qform takes one of them"
        raise ImageRefusedError("affine_conflict", detail)
    notes = (f"{name}_taken",) if is_apart else ()
    lps: NDArray[np.float64] = _RAS_TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ chosen
    return lps[:, [2, 1, 0, 3]], notes


def _read_forms(header: Any) -> dict[str, tuple[Any, int]]:
    """Return affine and code of sform and qform; a quaternion or qfac that nibabel cannot read is not finite."""
    try:
        qform, code = header.get_qform(coded=True)
    except Exception:
        qform, code = np.full((4, 4), np.nan), 1
    return {"sform": header.get_sform(coded=True), "qform": (qform, int(code))}


def _check_form(header: Any, affine: Any, *, scale: float) -> NDArray[np.float64]:
    """Return an affine whose axes have the lengths of pixdim and stand at right angles."""
    chosen = np.asarray(affine, np.float64)
    if not np.isfinite(chosen).all():
        raise ImageRefusedError("orientation", f"the affine is not finite: {_CORRECT}")
    edges = np.linalg.norm(chosen[:3, :3], axis=0)
    if edges.min() <= 0:
        raise ImageRefusedError("orientation", f"an axis of the affine has no length: {_CORRECT}")
    unit = chosen[:3, :3] / edges
    cosine = float(np.abs(unit.T @ unit - np.eye(3)).max())  # either hand is right, the affine knows which
    if cosine > _ANGLE:
        raise ImageRefusedError("orientation", f"axes are not at right angles, product {cosine:.4g}: {_RESAMPLE}")
    if not np.abs(np.asarray(header["pixdim"][1:4], np.float64) / edges - 1).max() <= 0.01:  # NaN is no agreement
        raise ImageRefusedError("affine_conflict", f"pixdim and the affine give different voxel sizes: {_CORRECT}")
    if edges.min() * scale < 1 / FARTHEST_MM or np.abs(chosen[:3]).max() * scale > FARTHEST_MM:
        raise ImageRefusedError("malformed_element", f"the affine's lengths are not a patient's: {_CORRECT}")
    return chosen


def _measure_distance(one: NDArray[np.float64], other: Any, shape: tuple[int, int, int]) -> float:
    """Return how far apart two affines place a corner of the volume, in the file's unit; infinity if one is broken."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    apart = float(np.linalg.norm((corners @ (np.asarray(other, np.float64) - one).T)[:, :3], axis=1).max())
    return apart if math.isfinite(apart) else math.inf
