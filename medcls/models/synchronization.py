"""BatchNorm in several processes: over the images of all, or with shared statistics."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls import distributed
from medcls.models.backbones import Backbone


def synchronize_batchnorm(backbone: Backbone) -> int:
    """Replace every BatchNorm by one that sees the batch parts of all processes; returns how many there were.

    The parameters and statistics are the same tensors under the same names. It computes on GPUs only
    (torch.nn.SyncBatchNorm).

    Args:
        backbone: Before an optimizer knows its parameters; changed in place, its stages too.
    """
    made: dict[nn.Module, nn.Module] = {}
    for root in (backbone, *backbone.stages.values()):
        for parent in list(root.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                    # A stage may hold a layer by itself: there it has to be the same one.
                    new = made.get(child) or nn.SyncBatchNorm.convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
                    made[child] = new
                    setattr(parent, name, new)
    return len(made)


def waits_for_others(model: nn.Module) -> bool:
    """Return whether there is BatchNorm over all processes, each of which then has to make the same passes."""
    return any(isinstance(module, nn.SyncBatchNorm) and module.training for module in model.modules())


def share_statistics(model: nn.Module, *, share: float) -> None:
    """Replace BatchNorm's running statistics by their mean over processes, weighted by the images each has seen."""
    learning = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    statistics = [s for module in learning for s in (module.running_mean, module.running_var) if s is not None]
    distributed.sum_tensors(statistics, share=share)
