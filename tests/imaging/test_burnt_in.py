"""Text in the pixels: who is suspect, what is blacked out, what is refused; and who may show a face."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from medcls.errors import ConfigError, DataError, ImageRefusedError
from medcls.imaging.dicom.burnt_in import BurntInRule, check_burnt_in, find_text_risk, may_show_face
from medcls.imaging.image import RawImage, ReadOptions, read_image
from medcls.imaging.preprocess import PreprocessSpec, preprocess_image
from medcls.records import from_json, to_json

Write = Callable[..., Path]
US = {"SOPClassUID": uid.UltrasoundImageStorage, "Modality": "US"}
# In elements=, BurnedInAnnotation=None overrides the NO of the test builder and is written empty: not stated.
UNMARKED = {"BurnedInAnnotation": None}
PIXELS = np.arange(1, 241, dtype=np.uint8).reshape(12, 20)


def region(x0: int, y0: int, x1: int, y1: int, spatial_format: int = 1) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = spatial_format, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1, y1
    return item


def read(path: Path, policy: str = "refuse", **boxes: Any) -> RawImage:
    return read_image(path, options=ReadOptions(burnt_in=BurntInRule(policy, **boxes)))


def detail(path: Path, policy: str = "refuse", **boxes: Any) -> str:
    with pytest.raises(ImageRefusedError) as error:
        read(path, policy, **boxes)
    assert error.value.reason == "burnt_in"
    return error.value.detail


def shown(image: RawImage) -> np.ndarray:
    """Which pixels survived: none of PIXELS is 0."""
    return image.pixels[0] > 0


# Who is suspect


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"BurnedInAnnotation": "yes "}, "BurnedInAnnotation"),
        ({"BurnedInAnnotation": "TRUE"}, "BurnedInAnnotation"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage, "Modality": "MR"}, "secondary capture"),
        ({"SOPClassUID": uid.MultiFrameTrueColorSecondaryCaptureImageStorage}, "secondary capture"),
        ({"SOPClassUID": uid.UltrasoundImageStorage}, "ultrasound"),
        ({"SOPClassUID": uid.XRayAngiographicImageStorage}, "angiography"),
        ({"SOPClassUID": uid.VLEndoscopicImageStorage}, "endoscopy"),
        ({"Modality": "US"}, "Modality is US"),
        ({"Modality": "OT"}, "Modality is OT"),
        ({"Modality": "XA"}, "Modality is XA"),
        ({"Modality": "CR", "ConversionType": "DF"}, "ConversionType is DF"),
        ({"Modality": "CT", "ConversionType": "WSD"}, "ConversionType is WSD"),
        ({"Modality": "CT", "ImageType": "DERIVED\\SECONDARY\\SCREEN SAVE"}, "ImageType has SCREEN"),
        ({"Modality": "CT", "ImageType": "DERIVED\\SECONDARY\\\\DOSEINFO"}, "ImageType has DOSE"),
        ({"Modality": "CT", "ImageType": "DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT"}, "ImageType has CT_SOM5"),
        ({"Modality": "MR", "PhotometricInterpretation": "RGB"}, "MR in colour"),
        ({"Modality": "CT", "PhotometricInterpretation": "PALETTE COLOR"}, "CT in colour"),
    ],
)
def test_suspects_are_known_by_their_header(headers: dict[str, str], words: str) -> None:
    assert words in find_text_risk(headers)
    assert find_text_risk(headers | {"BurnedInAnnotation": "NO"}) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Modality": "CT", "ImageType": "ORIGINAL\\PRIMARY\\AXIAL", "PhotometricInterpretation": "MONOCHROME2"},
        {"Modality": "MR", "ImageType": "DERIVED\\SECONDARY\\MPR", "SOPClassUID": uid.MRImageStorage},
        {"Modality": "CR", "ConversionType": "DI", "PhotometricInterpretation": "MONOCHROME1"},
        {"Modality": "SM", "PhotometricInterpretation": "RGB"},
        {"Modality": "PT", "ConversionType": "SYN"},
        # Storage classes whose identifiers begin like that of ultrasound and of secondary capture.
        {"SOPClassUID": uid.RawDataStorage},
        {"SOPClassUID": uid.SegmentationStorage},
        {"SOPClassUID": uid.VLWholeSlideMicroscopyImageStorage},
    ],
)
def test_other_images_are_not(headers: dict[str, str]) -> None:
    assert find_text_risk(headers) == ""


def test_volumes_are_refused_or_not() -> None:
    marked = {"Modality": "CT", "BurnedInAnnotation": "YES"}
    with pytest.raises(ImageRefusedError) as error:
        check_burnt_in(marked, BurntInRule())
    assert error.value.reason == "burnt_in"
    check_burnt_in(marked, BurntInRule("allow"))
    check_burnt_in({"Modality": "CT"}, BurntInRule())


# What is blacked out


def test_suspects_are_refused_unless_allowed(write_dicom: Write) -> None:
    path = write_dicom(PIXELS, **US, **UNMARKED)
    assert "ultrasound" in detail(path)
    image = read(path, "allow")
    assert shown(image).all()
    assert (image.mask, image.kept_box) == (None, None)
    clean = write_dicom(PIXELS, **US, BurnedInAnnotation="NO")
    assert shown(read(clean)).all()


def test_only_the_regions_of_an_ultrasound_image_are_kept(write_dicom: Write) -> None:
    regions = [region(2, 3, 9, 7), region(12, 3, 15, 10, 3), region(0, 0, 19, 1, 5), region(0, 11, 19, 11, 4)]
    path = write_dicom(PIXELS, **US, **UNMARKED, SequenceOfUltrasoundRegions=regions)
    image = read(path, "ultrasound_regions")
    wanted = np.zeros(PIXELS.shape, bool)
    wanted[3:8, 2:10] = True
    wanted[3:11, 12:16] = True
    assert (shown(image) == wanted).all()
    assert image.mask is not None
    assert (image.mask == ~wanted).all()
    assert image.kept_box == (2, 3, 14, 8)
    prepared = preprocess_image(image, PreprocessSpec(height=8, width=14))
    assert (prepared.pixels[0] > 0).tolist() == wanted[3:11, 2:16].tolist()
    assert preprocess_image(image, PreprocessSpec(8, 8), roi=(2, 3, 8, 5)).valid_extent == (1, 0, 5, 8)


def test_regions_count_even_where_the_header_says_no(write_dicom: Write) -> None:
    path = write_dicom(PIXELS, **US, SequenceOfUltrasoundRegions=[region(2, 3, 9, 7)])
    assert read(path, "ultrasound_regions").kept_box == (2, 3, 8, 5)
    assert read(path).kept_box is None


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([], "declares no ultrasound region"),
        ([region(0, 0, 9, 9, 5)], "declares no ultrasound region"),
        ([region(2, 3, 25, 7)], "leaves the image of 20 x 12"),
        ([region(2, 3, 9, 14)], "leaves the image of 20 x 12"),
        ([region(25, 3, 30, 5)], "leaves the image of 20 x 12"),
        ([region(0, 0, 19, 11)], "are the whole image"),
        ([region(0, 0, 20, 12)], "are the whole image"),
    ],
)
def test_regions_that_hide_nothing_or_do_not_fit_are_refused(
    regions: list[Dataset], words: str, write_dicom: Write
) -> None:
    path = write_dicom(PIXELS, **US, **UNMARKED, SequenceOfUltrasoundRegions=regions)
    assert words in detail(path, "ultrasound_regions")


def test_a_region_may_end_one_pixel_beyond_the_image(write_dicom: Write) -> None:
    path = write_dicom(PIXELS, **US, **UNMARKED, SequenceOfUltrasoundRegions=[region(4, 2, 20, 12)])
    assert read(path, "ultrasound_regions").kept_box == (4, 2, 16, 10)


def test_a_region_without_corners_is_refused(write_dicom: Write) -> None:
    broken = region(9, 3, 2, 7)
    path = write_dicom(PIXELS, **US, **UNMARKED, SequenceOfUltrasoundRegions=[broken])
    with pytest.raises(ImageRefusedError) as error:
        read(path, "ultrasound_regions")
    assert error.value.reason == "malformed_element"


def test_images_that_are_not_suspect_need_no_regions(write_dicom: Write) -> None:
    path = write_dicom(PIXELS, SOPClassUID=uid.ComputedRadiographyImageStorage, Modality="CR", **UNMARKED)
    assert shown(read(path, "ultrasound_regions")).all()


@pytest.mark.parametrize("policy", ["refuse", "allow"])
@pytest.mark.parametrize("marked", ["YES", "NO"])
def test_boxes_act_on_every_image(policy: str, marked: str, write_dicom: Write) -> None:
    path = write_dicom(PIXELS, BurnedInAnnotation=marked)
    masked = read(path, policy, mask_boxes=((0, 0, 20, 3), (15, 9, 5, 3)))
    wanted = np.ones(PIXELS.shape, bool)
    wanted[:3] = False
    wanted[9:, 15:] = False
    assert (shown(masked) == wanted).all()
    assert masked.kept_box == (0, 3, 20, 9)
    kept = read(path, policy, keep_box=(5, 2, 10, 6), mask_boxes=((0, 0, 7, 4),))
    wanted[:] = False
    wanted[2:8, 5:15] = True
    wanted[:4, :7] = False
    assert (shown(kept) == wanted).all()
    assert kept.kept_box == (5, 2, 10, 6)


def test_boxes_act_on_colour_and_on_files_without_a_header(write_dicom: Write, tmp_path: Path) -> None:
    colour = np.full((12, 20, 3), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), colour)
    for path in (write_dicom(colour, **UNMARKED), tmp_path / "image.png"):
        image = read(path, mask_boxes=((0, 0, 20, 3),))
        assert (image.pixels[:, :3] == 0).all()
        assert (image.pixels[:, 3:] > 0.7).all()
        assert image.kept_box == (0, 3, 20, 9)
    assert read(tmp_path / "image.png").kept_box is None


@pytest.mark.parametrize("box", [(0, 0, 21, 3), (0, 10, 20, 3), (30, 30, 5, 5)])
def test_a_box_made_for_another_size_is_refused(box: tuple[int, int, int, int], write_dicom: Write) -> None:
    path = write_dicom(PIXELS)
    assert "leaves the 20 x 12 image" in detail(path, mask_boxes=(box,))
    assert "leaves the 20 x 12 image" in detail(path, keep_box=box)


def test_a_rule_that_leaves_nothing_is_refused(write_dicom: Write) -> None:
    assert "whole image" in detail(write_dicom(PIXELS), mask_boxes=((0, 0, 20, 12),))


def test_hidden_text_takes_no_part_in_the_range_of_an_image(write_dicom: Write) -> None:
    """A file without a window is shown over the range of its values: bright text must not darken the rest."""
    pixels = np.tile(np.arange(100, 120, dtype=np.uint16), (12, 1))
    pixels[0] = 60000
    path = write_dicom(pixels, Modality="MR", SOPClassUID=uid.MRImageStorage)
    clean = write_dicom(pixels[1:], Modality="MR", SOPClassUID=uid.MRImageStorage)
    masked = read(path, mask_boxes=((0, 0, 20, 1),))
    assert np.allclose(masked.pixels[:, 1:], read(clean).pixels)
    wanted = PreprocessSpec(height=11, width=20, intensity="minmax", burnt_in=BurntInRule(mask_boxes=((0, 0, 20, 1),)))
    stored = preprocess_image(read_image(path, options=wanted.read_options), wanted).pixels
    assert (stored.min(), stored.max()) == (0, 255)


# The record


def test_the_rule_comes_back_from_json() -> None:
    rule = BurntInRule("ultrasound_regions", ((1, 2, 3, 4),), (0, 0, 9, 9))
    assert from_json(BurntInRule, json.loads(json.dumps(to_json(rule)))) == rule
    assert from_json(BurntInRule, to_json(BurntInRule())) == BurntInRule()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "maybe"}, "image.burnt_in=maybe: expected one of"),
        ({"mask_boxes": [[1]]}, r"mask_boxes\[0\]: a list of 1, expected a list of 4"),
        ({"keep_box": [0, 0, 0, 1]}, "image.keep_box"),
        ({"keep_box": [0, 0, 1.5, 1]}, r"keep_box\[2\]: 1\.5, expected a whole number"),
        ({"new": 1}, "unknown field 'new'"),
    ],
)
def test_rule_of_another_version_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        from_json(BurntInRule, to_json(BurntInRule()) | change)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"policy": "forbid"}, r"image\.burnt_in=forbid: expected one of refuse, allow, ultrasound_regions"),
        ({"mask_boxes": ((0, 0, 5),)}, r"image\.mask_boxes: \[0, 0, 5\]"),
        ({"mask_boxes": ((0, -1, 5, 5),)}, r"image\.mask_boxes"),
        ({"keep_box": (0, 0, 5, 0)}, r"image\.keep_box"),
        ({"keep_box": (0, 0, 5, 1.5)}, r"image\.keep_box"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        BurntInRule(**changes)


# Faces


@pytest.mark.parametrize(
    ("modality", "part", "face"),
    [
        ("MR", "HEAD", True),
        ("CT", "BRAIN", True),
        ("CT", "", True),
        ("", "", True),
        ("PT", "WHOLEBODY", True),
        ("CT", "HEADNECK", True),
        ("CT", "CSPINE", True),
        ("CT", "ANNOON", True),
        ("MR", "HEAD^HEART", True),
        ("CT", "CHEST", False),
        ("CT", "Chest_Abdomen_Pelvis", False),
        ("MR", "KNEE", False),
        ("MR", "heart", False),
        ("US", "HEAD", False),
        ("DX", "", False),
        ("XC", "", True),
    ],
)
def test_who_may_show_a_face(modality: str, part: str, face: bool) -> None:
    headers = {"Modality": modality, "BodyPartExamined": part}
    assert may_show_face(headers) is face
    assert may_show_face(headers | {"RecognizableVisualFeatures": "YES"})
    assert not may_show_face(headers | {"RecognizableVisualFeatures": "NO"})
