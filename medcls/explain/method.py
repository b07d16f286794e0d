"""What is explained (a class, a grade, a value: Target), and by which method (Method)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcls.config import ExplainJob, nearest
from medcls.data.crops import Box
from medcls.data.targets import Task
from medcls.errors import ConfigError
from medcls.explain.faithfulness import correlate_ranks
from medcls.explain.gradcam import explain_gradcam, explain_integrated_gradients, find_grid, find_layer
from medcls.explain.lime import LimeSettings, cut_superpixels, explain_lime
from medcls.explain.perturbation import Score, build_background, count_windows, explain_occlusion
from medcls.models.classifier import Classifier
from medcls.models.heads import compute_scores
from medcls.training.precision import autocast

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Target:
    """Which number of a task's answer is explained.

    Attributes:
        kind: The task.
        index: Class; -1 = the whole answer (a value, or the expected grade).
        words: Name for readers.
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
        task: Task that the run was trained on.
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
        if target == AUTO:
            return Target(task.kind, -1, "expected grade", task.output)
        if target == names[0]:
            raise ConfigError(f"target={target}: every image has this grade or a higher one: choose a higher grade")
        return Target(task.kind, names.index(target), f"probability of {target} or higher", task.output)
    if target != AUTO:
        index = names.index(target)
    elif task.kind == "binary":
        index = 1
    else:
        index = int(scores.argmax())
    return Target(task.kind, index, f"probability of {names[index]}")


@dataclass(frozen=True, slots=True)
class Subject:
    """One image that is explained.

    Attributes:
        image_id: Id of the image in the store; it may be a path.
        row: Its row in predictions.parquet.
        image: (C, *spatial) as stored, or the middle of it where the model takes crops.
        target: What is explained.
        true: The truth in words.
        predicted: The prediction in words.
        patient: Whose image it is (pseudonym).
        box: (y, x, height, width) of the sign in pixels of `image`, or None.
        affine: (4, 4) of a volume, index to millimetres (RAS+), or None.
    """

    image_id: str
    row: int
    image: NDArray[Any]
    target: Target
    true: str
    predicted: str
    patient: str = ""
    box: Box | None = None
    affine: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """A map and what its method says about itself.

    Attributes:
        heat: (*spatial) float32.
        facts: JSON values; None where a number is undefined.
        weights: LIME's, (S,); None of other methods.
    """

    heat: NDArray[np.float32]
    facts: dict[str, object] = field(default_factory=dict)
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """How maps are made: the settings, on "cpu" or "cuda", in "fp32", "bf16" or "fp16"."""

    job: ExplainJob
    device: str
    precision: str

    @property
    def technique(self) -> Technique:
        """The row of TECHNIQUES that method= names."""
        return next(each for each in TECHNIQUES if each.name == self.job.method)

    @property
    def background(self) -> str:
        """What replaces hidden pixels."""
        return self.technique.background if self.job.background == AUTO else self.job.background

    @property
    def curve_background(self) -> str:
        """What replaces hidden pixels in deletion and insertion, where there are no superpixels."""
        return "blur" if self.background == "segment" else self.background

    def score(self, model: Classifier, target: Target, *, slope: bool = False) -> Score:
        """Return the function of images that is explained: (N, C, *spatial) float32 -> (N,), the score or its slope."""
        held = torch.tensor([target.clinical], device=self.device) if target.clinical else None

        def score(images: Tensor) -> Tensor:
            with autocast(self.precision, device=self.device):
                images = images.to(self.device)
                logits = model(images) if held is None else model(images, held.expand(len(images), -1))
            return target.slope(logits.float()) if slope else target.score(logits)

        return score

    def score_image(self, model: Classifier, image: NDArray[Any], *, target: Target) -> float:
        """Return the score that is explained, of the whole image."""
        with torch.inference_mode():
            return float(self.score(model, target)(torch.from_numpy(image.astype(np.float32))[None])[0])

    def explain(self, model: Classifier, image: NDArray[Any], *, target: Target, name: str) -> Explained:
        """Return the map of one image, (C, *spatial); `name` seeds LIME's masks.

        Raises:
            ConfigError: a stage without convolutions, or superpixels that volumes do not have.
        """
        return self.technique.explain(self, model, image, target, name)


