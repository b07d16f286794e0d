"""NIfTI files: the array and place that the header states, or a named refusal."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.nifti import read_nifti
from medcls.imaging.volume.standardize import to_canonical
from medcls.imaging.volume.volume import read_volume
from tests.imaging.modality import read_modality_values

AFFINE = np.array([[-0.6, 0, 0, 30], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes an array (i, j, k) as NIfTI; change(header) acts on what is written."""

    def run(
        data: Any,
        affine: np.ndarray | None = AFFINE,
        *,
        change: Callable[[Any], object] | None = None,
        name: str = "image.nii",
        kind: type = nib.Nifti1Image,
    ) -> Path:
        image = kind(data, affine)
        image.header.set_xyzt_units("mm")
        if affine is not None:
            image.set_sform(affine, code=1)
            image.set_qform(affine, code=1)
        path = tmp_path / name
        image.to_filename(path)
        if change:  # behind nibabel's back, which sets the affine right when it writes
            whole = path.read_bytes()
            header = type(image.header)(whole[: image.header.structarr.nbytes], check=False)
            change(header)
            path.write_bytes(header.binaryblock + whole[len(header.binaryblock) :])
        return path

    return run


def patch(path: Path, offset: int, form: str, *values: Any) -> Path:
    """Overwrites header fields, so that nibabel cannot set them right."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    return path


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(ImageRefusedError) as caught:
        read_nifti(path, **options)
    return caught.value.reason


def paint(series: ModuleType, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """The phantom of build_series at the places that a RAS affine gives to voxels (i, j, k)."""
    return series.phantom(series.locate(affine, shape) * (-1, -1, 1))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_and_places(save: Save, series: ModuleType, kind: type, name: str) -> None:
    data = paint(series, (7, 6, 5), AFFINE).astype(np.float32)
    volume = read_nifti(save(data, name=name, kind=kind))
    assert volume.values.shape == (5, 6, 7)
    assert volume.values.dtype == np.float32
    assert series.find_error(volume) < 1e-4
    assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.6), rtol=1e-6)
    assert (volume.mask, volume.unit, volume.photometric, volume.headers) == (None, "", "", {})


@pytest.mark.parametrize("hand", [1, -1])
def test_oblique_affines_of_either_hand(save: Save, series: ModuleType, hand: int) -> None:
    turned = np.array(series.rotate(17, -35, 61)).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([turned[0] * 0.6, turned[1] * 0.8, hand * 2.5 * np.cross(*turned)])
    affine[:3, 3] = 3, -40, 11
    volume = read_nifti(save(paint(series, (7, 6, 5), affine).astype(np.float32), affine))
    assert series.find_error(volume) < 1e-3


def test_the_name_does_not_matter(save: Save) -> None:
    path = save(np.ones((3, 3, 3), np.int16), name="a.nii.gz")
    renamed = path.rename(path.with_name("scan"))
    assert read_nifti(renamed).values.sum() == 27


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">f4", "<f8"])
def test_stored_types(save: Save, dtype: str) -> None:
    data = np.arange(60).reshape(3, 4, 5).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    path = save(data, kind=lambda array, affine: nib.Nifti1Image(array, affine, header))
    assert_array_equal(read_nifti(path).values, np.arange(60).reshape(3, 4, 5).T)


@pytest.mark.parametrize(
    ("slope", "intercept", "wanted"), [(2.0, -1000.0, -980.0), (0.0, 5.0, 10.0), (np.nan, np.nan, 10.0)]
)
def test_rescale(save: Save, slope: float, intercept: float, wanted: float) -> None:
    path = patch(save(np.full((2, 2, 2), 10, np.int16)), 112, "<2f", slope, intercept)
    assert (read_nifti(path).values == wanted).all()


def test_rescale_that_is_no_number(save: Save) -> None:
    path = save(np.ones((2, 2, 2), np.int16))
    assert reason(patch(path, 112, "<2f", np.inf, 0)) == "rescale"
    assert reason(patch(path, 112, "<2f", 2, np.nan)) == "rescale"


def test_not_a_number_is_masked_and_infinity_refused(save: Save) -> None:
    data = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    data[1, 0, 1] = np.nan
    volume = read_nifti(save(data))
    assert volume.mask is not None
    assert np.argwhere(volume.mask).tolist() == [[1, 0, 1]]
    assert volume.values[1, 0, 1] == 0
    data[0, 0, 0] = np.inf
    assert reason(save(data)) == "not_finite"
    assert reason(save(np.full((2, 2, 2), np.nan, np.float32))) == "all_padding"


def test_other_axes(save: Save) -> None:
    assert reason(save(np.zeros((3, 3, 3, 4), np.int16))) == "time"
    assert reason(save(np.zeros((3, 3, 3, 1, 3), np.int16))) == "vector"
    assert reason(save(np.zeros((3, 3, 1), np.int16))) == "too_few_slices"
    assert reason(save(np.zeros((3, 3), np.int16))) == "too_few_slices"
    assert read_nifti(save(np.zeros((3, 4, 5, 1), np.int16))).values.shape == (5, 4, 3)
    path = save(np.zeros((3, 3, 3), np.int16))
    assert reason(patch(path, 40, "<8h", 3, 3, -3, 3, 1, 1, 1, 1)) == "zero_pixels"
    assert reason(patch(path, 40, "<8h", 9, 3, 3, 3, 1, 1, 1, 1)) == "not_nifti"


def test_kinds_of_voxels(save: Save) -> None:
    colour = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason(save(colour)) == "colour"
    assert reason(save(np.zeros((3, 3, 3), np.complex64))) == "complex_values"
    assert reason(patch(save(np.zeros((3, 3, 3), np.int16)), 70, "<h", 1)) == "bit_depth"
    assert reason(patch(save(np.zeros((3, 3, 3), np.int16)), 70, "<h", 9999)) == "bit_depth"


def test_which_affine(save: Save) -> None:
    data = np.zeros((4, 5, 6), np.int16)
    moved = AFFINE.copy()
    moved[:3, 3] += 0.15  # less than half the smallest voxel
    near = read_nifti(save(data, change=lambda header: header.set_qform(moved, code=1)))
    assert_allclose(near.affine[:3, 3], [-30, 20, 5])
    assert near.notes == ()
    moved[:3, 3] += 1.0

    def only_q(header: Any) -> None:
        header.set_qform(moved, code=1)
        header["sform_code"] = 0

    assert_allclose(read_nifti(save(data, change=only_q)).affine[:3, 3], [-31.15, 18.85, 6.15], rtol=1e-6)
    path = patch(save(data), 252, "<2h", 0, 1)
    assert reason(patch(path, 80, "<3f", 1.0, 0.8, 2.5)) == "affine_conflict"  # pixdim


SPACES: dict[str, np.ndarray] = {
    "moved": AFFINE + np.pad(np.full((3, 1), 3.0), ((0, 1), (3, 0))),
    "turned": nib.eulerangles.euler2mat(0.1, -0.05, 0.08) @ np.eye(3),
}
SPACES["turned"] = np.block([[SPACES["turned"] @ AFFINE[:3, :3], AFFINE[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]])


@pytest.mark.parametrize("space", SPACES)
def test_two_spaces_take_the_sform_and_say_so(save: Save, space: str) -> None:
    """Both are right: the scanner's place and that of an atlas."""
    path = save(np.zeros((4, 5, 6), np.int16), change=lambda header: header.set_qform(SPACES[space], code=1))
    lps = np.diag([-1.0, -1, 1, 1])
    for form, wanted, note in (
        ("auto", AFFINE, "sform_taken"),
        ("sform", AFFINE, "sform_taken"),
        ("qform", SPACES[space], "qform_taken"),
    ):
        raw = read_nifti(path, form=form)
        assert_allclose(raw.affine[:, [2, 1, 0, 3]], lps @ wanted, atol=1e-5)
        assert raw.notes == (note,)
    with pytest.raises(
        ImageRefusedError, match=r"affine_conflict.* image.nifti_affine=sform or image.nifti_affine=qform"
    ):
        read_nifti(path, form="refuse")


