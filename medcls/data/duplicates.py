"""The same image under two names: exact copies by checksum, near copies by hash and then by pixels.

On aligned radiographs a hash alone refuses honest data: among 1,400 real knees some pairs of different patients
share a 64-bit hash. So a 256-bit hash only proposes candidates, and the pixels decide
(docs/decisions/0006-near-duplicates.md has the measurements behind the two thresholds).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_THUMB = 64
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images of different patients that show the same pixels.

    Attributes:
        first: Row of the manifest.
        second: Row of the manifest, > first.
        correlation: Of the high-passed thumbnails, [-1, 1]; 1.0 for identical pixels.
        identical: The stored pixels are equal.
    """

    first: int
    second: int
    correlation: float
    identical: bool


def hash_pixels(pixels: NDArray[Any]) -> str:
    """Returns the hexadecimal SHA-256 of an image's shape, dtype and pixels."""
    head = f"{pixels.shape}{pixels.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def compute_dhash(pixels: NDArray[Any]) -> bytes:
    """Returns the 256-bit difference hash of an image.

    Args:
        pixels: (C, H, W), any real dtype, without padding.

    Returns:
        32 bytes: at 16 rows of 17 area-averaged columns, is a column brighter than its left neighbour.

    Source: Krawetz, "Kind of like that" (2013), widened from 8 x 8 to 16 x 16 bits.
    """
    grey = np.ascontiguousarray(pixels.mean(axis=0, dtype=np.float32))
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def compute_thumbnail(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Returns a unit vector of fine structure; the product of two is their correlation.

    Exposure, contrast and gamma change the coarse grey values of a copy and anatomy shares them between patients;
    so a Gaussian of 3 pixels is subtracted at 64 x 64.

    Args:
        pixels: (C, H, W), any real dtype, without padding.

    Returns:
        (4096,), float32, zero mean, norm 1 (0 for a flat image).
    """
    grey = np.ascontiguousarray(pixels.mean(axis=0, dtype=np.float32))
    small = cv2.resize(grey, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    fine = (small - cv2.GaussianBlur(small, (0, 0), 3)).ravel()
    fine -= fine.mean()
    norm = float(np.linalg.norm(fine))
    return (fine / norm if norm > 0 else fine).astype(np.float32)


def find_duplicates(
    patient_ids: Sequence[str],
    *,
    sha256: Sequence[str],
    dhash: Sequence[bytes],
    read_pixels: Callable[[int], NDArray[Any]],
    max_bits: int,
    min_correlation: float,
) -> list[DuplicatePair]:
    """Returns the pairs of identical or near-identical images of different patients, in row order.

    Args:
        patient_ids: Of each row.
        sha256: hash_pixels of each row.
        dhash: compute_dhash of each row.
        read_pixels: Row -> (C, H, W) without padding; called for candidates only.
        max_bits: Largest Hamming distance of a candidate, 0 to 255.
        min_correlation: Smallest correlation of a near duplicate.
    """
    patients = np.unique(np.asarray(patient_ids, dtype=object).astype(str), return_inverse=True)[1]
    codes = np.unique(np.asarray(sha256), return_inverse=True)[1]
    thumbnails: dict[int, NDArray[np.float32]] = {}

    def thumbnail(row: int) -> NDArray[np.float32]:
        if row not in thumbnails:
            thumbnails[row] = compute_thumbnail(read_pixels(row))
        return thumbnails[row]

    found = []
    for first, second in _candidates(dhash, codes, patients, max_bits=max_bits):
        identical = bool(codes[first] == codes[second])
        correlation = 1.0 if identical else float(thumbnail(first) @ thumbnail(second))
        if identical or correlation >= min_correlation:
            found.append(DuplicatePair(first, second, correlation, identical))
    return found


def _candidates(
    dhash: Sequence[bytes], codes: NDArray[Any], patients: NDArray[Any], *, max_bits: int
) -> Iterator[tuple[int, int]]:
    """Pairs of different patients within max_bits, or of identical pixels.

    A copy with its black border burnt in has the same stored pixels, and another hash: its valid extent differs.
    """
    words = np.frombuffer(b"".join(dhash), np.uint64).reshape(-1, 4)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        distance = np.zeros((len(block), len(words) - start), np.uint16)
        for word in range(4):
            distance += np.bitwise_count(block[:, word, None] ^ words[None, start:, word])
        like = (distance <= max_bits) | (codes[start : start + _BLOCK, None] == codes[None, start:])
        near = like & (patients[start : start + _BLOCK, None] != patients[None, start:])
        for i, j in zip(*np.nonzero(near), strict=True):
            if i < j:
                yield start + int(i), start + int(j)
