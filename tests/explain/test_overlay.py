from __future__ import annotations

from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medcls.explain.overlay import write_nifti, write_overlay


def test_overlay_marks_in_red_what_speaks_for_the_score(image: NDArray[np.uint8], tmp_path: Path) -> None:
    heat = np.zeros(image.shape[1:], np.float32)
    heat[10:20, 10:20], heat[30:40, 30:40] = 1, -1
    write_overlay(tmp_path / "a.png", image, heat, title="probability of $5: 0.9", legend="weight", box=(4, 5, 6, 7))
    write_overlay(tmp_path / "b.png", image, heat, title="probability of $5: 0.9", legend="weight", box=(4, 5, 6, 7))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    blue, _, red = cv2.split(cv2.imread(str(tmp_path / "a.png")).astype(int))
    assert ((red - blue) > 80).sum() > 500
    assert ((blue - red) > 80).sum() > 500


def test_flat_map_leaves_the_image_as_it_is(image: NDArray[np.uint8], tmp_path: Path) -> None:
    write_overlay(tmp_path / "a.png", image, np.zeros(image.shape[1:], np.float32), title="", legend="")
    picture = cv2.imread(str(tmp_path / "a.png")).astype(int)
    left = picture[40:-20, 10 : picture.shape[1] // 3]
    assert np.ptp(left, axis=2).max() == 0


def test_volume_shows_the_slice_of_the_largest_value(tmp_path: Path) -> None:
    volume = np.zeros((1, 6, 20, 20), np.uint8)
    volume[0, 4] = 255
    heat = np.zeros((6, 20, 20), np.float32)
    heat[4, 3, 3] = 1
    write_overlay(tmp_path / "a.png", volume, heat, title="", legend="")
    picture = cv2.imread(str(tmp_path / "a.png"))
    heat[4, 3, 3], heat[1, 3, 3] = 0, 1
    write_overlay(tmp_path / "b.png", volume, heat, title="", legend="")
    assert picture.mean() > 1.5 * cv2.imread(str(tmp_path / "b.png")).mean()


def test_nifti_keeps_values_and_affine(tmp_path: Path) -> None:
    heat = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    affine = np.array([[0, 0, -0.7, 10], [0, -0.8, 0, 20.5], [3, 0, 0, -30], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii.gz", heat, affine=affine)
    read = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(read.dataobj), heat)
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    assert read.header.get_xyzt_units()[0] == "mm"
    assert nibabel.aff2axcodes(read.affine) == ("S", "P", "L")
    write_nifti(tmp_path / "b.nii.gz", heat, affine=affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("shape", "affine"), [((4, 5), np.eye(4)), ((3, 4, 5), np.eye(3)), ((3, 4, 5), np.zeros((4, 4)))]
)
def test_what_is_no_volume_is_refused(shape: tuple[int, ...], affine: NDArray[np.float64], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \(D, H, W\)"):
        write_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.float32), affine=affine)
