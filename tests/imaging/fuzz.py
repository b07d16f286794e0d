"""Mutated files through the real entry: python -m tests.imaging.fuzz --cases N --seed S [--workers W] [--kind K].

Every case must end as right pixels or in a refusal with a known word and no planted name, within the limits of a
worker, and alike with the fast path on and off. Case i of seed S is the same file on every machine. Every fourth is a
volume, of which fuzz_volumes says what must hold; --kind image, raster (BMP and other pictures) or volume makes all of
one kind.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from pydicom.multival import MultiValue

from medcls import imaging
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom import dicom_file as part10
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.image import RawImage, ReadOptions, read_image
from medcls.imaging.scan_file import scan_file
from medcls.imaging.worker import Limits, run_limited
from tests.imaging.fuzz_corpus import PLANTED, Seed, load_corpus, load_pictures

LIMITS = Limits(memory_bytes=3 << 29, seconds=10.0)
OPTIONS = ReadOptions(burnt_in=BurntInRule("allow"))
LOST = frozenset({"crashed", "killed", "timeout", "out_of_memory", "panic", "failed"})
"""Reasons of the supervisor: the file did no harm, and yet the code should have refused it by itself."""

_MODULES = {"image": "tests.imaging.fuzz", "raster": "tests.imaging.fuzz", "volume": "tests.imaging.fuzz_volumes"}
_LENGTHS = (0, 1, 2, 3, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_VRS = b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV ZZ".split()
_WORDS = (
    *(b"1e400", b"nan", b"inf", b"-1", b"0", b"1.5", b" 7 ", b"0x10", b"1_000", b"+3", b"--3", b"1,5", b"\\", b"3\\4"),
    *(
        b"\\\\\\",
        b"\x1b$B",
        b"\xff\xfe",
        b"\xc3\xa4",
        b"\0\0",
        b"   ",
        b"\t5\n",
        b"65536",
        b"99999999999",
        b"ISO_IR 192",
    ),
    *(
        b"ISO_IR 13",
        b"MONOCHROME1",
        b"PALETTE COLOR",
        b"YBR_FULL",
        b"SIGMOID",
        b"LINEAR_EXACT",
        b"IDENTITY",
        b"INVERSE",
    ),
    *(
        b"\x00\x80",
        b"\xff\xff",
        b"\x01\x00",
        b"\x10\x00",
        b"\x0c\x00",
        b"1e-400",
        b".",
        b"5.",
        b".5",
        b"1e",
        b"\xd9\xa3",
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Case number `index` of a seed; kind is "image", "raster" or "volume"."""

    seed: int
    index: int
    kind: str = "image"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended: "ok" or the reason of its refusal, whether the fast path answered, and what is wrong."""

    ending: str
    plain: bool
    faults: tuple[str, ...]


def run_cases(cases: range, *, seed: int, workers: int, kind: str = "image") -> Iterator[tuple[Case, Outcome]]:
    """Yields every case with its outcome; an outcome with faults is a finding. A kind of "mixed" is both."""
    run = importlib.import_module("tests.imaging.fuzz").run_any  # never of __main__, which workers cannot import
    mixed = ("image", "image", "image", "volume")
    kinds = {index: mixed[index % 4] if kind == "mixed" else kind for index in cases}
    every = [importlib.import_module("tests.imaging.fuzz").Case(seed, *each) for each in kinds.items()]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=memory if memory.is_dir() else None) as folder:
        outcomes = run_limited(partial(run, folder=folder), every, workers=workers, limits=LIMITS)
        for case, outcome in zip(every, outcomes, strict=True):
            if isinstance(outcome, ImageRefusedError):
                outcome = Outcome(outcome.reason, False, (f"lost: {outcome}",))
            yield case, outcome


def run_any(case: Case, *, folder: str) -> Outcome:
    """Runs one case of either kind; in a worker."""
    outcome: Outcome = importlib.import_module(_MODULES[case.kind]).run_case(case, folder=folder)
    return outcome


def run_case(case: Case, *, folder: str) -> Outcome:
    """Runs one case, fast path on and off, as a file of this process in the folder; in a worker."""
    path = Path(folder) / str(os.getpid())
    path.write_bytes(build_case(case))
    plain = is_plain(path)
    fast = attempt(path)
    faults = check_ending(fast) + check_scan(path)
    if plain:
        headers = read_header(path)
        with mock.patch.object(part10, "read_plain", return_value=None):
            slow = attempt(path)
            if headers != (other := read_header(path)):
                faults.append(f"headers differ: {headers} and {other}")
        if difference := compare_endings(fast, slow):
            faults.append(f"fast and slow path differ: {difference}")
    ending = fast.reason if isinstance(fast, ImageRefusedError) else "ok"
    return Outcome(ending, plain, tuple(faults))


def check_ending(ending: RawImage | ImageRefusedError) -> list[str]:
    """What is wrong with an image or a refusal; [] where nothing is."""
    if isinstance(ending, ImageRefusedError):
        faults = [] if ending.reason in find_reasons() else [f"unknown reason {ending.reason}"]
        return faults + (["a planted name in the detail"] if PLANTED.lower() in str(ending).lower() else [])
    pixels, faults = ending.pixels, []
    if pixels.dtype != np.float32 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        faults.append(f"pixels {pixels.dtype} {pixels.shape}")
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        faults.append("pixels outside [0, 1]")
    if ending.mask is not None and ending.mask.shape != pixels.shape[1:]:
        faults.append("mask of another shape")
    numbers = (ending.aspect, *(ending.spacing_mm or ()))
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        faults.append(f"spacing or aspect {numbers}")
    return faults


def check_scan(path: Path) -> list[str]:
    """What is wrong with the file's row of the index, which every file has; [] where nothing is."""
    problem = scan_file(path, name="case").problem
    return [] if not problem or problem in find_reasons() else [f"unknown problem in the index: {problem}"]


