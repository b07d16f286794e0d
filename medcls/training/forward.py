"""The forward pass: stored images to the device, in its layout and precision, and logits back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from medcls import distributed
from medcls.data.dataset import Batch
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.training.memory import cut_batch, free_memory, halve_pieces
from medcls.training.precision import autocast, choose_device, choose_precision
from medcls.training.state import StepRules


def move_images(images: Tensor, rules: StepRules) -> Tensor:
    """Return the stored integers on the device; conversion to float happens there."""
    return images.to(rules.device, non_blocking=True).contiguous(memory_format=choose_layout(images, rules))


def move_model(model: nn.Module, rules: StepRules) -> None:
    """Put the model on the device, its filters in the layout of the images or volumes they meet."""
    model.to(rules.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous(memory_format=choose_layout(parameter, rules))


def choose_layout(tensor: Tensor, rules: StepRules) -> torch.memory_format:
    """Return channels_last of images and square filters, channels_last_3d of volumes and cubes, where asked for."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d} if rules.channels_last else {}
    return layouts.get(tensor.ndim, torch.contiguous_format)


def run_forward(forward: Callable[..., Tensor], batch: Batch, rules: StepRules) -> Tensor:
    """Return the logits (N, L) of a batch, in the precision and on the device of the rules."""
    images = move_images(batch.images, rules)
    with autocast(rules.precision, device=rules.device):
        if not batch.clinical.shape[1]:
            return forward(images)
        return forward(images, batch.clinical.to(rules.device, non_blocking=True))


def predict_pieces(model: nn.Module, batches: Iterable[Batch], rules: StepRules) -> Iterator[tuple[Batch, Tensor]]:
    """Yield (batch, float32 output on the device), batches halved from where the device has no room for them on.

    Raises:
        MemoryLimitError: there is none for a single image.
    """
    size: int | None = None
    for batch in batches:
        pieces = cut_batch(batch, size)
        while pieces:
            try:
                output = run_forward(model, pieces[0], rules).float()
            except torch.OutOfMemoryError as error:
                size = halve_pieces(pieces[:1], None, error)
            else:
                yield pieces.pop(0), output
                continue
            # Not within the handler: the error holds on to the maps of the pass that failed.
            free_memory(rules.device)
            pieces = [part for piece in pieces for part in cut_batch(piece, size)]


@torch.inference_mode()
def predict_logits(
    model: nn.Module, batches: Iterable[Batch], rules: StepRules, *, total: int | None = None
) -> NDArray[np.float64]:
    """Return logits (N, L), float64, ordered by the batches' positions 0 … N-1; puts the model into eval mode.

    Args:
        model: Images to logits.
        batches: Of all rows, or with `total` of this process's.
        rules: Device and precision.
        total: N, where each of several processes predicts its part and gets the whole.
    """
    model.eval()
    logits, positions = [], []
    for piece, output in predict_pieces(model, batches, rules):
        logits.append(output.cpu())
        positions.append(piece.positions)
    where = torch.cat(positions)
    if total is None:
        ordered = torch.cat(logits)[where.argsort()]
    else:
        ordered = distributed.gather_rows(torch.cat(logits), where, total=total)
    result: NDArray[np.float64] = ordered.double().numpy()
    return result


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How the rows of a dataset are predicted.

    Attributes:
        rules: Device, precision and memory layout.
        batch_size: Largest batch.
        workers: Loading processes; 0 = this process loads.
    """

    rules: StepRules
    batch_size: int
    workers: int = 0


def choose_options(*, device: str, precision: str, batch_size: int, workers: int = 0) -> PredictOptions:
    """Return the options of a command that predicts: "auto" and -1 become what this machine has.

    Raises:
        ConfigError: device=cuda on a machine without a CUDA device.
    """
    chosen = choose_device(device)
    rules = StepRules(device=chosen, precision=choose_precision(precision, device=chosen))
    return PredictOptions(rules, batch_size, choose_workers(workers, device=chosen))


def predict_rows(
    model: nn.Module,
    dataset: Dataset[Batch],
    options: PredictOptions,
    *,
    through: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> NDArray[np.float64]:
    """Return the logits (N, L), float64, of all rows of a dataset, in its order; puts the model into eval mode.

    Args:
        model: Images to logits, on the device of the options.
        dataset: N rows.
        options: Device, precision, batches and loading.
        through: What the loader's batches pass through on their way to the model: a progress bar, a change of pixels.
    """
    sampler = EpochSampler(len(dataset), batch_size=options.batch_size)  # type: ignore[arg-type]
    loader = build_loader(dataset, sampler, workers=options.workers, device=options.rules.device)
    return predict_logits(model, through(loader), options.rules)
