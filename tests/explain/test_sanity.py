from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from medcls.explain.faithfulness import correlate_ranks
from medcls.explain.sanity import compare_structure, plan_cascade, scramble
from medcls.models.classifier import Answer, build_classifier


def test_rank_correlation_is_scipys() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, (2, 9, 11))  # with ties
    assert correlate_ranks(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    assert correlate_ranks(first, -3 * first) == pytest.approx(-1)
    assert correlate_ranks(first, np.ones_like(first)) is None


def test_structure() -> None:
    heat = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    assert compare_structure(heat, 5 * heat + 2) == pytest.approx(1, abs=1e-5)
    other = np.random.default_rng(1).normal(size=(20, 24)).astype(np.float32)
    assert compare_structure(heat, other) < 0.3
    assert compare_structure(heat, np.zeros_like(heat)) is None
    tiny = heat[:4, :5]
    assert compare_structure(tiny, tiny) == pytest.approx(1)
    volume = np.random.default_rng(2).normal(size=(8, 9, 10)).astype(np.float32)
    assert compare_structure(volume, volume) == pytest.approx(1)


def test_cascade_goes_from_the_output_down() -> None:
    assert plan_cascade(["a", "b", "c", "d", "head"]) == [
        ["head"],
        ["head", "d", "c"],
        ["head", "d", "c", "b", "a"],
    ]
    assert plan_cascade(["a"]) == [["a"]]


def test_scramble_shuffles_the_named_stages_of_a_copy() -> None:
    model = build_classifier("resnet18", Answer("multiclass", 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scrambled = scramble(model, ["head", "layer4"], seed=(0,))
    again, other = scramble(model, ["head", "layer4"], seed=(0,)), scramble(model, ["head", "layer4"], seed=(1,))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = {name for name, value in scrambled.state_dict().items() if not torch.equal(before[name], value)}
    assert {name.split(".")[0] for name in changed} == {"backbone", "head"}
    assert {name.split(".")[2] for name in changed if name.startswith("backbone")} == {"layer4"}
    weight = "backbone.body.layer4.0.conv1.weight"
    assert torch.equal(scrambled.state_dict()[weight].flatten().sort()[0], before[weight].flatten().sort()[0])
    assert torch.equal(again.state_dict()[weight], scrambled.state_dict()[weight])
    assert not torch.equal(other.state_dict()[weight], scrambled.state_dict()[weight])