@pytest.mark.parametrize("change", [np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]], ids=["mirrored", "exchanged"])
def test_forms_that_mirror_or_turn_the_patient_are_refused_until_one_is_chosen(save: Save, change: np.ndarray) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    path = save(np.zeros((4, 4, 4), np.int16), affine, change=lambda header: header.set_qform(affine @ change, code=1))
    with pytest.raises(
        ImageRefusedError, match=r"affine_conflict.* image.nifti_affine=sform or image.nifti_affine=qform"
    ):
        read_nifti(path)
    assert_allclose(read_nifti(path, form="qform").affine[:, [2, 1, 0, 3]], np.diag([-1.0, -1, 1, 1]) @ affine @ change)
    assert read_nifti(path, form="sform").notes == ("sform_taken",)


def test_form_that_cannot_be_used_names_the_other(save: Save) -> None:
    sheared = AFFINE.copy()
    sheared[1, 0] = 0.1  # as of a registration with twelve parameters
    path = save(np.zeros((4, 5, 6), np.int16), change=lambda header: header.set_sform(sheared, code=4))
    with pytest.raises(ImageRefusedError, match=r"orientation: sform: .*, or image.nifti_affine=qform takes the qform"):
        read_nifti(path)
    assert_allclose(read_nifti(path, form="qform").affine[:3, 3], [-30, 20, 5])


