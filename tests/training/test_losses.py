from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medcls.errors import ConfigError
from medcls.training.losses import LossSettings, balanced_weights, build_loss, supervise_deeply

NAN = math.nan
KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
LOSSES = [
    *((kind, loss) for kind in KINDS[:3] for loss in ("cross_entropy", "focal")),
    ("ordinal", "corn"),
    *(("regression", loss) for loss in ("mse", "mae", "huber")),
]


def draw(size: int, kind: str, *, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = {"binary": 1, "regression": 1, "ordinal": classes - 1}.get(kind, classes)
    logits = 3 * torch.randn(size, outputs, generator=generator)
    if kind == "regression":
        return logits, torch.randn(size, 1, generator=generator)
    shape = (size, classes) if kind == "multilabel" else (size, 1)
    top = 2 if kind in ("binary", "multilabel") else classes
    return logits, torch.randint(0, top, shape, generator=generator).float()


def naive_corn(logits: np.ndarray, targets: np.ndarray) -> float:
    """The paper's loss, word by word: subset S_k of the images with y > r_(k-1), binary cross-entropy of y > r_k."""
    total, members = 0.0, 0
    for k in range(logits.shape[1]):
        for row, y in zip(logits, targets, strict=True):
            if k > 0 and not y > k - 1:
                continue
            chance = 1 / (1 + math.exp(-row[k]))
            total += math.log(chance) if y > k else math.log(1 - chance)
            members += 1
    return -total / members


@given(seed=st.integers(0, 10_000), size=st.integers(1, 9), classes=st.integers(2, 6))
def test_corn_is_the_papers_loop(seed: int, size: int, classes: int) -> None:
    logits, targets = draw(size, "ordinal", classes=classes, seed=seed)
    loss = build_loss("ordinal")(logits, targets)
    assert float(loss) == pytest.approx(naive_corn(logits.double().numpy(), targets[:, 0].numpy()), rel=1e-4)


def test_multiclass_is_torchs_cross_entropy_with_weights_and_smoothing() -> None:
    logits, targets = draw(32, "multiclass")
    weights = torch.tensor([0.2, 1.0, 3.0, 0.7])
    index = targets[:, 0].long()
    plain = build_loss("multiclass", LossSettings("cross_entropy"))(logits, targets)
    weighted = build_loss("multiclass", LossSettings(class_weights=weights))(logits, targets)
    smoothed = build_loss("multiclass", LossSettings(label_smoothing=0.1))(logits, targets)
    torch.testing.assert_close(plain, F.cross_entropy(logits, index))
    torch.testing.assert_close(weighted, F.cross_entropy(logits, index, weight=weights))
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, index, label_smoothing=0.1))
    both = build_loss("multiclass", LossSettings(class_weights=weights, label_smoothing=0.1))(logits, targets)
    torch.testing.assert_close(both, F.cross_entropy(logits, index, weight=weights, label_smoothing=0.1))


@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_joint_is_the_weighted_sum_of_its_two_losses(share: float, seed: int) -> None:
    _, targets = draw(12, "multiclass", seed=seed)
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    weights = torch.tensor([0.2, 1.0, 3.0, 0.7])
    joint = build_loss("joint", LossSettings(class_weights=weights, joint_lambda=share))(logits, targets)
    classes = F.cross_entropy(logits[:, :4], targets[:, 0].long(), weight=weights)
    grade = F.mse_loss(logits[:, 4], targets[:, 0])
    torch.testing.assert_close(joint, share * classes + (1 - share) * grade)


def test_binary_is_torchs_two_class_cross_entropy() -> None:
    logits, targets = draw(32, "binary")
    weights = torch.tensor([0.5, 4.0])
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)  # sigmoid(z) = softmax([0, z])[1]
    expected = F.cross_entropy(pair, targets[:, 0].long(), weight=weights)
    torch.testing.assert_close(build_loss("binary", LossSettings(class_weights=weights))(logits, targets), expected)


def test_multilabel_weights_belong_to_each_label_and_side() -> None:
    logits, targets = draw(16, "multilabel")
    weights = torch.tensor([[1.0, 2.0], [0.5, 3.0], [1.0, 1.0], [4.0, 0.25]])
    total, known = 0.0, 0.0
    for row, flags in zip(logits.tolist(), targets.tolist(), strict=True):
        for k, (z, y) in enumerate(zip(row, flags, strict=True)):
            weight = float(weights[k, int(y)])
            chance = 1 / (1 + math.exp(-z))
            total -= weight * math.log(chance if y else 1 - chance)
            known += weight
    assert float(build_loss("multilabel", LossSettings(class_weights=weights))(logits, targets)) == pytest.approx(
        total / known
    )


