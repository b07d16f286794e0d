"""Draws are pure functions of their parts, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcls import reproducibility
from medcls.reproducibility import describe_environment, draw_seed, make_generator, seed_everything


def test_a_seed_is_the_same_on_every_machine() -> None:
    """Figures of BLAKE2b (RFC 7693) on this text: a changed recipe would change every split and augmentation."""
    assert draw_seed("split", 0, "p01") == 0x4C730D2584EB43B4
    assert draw_seed() == 0xE4A6A0577479B2B4


@given(st.lists(st.integers() | st.text("ab01", max_size=3), min_size=1, max_size=4))
def test_a_seed_depends_on_every_part_and_its_place(parts: list[int | str]) -> None:
    seed = draw_seed(*parts)
    assert 0 <= seed < 2**64
    assert seed == draw_seed(*parts)
    assert seed != draw_seed(*parts, 0)
    assert seed != draw_seed(*[f"{part}x" for part in parts])


def test_parts_do_not_run_into_each_other() -> None:
    assert draw_seed(1, 23) != draw_seed(12, 3)


def test_generators_repeat_and_are_apart() -> None:
    first = make_generator("order", 0, 0).random(8)
    assert (first == make_generator("order", 0, 0).random(8)).all()
    others = [make_generator(*parts).random(8) for parts in (("order", 0, 1), ("order", 1, 0), ("other", 0, 0))]
    assert not any((first == other).any() for other in others)


def test_neighbouring_seeds_are_uniform_and_uncorrelated() -> None:
    draws = np.array([make_generator(0, epoch, "image").random() for epoch in range(2000)])
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 2000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(2000)


@pytest.fixture
def restored() -> Iterator[None]:
    """Gives the process its global generators and switches back."""
    python, state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    random.setstate(python)
    np.random.set_state(state)
    torch.set_rng_state(torch_state)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("restored")
def test_seed_everything_seeds_python_numpy_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    seed_everything(5)
    first = draw()
    assert first != draw()
    seed_everything(5)
    assert first == draw()
    seed_everything(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    seed_everything(2**40)  # numpy's own limit is 32 bits
    assert torch.are_deterministic_algorithms_enabled()


def test_the_record_has_what_must_be_equal_for_equal_bits() -> None:
    record = describe_environment(device="cpu", precision="fp32")
    assert record["packages"]["torch"] == version("torch")
    assert record["threads"] == torch.get_num_threads()
    assert (record["device"], record["cuda"], record["precision"]) == ("cpu", None, "fp32")
    assert record["processor"]


def test_a_package_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducibility, "_RECORDED_PACKAGES", ("no-such-package",))
    assert describe_environment(device="cpu", precision="fp32")["packages"] == {"no-such-package": None}


def test_the_commit_of_a_checkout_is_recorded_and_changes_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducibility, "__file__", str(tmp_path / "medcls" / "reproducibility.py"))
    assert reproducibility._git_commit() is None
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    reproducibility._git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("a")
    reproducibility._git(tmp_path, "add", "file")
    reproducibility._git(tmp_path, *identity, "commit", "--quiet", "--no-verify", "-m", "first")
    commit = reproducibility._git(tmp_path, "rev-parse", "HEAD")
    assert reproducibility._git_commit() == commit
    (tmp_path / "file").write_text("b")
    assert reproducibility._git_commit() == f"{commit}+changes"