def test_remedy_of_a_sheared_form_without_another_makes_a_file_that_is_read(save: Save) -> None:
    sheared = AFFINE.copy()
    sheared[1, 0] = 0.1
    path = save(np.ones((4, 5, 6), np.int16), sheared, change=lambda header: header.set_qform(None, code=0))
    with pytest.raises(ImageRefusedError, match=r"at right angles.*nibabel.processing.resample_to_output") as caught:
        read_nifti(path)
    assert "nifti_affine" not in str(caught.value)
    image = nib.load(path)
    nib.save(nib.processing.resample_to_output(image, voxel_sizes=image.header.get_zooms()), path)
    assert_allclose(read_nifti(path).spacing_mm, np.linalg.norm(sheared[:3, :3], axis=0)[::-1], rtol=1e-4)


@pytest.mark.parametrize(
    "affine",
    [np.diag([0.0, 1, 1, 1]), np.diag([np.nan, 1, 1, 1]), AFFINE @ np.diag([2.0, 2, 2, 1])],
    ids=["no length", "not finite", "other voxel size"],
)
def test_form_that_is_no_place_and_has_no_other_says_what_to_correct(save: Save, affine: np.ndarray) -> None:
    def change(header: Any) -> None:
        header.set_sform(affine, code=1)
        header["qform_code"] = 0

    with pytest.raises(ImageRefusedError, match=r"save the image with a correct header .nibabel: header.set_sform"):
        read_nifti(save(np.zeros((4, 5, 6), np.int16), change=change))


def test_file_without_codes_has_the_usual_axes_and_says_so(save: Save) -> None:
    """Method 1 of the standard: voxel sizes, and no word of where left is."""
    path = patch(save(np.arange(120, dtype=np.int16).reshape(4, 5, 6)), 252, "<2h", 0, 0)
    raw = read_nifti(path)
    wanted = nib.load(path).affine  # nibabel's habit
    assert_allclose(raw.affine[:, [2, 1, 0, 3]], np.diag([-1.0, -1, 1, 1]) @ wanted, atol=1e-6)
    assert raw.notes == ("axes_assumed",)
    assert "".join(nib.aff2axcodes(wanted)) == "LAS"
    named = read_nifti(path, analyze_axes="RPI")
    assert named.notes == ()
    assert "".join(nib.aff2axcodes(np.diag([-1.0, -1, 1, 1]) @ named.affine[:, [2, 1, 0, 3]])) == "RPI"
    assert_array_equal(raw.values, named.values)
    micron = patch(path, 123, "<B", 3)
    assert_allclose(read_nifti(micron).spacing_mm, np.array(raw.spacing_mm) / 1000)
    assert reason(patch(path, 80, "<f", 0.0)) == "orientation"


