"""What of a network is trained, how fast, and what its BatchNorm layers do meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.errors import ConfigError
from medcls.models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage is trained.

    Attributes:
        name: Of the stage.
        num_parameters: Numbers in it.
        lr_scale: Factor on the optimizer's learning rate; 0 for a frozen stage.
        batchnorm: "train" (batch statistics), "frozen" (running statistics kept), or "" (has none).
    """

    name: str
    num_parameters: int
    lr_scale: float
    batchnorm: str


def plan_transfer(
    model: Classifier, *, kind: str, layer_decay: float, batchnorm: str, fresh: Collection[str] = ()
) -> list[StagePlan]:
    """Returns the plan for each stage, from input to output.

    Args:
        model: The classifier.
        kind: "scratch" and "finetune" train every stage; "frozen" only the head and what is fresh.
        layer_decay: A stage's rate is layer_decay ** (number of stages above it); 1 = one rate for all.
        batchnorm: Policy for the trained stages; a frozen stage keeps its running statistics always.
        fresh: Stages that the weights file did not have (a VGG's fully connected layers): part of the new
            classifier, never frozen at random values.

    Raises:
        ConfigError: unknown kind.

    Source: discriminative rates, Howard and Ruder, arXiv 1801.06146, section 3.2.
    """
    if kind not in ("scratch", "frozen", "finetune"):
        raise ConfigError(f"transfer.kind={kind}: expected scratch, frozen or finetune")
    stages = model.stages
    plans = []
    for depth, (name, module) in enumerate(stages.items()):
        trained = kind != "frozen" or name == "head" or name in fresh
        scale = layer_decay ** (len(stages) - 1 - depth) if trained else 0.0
        has_batchnorm = any(isinstance(m, _BatchNorm) for m in module.modules())
        policy = (batchnorm if trained else "frozen") if has_batchnorm else ""
        plans.append(StagePlan(name, sum(p.numel() for p in module.parameters()), scale, policy))
    return plans


def apply_plan(model: Classifier, plans: list[StagePlan]) -> None:
    """Sets requires_grad of every parameter as planned."""
    for plan in plans:
        for parameter in model.stages[plan.name].parameters():
            parameter.requires_grad_(plan.lr_scale > 0)


def set_train_mode(model: Classifier, plans: list[StagePlan]) -> None:
    """Puts trained stages into training mode and frozen ones into evaluation mode, BatchNorm as planned.

    A frozen stage also loses its dropout: its features are then those it will have at test time.
    """
    model.train()
    # VGG's dropout lies between its stages; where nothing around it is trained it has no purpose.
    if all(plan.lr_scale == 0 for plan in plans if plan.name != "head"):
        model.backbone.eval()
        return
    for plan in plans:
        stage: nn.Module = model.stages[plan.name]
        if plan.lr_scale == 0:
            stage.eval()
        elif plan.batchnorm == "frozen":
            for module in stage.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()


def build_parameter_groups(
    model: Classifier, plans: list[StagePlan], *, lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Returns optimizer groups: one for each trained stage, biases and norms apart without weight decay.

    Each group carries "stage" and "lr_scale" beside torch's own keys.
    """
    groups: list[dict[str, object]] = []
    for plan in plans:
        if plan.lr_scale == 0:
            continue
        parameters = list(model.stages[plan.name].parameters())
        for decay, chosen in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                common = {"stage": plan.name, "lr_scale": plan.lr_scale, "lr": lr * plan.lr_scale}
                groups.append({"params": chosen, "weight_decay": decay, **common})
    return groups


def format_plan(plans: list[StagePlan], *, lr: float) -> str:
    """Returns the table that every run prints: stage, parameters, learning rate, BatchNorm."""
    lines = [f"{'stage':10s} {'parameters':>12s} {'lr':>10s}  batchnorm"]
    for plan in plans:
        rate = f"{lr * plan.lr_scale:.2e}" if plan.lr_scale else "frozen"
        lines.append(f"{plan.name:10s} {plan.num_parameters:12,d} {rate:>10s}  {plan.batchnorm or '-'}")
    return "\n".join(lines)