def compare_endings(one: RawImage | ImageRefusedError, two: RawImage | ImageRefusedError) -> str:
    """How two endings of a file differ; "" where they do not."""
    if isinstance(one, ImageRefusedError) or isinstance(two, ImageRefusedError):
        return "" if repr(one) == repr(two) and str(one) == str(two) else f"{one!r} {two!r}"
    names = [field.name for field in fields(RawImage)]
    different = [name for name in names if not _equal(getattr(one, name), getattr(two, name))]
    return ", ".join(different)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return bool(one is two or (type(one) is type(two) and one == two))


@cache
def find_reasons() -> frozenset[str]:
    """Every word that medcls.imaging gives as the reason of a refusal, read from its source."""
    words: set[str] = set()
    for path in Path(imaging.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ImageRefusedError" and node.args:
                words |= {str(part.value) for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)}
    return frozenset(word for word in words if word.replace("_", "").isalnum() and word.islower())


def attempt(path: Path) -> RawImage | ImageRefusedError:
    try:
        return read_image(path, options=OPTIONS)
    except ImageRefusedError as error:
        return error


def is_plain(path: Path) -> bool:
    with path.open("rb") as stream:
        return part10.read_plain(stream, part10._WANTED) is not None


def read_header(path: Path) -> object:
    """What open_dicom says, comparable: the values, the syntax and the pixel element, or the refusal."""
    try:
        with part10.open_dicom(path) as file:
            present = [keyword for keyword in part10.KEYWORDS if keyword in file.dataset]
            return {name: _plain(file.dataset.get(name)) for name in present}, str(file.syntax), file.element
    except ImageRefusedError as error:
        return str(error)


def _plain(value: Any) -> object:
    """A value as built-in types, with NaN equal to itself."""
    if isinstance(value, MultiValue | list):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return str(value)
    return repr(float(value)) if isinstance(value, int | float) else repr(value)


# Mutations: each takes the bytes of a seed with its marks, and gives other bytes.


def build_case(case: Case) -> bytes:
    """The bytes of a case: a file of the corpus after one to three mutations."""
    rng = random.Random(f"{case.seed}-{case.index}")
    if case.kind == "raster":
        return _mutate(rng.choice(load_pictures()), rng)
    corpus = load_corpus()
    built = [seed for seed in corpus if seed.name.startswith("built/")]
    seed = rng.choice(built if rng.random() < 0.6 else corpus)
    return _mutate(seed, rng)