@pytest.mark.parametrize(("cosine", "expected"), [(0.004, ""), (0.02, "orientation")])
def test_axes_off_by_single_precision_are_read_and_a_shear_is_refused(save: Save, cosine: float, expected: str) -> None:
    off = np.diag([2.0, 2.0, 2.0, 1.0])
    off[0, 1] = 2.0 * cosine
    path = save(np.zeros((4, 5, 6), np.int16), off, change=lambda header: header.set_qform(None, code=0))
    if expected:
        assert reason(path) == expected
    else:
        assert_allclose(read_nifti(path).affine[:, [2, 1, 0, 3]], np.diag([-1.0, -1, 1, 1]) @ off, atol=1e-6)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_one_volume_of_several_is_the_one_that_is_asked_for(save: Save, name: str) -> None:
    data = np.arange(360, dtype=np.int16).reshape(4, 5, 6, 3)
    path = save(data, name=name)
    with pytest.raises(ImageRefusedError, match=r"time: 3 volumes in one file.* image.nifti_volume=0"):
        read_nifti(path)
    for volume in range(3):
        assert_array_equal(read_nifti(path, volume=volume).values, data[..., volume].T)
    assert reason(path, volume=3) == "time"
    single = save(data[..., 0], name=f"single-{name}")
    assert_array_equal(read_nifti(single, volume=2).values, data[..., 0].T)
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]) if name.endswith("gz") else whole[:-1])
    assert reason(path, volume=0) == "truncated"  # also behind what is asked for


def test_affines_that_are_no_place(save: Save) -> None:
    data = np.zeros((4, 5, 6), np.int16)
    sheared = AFFINE.copy()
    sheared[1, 0] = 0.1

    def set_sform(affine: np.ndarray) -> Callable[[Any], None]:
        def change(header: Any) -> None:
            header.set_sform(affine, code=1)
            header["qform_code"] = 0

        return change

    assert reason(save(data, change=set_sform(sheared))) == "orientation"
    assert reason(save(data, change=set_sform(np.diag([0.0, 1, 1, 1])))) == "orientation"
    assert reason(save(data, change=set_sform(np.diag([np.nan, 1, 1, 1])))) == "orientation"


def test_units_of_length(save: Save) -> None:
    data = np.zeros((4, 5, 6), np.int16)
    micron = read_nifti(save(data, change=lambda header: header.set_xyzt_units("micron")))
    assert_allclose(micron.spacing_mm, (0.0025, 0.0008, 0.0006), rtol=1e-5)
    assert reason(patch(save(data), 123, "<B", 7)) == "malformed_element"


def test_limits_hold_before_the_data_is_read(tmp_path: Path, save: Save) -> None:
    path = save(np.zeros((4, 5, 6), np.int16))
    assert read_nifti(path, max_voxels=120).values.size == 120
    assert reason(path, max_voxels=119) == "too_large"
    # A bomb: a header that promises much or little, and zeros without end behind it.
    header = bytearray(path.read_bytes()[:352])
    bombs = []
    for dims, offset in (((1024, 1024, 2048), 352.0), ((4, 5, 6), 352.0), ((4, 5, 6), 2.0e9)):
        struct.pack_into("<8h", header, 40, 3, *dims, 1, 1, 1, 1)
        struct.pack_into("<f", header, 108, offset)
        bombs.append(tmp_path / f"{len(bombs)}.nii.gz")
        bombs[-1].write_bytes(gzip.compress(bytes(header) + bytes(1 << 25)))
    tracemalloc.start()
    assert reason(bombs[0]) == "too_large"
    assert read_nifti(bombs[1]).values.sum() == 0
    assert reason(bombs[2]) == "malformed_element"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_broken_files(save: Save, tmp_path: Path) -> None:
    path = save(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        assert reason(path) in {"not_nifti", "truncated"}
    packed = gzip.compress(data)
    for length in range(10, len(packed) - 1, 17):
        path.write_bytes(packed[:length])
        assert reason(path) in {"truncated", "unreadable"}
    path.write_bytes(packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:])
    assert reason(path) == "unreadable"  # the checksum
    path.write_bytes(data[:344] + b"ni1\0" + data[348:])
    assert reason(path) == "nifti_pair"
    path.write_bytes(data[:344] + b"\0\0\0\0" + data[348:])
    assert reason(path) == "not_nifti"  # ANALYZE 7.5 has no place in the patient