@pytest.mark.parametrize("kind", KINDS[:3])
def test_focal_without_focus_is_cross_entropy(kind: str) -> None:
    logits, targets = draw(32, kind)
    focal = build_loss(kind, LossSettings("focal", focal_gamma=0.0))(logits, targets)
    torch.testing.assert_close(focal, build_loss(kind, LossSettings("cross_entropy"))(logits, targets))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_papers_equation(kind: str, gamma: float) -> None:
    logits, targets = draw(32, kind)
    if kind == "binary":
        chance = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    else:
        chance = logits.softmax(dim=1).gather(1, targets.long())
    expected = (-((1 - chance) ** gamma) * chance.log()).mean()
    torch.testing.assert_close(build_loss(kind, LossSettings("focal", focal_gamma=gamma))(logits, targets), expected)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradient_stays_finite_where_the_network_is_sure(kind: str, gamma: float) -> None:
    logits, targets = draw(8, kind)
    sure = torch.full_like(logits, -60.0)
    sure = sure.scatter(1, targets.long(), 60.0) if kind == "multiclass" else torch.where(targets > 0, 60.0, sure)
    sure.requires_grad_()
    build_loss(kind, LossSettings("focal", focal_gamma=gamma))(sure, targets).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize(("name", "function"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)])
def test_regression_is_torchs_loss_in_units_of_the_scale(name: str, function: object) -> None:
    logits, targets = draw(16, "regression")
    plain = function(logits, targets)  # type: ignore[operator]
    torch.testing.assert_close(build_loss("regression", LossSettings(name))(logits, targets), plain)
    scaled = build_loss("regression", LossSettings(name, scale=20.0))(20 * logits, 20 * targets)
    torch.testing.assert_close(scaled, plain)


def test_automatic_losses() -> None:
    names = ("cross_entropy", "cross_entropy", "cross_entropy", "corn", "mse")
    for kind, name in zip(KINDS, names, strict=True):
        logits, targets = draw(8, kind)
        assert torch.equal(build_loss(kind)(logits, targets), build_loss(kind, LossSettings(name))(logits, targets))


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_unknown_targets_do_not_count(kind: str, name: str) -> None:
    logits, targets = draw(12, kind)
    masked = targets.clone()
    masked[8:] = NAN
    loss = build_loss(kind, LossSettings(name))
    torch.testing.assert_close(loss(logits, masked), loss(logits[:8], targets[:8]))


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_batch_without_a_known_target_gives_zero_and_no_gradient(kind: str, name: str) -> None:
    logits, targets = draw(4, kind)
    logits.requires_grad_()
    loss = build_loss(kind, LossSettings(name))(logits, torch.full_like(targets, NAN))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_one_unknown_label_of_several_is_masked_alone() -> None:
    logits, targets = draw(2, "multilabel", classes=2)
    targets[0, 1] = NAN
    single = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    expected = (single[0, 0] + single[1, 0] + single[1, 1]) / 3
    torch.testing.assert_close(build_loss("multilabel")(logits, targets), expected)


def test_half_precision_logits_are_computed_in_single() -> None:
    logits, targets = draw(8, "multiclass")
    loss = build_loss("multiclass")(logits.half(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, build_loss("multiclass")(logits.half().float(), targets))


@pytest.mark.parametrize(("kind", "name"), [("ordinal", "focal"), ("regression", "corn"), ("multiclass", "mse")])
def test_loss_of_another_task_is_refused(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"task.loss={name}: task.kind={kind} has no such loss"):
        build_loss(kind, LossSettings(name))


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    classes = np.repeat([0, 1, 2, 3], [10, 3, 1, 6]).astype(np.float64)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=classes)
    weights = balanced_weights("multiclass", classes[:, None], num_classes=4)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert float(weights[classes.astype(int)].mean()) == pytest.approx(1)  # type: ignore[index]
    binary = balanced_weights("binary", (classes > 1)[:, None].astype(np.float64), num_classes=2)
    np.testing.assert_allclose(binary, compute_class_weight("balanced", classes=np.arange(2), y=classes > 1))


def test_balanced_multilabel_weights_count_known_labels_only() -> None:
    flags = np.array([[1, 0], [0, NAN], [0, 1], [0, NAN]])
    weights = balanced_weights("multilabel", flags, num_classes=2)
    np.testing.assert_allclose(weights, [[4 / 6, 4 / 2], [2 / 2, 2 / 2]], rtol=1e-6)


def test_tasks_without_classes_have_no_class_weights() -> None:
    with pytest.raises(ConfigError, match=r"task.kind=ordinal has none"):
        balanced_weights("ordinal", np.zeros((3, 1)), num_classes=3)


