from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medcls.errors import ConfigError
from medcls.models.heads import LinearHead, average_logits, build_head, compute_scores, count_logits

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.floats(-60, 60))


@given(LOGITS)
def test_corn_probabilities_sum_to_one_and_none_is_negative(logits: NDArray[np.float64]) -> None:
    scores = compute_scores("ordinal", torch.from_numpy(logits))
    assert scores.shape == (len(logits), logits.shape[1] + 1)
    assert (scores >= 0).all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(logits), dtype=torch.float64))


@given(LOGITS)
def test_corn_probabilities_are_the_products_of_the_conditional_ones(logits: NDArray[np.float64]) -> None:
    expected = np.empty((len(logits), logits.shape[1] + 1))
    for n, row in enumerate(logits):
        above = 1.0  # P(y > k - 1)
        for k, logit in enumerate(row):
            chance = 1 / (1 + np.exp(-logit))  # P(y > k | y > k - 1)
            expected[n, k] = above * (1 - chance)
            above *= chance
        expected[n, -1] = above
    np.testing.assert_allclose(compute_scores("ordinal", torch.from_numpy(logits)).numpy(), expected, atol=1e-12)


def test_scores_of_the_other_tasks() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.5, 0.5]])
    powers = np.exp(logits.numpy().astype(np.float64))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(compute_scores("multiclass", logits).numpy(), softmax)
    np.testing.assert_allclose(compute_scores("multilabel", logits).numpy(), powers / (1 + powers))
    np.testing.assert_allclose(compute_scores("binary", logits[:, :1]).numpy(), (powers / (1 + powers))[:, :1])
    assert torch.equal(compute_scores("regression", logits[:, :1]), logits[:, :1].double())


def test_joint_scores_are_the_softmax_of_the_classes_and_the_value_is_left_out() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.7]])
    assert torch.equal(compute_scores("joint", logits), compute_scores("multiclass", logits[:, :3]))


def test_joint_value_starts_at_the_mean_grade() -> None:
    head = LinearHead(4, 6)
    head.set_grade(torch.tensor([[0.0], [1.0], [4.0]]))
    assert head(torch.zeros(1, 4))[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 5 / 3])


def test_half_precision_logits_become_double_scores() -> None:
    assert compute_scores("multiclass", torch.zeros(1, 3, dtype=torch.float16)).dtype == torch.float64


def test_regression_starts_at_the_mean_in_units_of_the_spread() -> None:
    targets = torch.tensor([[60.0], [80.0], [100.0]])
    head = LinearHead(4, 1)
    head.set_unit(targets)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    plain = head.linear(features)
    torch.testing.assert_close(head(features), plain * np.sqrt(800 / 3) + 80)
    assert (head(features) - 80).abs().max() < 5


def test_one_target_value_leaves_the_unit_at_one() -> None:
    head = LinearHead(4, 1)
    head.set_unit(torch.full((3, 1), 7.0))
    assert (float(head.shift), float(head.scale)) == (7.0, 1.0)


def test_unit_travels_with_the_weights() -> None:
    head, other = LinearHead(4, 1), LinearHead(4, 1)
    head.set_unit(torch.tensor([[1.0], [3.0]]))
    other.load_state_dict(head.state_dict())
    assert (float(other.shift), float(other.scale)) == (2.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_round_values_to_whole_months(dtype: torch.dtype) -> None:
    head = LinearHead(4, 1)
    head.set_unit(torch.tensor([[87.3], [168.1]]))
    features = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    exact = head(features)
    with torch.autocast("cpu", dtype=dtype):
        rounded = head(features)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.02  # bfloat16 would round 127.7 to 127 or 128


def test_head_starts_near_the_prior() -> None:
    logits = LinearHead(512, 5)(torch.rand(8, 512))
    assert (logits.softmax(dim=1) - 0.2).abs().max() < 0.15
    assert logits.std() > 0


def test_counts_of_logits() -> None:
    kinds = ("binary", "multiclass", "multilabel", "ordinal", "regression")
    assert [count_logits(kind, 5) for kind in (*kinds, "joint")] == [1, 5, 5, 4, 1, 6]
    with pytest.raises(ConfigError, match=r"task.kind=ranking: expected one of binary"):
        count_logits("ranking", 5)


VIEWS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-60, 60)
)
OUTPUTS = ("binary", "multiclass", "multilabel", "ordinal", "joint", "regression")


