from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from medcls.train.voxels import SIDE, STRENGTHS, _assign_folds, _Space, fit_voxels, shrink


def draw_features(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = np.arange(count) % classes
    features = generator.normal(size=(count, 40))
    features[:, :classes] += 1.5 * np.eye(classes)[target]
    return features, target.astype(float)[:, None]


def test_shrink_means_blocks_and_takes_gain_and_offset_out() -> None:
    volumes = np.random.default_rng(0).integers(0, 100, (2, 1, 32, 16, 20)).astype(np.uint8)
    features = shrink(volumes)
    assert features.shape == (2, SIDE**3)
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(shrink((2 * volumes + 7).astype(np.uint16)), features, atol=1e-4)
    edges = np.linspace(0, 20, 17).astype(int)
    block = volumes[0, 0, 2:4, 5, edges[3] : edges[4]].mean()
    other = volumes[0, 0, 8:10, 9, edges[10] : edges[11]].mean()
    scale = features[0].reshape(16, 16, 16)
    deviation = (block - other) / (scale[1, 5, 3] - scale[4, 9, 10])
    means = np.add.reduceat(volumes[0, 0].reshape(16, 2, 16, 20).mean(1), edges[:-1], axis=2) / np.diff(edges)
    assert deviation == pytest.approx(means.std(), rel=1e-4)
    assert shrink(np.full((1, 2, 4, 4, 4), 9, np.uint8)).tolist() == [[0.0] * 128]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_scikit_learns_at_the_chosen_penalty(kind: str, classes: int) -> None:
    if kind == "binary" and classes == 3:
        return
    features, targets = draw_features(classes=classes)
    model = fit_voxels(features, targets, np.arange(60), kind=kind)
    (chosen,) = model.facts["targets"]
    assert chosen["C"] == STRENGTHS[int(np.argmin(chosen["loss_by_C"]))]
    space = _Space(features, seed=0)
    reference = LogisticRegression(C=chosen["C"], max_iter=2000).fit(space.project(features), targets[:, 0])
    expected = reference.predict_proba(space.project(features))
    scores = model.predict(features)
    np.testing.assert_allclose(scores, expected[:, 1:] if kind == "binary" else expected, atol=1e-6)


def test_numbers_are_ridges_and_labels_are_fitted_each_where_they_are_known() -> None:
    features, targets = draw_features()
    model = fit_voxels(features, targets * 10 + 50, np.arange(60), kind="regression")
    space = _Space(features, seed=0)
    reference = Ridge(alpha=1 / model.facts["targets"][0]["C"]).fit(space.project(features), targets[:, 0] * 10 + 50)
    np.testing.assert_allclose(model.predict(features)[:, 0], reference.predict(space.project(features)), atol=1e-6)
    flags = np.hstack([targets == 1, targets == 2, np.zeros_like(targets)]).astype(float)
    flags[::7, 1] = np.nan
    scores = fit_voxels(features, flags, np.arange(60), kind="multilabel").predict(features)
    assert scores.shape == (60, 3)
    known = ~np.isnan(flags[:, 1])
    alone = fit_voxels(features[known], flags[known, 1:2], np.arange(60)[known], kind="binary")
    np.testing.assert_allclose(scores[:, 1:2], alone.predict(features), atol=1e-9)
    assert scores[:, 2].max() < 1e-3


def test_folds_keep_patients_whole_and_classes_in_proportion() -> None:
    patients = np.repeat([f"p{i:02d}" for i in range(30)], 2)
    target = np.repeat(np.arange(30) % 3, 2).astype(float)
    folds = _assign_folds(target, patients, seed=1)
    assert all(len(set(folds[patients == name])) == 1 for name in set(patients))
    counts = np.array([[((folds == f) & (target == k)).sum() for k in range(3)] for f in range(5)])
    assert counts.min() == counts.max() == 4
    assert (folds != _assign_folds(target, patients, seed=2)).any()


def test_a_rare_class_and_one_patient_do_not_stop_it() -> None:
    features, targets = draw_features()
    targets[targets == 2] = 1
    targets[5] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_voxels(features, targets, np.arange(60), kind="multiclass").predict(features).shape == (60, 3)
        assert fit_voxels(features[:6], targets[:6], ["one"] * 6, kind="multiclass").predict(features).shape == (60, 3)


def test_more_voxels_than_rows_are_no_proof_of_anything() -> None:
    """On labels without any relation a strong penalty is chosen, and held-out probabilities stay near the prior."""
    generator = np.random.default_rng(0)
    features, target = generator.normal(size=(80, 500)), (np.arange(80) % 2).astype(float)[:, None]
    model = fit_voxels(features, target, np.arange(80), kind="binary")
    assert model.facts["targets"][0]["C"] <= 0.1
    new = model.predict(generator.normal(size=(200, 500)))
    assert np.abs(new - 0.5).max() < 0.3
