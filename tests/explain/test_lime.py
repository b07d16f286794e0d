from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, lasso_path
from sklearn.metrics import r2_score
from torch import Tensor, nn

from medcls.errors import DataError
from medcls.explain.lime import (
    LimeSettings,
    cut_superpixels,
    draw_masks,
    explain_lime,
    fit_local_model,
    pick_submodular,
    select_features,
    weigh_masks,
)
from medcls.explain.perturbation import build_background
from medcls.reproducibility import make_generator

Score = Callable[[Tensor], Tensor]


def run_lime(score: Score, image: NDArray[Any], *, seed: int = 0, kind: str = "slic", **changes: Any) -> Any:
    regions = cut_superpixels(image, kind=kind, count=30)
    background = build_background(image, kind="segment" if kind == "slic" else "black", regions=regions)
    settings = LimeSettings(**{"num_samples": 300} | changes)
    model = explain_lime(score, image, regions=regions, background=background, settings=settings, seed=(seed, "id"))
    return model, regions


def test_lime_points_at_the_planted_place(score: Score, image: NDArray[np.uint8], region: NDArray[np.bool_]) -> None:
    model, regions = run_lime(score, image, kind="grid")
    heat = model.paint(regions)
    assert region[heat == heat.max()].mean() > 0.5
    # What the network never sees gets no more than the noise of the fit.
    blind = [r for r in range(regions.max() + 1) if not region[regions == r].any()]
    assert np.abs(model.weights[blind]).max() < 0.05 * model.weights.max()


def test_lime_in_a_volume(volume_parts: tuple[NDArray[np.uint8], nn.Module, NDArray[np.bool_]]) -> None:
    volume, network, place = volume_parts
    model, regions = run_lime(lambda images: network(images)[:, 0], volume)
    heat = model.paint(regions)
    assert heat.shape == volume.shape[1:]
    assert place[heat == heat.max()].mean() > 0.5


def test_linear_score_is_found_exactly() -> None:
    """A score that is linear in the regions is its own explanation: weights, R^2 = 1, prediction = score."""
    image = np.full((1, 12, 12), 100, np.uint8)
    regions = cut_superpixels(image, kind="grid", count=9)
    truth = np.array([0.0, 2, 0, -1, 0, 0, 5, 0, 0.5])
    filters = torch.from_numpy(truth[regions] / np.bincount(regions.ravel())[regions] / 100)

    def score(images: Tensor) -> Tensor:
        return 3 + (images[:, 0] * filters).sum(dim=(1, 2))

    black = np.zeros(image.shape, np.float32)
    settings = LimeSettings(num_samples=200, num_features=4)
    model = explain_lime(score, image, regions=regions, background=black, settings=settings, seed=(0,))
    np.testing.assert_allclose(model.weights, truth, atol=1e-5)
    assert model.r2 == pytest.approx(1)
    assert model.intercept == pytest.approx(3, abs=1e-4)
    assert model.score == pytest.approx(9.5, abs=1e-4)
    assert model.prediction == pytest.approx(model.score, abs=1e-4)


def test_same_seed_same_weights_other_seed_others(score: Score, image: NDArray[np.uint8]) -> None:
    first, second, other = (run_lime(score, image, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert (first.weights != other.weights).any()
    batched = run_lime(score, image, batch_size=7)[0]
    np.testing.assert_allclose(batched.weights, first.weights, atol=0.01 * first.weights.max())


def test_fit_is_the_packages_weighted_ridge() -> None:
    """As lime_base has it: scikit-learn's Ridge(alpha=1) with sample weights, and its score."""
    masks = np.random.default_rng(0).random((200, 12)) < 0.5
    masks[0] = True
    scores = masks @ np.random.default_rng(1).normal(size=12) + 0.3 * np.random.default_rng(2).normal(size=200)
    closeness = weigh_masks(masks, width=0.25 * 2**0.5, distance="cosine")
    ridge = Ridge(alpha=1.0, fit_intercept=True).fit(masks, scores, sample_weight=closeness)
    got = fit_local_model(masks, scores, closeness, num_features=None, ridge=1.0)
    np.testing.assert_allclose(got.weights, ridge.coef_, rtol=1e-9)
    assert got.intercept == pytest.approx(ridge.intercept_)
    assert got.r2 == pytest.approx(r2_score(scores, ridge.predict(masks), sample_weight=closeness))
    assert got.prediction == pytest.approx(ridge.predict(masks[:1])[0])


def test_kernel_is_the_packages() -> None:
    """The root of exp(-d^2 / 0.25^2), d the cosine distance to the vector of ones."""
    masks = np.array([[True, True, True, True], [True, False, True, False], [True, False, False, False]])
    far = np.array([0.0, 1 - np.sqrt(0.5), 0.5])
    expected = np.sqrt(np.exp(-(far**2) / 0.25**2))
    np.testing.assert_allclose(weigh_masks(masks, width=0.25 * 2**0.5, distance="cosine"), expected)
    np.testing.assert_allclose(weigh_masks(masks, width=1.0, distance="euclidean"), np.exp(-np.array([0, 0.5, 0.75])))


def test_number_of_shown_regions_is_uniform() -> None:
    """The paper draws the number, too: masks with nearly nothing and nearly everything are as usual as halves."""
    masks = draw_masks(LimeSettings(num_samples=20_000), 10, make_generator("test"))
    assert masks[0].all()
    counts = np.bincount(masks[1:].sum(axis=1), minlength=11)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:], 2000, atol=220)
    np.testing.assert_allclose(masks[1:].mean(axis=0), 0.55, atol=0.02)


