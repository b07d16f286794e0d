"""Copies are found through re-encoding, exposure and noise; honest images of different patients never."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medcls.config import SplitConfig
from medcls.data.columns import Words
from medcls.data.duplicates import (
    DuplicatePair,
    NearLimits,
    _near_pairs,
    compute_dhash,
    compute_thumbnail,
    find_duplicates,
    hash_pixels,
)
from medcls.imaging.image import read_image
from medcls.imaging.preprocess import PreprocessSpec, preprocess_image

Image = NDArray[np.uint8]


def blob(seed: int, size: int = 96) -> Image:
    """A smooth random picture with fine structure, (1, size, size)."""
    generator = np.random.default_rng(seed)
    coarse = cv2.resize(generator.normal(128, 40, (12, 12)), (size, size), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(generator.normal(0, 60, (size, size)), (0, 0), 1.5)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)[None]


def as_words(values: Sequence[bytes | None]) -> Words:
    rows = np.array([row for row, value in enumerate(values) if value is not None], dtype=np.int64)
    words = np.frombuffer(b"".join(filter(None, values)), ">u8").reshape(-1, 4).astype(np.uint64)
    return Words(rows, words)


def search(
    images: Sequence[NDArray[Any]], patients: Sequence[str] | None = None, *, hashed: bool = True, **changes: Any
) -> list[DuplicatePair]:
    """find_duplicates with the thresholds that data_prep uses by default."""
    config = SplitConfig()
    limits = {"max_bits": config.near_duplicate_bits, "min_correlation": config.near_duplicate_correlation}
    limits |= {name: changes.pop(name) for name in tuple(limits) if name in changes}
    return find_duplicates(
        np.arange(len(images)) if patients is None else np.unique(patients, return_inverse=True)[1],
        checksums=as_words([bytes.fromhex(hash_pixels(image)) for image in images]),
        hashes=as_words([compute_dhash(image) if hashed else None for image in images]),
        limits=NearLimits(**limits),
        **{"read_pixels": lambda row: images[row]} | changes,
    )


def encode_jpeg(image: Image, quality: int = 60) -> Image:
    ok, data = cv2.imencode(".jpg", image[0], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)[None]


def scale(image: Image, factor: float) -> Image:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def bend(image: Image, gamma: float) -> Image:
    return (255 * (image / 255) ** gamma).astype(np.uint8)


def add_noise(image: Image, sigma: float = 4) -> Image:
    noisy = image + np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def halve(image: Image) -> Image:
    small = cv2.resize(image[0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, image.shape[:0:-1]), np.uint8)[None]


COPIES: dict[str, Callable[[Image], Image]] = {
    "jpeg": encode_jpeg,
    "darker": lambda image: scale(image, 0.8),
    "brighter": lambda image: scale(image, 1.1),
    "gamma 0.7": lambda image: bend(image, 0.7),
    "gamma 1.4": lambda image: bend(image, 1.4),
    "noise": add_noise,
    "half size": halve,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name: str) -> None:
    images = [blob(0), blob(1), COPIES[name](blob(0))]
    (found,) = search(images)
    assert (found.first, found.second, found.identical) == (0, 2, False)
    assert found.correlation >= 0.95


def test_an_identical_image_is_found_by_its_pixels_alone() -> None:
    (found,) = search([blob(0), blob(1), blob(0)], max_bits=0, min_correlation=1.0)
    assert found == DuplicatePair(0, 2, 1.0, identical=True)


def test_pictures_of_one_patient_and_unlike_ones_are_not_reported() -> None:
    assert search([blob(0), blob(0), encode_jpeg(blob(0))], ["p", "p", "p"]) == []
    assert search([blob(seed) for seed in range(40)]) == []


def test_a_hash_alone_decides_nothing() -> None:
    """Every pair is a candidate, and the pixels say no."""
    assert search([blob(seed) for seed in range(10)], max_bits=255) == []


def test_flat_images_are_alike_only_where_identical() -> None:
    flat = [np.full((1, 32, 32), value, np.uint8) for value in (0, 9, 9)]
    assert search(flat) == [DuplicatePair(1, 2, 1.0, identical=True)]


def test_pairs_are_found_across_blocks_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [blob(seed % 9) for seed in range(18)]
    expected = [(i, i + 9) for i in range(9)]
    assert [(d.first, d.second) for d in search(images)] == expected
    monkeypatch.setattr("medcls.data.duplicates._BLOCK", (3, 4))
    assert [(d.first, d.second) for d in search(images)] == expected


def test_pixels_are_read_for_candidates_alone() -> None:
    images = [blob(0), blob(1), encode_jpeg(blob(0))]
    read: list[int] = []

    def read_pixels(row: int) -> Image:
        read.append(row)
        return images[row]

    search(images, read_pixels=read_pixels)
    assert sorted(read) == [0, 2]


@pytest.mark.parametrize("max_bits", [0, 10, 48, 100, 127, 128, 129, 200, 255])
def test_candidates_are_exactly_the_pairs_within_the_distance(max_bits: int) -> None:
    """Against all pairs, bit by bit; hashes near one another, so that every distance occurs."""
    generator = np.random.default_rng(max_bits)
    flipped = generator.random((60, 256)) < generator.uniform(0, 0.7, (60, 1))
    hashes = [np.packbits(bits).tobytes() for bits in flipped]
    hashes[7] = hashes[30] = None
    patients = generator.integers(0, 40, 60)
    read: set[tuple[int, int]] = set()
    found = _near_pairs(as_words(hashes), lambda i, j: patients[i] != patients[j], max_bits=max_bits)
    for first, second in found:
        assert (first, second) not in read
        read.add((first, second))
    expected = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if not {i, j} & {7, 30} and patients[i] != patients[j] and (flipped[i] != flipped[j]).sum() <= max_bits
    }
    assert read == expected


def test_images_without_a_hash_are_compared_by_their_pixels_alone() -> None:
    """As volumes are."""
    images = [np.zeros((1, 2, 3, 4), np.int16), np.ones((1, 2, 3, 4), np.int16), np.zeros((1, 2, 3, 4), np.int16)]
    assert search(images, hashed=False) == [DuplicatePair(0, 2, 1.0, identical=True)]


def test_every_pair_of_many_identical_images_is_found_once_and_in_order() -> None:
    images = [blob(seed) for seed in (1, 0, 1, 0, 1)]
    expected = [(0, 2), (0, 4), (1, 3)]
    assert [(d.first, d.second) for d in search(images, ["a", "b", "c", "d", "e"])] == [*expected, (2, 4)]
    assert [(d.first, d.second) for d in search(images, ["a", "b", "c", "d", "c"])] == expected


def test_no_images_have_no_duplicates() -> None:
    assert search([]) == []
    assert search([blob(0)]) == []


def test_the_checksum_knows_shape_and_dtype() -> None:
    zeros = np.zeros((1, 4, 6), np.uint8)
    others = [zeros.reshape(1, 6, 4), zeros.astype(np.uint16), np.zeros((2, 4, 3), np.uint8)]
    assert len({hash_pixels(image) for image in [zeros, *others]}) == 4
    assert hash_pixels(zeros) == hash_pixels(np.asfortranarray(zeros))


def test_the_hash_says_which_neighbour_is_brighter() -> None:
    ramp = np.tile(np.arange(17, dtype=np.uint8), (16, 1))[None]
    assert compute_dhash(ramp) == b"\xff" * 32
    assert compute_dhash(ramp[:, :, ::-1]) == bytes(32)
    assert len(compute_dhash(blob(0, 33))) == 32


def test_a_thumbnail_is_a_unit_vector_without_exposure() -> None:
    thumbnail = compute_thumbnail(blob(0))
    assert (thumbnail.shape, thumbnail.dtype) == ((4096,), np.float32)
    assert abs(np.linalg.norm(thumbnail) - 1) < 1e-5
    assert abs(thumbnail.mean()) < 1e-5
    half = (blob(0) // 2).astype(np.uint16) * 256 + 1000
    assert compute_thumbnail(half) @ thumbnail > 0.999
    assert not compute_thumbnail(np.full((1, 8, 8), 7, np.uint8)).any()


@pytest.fixture(scope="module")
def knees() -> tuple[list[Image], list[str]]:
    """1,400 real knee radiographs at 224 pixels and their patients."""
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    folder = Path(shared) / "data" / "knee"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    spec = PreprocessSpec()
    images = [preprocess_image(read_image(folder / row["path"]), spec).pixels for row in rows]
    return images, [row["patient_id"] for row in rows]


@pytest.mark.data
def test_real_knees_are_never_refused_falsely(knees: tuple[list[Image], list[str]]) -> None:
    images, patients = knees
    assert len(set(patients)) > 600
    assert search(images, patients) == []


@pytest.mark.data
@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_knees_are_found(name: str, knees: tuple[list[Image], list[str]]) -> None:
    originals = knees[0][::20]
    copies = [COPIES[name](image) for image in originals]
    found = {(d.first, d.second) for d in search([*originals, *copies])}
    assert found == {(i, i + len(originals)) for i in range(len(originals))}