@pytest.mark.parametrize("kind", ["multiclass", "binary", "ordinal"])
def test_deep_supervision_is_the_weighted_sum_of_each_heads_loss(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = {"multiclass": 3, "binary": 1, "ordinal": 2}[kind]
    logits = torch.randn(5, 3 * size, generator=generator, requires_grad=True)
    targets = torch.randint(0, 2, (5, 1), generator=generator).float()
    loss, weights = build_loss(kind), [0.2, 0.3, 1.0]
    total = supervise_deeply(loss, weights)(logits, targets)
    parts = [w * loss(logits[:, k * size : (k + 1) * size], targets) for k, w in enumerate(weights)]
    torch.testing.assert_close(total, parts[0] + parts[1] + parts[2])
    total.backward()
    assert logits.grad is not None
    assert bool((logits.grad.view(5, 3, size).abs().sum(dim=(0, 2)) > 0).all())


def test_a_weight_of_zero_leaves_a_head_alone() -> None:
    logits = torch.randn(4, 4, requires_grad=True)
    supervise_deeply(build_loss("multiclass"), [0.0, 1.0])(logits, torch.zeros(4, 1)).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :2].any()
    assert logits.grad[:, 2:].any()


# --- soft targets


def draw_shares(size: int, classes: int, *, seed: int = 5) -> Tensor:
    shares = torch.rand(size, classes, generator=torch.Generator().manual_seed(seed))
    return shares / shares.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_multiclass_is_torchs_cross_entropy_with_shares(smoothing: float) -> None:
    logits, _ = draw(32, "multiclass")
    shares = draw_shares(32, 4)
    loss = build_loss("multiclass", LossSettings(label_smoothing=smoothing))(logits, shares)
    torch.testing.assert_close(loss, F.cross_entropy(logits, shares, label_smoothing=smoothing))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_soft_flags_are_torchs_binary_cross_entropy(kind: str) -> None:
    logits, targets = draw(32, kind)
    shares = torch.rand(targets.shape, generator=torch.Generator().manual_seed(3))
    expected = F.binary_cross_entropy_with_logits(logits, shares)
    torch.testing.assert_close(build_loss(kind)(logits, shares), expected)
    half = torch.full_like(shares, 0.5)
    both = [F.binary_cross_entropy_with_logits(logits, torch.full_like(shares, side)) for side in (0.0, 1.0)]
    torch.testing.assert_close(build_loss(kind)(logits, half), torch.stack(both).mean())


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_soft_target_is_as_many_hard_ones_as_there_are_votes(kind: str, weighted: bool, name: str) -> None:
    """Three readers, two of whom say yes: the loss of three images, of which two have the class."""
    logits, _ = draw(1, kind)
    sizes = {"binary": (2,), "multiclass": (4,), "multilabel": (4, 2)}
    weights = torch.rand(sizes[kind], generator=torch.Generator().manual_seed(1)) + 0.5 if weighted else None
    loss = build_loss(kind, LossSettings(name, class_weights=weights))
    thrice = logits.repeat(3, 1)
    if kind == "multiclass":
        soft, hard = torch.tensor([[0, 2 / 3, 0, 1 / 3]]), torch.tensor([[1.0], [1], [3]])
    else:
        width = logits.shape[1]
        soft, hard = torch.full((1, width), 2 / 3), torch.tensor([[1.0], [1], [0]]).repeat(1, width)
    torch.testing.assert_close(loss(logits, soft), loss(thrice, hard))


def test_unknown_rows_among_soft_targets_do_not_count() -> None:
    logits, _ = draw(6, "multiclass")
    shares = draw_shares(6, 4)
    shares[4:] = NAN
    loss = build_loss("multiclass")
    torch.testing.assert_close(loss(logits, shares), loss(logits[:4], shares[:4]))
    nothing = torch.full_like(shares, NAN)
    assert float(loss(logits, nothing)) == 0


def test_shares_of_one_are_the_hard_targets() -> None:
    logits, targets = draw(32, "multiclass")
    for name in ("cross_entropy", "focal"):
        loss = build_loss(
            "multiclass", LossSettings(name, label_smoothing=0.1, class_weights=torch.tensor([0.2, 1.0, 3.0, 0.7]))
        )
        one_hot = F.one_hot(targets[:, 0].long(), 4).float()
        torch.testing.assert_close(loss(logits, one_hot), loss(logits, targets))


def test_rows_between_classes_have_no_part_in_class_weights() -> None:
    targets = np.array([[0.0], [0], [1], [NAN]])
    known = balanced_weights("binary", targets[:3], num_classes=2)
    between = balanced_weights("binary", targets, num_classes=2)
    assert known is not None
    assert between is not None
    torch.testing.assert_close(between, known)