def test_coin_is_the_packages_sampling() -> None:
    masks = draw_masks(LimeSettings(num_samples=20_000, sampling="coin"), 10, make_generator("test"))
    counts = masks[1:].sum(axis=1)
    assert counts.mean() == pytest.approx(5, abs=0.05)
    assert counts.var() == pytest.approx(2.5, abs=0.1)


def test_at_most_k_regions_have_a_weight(score: Score, image: NDArray[np.uint8]) -> None:
    for count in (1, 3):
        assert np.count_nonzero(run_lime(score, image, num_features=count)[0].weights) <= count
    assert np.count_nonzero(run_lime(score, image, num_features=None)[0].weights) > 10


@pytest.mark.parametrize("count", [1, 3, 6, 12])
@pytest.mark.parametrize("seed", range(6))
def test_selected_features_are_those_of_coordinate_descent(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(60, 12)) + 1.5 * generator.normal(size=(60, 1))
    y = X @ generator.normal(size=12) + generator.normal(size=60)
    X, y = X - X.mean(axis=0), y - y.mean()
    highest = np.abs(X.T @ y).max() / len(y)
    _, path, _ = lasso_path(X, y, alphas=highest * np.geomspace(1, 1e-6, 1500), tol=1e-10, max_iter=100_000)
    sizes = (path != 0).sum(axis=0)
    beyond = np.flatnonzero(sizes > count)
    last = (beyond[0] if len(beyond) else path.shape[1]) - 1
    assert select_features(X, y, count).tolist() == np.flatnonzero(path[:, last]).tolist()


def test_irrelevant_features_are_not_selected() -> None:
    X = np.random.default_rng(0).normal(size=(200, 8))
    X -= X.mean(axis=0)
    assert select_features(X, 3 * X[:, 2] - 2 * X[:, 5], 2).tolist() == [2, 5]
    assert select_features(X, 3 * X[:, 2] - 2 * X[:, 5], 8).tolist() == [2, 5]
    assert select_features(np.eye(5), np.zeros(5), 3).tolist() == []


def test_score_that_never_changes_has_no_r2(image: NDArray[np.uint8]) -> None:
    model, _ = run_lime(lambda images: torch.full((len(images),), 0.7), image)
    assert model.r2 is None
    assert np.abs(model.weights).max() < 1e-6


def test_one_region_is_refused(score: Score, image: NDArray[np.uint8]) -> None:
    regions, black = np.zeros(image.shape[1:], np.int64), np.zeros(image.shape, np.float32)
    with pytest.raises(DataError, match="one superpixel"):
        explain_lime(score, image, regions=regions, background=black, settings=LimeSettings(), seed=(0,))


def test_pick_covers_and_stops() -> None:
    weights = np.array([[5.0, 0, 0, 0], [4, 1, 0, 0], [0, 0, -3, 0], [5, 1, 0, 0]])
    # Image 1 and 3 cover features 0 and 1 alike (the first is taken); image 2 adds feature 2; nothing is left then.
    assert pick_submodular(weights, 3) == [1, 2]
    assert pick_submodular(weights, 1) == [1]


def test_pick_is_within_the_greedy_bound() -> None:
    from itertools import combinations

    weights = np.random.default_rng(0).normal(size=(9, 14)) * (np.random.default_rng(1).random((9, 14)) < 0.3)
    importance = np.sqrt(np.abs(weights).sum(axis=0))

    def cover(rows: Any) -> float:
        return float((weights[list(rows)] != 0).any(axis=0) @ importance)

    best = max(cover(rows) for rows in combinations(range(9), 3))
    assert best * (1 - 1 / np.e) <= cover(pick_submodular(weights, 3)) <= best


def test_weights_are_those_of_the_lime_package(score: Score, image: NDArray[np.uint8]) -> None:
    """Where the settings agree; the package is old and not required: the test runs where it is installed."""
    package = pytest.importorskip("lime.lime_image", exc_type=ImportError)
    regions = cut_superpixels(image, kind="grid", count=30)
    colour = np.repeat(np.moveaxis(image, 0, -1), 3, axis=-1)

    def classify(images: NDArray[Any]) -> NDArray[Any]:
        pixels = torch.from_numpy(np.stack(images).astype(np.float32))[..., 0][:, None]
        with torch.inference_mode():
            answer = score(pixels).numpy()
        return np.stack([1 - answer, answer], axis=1)

    explainer = package.LimeImageExplainer(feature_selection="none", random_state=0)
    theirs = explainer.explain_instance(
        colour, classify, labels=(1,), top_labels=None, num_samples=2000, progress_bar=False,
        segmentation_fn=lambda _: regions,
    )  # fmt: skip
    background = build_background(image, kind="segment", regions=regions)
    settings = LimeSettings(num_samples=2000, num_features=None, ridge=1.0, sampling="coin")
    ours = explain_lime(score, image, regions=regions, background=background, settings=settings, seed=(0,))
    expected = np.array([dict(theirs.local_exp[1])[r] for r in range(regions.max() + 1)])
    np.testing.assert_allclose(ours.weights, expected, atol=0.05 * np.abs(expected).max())
