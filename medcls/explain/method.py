"""What is explained (a class, a grade, a value: Target), and by which method (Method)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.config import ExplainJob, nearest
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.explain.gradcam import explain_gradcam, explain_integrated_gradients, find_layer
from medcls.explain.lime import LimeSettings, LocalModel, cut_superpixels, explain_lime
from medcls.explain.perturbation import Score, build_background, count_windows, explain_occlusion
from medcls.explain.sanity import correlate_ranks
from medcls.models.classifier import Classifier
from medcls.models.heads import compute_scores
from medcls.training.precision import autocast

AUTO = "auto"
LEGENDS = {
    "lime": "weight of the superpixel",
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "integrated_gradients": "integrated gradient",
    "occlusion": "fall of the score",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Which number of a task's answer is explained.

    Attributes:
        kind: The task.
        index: Class; -1 = the whole answer (a value, or the expected grade).
        words: For readers.
        output: What the network's outputs are; "" = as the kind says.
        clinical: (C,) the image's own columns, held fixed; () where the network takes none.
    """

    kind: str
    index: int
    words: str
    output: str = ""
    clinical: tuple[float, ...] = ()

    def score(self, logits: Tensor) -> Tensor:
        """Return what readers are shown, (N,) float64: a probability, a value, or an expected grade."""
        scores = compute_scores(self.output or self.kind, logits)
        if self.kind == "ordinal":
            # P(y >= k) for each k from 1 up; their sum is the expected grade.
            above = scores.flip(1).cumsum(1).flip(1)[:, 1:]
            return above.sum(dim=1) if self.index < 0 else above[:, self.index - 1]
        if self.kind == "binary":
            return scores[:, 0] if self.index == 1 else 1 - scores[:, 0]
        return scores[:, max(self.index, 0)]

    def slope(self, logits: Tensor) -> Tensor:
        """Return what gradients are taken of, (N,): before softmax or sigmoid, which flatten where a score is sure."""
        if self.kind == "ordinal":
            score = self.score(logits)
            return score if self.index < 0 else torch.logit(score, eps=1e-12)
        if self.kind == "binary":
            return logits[:, 0] if self.index == 1 else -logits[:, 0]
        return logits[:, max(self.index, 0)]


def choose_target(task: Task, scores: NDArray, *, target: str = AUTO) -> Target:  # type: ignore[type-arg]
    """Return what is explained of one image.

    Args:
        task: Of the run.
        scores: (1 or K,) of this image, as compute_scores returns them.
        target: "auto": the predicted class; the positive class of two; the label with the highest probability; the
            expected grade of ordinal classes; the value. Or the name of a class: of ordinal classes the probability
            of this grade or a higher one.

    Raises:
        ConfigError: no such class, or one that has no score of its own.
    """
    names = task.class_names
    if task.kind == "regression":
        if target != AUTO:
            raise ConfigError(f"target={target}: task.kind=regression has one value: remove target")
        return Target(task.kind, -1, "predicted value")
    if target != AUTO and target not in names:
        raise ConfigError(f"target={target}: expected auto or one of {', '.join(names)}{nearest(target, names)}")
    if task.kind == "ordinal":
        return replace(_choose_grade(names, target), output=task.output)
    if target != AUTO:
        index = names.index(target)
    else:
        index = 1 if task.kind == "binary" else int(scores.argmax())
    return Target(task.kind, index, f"probability of {names[index]}")


def _choose_grade(names: list[str], target: str) -> Target:
    if target == AUTO:
        return Target("ordinal", -1, "expected grade")
    if target == names[0]:
        raise ConfigError(f"target={target}: every image has this grade or a higher one: choose a higher grade")
    return Target("ordinal", names.index(target), f"probability of {target} or higher")


def build_score(model: nn.Module, target: Target, *, device: str, precision: str, slope: bool = False) -> Score:
    """Return images (N, C, *spatial) float32 -> (N,): the target's slope or score by this network."""
    held = torch.tensor([target.clinical], device=device) if target.clinical else None

    def score(images: Tensor) -> Tensor:
        with autocast(precision, device=device):
            images = images.to(device)
            logits = model(images) if held is None else model(images, held.expand(len(images), -1))
        return target.slope(logits.float()) if slope else target.score(logits)

    return score


