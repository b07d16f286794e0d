"""Small seeded predictions of every kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

GRADES = ("KL0", "KL1", "KL2", "KL3")


@pytest.fixture(scope="session")
def make_task() -> Callable[..., dict[str, Any]]:
    """Arguments of compute_metrics for a learnable task in which every class occurs."""
    return _make_task


@pytest.fixture(scope="session")
def make_patients() -> Callable[..., list[str]]:
    """Patient of each row, `each` rows in a line belonging to one."""
    return lambda rows, *, each=2: [f"patient-{row // each}" for row in range(rows)]


def _make_task(kind: str, *, rows: int = 60, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    grade = np.arange(rows) % len(GRADES)
    noisy = grade + generator.normal(0, 0.8, rows)
    logits = -1.5 * np.abs(np.arange(len(GRADES)) - noisy[:, None])
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    match kind:
        case "binary":
            task = {"y_true": (grade >= 2).astype(int), "y_score": score[:, 2:].sum(axis=1, keepdims=True)}
            return {"kind": kind, **task, "class_names": ("healthy", "ill")}
        case "multilabel":
            true = (score > generator.random(score.shape)).astype(float)
            true[generator.random(score.shape) < 0.15] = np.nan
            true[:2] = [[0] * len(GRADES), [1] * len(GRADES)]
            return {"kind": kind, "y_true": true, "y_score": score, "class_names": GRADES}
        case "regression":
            graded = {"class_names": GRADES, "grades": True}
            return {"kind": kind, "y_true": grade.astype(float), "y_score": noisy[:, None], **graded}
        case _:
            return {"kind": kind, "y_true": grade, "y_score": score, "class_names": GRADES}