def _explain_lime(method: Method, model: Classifier, image: NDArray[Any], target: Target, name: str) -> Explained:
    job, score = method.job, method.score(model, target)
    try:
        regions = cut_superpixels(image, kind=job.superpixels, count=job.num_superpixels)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    background = build_background(image, kind=method.background, regions=regions)
    settings = LimeSettings(num_samples=job.num_samples, num_features=job.num_features, batch_size=job.batch_size)
    # A second fit with other masks: where the two differ, the weights are chance.
    first, second = (
        explain_lime(score, image, regions=regions, background=background, settings=settings, seed=(seed, name))
        for seed in (job.seed, f"{job.seed} again")
    )
    facts: dict[str, object] = {
        "superpixels": int(regions.max()) + 1,
        "r2": first.r2,
        "local_prediction": first.prediction,
        "stability": correlate_ranks(first.weights, second.weights),
        "weights": first.weights.tolist(),
    }
    return Explained(first.paint(regions), facts, first.weights)


def _explain_gradcam(method: Method, model: Classifier, image: NDArray[Any], target: Target, name: str) -> Explained:
    slope, arrange = method.score(model, target, slope=True), None
    if model.backbone.layout.is_library:
        stage, layer, arrange = find_grid(slope, image, model.backbone.stages, method.job.stage)
    else:
        stage, layer = find_layer(model.stages, method.job.stage)
    heat = explain_gradcam(slope, image, layer=layer, plus=method.job.method == "gradcam++", arrange=arrange)
    return Explained(heat, {"stage": stage})


def _explain_gradients(method: Method, model: Classifier, image: NDArray[Any], target: Target, name: str) -> Explained:
    job, slope = method.job, method.score(model, target, slope=True)
    background = build_background(image, kind=method.background)
    heat, gap = explain_integrated_gradients(
        slope, image, background=background, steps=job.steps, batch_size=job.batch_size
    )
    return Explained(heat, {"completeness_gap": gap})


def _explain_occlusion(method: Method, model: Classifier, image: NDArray[Any], target: Target, name: str) -> Explained:
    job, score = method.job, method.score(model, target)
    background = build_background(image, kind=method.background)
    return Explained(
        explain_occlusion(score, image, background=background, window=job.window, batch_size=job.batch_size)
    )


@dataclass(frozen=True, slots=True)
class Technique:
    """One value of method=, its name and source for readers, and the words at the colour bar of its maps.

    Attributes:
        explain: Makes the map of one image (C, *spatial); the text seeds random parts.
        count_images: Returns how many images one map sends through the network, by the settings and (*spatial); an
            image with gradients counts three times.
        background: Replaces hidden pixels with background=auto.
    """

    name: str
    title: str
    source: str
    legend: str
    explain: Callable[[Method, Classifier, NDArray[Any], Target, str], Explained]
    count_images: Callable[[ExplainJob, Sequence[int]], int]
    background: str = "blur"


TECHNIQUES = (
    Technique(
        "lime",
        "LIME",
        "Ribeiro, Singh and Guestrin, arXiv 1602.04938: a sparse linear model over superpixels.",
        "weight of the superpixel",
        _explain_lime,
        lambda job, shape: 2 * job.num_samples,
        background="segment",  # each superpixel behind its own mean, as the lime package has it
    ),
    Technique(
        "gradcam",
        "Grad-CAM",
        "Selvaraju et al., arXiv 1610.02391: the channels of one layer, weighted by their gradient.",
        "Grad-CAM",
        _explain_gradcam,
        lambda job, shape: 3,
    ),
    Technique(
        "gradcam++",
        "Grad-CAM++",
        "Chattopadhyay et al., arXiv 1710.11063: Grad-CAM with weights for each position.",
        "Grad-CAM++",
        _explain_gradcam,
        lambda job, shape: 3,
    ),
    Technique(
        "integrated_gradients",
        "integrated gradients",
        "Sundararajan, Taly and Yan, arXiv 1703.01365: gradients along the path from a background to the image.",
        "integrated gradient",
        _explain_gradients,
        lambda job, shape: 3 * job.steps,
    ),
    Technique(
        "occlusion",
        "occlusion",
        "Zeiler and Fergus, arXiv 1311.2901: how hiding a window changes the score.",
        "fall of the score",
        _explain_occlusion,
        lambda job, shape: 1 + count_windows(shape, job.window),
    ),
)


def freeze(model: Classifier, device: str) -> Classifier:
    """Return the network in evaluation mode on its device, its weights without gradients."""
    model.eval().requires_grad_(False)
    if device == "cuda":
        torch.backends.cudnn.benchmark = False
    return model.to(device)
