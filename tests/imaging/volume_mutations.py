"""What is done to the files of a volume before they are read: each mutation takes files and gives other files."""

from __future__ import annotations

import gzip
import random
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import PLANTED, Seed, find_marks, load_corpus
from tests.imaging.fuzz_series import load_volumes

_FIELDS = {
    348: "40:8h 70:h 72:h 76:8f 108:f 112:f 116:f 123:B 252:h 254:h 256:6f 280:12f 344:4s",
    540: "4:8s 12:h 14:h 16:8q 104:8d 168:q 176:d 184:d 344:i 348:i 352:6d 400:12d 500:i",
}
"""By the size of the header: place and form of what reading relies on (nifti1.h, nifti2.h)."""

_INTEGERS = (0, 1, 2, 3, 5, 7, 8, -1, 16, 127, 128, 511, 512, 768, 1024, 1536, 2304, 32767, -32768)
_FLOATS = (0.0, -1.0, 1e-45, 1e-38, 1e-6, 0.5, 1.0001, 2.0, 352.0, 1e6, 1e20, 3e38, np.inf, -np.inf, np.nan)
_NUMBERS = ("0", "1", "-1", "0.5", "1e-7", "1e-300", "1e6", "1.1e6", "1e38", "1e300", "-1e300", "1e400", "nan", "inf")
_TEXTS = (
    "",
    "x",
    "LOCALIZER",
    "MOSAIC",
    "MONOCHROME1",
    "RGB",
    "US",
    "HU",
    f"{PLANTED}^A",
    "1.2.840.10008.5.1.4.1.1.77.1",
)
_ELEMENTS = (
    *(
        (tag, "t")
        for tag in (0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x0020000E, 0x00200052, 0x00280004, 0x00281054)
    ),
    *((tag, "n") for tag in (0x00180081, 0x00200032, 0x00200037, 0x00280008, 0x00280030, 0x00281052, 0x00281053)),
    *(
        (tag, "w")
        for tag in (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120)
    ),
)
"""What volumes are built from: numbers as text, text, or words."""


