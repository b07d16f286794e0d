"""A few hundred mutated files in the default suite, and proof that the fuzzer sees what it looks for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medcls.errors import ImageRefusedError
from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import PLANTED, load_corpus


def test_mutated_files_end_right_or_refused() -> None:
    outcomes = list(fuzz.run_cases(range(600), seed=20261122, workers=2))
    assert [(case.index, outcome.faults) for case, outcome in outcomes if outcome.faults] == []
    endings = Counter(outcome.ending for _, outcome in outcomes)
    assert endings["ok"] >= 60
    assert endings.keys() >= {"ok", "truncated", "no_pixel_data", "pixel_length", "missing_element"}
    assert sum(outcome.plain for _, outcome in outcomes) >= 90


def test_cases_are_the_same_everywhere() -> None:
    cases = [fuzz.Case(1, index) for index in range(50)]
    built = [fuzz.build_case(case) for case in cases]
    assert built == [fuzz.build_case(case) for case in cases]
    assert len(set(built)) > 45
    assert built[0] != fuzz.build_case(fuzz.Case(2, 0))


def test_every_mutation_changes_files() -> None:
    rng = fuzz.random.Random(0)
    corpus = load_corpus()
    for mutate in fuzz.MUTATIONS:
        assert sum(mutate(seed, rng) != seed.data for seed in corpus) > len(corpus) // 3, mutate


def test_a_wrong_ending_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(load_corpus()[0].data)
    image = fuzz.attempt(path)
    assert not isinstance(image, ImageRefusedError)
    assert fuzz.check_ending(image) == []
    for pixels in (
        image.pixels * 2,
        image.pixels - 1,
        image.pixels * np.nan,
        image.pixels[0],
        image.pixels.astype("f8"),
    ):
        broken = replace(image, pixels=np.asarray(pixels))
        assert fuzz.check_ending(broken)
        assert fuzz.compare_endings(image, broken)
    assert fuzz.check_ending(replace(image, aspect=0.0))
    assert fuzz.check_ending(replace(image, mask=np.zeros((2, 2), bool)))
    for refusal, count in (("truncated", 0), ("no_such_word", 1)):
        assert len(fuzz.check_ending(ImageRefusedError(refusal))) == count
    assert fuzz.check_ending(ImageRefusedError("truncated", PLANTED.upper()))
    assert fuzz.compare_endings(ImageRefusedError("truncated"), image)
    assert fuzz.compare_endings(ImageRefusedError("truncated", "a"), ImageRefusedError("truncated", "b"))


def test_reasons_are_read_from_the_source() -> None:
    assert {"truncated", "cine", "multi_frame", "timeout", "crashed", "unknown_format"} <= fuzz.find_reasons()
    assert "a" not in fuzz.find_reasons()


@pytest.mark.parametrize("name", ["built/ct_explicit", "built/deflated", "built/jpeg_2000", "SC_rgb_rle.dcm"])
def test_the_corpus_is_whole(name: str, tmp_path: Path) -> None:
    seeds = {seed.name: seed for seed in load_corpus()}
    path = tmp_path / "file"
    path.write_bytes(seeds[name].data)
    assert not isinstance(fuzz.attempt(path), ImageRefusedError)
    assert len(seeds) >= 70