def _mutate(seed: Seed, rng: random.Random) -> bytes:
    data = rng.choice(MUTATIONS)(seed, rng)
    for _ in range(rng.choice((0, 0, 0, 1))):
        data = rng.choice(_BLIND)(Seed(seed.name, data, ()), rng)
    return data


def _flip_bits(seed: Seed, rng: random.Random) -> bytes:
    data = bytearray(seed.data)
    for _ in range(rng.randint(1, 8) if data else 0):
        data[_place(seed, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _place(seed: Seed, rng: random.Random) -> int:
    """A position, in the header as often as behind it."""
    return (
        rng.randrange(128, min(len(seed.data), 1200))
        if len(seed.data) > 200 and rng.random() < 0.5
        else rng.randrange(len(seed.data))
    )


def _overwrite(seed: Seed, rng: random.Random) -> bytes:
    if not seed.data:
        return b""
    at, length = _place(seed, rng), rng.randint(1, 16)
    filling = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), rng.choice(_WORDS)])
    return seed.data[:at] + filling + seed.data[at + len(filling) :]


def _insert(seed: Seed, rng: random.Random) -> bytes:
    at = rng.randint(0, len(seed.data))
    return seed.data[:at] + rng.choice([rng.randbytes(rng.randint(1, 9)), rng.choice(_WORDS)]) + seed.data[at:]


def _remove(seed: Seed, rng: random.Random) -> bytes:
    at = rng.randint(0, len(seed.data))
    return seed.data[:at] + seed.data[at + rng.randint(1, 40) :]


def _truncate(seed: Seed, rng: random.Random) -> bytes:
    return seed.data[: rng.randint(0, len(seed.data))]


def _splice(seed: Seed, rng: random.Random) -> bytes:
    """The start of one file and the end of another, cut at elements where they have any."""
    other = rng.choice(load_corpus())
    here = rng.choice(seed.marks)[0] if seed.marks else rng.randint(0, len(seed.data))
    there = rng.choice(other.marks)[0] if other.marks else rng.randint(0, len(other.data))
    return seed.data[:here] + other.data[there:]


def _is_long(seed: Seed, mark: tuple[int, int, int]) -> bool:
    return mark[1] - mark[0] == 12


def _with_mark(function: Callable[[Seed, random.Random, tuple[int, int, int]], bytes]) -> Callable[..., bytes]:
    """The mutation of one element; of files without elements, a bit flip."""

    def mutate(seed: Seed, rng: random.Random) -> bytes:
        return function(seed, rng, rng.choice(seed.marks)) if seed.marks else _flip_bits(seed, rng)

    return mutate


