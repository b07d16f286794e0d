"""Find the same image under two names: exact copies by checksum, near copies by hash and then by pixels.

On aligned radiographs a hash alone refuses honest data: among 1,400 real knees some pairs of different patients
share a 64-bit hash. So a 256-bit hash only proposes candidates, and the pixels decide
(docs/decisions/0006-near-duplicates.md has the measurements behind the two thresholds).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.data.columns import Codes, Words, find_repeats
from medcls.data.store import Store

_THUMB = 64
_THUMBS = 4096  # kept at once, 16 KiB each
_BLOCK = 64, 4096  # pairs compared at once: what they need fits the processor's cache
# A hash's middle rows hold the anatomy and differ most: its words 1 and 2 are compared first.
_TELLING, _OTHERS = (1, 2), (0, 3)

Differ: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that show the same pixels: of different patients, or of one patient under different labels.

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


@dataclass(frozen=True, slots=True)
class NearLimits:
    """From when on two images are nearly the same.

    Attributes:
        max_bits: Largest Hamming distance of the hashes of a candidate, 0 to 255.
        min_correlation: Smallest correlation of the thumbnails of a near duplicate.
    """

    max_bits: int
    min_correlation: float


def hash_pixels(pixels: NDArray[Any]) -> str:
    """Return the hexadecimal SHA-256 of an image's shape, dtype and pixels."""
    head = f"{pixels.shape}{pixels.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def compute_dhash(pixels: NDArray[Any]) -> bytes:
    """Return the 256-bit difference hash of an image.

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
    """Return a unit vector of fine structure; the product of two is their correlation.

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


def find_store_duplicates(
    store: Store, patients: Codes, limits: NearLimits, *, differ: Differ | None = None
) -> list[DuplicatePair]:
    """Return the pairs of identical or near-identical images of different patients of a store, in row order.

    Args:
        store: Store of the images.
        patients: patient_id of each image.
        limits: As in `find_duplicates`, like differ.
        differ: Which pairs of rows of one patient count, too.
    """
    extents = store.read("valid_y", "valid_x", "valid_height", "valid_width")

    def read_pixels(row: int) -> NDArray[Any]:
        y, x, height, width = (column[row].as_py() for column in extents.columns)
        return np.asarray(store.image(row))[:, y : y + height, x : x + width]

    return find_duplicates(
        patients.values,
        checksums=store.words("pixel_sha256"),
        hashes=store.words("pixel_dhash"),
        read_pixels=read_pixels,
        limits=limits,
        differ=differ,
    )


def find_duplicates(
    patients: NDArray[np.integer[Any]],
    *,
    checksums: Words,
    hashes: Words,
    read_pixels: Callable[[int], NDArray[Any]],
    limits: NearLimits,
    differ: Differ | None = None,
) -> list[DuplicatePair]:
    """Return the pairs of identical or near-identical images of different patients, in row order.

    All pairs of hashes are compared, in blocks: the memory grows with the rows, the time with their square.

    Args:
        patients: (N,) code of each row's patient.
        checksums: hash_pixels of each row.
        hashes: compute_dhash of the rows that have one; the others are compared by checksum alone.
        read_pixels: Row -> (C, H, W) without padding; called for candidates only.
        limits: What counts as a near duplicate.
        differ: Rows (n,), rows (n,) -> (n,), whether a pair of one patient counts, too (its labels differ); None = no.
    """

    def counts(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        apart: NDArray[np.bool_] = patients[first] != patients[second]
        if differ is not None and not apart.all():
            apart[~apart] = differ(first[~apart], second[~apart])
        return apart

    @functools.lru_cache(_THUMBS)
    def thumbnail(row: int) -> NDArray[np.float32]:
        return compute_thumbnail(read_pixels(row))

    repeated, values = find_repeats(checksums)
    found = [DuplicatePair(i, j, 1.0, identical=True) for i, j in _identical_pairs(repeated, values, counts)]
    same = dict(zip(repeated.tolist(), values.tolist(), strict=True))
    for first, second in _near_pairs(hashes, counts, max_bits=limits.max_bits):
        if first in same and same[first] == same.get(second):
            continue
        correlation = float(thumbnail(first) @ thumbnail(second))
        if correlation >= limits.min_correlation:
            found.append(DuplicatePair(first, second, correlation, identical=False))
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def _identical_pairs(rows: NDArray[np.int64], values: NDArray[np.int64], counts: Differ) -> Iterator[tuple[int, int]]:
    """Yield the pairs that count among the rows of each value.

    A copy with its black border burnt in has the same stored pixels, and another hash: its valid extent differs.
    """
    order = np.argsort(values, kind="stable")
    for group in np.split(rows[order], np.flatnonzero(np.diff(values[order])) + 1):
        for place, first in enumerate(group):
            others = group[place + 1 :]
            for second in others[counts(np.full(len(others), first), others)]:
                yield int(first), int(second)


def _near_pairs(hashes: Words, counts: Differ, *, max_bits: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows that count and whose hashes differ in at most max_bits."""
    height, width = _BLOCK
    words, count = np.ascontiguousarray(hashes.words.T), len(hashes.rows)
    scratch = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8)
    for top in range(0, count, height):
        for left in range(top, count, width):
            i, j = _compare(words[:, top : top + height], words[:, left : left + width], scratch, max_bits)
            ordered = top + i < left + j
            first, second = hashes.rows[top + i[ordered]], hashes.rows[left + j[ordered]]
            wanted = counts(first, second)
            yield from zip(first[wanted].tolist(), second[wanted].tolist(), strict=True)


def _compare(
    first: NDArray[np.uint64], second: NDArray[np.uint64], scratch: tuple[NDArray[Any], ...], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places (i, j) within max_bits of words (4, n) and (4, m): two words rule most pairs out, exactly."""
    unlike, bits, more = (array[: first.shape[1], : second.shape[1]] for array in scratch)
    for word, out in zip(_TELLING, (bits, more), strict=True):
        np.bitwise_xor(first[word][:, None], second[word], out=unlike)
        np.bitwise_count(unlike, out=out)
    np.add(bits, more, out=bits)
    i, j = np.divmod(np.flatnonzero(bits <= max_bits), bits.shape[1])
    rest = sum(np.bitwise_count(first[word, i] ^ second[word, j]).astype(np.int64) for word in _OTHERS)
    near = bits[i, j] + rest <= max_bits
    return i[near], j[near]