def test_the_same_scan_in_dicom(save: Save, series: ModuleType, tmp_path: Path) -> None:
    slices = series.build_slices(orientation=series.rotate(17, -35, 61))
    dicom = read_volume(series.write_series(tmp_path / "dicom", slices), rule=StackRule())
    ras = np.diag([-1, -1, 1, 1]) @ dicom.affine[:, [2, 1, 0, 3]]
    nifti = read_nifti(save(dicom.values.T, ras))
    assert_array_equal(nifti.values, dicom.values)
    assert_allclose(nifti.affine, dicom.affine, atol=1e-5)


def test_voxel_sizes_that_are_no_number_conflict(save: Save) -> None:
    path = patch(save(np.ones((2, 2, 2), np.int16)), 252, "<h", 0)  # without qform, which would need them
    assert read_nifti(path).values.sum() == 8
    assert reason(patch(path, 84, "<f", np.nan)) == "affine_conflict"


@pytest.mark.parametrize("lengths", [1e-9, 1e9])
def test_an_affine_of_no_patient(save: Save, lengths: float) -> None:
    assert reason(save(np.ones((2, 2, 2), np.int16), np.diag([lengths, lengths, lengths, 1.0]))) == "malformed_element"
    far = np.eye(4)
    far[0, 3] = lengths * 1e18
    assert reason(save(np.ones((2, 2, 2), np.int16), far)) == "malformed_element"


def test_a_quaternion_that_is_no_rotation(save: Save) -> None:
    path = patch(save(np.ones((2, 2, 2), np.int16)), 256, "<3f", 1, 1, 1)
    with pytest.raises(ImageRefusedError, match=r"affine_conflict.* image.nifti_affine=sform"):
        read_nifti(path)
    assert_allclose(read_nifti(path, form="sform").affine[:3, 3], [-30, 20, 5])
    assert reason(patch(path, 254, "<h", 0)) == "orientation"  # without an sform
    path = patch(save(np.ones((2, 2, 2), np.int16)), 80, "<f", -1.0)
    with pytest.raises(ImageRefusedError) as caught:
        read_nifti(path)
    assert "nifti_affine" not in str(caught.value)  # neither of the two can be used


def test_memory_is_for_what_is_there(save: Save) -> None:
    path = save(np.ones((2, 2, 2), np.float64))
    patch(path, 42, "<3h", 512, 512, 1000)
    path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    assert reason(path) == "truncated"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 27


@pytest.mark.data
@pytest.mark.parametrize("number", range(1, 10))
def test_real_pairs(number: int) -> None:
    """Siemens mosaics in nine transfer syntaxes beside the NIfTI that dcm2niix made of them."""
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    folder = Path(shared) / "data" / "dicom" / "dcm_qa_ts"
    volume = read_nifti(folder / "Ref" / f"{number}.nii")
    mosaic = read_modality_values(folder / "In" / f"{number}.dcm").values
    tiles = mosaic.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)[:35]
    # dcm2niix turns rows about; columns and slices stay.
    assert_array_equal(volume.values, tiles[:, ::-1])
    assert not mosaic.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)[35].any()
    # The header's position is that of the mosaic's corner: the first tile's lies half of the rest further in.
    column = np.array([0, 0.99415096409965, -0.1079993545339])
    corner = np.array([-624, -661.82658862211, -6.5255017698948]) + 3.25 * 160 * (np.array([1, 0, 0]) + column)
    turned = volume.affine @ [0, 63, 0, 1]
    assert_allclose(turned[:3], corner, atol=1e-3)
    assert_allclose(volume.affine[:3, 0], 3.6 * np.cross([1, 0, 0], column), atol=1e-4)
    assert_allclose(volume.affine[:3, 1], -3.25 * column, atol=1e-4)