@pytest.mark.parametrize("kind", OUTPUTS)
@given(VIEWS)
def test_scores_of_averaged_logits_are_the_mean_of_the_scores(kind: str, logits: NDArray[np.float64]) -> None:
    views = torch.from_numpy(logits)
    if kind == "joint":
        views = torch.cat([views, views[..., :1]], dim=-1)
    averaged = average_logits(kind, views)
    assert averaged.shape == views.shape[1:]
    assert averaged.isfinite().all()
    expected = torch.stack([compute_scores(kind, view) for view in views]).mean(dim=0)
    torch.testing.assert_close(compute_scores(kind, averaged), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "ordinal", "regression"])
@given(VIEWS)
def test_equal_views_are_answered_as_one(kind: str, logits: NDArray[np.float64]) -> None:
    """Also where a probability in float64 is 1 and its logit could not be found again: at 60 it is."""
    view = torch.from_numpy(logits[:1])
    assert torch.equal(average_logits(kind, view), view[0])
    torch.testing.assert_close(average_logits(kind, view.expand(4, -1, -1)), view[0], rtol=1e-12, atol=1e-12)


def test_the_value_of_a_joint_output_is_averaged_as_a_value() -> None:
    averaged = average_logits("joint", torch.tensor([[[0.0, 1.0, 2.5]], [[3.0, 0.0, 0.5]]]))
    assert averaged[0, -1] == 1.5
    chances = compute_scores("multiclass", torch.tensor([[0.0, 1.0], [3.0, 0.0]])).mean(dim=0)
    torch.testing.assert_close(averaged[0, :2].exp(), chances)


def test_several_layers_answer_side_by_side_while_training_and_the_last_alone_after() -> None:
    torch.manual_seed(0)
    head = LinearHead(3, 2, earlier=[5, 4])
    features = torch.randn(6, 12)
    parts = features.split([5, 4, 3], dim=1)
    expected = [layer(part) for layer, part in zip(head.layers, parts, strict=True)]
    torch.testing.assert_close(head.train()(features), torch.cat(expected, dim=1))
    torch.testing.assert_close(head.eval()(features), expected[2])
    assert head.linear.out_features == 2


def test_units_and_grades_are_those_of_every_layer() -> None:
    head = LinearHead(3, 1, earlier=[5]).train()
    head.set_unit(torch.tensor([[60.0], [80.0], [100.0]]))
    assert head(torch.zeros(1, 8))[0].tolist() == [80.0, 80.0]
    joint = LinearHead(3, 4, earlier=[5]).train()
    joint.set_grade(torch.tensor([[1.0], [2.0]]))
    assert joint(torch.zeros(1, 8))[0].tolist() == [0, 0, 0, 1.5, 0, 0, 0, 1.5]


# --- other heads


def test_hidden_layer_and_norm_come_before_the_last_layer() -> None:
    features = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    mlp = build_head("mlp", [6], 2, dropout=0.5, width=4).eval()
    expected = mlp.linear(torch.relu(mlp.before[0](features)))
    torch.testing.assert_close(mlp(features), expected)
    svm = build_head("svm", [6], 2)
    torch.testing.assert_close(svm(features), svm.linear(features / features.norm(dim=1, keepdim=True)))
    torch.testing.assert_close(svm(features), svm(7 * features))
    assert [build_head(name, [6], 2, width=4).is_linear for name in ("linear", "mlp", "svm")] == [True, False, False]


def test_dropout_of_a_hidden_layer_is_on_its_units_alone() -> None:
    torch.manual_seed(0)
    mlp = build_head("mlp", [6], 1, dropout=0.5, width=400).train()
    features = torch.rand(1, 6)
    assert not torch.equal(mlp(features), mlp(features))
    assert torch.equal(mlp.before(features), mlp.before(features))


def test_a_head_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.head=tree: expected one of linear, mlp, svm"):
        build_head("tree", [6], 2)
    with pytest.raises(ConfigError, match=r"model.head=svm with model.supervision"):
        build_head("svm", [4, 6], 2)
