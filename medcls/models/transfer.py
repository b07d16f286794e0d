"""Plan a transfer: which stages are trained, from which epoch, at which rate, and their BatchNorm mode."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.config import nearest
from medcls.errors import ConfigError
from medcls.models.autoencoder import Autoencoder
from medcls.models.classifier import Classifier

KINDS = ("scratch", "frozen", "partial", "finetune", "gradual")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage is trained.

    Attributes:
        name: Of the stage.
        num_parameters: Numbers in it.
        lr_scale: Factor on the optimizer's learning rate; 0 for a stage that is never trained.
        batchnorm: While the stage is trained: "train" (batch statistics), "frozen" (running statistics kept), or ""
            (has none). While it is not, running statistics are kept always.
        first_epoch: From which on it is trained, 0 = from the start; None = never.
    """

    name: str
    num_parameters: int
    lr_scale: float
    batchnorm: str
    first_epoch: int | None = 0

    def is_trained(self, epoch: int) -> bool:
        """Return whether the stage is trained in an epoch, 0 the first: a pure function of it."""
        return self.first_epoch is not None and epoch >= self.first_epoch


def choose_first_epochs(
    stages: Sequence[str],
    *,
    kind: str,
    train_from: str | None = None,
    thaw_every: int = 1,
    fresh: Collection[str] = (),
) -> dict[str, int | None]:
    """Return the epoch from which on each stage is trained; None = never.

    Args:
        stages: From input to output; the last is the head.
        kind: "scratch" and "finetune" train every stage; "frozen" only the head and what is fresh; "partial" those
            from `train_from` on; "gradual" the head at first, and one further stage downwards every `thaw_every`
            epochs, as far as `train_from`.
        train_from: The lowest stage that is trained; "gradual" goes down to the input without it.
        thaw_every: Epochs between two stages, >= 1.
        fresh: Stages that the weights do not have (a VGG's fully connected layers): part of the new classifier,
            trained from the start, never frozen at random values.

    Raises:
        ConfigError: unknown kind, unknown stage, or "partial" without one.

    Source: partial, Yosinski et al., arXiv 1411.1792, section 2; gradual, Howard and Ruder, arXiv 1801.06146,
    section 3.3 (one stage each epoch, from the last).
    """
    if kind not in KINDS:
        raise ConfigError(f"transfer.kind={kind}: expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if kind == "partial" and train_from is None:
        raise ConfigError(f"transfer=partial: set transfer.train_from=STAGE, one of {', '.join(stages)}")
    if train_from is not None and train_from not in stages:
        raise ConfigError(
            f"transfer.train_from={train_from}: this network has the stages {', '.join(stages)}"
            f"{nearest(train_from, stages)}"
        )
    lowest = len(stages) - 1 if kind == "frozen" else stages.index(train_from) if train_from else 0
    step = thaw_every if kind == "gradual" else 0
    waiting = [name for name in reversed(stages[:-1]) if name not in fresh]
    epochs = {name: step * place for place, name in enumerate(waiting, start=1) if stages.index(name) >= lowest}
    return {name: epochs.get(name) if name in waiting else 0 for name in stages}


def plan_transfer(
    model: Classifier | Autoencoder,
    first_epochs: Mapping[str, int | None],
    *,
    layer_decay: float,
    batchnorm: str,
    unsettled: Collection[str] = (),
) -> list[StagePlan]:
    """Return the plan for each stage, from input to output.

    Args:
        model: What has the stages.
        first_epochs: Of each stage, from `choose_first_epochs`.
        layer_decay: A stage's rate is layer_decay ** (number of stages above it); 1 = one rate for all.
        batchnorm: Policy for the trained stages; a frozen stage keeps its running statistics always.
        unsettled: Stages whose weights are not pretrained as they are: they have no statistics to keep, and while they
            are trained they learn them.

    Source: discriminative rates, Howard and Ruder, arXiv 1801.06146, section 3.2.
    """
    stages = model.stages
    plans = []
    for depth, (name, module) in enumerate(stages.items()):
        first = first_epochs[name]
        scale = 0.0 if first is None else layer_decay ** (len(stages) - 1 - depth)
        has_batchnorm = any(isinstance(m, _BatchNorm) for m in module.modules())
        policy = "frozen" if first is None else "train" if name in unsettled else batchnorm
        plans.append(
            StagePlan(name, sum(p.numel() for p in module.parameters()), scale, policy if has_batchnorm else "", first)
        )
    return plans


def apply_plan(model: Classifier, plans: Sequence[StagePlan], *, epoch: int = 0) -> None:
    """Set requires_grad of every parameter as planned for an epoch."""
    for plan in plans:
        for parameter in model.stages[plan.name].parameters():
            parameter.requires_grad_(plan.is_trained(epoch))


def set_train_mode(model: Classifier, plans: Sequence[StagePlan], *, epoch: int) -> None:
    """Put the stages trained in an epoch into training mode and the others into evaluation mode, BatchNorm as planned.

    A pure function of the epoch, whatever ran before: a run that starts in an epoch is in the same state as one that
    has come to it. A frozen stage also loses its dropout: its features are then those it will have at test time. Its
    parameters have no gradient, so that no optimizer moves or decays them.
    """
    apply_plan(model, plans, epoch=epoch)
    model.train()
    # VGG's dropout lies between its stages; where nothing around it is trained it has no purpose.
    if not any(plan.is_trained(epoch) for plan in plans if plan.name != "head"):
        model.backbone.eval()
        return
    for plan in plans:
        stage: nn.Module = model.stages[plan.name]
        if not plan.is_trained(epoch):
            stage.eval()
        elif plan.batchnorm == "frozen":
            for module in stage.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()


def build_parameter_groups(
    model: Classifier | Autoencoder, plans: Sequence[StagePlan], *, lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Return optimizer groups: one for each stage that is ever trained, biases and norms apart without weight decay.

    A stage that thaws later has its groups from the start: the optimizer's state has one form in all epochs, and the
    schedule is one. Each group carries "stage" and "lr_scale" beside torch's own keys.
    """
    groups: list[dict[str, object]] = []
    for plan in plans:
        if plan.first_epoch is None:
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


def plan_wide(model: Classifier, *, lr_scale: float) -> list[StagePlan]:
    """Return the plan of the wide part, which is trained whatever the kind of transfer; [] where there is none."""
    if model.wide is None:
        return []
    return [StagePlan("wide", model.wide.weight.numel(), lr_scale, "")]


def build_wide_group(model: Classifier, *, lr: float, lr_scale: float, l2: float) -> list[dict[str, object]]:
    """Return the optimizer group of the wide part, `l2` its weight decay; [] where there is none."""
    if model.wide is None:
        return []
    common = {"stage": "wide", "lr_scale": lr_scale, "lr": lr * lr_scale}
    return [{"params": [model.wide.weight], "weight_decay": l2, **common}]


def format_plan(plans: Sequence[StagePlan], *, lr: float, origins: Mapping[str, str] | None = None) -> str:
    """Return the table that every run prints.

    Args:
        plans: Of each stage.
        lr: The optimizer's.
        origins: Stage -> where its weights come from; a stage that is not in it is new: random.
    """
    wide = max(10, *(len(plan.name) for plan in plans))
    lines = [f"{'stage':{wide}s} {'weights':10s} {'parameters':>12s} {'lr':>10s}  {'trained':14s}  batchnorm"]
    for plan in plans:
        rate = f"{lr * plan.lr_scale:.2e}" if plan.lr_scale else "-"
        when, norm = _describe_time(plan), plan.batchnorm or "-"
        if plan.batchnorm == "train" and plan.first_epoch:
            norm = "frozen, then train"
        origin = (origins or {}).get(plan.name, "random")
        lines.append(f"{plan.name:{wide}s} {origin:10s} {plan.num_parameters:12,d} {rate:>10s}  {when:14s}  {norm}")
    trained = sum(plan.num_parameters for plan in plans if plan.first_epoch is not None)
    total = sum(plan.num_parameters for plan in plans)
    return "\n".join([*lines, f"{'all':{wide}s} {'':10s} {total:12,d} {'':10s}  {trained:,d}"])


def _describe_time(plan: StagePlan) -> str:
    if plan.first_epoch is None:
        return "frozen"
    # Counted from 1, as the progress of a run counts them.
    return f"from epoch {plan.first_epoch + 1}" if plan.first_epoch else "yes"