@dataclass(frozen=True, slots=True)
class Explained:
    """A map and what its method says about itself.

    Attributes:
        heat: (*spatial) float32.
        facts: JSON values; None where a number is undefined.
        weights: LIME's, (S,); None of other methods.
    """

    heat: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """How maps are made.

    Attributes:
        job: The settings.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".
    """

    job: ExplainJob
    device: str
    precision: str

    @property
    def background(self) -> str:
        """What hides; auto: LIME hides a superpixel behind its own mean, as its package does, others blur."""
        default = "segment" if self.job.method == "lime" else "blur"
        return default if self.job.background == "auto" else self.job.background

    @property
    def curve_background(self) -> str:
        """What hides in deletion and insertion, where there are no superpixels."""
        return "blur" if self.background == "segment" else self.background

    def score(self, model: Classifier, target: Target, *, slope: bool = False) -> Score:
        """Return the function of images that is explained."""
        return build_score(model, target, device=self.device, precision=self.precision, slope=slope)

    def score_image(self, model: Classifier, image: NDArray[Any], *, target: Target) -> float:
        """Return the score that is explained, of the whole image."""
        with torch.inference_mode():
            return float(self.score(model, target)(torch.from_numpy(image.astype(np.float32))[None])[0])

    def count_images(self, shape: Sequence[int]) -> int:
        """Return how many images one map sends through the network; one with gradients counts three times.

        Args:
            shape: (*spatial) of the image.
        """
        job = self.job
        if job.method == "lime":
            return 2 * job.num_samples
        if job.method == "occlusion":
            return 1 + count_windows(shape, job.window)
        return 3 if job.method.startswith("gradcam") else 3 * job.steps

    def explain(self, model: Classifier, image: NDArray[Any], *, target: Target, name: str) -> Explained:
        """Return the map of one image, (C, *spatial); `name` seeds LIME's masks.

        Raises:
            ConfigError: a stage without convolutions, or superpixels that volumes do not have.
        """
        job = self.job
        if job.method == "lime":
            return self._explain_lime(model, image, target=target, name=name)
        if job.method in ("gradcam", "gradcam++"):
            stage, layer = find_layer(model.stages, job.stage)
            slope = self.score(model, target, slope=True)
            heat = explain_gradcam(slope, image, layer=layer, plus=job.method == "gradcam++")
            return Explained(heat, {"stage": stage})
        background = build_background(image, kind=self.background)
        if job.method == "occlusion":
            score = self.score(model, target)
            settings = {"window": job.window, "batch_size": job.batch_size}
            return Explained(explain_occlusion(score, image, background=background, **settings))  # type: ignore[arg-type]
        slope = self.score(model, target, slope=True)
        heat, gap = explain_integrated_gradients(
            slope, image, background=background, steps=job.steps, batch_size=job.batch_size
        )
        return Explained(heat, {"completeness_gap": gap})

    def _explain_lime(self, model: Classifier, image: NDArray[Any], *, target: Target, name: str) -> Explained:
        try:
            regions = cut_superpixels(image, kind=self.job.superpixels, count=self.job.num_superpixels)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        background = build_background(image, kind=self.background, regions=regions)
        score = self.score(model, target)
        first, second = (
            self._fit(score, image, regions=regions, background=background, seed=(seed, name))
            for seed in (self.job.seed, f"{self.job.seed} again")
        )
        facts = {
            "superpixels": int(regions.max()) + 1,
            "r2": first.r2,
            "local_prediction": first.prediction,
            "stability": correlate_ranks(first.weights, second.weights),
            "weights": first.weights.tolist(),
        }
        return Explained(first.paint(regions), facts, first.weights)

    def _fit(
        self,
        score: Score,
        image: NDArray[Any],
        *,
        regions: NDArray[np.int64],
        background: NDArray[np.float32],
        seed: tuple[object, ...],
    ) -> LocalModel:
        job = self.job
        settings = LimeSettings(num_samples=job.num_samples, num_features=job.num_features, batch_size=job.batch_size)
        return explain_lime(score, image, regions=regions, background=background, settings=settings, seed=seed)


def freeze(model: Classifier, device: str) -> Classifier:
    """Return the network in evaluation mode on its device, its weights without gradients."""
    model.eval().requires_grad_(False)
    if device == "cuda":
        torch.backends.cudnn.benchmark = False
    return model.to(device)
