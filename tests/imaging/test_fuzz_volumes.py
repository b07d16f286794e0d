"""A few hundred mutated volumes in the default suite, and proof that the fuzzer sees what it looks for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medcls.config import StackRule
from medcls.errors import ImageRefusedError
from medcls.imaging.volume.volume import RawVolume
from tests.imaging import fuzz, fuzz_volumes
from tests.imaging.fuzz_corpus import PLANTED
from tests.imaging.fuzz_series import VolumeSeed, load_volumes


def write_volume(name: str, folder: Path) -> list[Path]:
    """The files of a volume of the corpus."""
    volume = next(each for each in load_volumes() if each.name == name)
    paths = [folder / str(number) for number in range(len(volume.files))]
    for path, file in zip(paths, volume.files, strict=True):
        path.write_bytes(file.data)
    return paths


def test_mutated_volumes_end_right_or_refused() -> None:
    outcomes = list(fuzz.run_cases(range(250), seed=20261123, workers=2, kind="volume"))
    assert [(case.index, outcome.faults) for case, outcome in outcomes if outcome.faults] == []
    endings = Counter(outcome.ending for _, outcome in outcomes)
    assert endings["ok"] >= 50
    assert endings.keys() >= {"ok", "truncated", "malformed_element", "too_few_slices", "several_volumes", "not_nifti"}


def test_cases_are_the_same_everywhere() -> None:
    cases = [fuzz.Case(1, index, "volume") for index in range(60)]
    built = [fuzz_volumes.build_case(case) for case in cases]
    assert built == [fuzz_volumes.build_case(case) for case in cases]
    assert len({tuple(files) for _, _, files in built}) > 45


def test_kinds_are_mixed() -> None:
    outcomes = list(fuzz.run_cases(range(8), seed=3, workers=0, kind="mixed"))
    assert [case.kind for case, _ in outcomes] == ["image", "image", "image", "volume"] * 2
    assert not any(outcome.faults for _, outcome in outcomes)


@pytest.mark.parametrize("volume", load_volumes(), ids=lambda volume: volume.name)
def test_the_corpus_is_whole(volume: VolumeSeed, tmp_path: Path) -> None:
    paths = write_volume(volume.name, tmp_path)
    ending = fuzz_volumes.attempt(paths, nifti=volume.kind == "nifti", rule=fuzz_volumes.RULES[1])
    assert fuzz_volumes.check_ending(ending) == []
    assert PLANTED.encode() in paths[0].read_bytes() or volume.name.endswith(".gz")
    if "echoes" in volume.name:
        assert isinstance(ending, ImageRefusedError)
        assert ending.reason == "several_volumes"
    else:
        assert isinstance(ending, RawVolume)


def test_every_mutation_changes_files() -> None:
    rng = fuzz.random.Random(0)
    series = [list(volume.files) for volume in load_volumes() if volume.kind == "series"]
    for mutate in fuzz_volumes.MUTATIONS:
        assert sum(mutate(files, rng) != files for files in series for _ in range(3)) > len(series), mutate
    nifti = [volume.files[0].data for volume in load_volumes() if volume.kind == "nifti"]
    assert sum(fuzz_volumes.mutate_nifti(data, rng) != data for data in nifti * 3) > 2 * len(nifti)


def test_a_wrong_volume_is_a_finding(tmp_path: Path) -> None:
    paths = write_volume("ct", tmp_path)
    volume = fuzz_volumes.attempt(paths, nifti=False, rule=StackRule())
    assert isinstance(volume, RawVolume)
    assert fuzz_volumes.check_ending(volume) == fuzz_volumes.check_slices(volume, paths) == []
    values = volume.values
    for wrong in (values * np.nan, values[0], values.astype("f8"), values[:0]):
        assert fuzz_volumes.check_ending(replace(volume, values=np.asarray(wrong)))
    for mask in (np.zeros(values.shape, bool), np.ones(values.shape, bool), np.zeros((2, 2), bool)):
        assert fuzz_volumes.check_ending(replace(volume, mask=mask))
    for affine in (np.full((4, 4), np.inf), volume.affine * 2, volume.affine[:3], np.zeros((4, 4))):
        assert fuzz_volumes.check_ending(replace(volume, affine=affine))
    assert fuzz_volumes.check_ending(replace(volume, spacing_mm=(0.0, 1.0, 1.0)))
    assert fuzz_volumes.check_slices(replace(volume, values=values + 1), paths)


def test_a_wrong_refusal_or_stack_is_a_finding(tmp_path: Path) -> None:
    for refusal, count in (("gap", 0), ("truncated", 0), ("no_such_word", 1)):
        assert len(fuzz_volumes.check_ending(ImageRefusedError(refusal))) == count
    assert fuzz_volumes.check_ending(ImageRefusedError("gap", PLANTED.upper()))
    paths = write_volume("two_echoes", tmp_path)
    assert fuzz_volumes.check_stacks(paths, StackRule(), one=False) == []
    assert fuzz_volumes.check_stacks(paths, StackRule(), one=True)