def _lie_about_length(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    """Another length, in the field where it stands."""
    start, value, length = mark
    lie = rng.choice([*_LENGTHS, *(max(0, length + each) for each in (-2, -1, 1, 2, 8))])
    explicit_short = value - start == 8 and seed.data[start + 4 : start + 6].isalpha()
    size = 2 if explicit_short else 4
    return seed.data[: value - size] + (lie & ((1 << 8 * size) - 1)).to_bytes(size, "little") + seed.data[value:]


def _change_vr(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    return seed.data[: mark[0] + 4] + rng.choice(_VRS) + seed.data[mark[0] + 6 :]


def _change_tag(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    """The tag of a wanted element, of a delimiter, or of any."""
    tags = [*part10._WANTED, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00008, 0x7FE00010, rng.randrange(1 << 32)]
    tag = rng.choice(tags)
    encoded = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    return seed.data[: mark[0]] + encoded + seed.data[mark[0] + 4 :]


def _change_value(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    """Another value, with the length that it has: what a writer with a bug would write."""
    start, value, length = mark
    if length < 0:
        return _flip_bits(seed, rng)
    new = rng.choice([*_WORDS, rng.randbytes(rng.randint(0, 8)), b"", seed.data[value : value + length] * 2])
    if rng.random() < 0.3:
        new = seed.data[value : value + length].rstrip(b" \0") + rng.choice((b"\\", b" ", b"\0", b" \0", b"\0 ")) + new
    size = 2 if value - start == 8 and seed.data[start + 4 : start + 6].isalpha() else 4
    stated = (len(new) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return seed.data[: value - size] + stated + new + seed.data[value + length :]


def _element(seed: Seed, mark: tuple[int, int, int]) -> bytes:
    """The bytes of an element up to the next."""
    index = seed.marks.index(mark)
    end = seed.marks[index + 1][0] if index + 1 < len(seed.marks) else len(seed.data)
    return seed.data[mark[0] : end]


def _duplicate(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    at = rng.choice(seed.marks)[0]
    return seed.data[:at] + _element(seed, mark) + seed.data[at:]


def _drop(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    return seed.data[: mark[0]] + seed.data[mark[0] + len(_element(seed, mark)) :]


def _import_element(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    """An element of another file before one of this."""
    other = rng.choice([each for each in load_corpus() if each.marks])
    return seed.data[: mark[0]] + _element(other, rng.choice(other.marks)) + seed.data[mark[0] :]


def _lie_about_group(seed: Seed, rng: random.Random, mark: tuple[int, int, int]) -> bytes:
    """A group length element with a false length."""
    group, vr = seed.data[mark[0] : mark[0] + 2], seed.data[mark[0] + 4 : mark[0] + 6]
    form = b"UL\x04\0" if vr.isalpha() else b"\x04\0\0\0"
    element = group + b"\0\0" + form + rng.choice(_LENGTHS).to_bytes(4, "little")
    return seed.data[: mark[0]] + element + seed.data[mark[0] :]


def _damage_fragments(seed: Seed, rng: random.Random) -> bytes:
    """Another tag or length of one item, or bytes of its content, in compressed pixel data or a sequence."""
    places = [
        at for at in range(len(seed.data)) if seed.data.startswith((b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"), at)
    ]
    if not places:
        return _flip_bits(seed, rng)
    at = rng.choice(places)
    item = rng.choice([b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", rng.randbytes(4)])
    stated = int.from_bytes(seed.data[at + 4 : at + 8], "little")
    nudged = (stated + rng.choice((-10, -8, -2, -1, 1, 2, 8, 10))) & 0xFFFFFFFF
    length = rng.choice([*_LENGTHS, rng.randrange(4096), *[nudged] * 8]).to_bytes(4, "little")
    kinds = [item + seed.data[at + 4 : at + 8], seed.data[at : at + 4] + length, seed.data[at : at + 8] + b"\0\0\0\0"]
    return seed.data[:at] + rng.choice(kinds) + seed.data[at + 8 :]


def _damage_tail(seed: Seed, rng: random.Random) -> bytes:
    """Bit flips in the last half: pixels, codestreams, deflated data."""
    data = bytearray(seed.data)
    for _ in range(rng.randint(1, 12) if data else 0):
        data[rng.randrange(len(data) // 2, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


_BLIND = (_flip_bits, _overwrite, _insert, _remove, _truncate, _damage_fragments, _damage_tail)
_AWARE = (_lie_about_length, _change_vr, _change_tag, _change_value, _change_value, _change_value)
_ORDER = (_duplicate, _drop, _import_element, _lie_about_group)
MUTATIONS: tuple[Callable[[Seed, random.Random], bytes], ...] = (
    *_BLIND,
    _splice,
    *map(_with_mark, _AWARE),
    *map(_with_mark, _ORDER),
)


def main(arguments: list[str]) -> int:
    """Runs cases, prints the endings and every finding; exit code 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.imaging.fuzz")
    for name, default in (("cases", 10_000), ("seed", 0), ("start", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=("mixed", "image", "raster", "volume"), default="mixed")
    chosen = parser.parse_args(arguments)
    endings: Counter[str] = Counter()
    plain, findings, begin = 0, 0, time.monotonic()
    cases = range(chosen.start, chosen.start + chosen.cases)
    for case, outcome in run_cases(cases, seed=chosen.seed, workers=chosen.workers, kind=chosen.kind):
        endings[outcome.ending] += 1
        plain += outcome.plain
        for fault in outcome.faults:
            findings += 1
            print(f"seed {case.seed} {case.kind} {case.index} ({outcome.ending}): {fault[:600]}", flush=True)
    print(f"{chosen.cases} cases of seed {chosen.seed}, {time.monotonic() - begin:.0f} s, {plain} by the fast path")
    print(", ".join(f"{ending} {count}" for ending, count in endings.most_common()))
    print(f"{findings} findings", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