def save_analyze(
    folder: Path, data: np.ndarray, zooms: tuple[float, ...], kind: type = nib.AnalyzeImage
) -> tuple[Path, Path]:
    """A pair of files, behind an affine that nibabel makes up."""
    image = kind(data, None)
    image.header.set_zooms(zooms)
    image.to_filename(folder / "image.img")
    return folder / "image.hdr", folder / "image.img"


DATA = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LPI", "ASL", "SRP"])
def test_analyze_has_the_axes_that_the_user_names(axes: str, tmp_path: Path) -> None:
    header, image = save_analyze(tmp_path, DATA, (1.5, 2.0, 3.0))
    raw = read_nifti(header, image=image, analyze_axes=axes)
    assert_array_equal(raw.values, DATA.T)
    ras = np.diag([-1.0, -1, 1, 1]) @ raw.affine[:, [2, 1, 0, 3]]
    assert "".join(nib.aff2axcodes(ras)) == axes
    assert_allclose(np.linalg.norm(ras[:3, :3], axis=0), (1.5, 2.0, 3.0))
    assert_allclose(raw.affine @ [1.5, 1.0, 0.5, 1], [0, 0, 0, 1], atol=1e-12)


def test_analyze_is_the_nifti_of_the_same_place(tmp_path: Path) -> None:
    """Turned to the patient's axes, both are one volume."""
    header, image = save_analyze(tmp_path, DATA, (1.5, 2.0, 3.0))
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(DATA.shape) - 1) / 2)
    nifti = nib.Nifti1Image(DATA, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.to_filename(tmp_path / "same.nii")
    one = to_canonical(read_nifti(header, image=image, analyze_axes="LAS"))
    other = to_canonical(read_nifti(tmp_path / "same.nii"))
    assert_array_equal(one.values, other.values)
    assert_allclose(one.affine, other.affine, atol=1e-6)


def test_analyze_without_axes_is_refused_by_what_to_say(tmp_path: Path) -> None:
    header, image = save_analyze(tmp_path, DATA, (1.0, 1.0, 1.0))
    with pytest.raises(ImageRefusedError, match="analyze_axes=LAS") as error:
        read_nifti(header, image=image)
    assert error.value.reason == "orientation"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h, i: i.write_bytes(i.read_bytes()[:-1]), "truncated"),
        (lambda h, i: h.write_bytes(h.read_bytes()[:200]), "truncated"),
        (lambda h, i: patch(h, 80, "f", 0.0), "orientation"),
        (lambda h, i: patch(h, 80, "f", float("nan")), "orientation"),
        (lambda h, i: patch(h, 70, "h", 128), "colour"),
        (lambda h, i: patch(h, 42, "h", 0), "zero_pixels"),
    ],
)
def test_a_damaged_pair_is_refused(change: Callable[..., object], expected: str, tmp_path: Path) -> None:
    header, image = save_analyze(tmp_path, DATA, (1.0, 1.0, 1.0))
    change(header, image)
    with pytest.raises(ImageRefusedError) as error:
        read_nifti(header, image=image, analyze_axes="LAS")
    assert error.value.reason == expected


def test_spms_scale_is_applied_and_gzip_is_inflated(tmp_path: Path) -> None:
    header, image = save_analyze(tmp_path, DATA, (1.0, 1.0, 1.0), nib.Spm99AnalyzeImage)
    patch(header, 112, "f", 0.5)
    image.write_bytes(gzip.compress(image.read_bytes()))
    assert_array_equal(read_nifti(header, image=image, analyze_axes="RAS").values, 0.5 * DATA.T)


def test_a_nifti_pair_says_its_place_itself(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    pair = nib.Nifti1Pair(DATA, affine)
    pair.header.set_xyzt_units("mm")
    pair.to_filename(tmp_path / "pair.img")
    raw = read_nifti(tmp_path / "pair.hdr", image=tmp_path / "pair.img")
    assert_array_equal(raw.values, DATA.T)
    assert_allclose(raw.affine[:, [2, 1, 0, 3]], np.diag([-1.0, -1, 1, 1]) @ affine)
