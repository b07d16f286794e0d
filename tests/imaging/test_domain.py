"""What training saw, and what of an image it never saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medcls.imaging.decode import DecodedImage
from medcls.imaging.domain import Domain, find_unseen, summarize_domain
from medcls.imaging.grey_levels import SourceValues
from medcls.imaging.preprocess import PreparedImage

DOMAIN = Domain(["CR", "DX"], ["MONOCHROME2"], [0.5, 1.0])


def image(
    *, modality: str = "DX", photometric: str = "MONOCHROME2", spacing_mm: tuple[float, float] | None = (0.5, 1.0)
) -> DecodedImage:
    prepared = PreparedImage(np.zeros((1, 4, 4), np.uint8), (0, 0, 4, 4), spacing_mm)
    return DecodedImage(prepared, (4, 4), "", photometric, {"Modality": modality})


def test_a_domain_holds_each_kind_once_and_the_range_of_known_spacings() -> None:
    domain = summarize_domain(["DX", None, "CR", "DX"], ["L", "L", "RGB"], spacings_mm=[0.7, None, 0.2, 0.9])
    assert domain == Domain(["", "CR", "DX"], ["L", "RGB"], [0.2, 0.9])
    assert summarize_domain([None], ["L"], spacings_mm=[None]).spacing_mm == []


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (image(), {}),
        (image(spacing_mm=None), {}),
        (image(spacing_mm=(0.34, 1.49)), {}),
        (image(modality="CT"), {"unseen_modality": "modality CT, training had CR, DX"}),
        (image(modality=""), {"unseen_modality": "modality none, training had CR, DX"}),
        (
            image(photometric="RGB"),
            {"unseen_photometric": "photometric kind RGB, training had MONOCHROME2"},
        ),
        (
            image(spacing_mm=(0.32, 0.6)),
            {"unseen_spacing": "stored pixels of 0.32 x 0.6 mm, training had 0.5 to 1 mm"},
        ),
        (
            image(spacing_mm=(0.6, 1.51)),
            {"unseen_spacing": "stored pixels of 0.6 x 1.51 mm, training had 0.5 to 1 mm"},
        ),
    ],
)
def test_what_training_never_saw_is_named(seen: DecodedImage, expected: dict[str, str]) -> None:
    assert find_unseen(seen, DOMAIN) == expected


def test_everything_unseen_is_named_and_text_that_is_no_code_is_not_repeated() -> None:
    unseen = find_unseen(image(modality="Doe^Jane", photometric="RGB", spacing_mm=(9.0, 9.0)), DOMAIN)
    assert list(unseen) == ["unseen_modality", "unseen_photometric", "unseen_spacing"]
    assert unseen["unseen_modality"] == "modality of no known term, training had CR, DX"


@pytest.mark.parametrize(
    ("part", "known", "expected"),
    [
        ("KNEE", ["CHEST", "KNEE"], ""),
        ("HEAD", ["CHEST", "KNEE"], "body part HEAD, training had CHEST, KNEE"),
        ("", ["KNEE"], ""),
        ("HEAD", [], ""),
        ("Left Knee", ["KNEE"], ""),
        ("MUELLER HANS", ["KNEE"], ""),
        ("HEAD", ["MUELLER HANS", "KNEE"], "body part HEAD, training had KNEE"),
    ],
)
def test_a_body_part_is_judged_where_both_name_one(part: str, known: list[str], expected: str) -> None:
    seen = image()
    seen.headers["BodyPartExamined"] = part
    domain = summarize_domain(["DX"], ["MONOCHROME2"], spacings_mm=[0.7], body_parts=[*known, None])
    assert find_unseen(seen, domain).get("unseen_body_part", "") == expected


def test_a_domain_holds_terms_only_and_one_of_an_older_file_is_not_repeated() -> None:
    domain = summarize_domain(["Doe^Jane", "dx"], ["L"], spacings_mm=[], body_parts=["DOE JANE", "WHOLE BODY"])
    assert (domain.modalities, domain.body_parts) == (["", "DX"], ["WHOLEBODY"])
    older = Domain(["DOE JANE", "CT"], ["DOE JANE"], [], ["DOE JANE", "CHEST"])
    assert find_unseen(image(), older) == {
        "unseen_modality": "modality DX, training had none, CT",
        "unseen_photometric": "photometric kind MONOCHROME2, training had none",
    }


def test_without_any_spacing_in_training_none_is_judged() -> None:
    domain = Domain(["DX"], ["MONOCHROME2"], [])
    assert find_unseen(image(spacing_mm=(99.0, 99.0)), domain) == {}


@pytest.mark.parametrize(
    ("intents", "said", "unseen"),
    [
        (None, "FOR PROCESSING", False),
        ([], "FOR PROCESSING", True),
        ([], "FOR PRESENTATION", False),
        (["presentation"], "FOR PROCESSING", True),
        (["presentation"], "FOR PRESENTATION", False),
        (["processing"], "FOR PRESENTATION", True),
        (["processing"], "", False),
        (["presentation", "processing"], "FOR PROCESSING", False),
    ],
)
def test_raw_images_are_unseen_by_a_network_of_processed_ones(
    intents: list[str] | None, said: str, unseen: bool
) -> None:
    domain = Domain(["DX"], ["MONOCHROME2"], [], intents=intents)
    seen = image()
    seen.headers["PresentationIntentType"] = said
    assert list(find_unseen(seen, domain)) == (["unseen_intent"] if unseen else [])


@pytest.mark.parametrize(
    ("few", "left", "unseen"), [(False, 12, True), (False, 200, False), (True, 12, False), (None, 12, False)]
)
def test_image_that_lost_its_grey_levels_is_unseen_if_no_training_image_did(
    few: bool | None, left: int, unseen: bool
) -> None:
    domain = Domain(["DX"], ["MONOCHROME2"], [], few_levels=few)
    seen = replace(image(), source=SourceValues(0, 4095, 3000, "type"), stored_levels=left)
    assert list(find_unseen(seen, domain)) == (["few_grey_levels"] if unseen else [])
