"""Plan the views (crops, mirrors) that an evaluation predicts of each image, and build the networks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from medcls.data.crops import Crop, scale_sides
from medcls.errors import ConfigError
from medcls.models.classifier import Classifier
from medcls.models.views import DenseClassifier, ManyViews
from medcls.runs.model_file import ModelCard
from medcls.train.augment_choice import list_sides

CENTER, DENSE, MULTICROP, BOTH = "center", "dense", "multicrop", "both"
_GRID = 5


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """Which views of each image are asked for.

    Attributes:
        kind: "center", "dense", "multicrop" or "both".
        scales: Shortest sides in pixels; () = the middle of the training scales.
        flips: Also mirror images; None = unless kind is "center".
        crops_per_side: Side of the grid of crops.
    """

    kind: str = CENTER
    scales: tuple[int, ...] = ()
    flips: bool | None = None
    crops_per_side: int = _GRID


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Which views of each image are predicted; their scores are averaged.

    Attributes:
        kind: "center", "dense", "multicrop" or "both".
        scales: Shortest sides Q, ascending; () = the image as `crop` takes it, and nothing else.
        flips: Mirror images, too.
        crops_per_side: Side of the grid of crops; None if there is none.
        size: (H, W) that the network was trained on.
        crop: What the model takes of an image; None = all of it.
        usual: The middle of the training scales, which a name leaves out.
    """

    kind: str
    scales: tuple[int, ...]
    flips: bool
    crops_per_side: int | None
    size: tuple[int, ...]
    crop: Crop | None
    usual: int

    @property
    def name(self) -> str:
        """Such as "dense", "multicrop-q256-384-noflips"; "" for the plain evaluation of the middle."""
        if self.kind == CENTER and not self.scales:
            return ""
        parts = [self.kind]
        if self.scales != (self.usual,):
            parts.append("q" + "-".join(map(str, self.scales)))
        if self.flips != (self.kind != CENTER):
            parts.append("flips" if self.flips else "noflips")
        if self.crops_per_side not in (None, _GRID):
            parts.append(f"{self.crops_per_side}x{self.crops_per_side}")
        return "-".join(parts)

    def to_json(self) -> dict[str, object]:
        """Return what the results follow from; {} for the plain evaluation, whose key has no views."""
        if not self.name:
            return {}
        views = {"kind": self.kind, "scales": list(self.scales), "flips": self.flips}
        return {"views": {**views, "crops_per_side": self.crops_per_side}}

    def describe(self) -> str:
        """Return what a report says of it; "" for the plain evaluation."""
        if not self.name:
            return ""
        grid = f"{self.crops_per_side} x {self.crops_per_side} crops"
        whole = "densely on the whole image, the class map averaged"
        what = {CENTER: "the middle", DENSE: whole, MULTICROP: grid, BOTH: f"{whole}, and {grid}"}[self.kind]
        scales = f"at shortest side {', '.join(map(str, self.scales))}"
        if self.flips:
            scales += ", also mirrored"
        return f"views of each image: {what}; {scales}; scores averaged"


def plan_views(
    wanted: ViewRequest, *, crop: Crop | None, stored: tuple[int, ...], sides: Sequence[str] = ()
) -> ViewPlan:
    """Return the plan of the views asked for.

    Args:
        wanted: Views that are asked for.
        crop: What the model takes of an image.
        stored: (C, *spatial) of the store's images.
        sides: Names that are sides of the body: then images are not mirrored.

    Raises:
        ConfigError: a scale above the store's images or below those trained on; views of volumes; flips that exchange
            sides.
    """
    if wanted.flips and sides:
        raise ConfigError(f"flips=true mirrors images, but labels name sides ({', '.join(sides[:3])}): set flips=false")
    shape, usual = stored, min(stored[1:])
    if crop is not None:
        shape, usual = crop.shape(stored), crop.scale
    flips = wanted.flips
    if flips is None:
        flips = wanted.kind != CENTER and not sides
    if wanted.kind == CENTER and not flips and wanted.scales in ((), (usual,)):
        return ViewPlan(CENTER, (), False, None, shape[1:], crop, usual)
    if len(stored) != 3:
        raise ConfigError(f"views={wanted.kind}: the store holds volumes {stored}; only images have other views here")
    scales = tuple(sorted(set(wanted.scales))) or (usual,)
    if scales[-1] > min(stored[1:]):
        raise ConfigError(
            f"scales={list(scales)}: the store has images of {stored[1]} x {stored[2]}, which are never enlarged: "
            "lower scales, or prepare a store with a larger image.size and train on crops of it (crop=vgg_fixed)"
        )
    if any(side < trained for side, trained in zip(scale_sides(stored[1:], scales[0]), shape[1:], strict=True)):
        raise ConfigError(
            f"scales={list(scales)}: the model was trained on {shape[1]} x {shape[2]} pixels: scales may not be smaller"
        )
    crops = None
    if wanted.kind in (MULTICROP, BOTH):
        crops = wanted.crops_per_side
    return ViewPlan(wanted.kind, scales, flips, crops, shape[1:], crop, usual)


def find_sides_of(card: ModelCard) -> list[str]:
    """Return the names of a run's classes and columns that are sides of the body, as training took them."""
    recorded = card.training.get("augment")
    if isinstance(recorded, dict):
        return [str(name) for name in recorded.get("sides", [])]
    columns = []
    if card.clinical is not None:
        columns = card.clinical.columns
    return list_sides(card.task, clinical=columns)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the images: name in the progress bar, network, and crop of each image that it takes (None: all)."""

    name: str
    network: nn.Module
    crop: Crop | None


def build_passes(plan: ViewPlan, model: Classifier, *, output: str) -> list[Pass]:
    """Return the passes over the images whose scores are averaged: one for each scale, and for both forms of it.

    The model is in evaluation mode, and `output` says what its logits are (data.targets.Task.output).

    Raises:
        ConfigError: the network has no dense form.
    """
    if not plan.scales:
        return [Pass("", model, plan.crop)]
    height, width = plan.size
    networks: dict[str, nn.Module] = {}
    if plan.kind in (DENSE, BOTH):
        dense = DenseClassifier(model, size=(height, width))
        networks[DENSE] = ManyViews(dense, output=output, size=None, flips=plan.flips)
    if plan.kind != DENSE:
        networks[MULTICROP if plan.crops_per_side else CENTER] = ManyViews(
            model, output=output, size=(height, width), crops_per_side=plan.crops_per_side or 1, flips=plan.flips
        )
    return [
        Pass(f"{name} {scale}", network, Crop(None, scale, scale))
        for scale in plan.scales
        for name, network in networks.items()
    ]