def _damage_bytes(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Any mutation of single files, in one or two of them."""
    for index in rng.sample(range(len(files)), min(len(files), rng.choice((1, 1, 2)))):
        data = rng.choice(fuzz.MUTATIONS)(files[index], rng)
        files = [*files[:index], _seed(data), *files[index + 1 :]]
    return files


def _change_some(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Another value of one element of one or two files."""
    tag, value = _choose_value(rng)
    chosen = rng.sample(range(len(files)), min(len(files), rng.choice((1, 1, 2))))
    return [_seed(_replace_value(file, tag, value)) if index in chosen else file for index, file in enumerate(files)]


def _change_all(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Another value of one element of every file."""
    tag, value = _choose_value(rng)
    return [_seed(_replace_value(file, tag, value)) for file in files]


def _change_within(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Other values of as many bytes, wherever an element stands: in every item of a functional group, or in one."""
    tag, value = _choose_value(rng)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    only = rng.random() < 0.5
    changed = []
    for file in files:
        data = bytearray(file.data)
        places = [found.end() for found in re.finditer(re.escape(start) + b"(?=[A-Z]{2})", data)]
        for place in rng.sample(places, 1) if places and only else places:
            length = int.from_bytes(data[place + 2 : place + 4], "little")
            data[place + 4 : place + 4 + length] = (value or rng.randbytes(length)).ljust(length)[:length]
        changed.append(_seed(bytes(data)))
    return changed


def _move(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Positions that are a wrong function of the number of the slice."""
    scale = rng.choice((0.0, 1e-9, 1e-4, 1e-3, 1.0, 1e3, 1e5, 9e5, 1e15, 1e300))
    functions: tuple[Callable[[int], tuple[float, float, float]], ...] = (
        lambda k: (scale * k, 0, 2.5 * k),
        lambda k: (0, 0, scale * k),
        lambda k: (0, 0, 2.5 * k + scale * rng.random()),
        lambda k: (scale * rng.random(), scale * rng.random(), scale * rng.random()),
        lambda k: (0, 0, scale * k * k),
        lambda k: (0, 0, scale * (k // 2)),
        lambda k: (0, scale, 2.5 * k),
        lambda k: (0, 0, 2.5 * k + (scale if k == 4 else 0)),
    )
    place = rng.choice(functions)
    moved = []
    for number, file in enumerate(files):
        text = "\\".join(f"{each:.10g}" for each in place(number)).encode()
        moved.append(_seed(_replace_value(file, 0x00200032, text)))
    return moved


def _shuffle(files: list[Seed], rng: random.Random) -> list[Seed]:
    """Files that are missing, there twice, or of another series."""
    if not files:
        return []
    others = [file for volume in load_volumes() if volume.kind != "nifti" for file in volume.files] + list(
        load_corpus()
    )
    kept = rng.sample(files, rng.randint(0, len(files)))
    return rng.choice((kept, [*files, rng.choice(files)], [*files, rng.choice(others)], files + files, []))


MUTATIONS: tuple[Callable[[list[Seed], random.Random], list[Seed]], ...] = (
    *(_damage_bytes, _change_all, _change_within, _change_within, _change_some, _move, _move, _shuffle),
)


def _seed(data: bytes) -> Seed:
    return Seed("", data, find_marks(data))


def _choose_value(rng: random.Random) -> tuple[int, bytes]:
    """A tag and an encoded value for it, b"" for none."""
    tag, form = rng.choice(_ELEMENTS)
    if form == "w":
        return tag, rng.choice((0, 1, 2, 3, 5, 6, 7, 8, 12, 15, 16, 32, 255, 4096, 32768, 65535)).to_bytes(2, "little")
    if form == "t":
        return tag, rng.choice(_TEXTS).encode()
    return tag, "\\".join(rng.choices(_NUMBERS, k=rng.choice((0, 1, 1, 2, 2, 3, 6)))).encode()


def _replace_value(file: Seed, tag: int, value: bytes) -> bytes:
    """The file with another value, or without the element where that is b""; as it is where it has none."""
    big = b"1.2.840.10008.1.2.2" in file.data[:400]
    wanted = struct.pack(">HH" if big else "<HH", tag >> 16, tag & 0xFFFF)
    for start, place, length in file.marks:
        if file.data[start : start + 4] != wanted or length < 0:
            continue
        if not value:
            return file.data[:start] + file.data[place + length :]
        value += b" " * (len(value) % 2)
        size = 2 if place - start == 8 and file.data[start + 4 : start + 6].isalpha() else 4
        stated = len(value).to_bytes(size, "big" if big else "little")
        return file.data[: place - size] + stated + value + file.data[place + length :]
    return file.data


def mutate_nifti(data: bytes, rng: random.Random) -> bytes:
    """Header fields, bytes, or the compressed stream of a NIfTI file."""
    compressed = data[:2] == b"\x1f\x8b"
    if compressed and rng.random() < 0.4:
        return rng.choice(_BLIND)(Seed("", data, ()), rng)
    plain = gzip.decompress(data) if compressed else data
    for _ in range(rng.choice((1, 1, 2, 3))):
        plain = _change_field(plain, rng) if rng.random() < 0.8 else rng.choice(_BLIND)(Seed("", plain, ()), rng)
    if not compressed:
        return plain
    packed = gzip.compress(plain, mtime=0)
    return rng.choice((packed, packed, packed + b"\0\0", packed + packed, packed[:-4], packed[:-8] + b"\0" * 8))


_BLIND = fuzz.MUTATIONS[:5]


def _change_field(data: bytes, rng: random.Random) -> bytes:
    """Another value of one field of the header, or the same wrong one in all of it."""
    order = "<" if data[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    size = int.from_bytes(data[:4], "little" if order == "<" else "big")
    if size not in _FIELDS or len(data) < size:
        return data
    place, form = rng.choice(_FIELDS[size].split()).split(":")
    count, kind = int(form[:-1] or 1), form[-1]
    if kind == "s":
        return data[: int(place)] + rng.randbytes(count) + data[int(place) + count :]
    new = bytearray(data)
    step = struct.calcsize(order + kind)
    spots = range(count) if rng.random() < 0.2 else [rng.randrange(count)]
    value = rng.choice(_FLOATS) if kind in "fd" else rng.choice(_INTEGERS)
    wide: dict[str, tuple[Any, ...]] = {"q": (1 << 40, -(1 << 62), 1 << 62), "d": (1e200, 1e-200, 1e300)}
    value = rng.choice((value, *wide.get(kind, ())))
    if kind in "fd" and count > 1 and rng.random() < 0.2:  # every length that the header states, by one factor
        scaled = [entry.split(":") for entry in _FIELDS[size].split() if entry[-2:] in ("8f", "8d", "2f", "2d")]
        factor = rng.choice((1e-30, 1e-9, 1e-3, 1e3, 1e9, 1e30))
        for each, form in scaled:
            layout = f"{order}{form}"
            # An earlier mutation may have left a length that no float32 holds a multiple of.
            lengths = [float(np.clip(x * factor, -3e38, 3e38)) for x in struct.unpack_from(layout, new, int(each))]
            lengths[0] = lengths[0] / factor if form[:-1] == "8" else lengths[0]  # qfac
            struct.pack_into(layout, new, int(each), *lengths)
        return bytes(new)
    for spot in spots:
        struct.pack_into(order + kind, new, int(place) + spot * step, value & 0xFF if kind == "B" else value)
    return bytes(new)
