"""BatchNorm over the images of all processes of a training."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.models.backbones import Backbone


def synchronize_batchnorm(backbone: Backbone) -> int:
    """Replaces every BatchNorm by one that sees the batch parts of all processes; returns how many there were.

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
