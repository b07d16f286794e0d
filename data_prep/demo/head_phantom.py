"""Draw a head: tissues as soft ellipsoids in millimetres, then a scanner's contrast, bias field and noise.

A head is drawn in LPS+ axes (x to the patient's left, y backwards, z upwards) with the origin in the middle of the
brain. What lies on both sides is drawn once, over |x|; a smooth warp makes the sides differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.demo.head_set import Head
from medcls.reproducibility import make_generator

Floats = NDArray[np.float32]
_REACH_MM = 110.0
_CSF, _GREY, _WHITE, _BONE, _FAT, _MUSCLE = range(6)


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a site takes its volumes.

    Attributes:
        name: Of the model.
        shape: (slices, rows, columns).
        spacing_mm: Of slices, rows and columns.
        axes: Direction of slices, rows and columns, LPS+.
        tissues: Signal of CSF, grey and white matter, bone, fat, muscle.
        gain: Stored values of a signal of 1.
        noise: Deviation, in signal.
        bias: Deviation of the coil's brightness over the head, in its logarithm.
        tesla: Field strength.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
    tissues: tuple[float, float, float, float, float, float]
    gain: float
    noise: float
    bias: float
    tesla: float


SCANNERS = {
    "north": Scanner(
        "SYNTHETIC North", (56, 72, 72), (3.0, 2.75, 2.75), ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
        (0.15, 0.52, 0.80, 0.06, 1.0, 0.45), 700.0, 0.03, 0.10, 3.0,
    ),
    "south": Scanner(
        "SYNTHETIC South", (50, 80, 76), (3.6, 2.5, 2.5), ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
        (0.24, 0.50, 0.68, 0.10, 0.85, 0.40), 320.0, 0.05, 0.20, 1.5,
    ),
}  # fmt: skip
"""Sagittal slices of 3 T, sharp; axial slices of 1.5 T with less contrast, more noise and a stronger coil profile."""


def place_voxels(scanner: Scanner) -> NDArray[np.float64]:
    """Return the affine (4, 4) from (slice, row, column, 1) to mm, LPS+; the middle voxel lies at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(scanner.axes, float).T * scanner.spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(scanner.shape) - 1) / 2)
    return affine


def scan(head: Head) -> NDArray[np.uint16]:
    """Return the volume (slices, rows, columns) that the head's own scanner stores, 12 bits.

    Source: own choice; noise is Rician (Gudbjartsson and Patz 1995), the bias field the exponential of a smooth field.
    """
    scanner = SCANNERS[head.site]
    signal = render(head, scanner)
    rng = make_generator("demo head noise", head.seed, head.domain, head.number)
    gain = scanner.gain * np.exp(0.15 * rng.normal())
    signal *= np.exp(scanner.bias * _smooth_field(rng, scanner, nodes=3))
    signal += scanner.noise * rng.standard_normal(signal.shape, dtype=np.float32)
    magnitude = np.hypot(signal, scanner.noise * rng.standard_normal(signal.shape, dtype=np.float32))
    stored: NDArray[np.uint16] = np.clip(np.rint(gain * magnitude), 0, 4095).astype(np.uint16)
    return stored


def render(head: Head, scanner: Scanner) -> Floats:
    """Return the signal (slices, rows, columns) of tissues, float32: no noise, no bias field.

    Source: own choice.
    """
    x, y, z = _coordinates(head, scanner)
    drawing = _Drawing(np.abs(x), y, z, tissues=scanner.tissues, edge_mm=float(np.mean(scanner.spacing_mm)))
    _draw_outside(drawing)
    _draw_brain(drawing, head)
    # Small shapes are drawn on the quarter of the voxels that they can reach.
    near = np.nonzero((drawing.x < 46) & (np.abs(y - 4) < 70) & (np.abs(z - 4) < 44))
    inside = drawing.part(near)
    _draw_inside(inside, head)
    drawing.signal[near] = inside.signal
    return drawing.signal


class _Drawing:
    """A canvas of one side: later shapes cover earlier ones, with edges as soft as a voxel is wide."""

    def __init__(self, x: Floats, y: Floats, z: Floats, *, tissues: tuple[float, ...], edge_mm: float) -> None:
        self.x, self.y, self.z, self.tissues, self.edge_mm = x, y, z, tissues, edge_mm
        self.signal = np.zeros_like(x)

    def part(self, voxels: tuple[NDArray[np.intp], ...]) -> _Drawing:
        """Return a canvas of these voxels alone."""
        x, y, z = (grid[voxels] for grid in (self.x, self.y, self.z))
        part = _Drawing(x, y, z, tissues=self.tissues, edge_mm=self.edge_mm)
        part.signal = self.signal[voxels]
        return part

    def distance(self, center: tuple[float, ...], axes: tuple[float, ...]) -> Floats:
        """Return about how far each voxel is inside an ellipsoid, mm."""
        total = np.zeros_like(self.x)
        for grid, middle, axis in zip((self.x, self.y, self.z), center, axes, strict=True):
            part = grid - np.float32(middle)
            part *= np.float32(1 / axis)
            total += np.square(part, out=part)
        np.sqrt(total, out=total)
        total *= np.float32(-min(axes))
        total += np.float32(min(axes))
        return total

    def fill(self, depth_mm: Floats, tissue: int) -> None:
        """Cover the voxels inside, by depth."""
        cover = np.clip(depth_mm / np.float32(self.edge_mm) + np.float32(0.5), 0, 1)
        self.signal += cover * (np.float32(self.tissues[tissue]) - self.signal)

    def add(self, center: tuple[float, ...], axes: tuple[float, ...], tissue: int) -> None:
        """Cover an ellipsoid, on both sides."""
        self.fill(self.distance(center, axes), tissue)


def _draw_outside(drawing: _Drawing) -> None:
    """Draw neck, skin, nose, eyes, skull, and the water around the brain."""
    neck = np.float32(52) - np.hypot(drawing.x, drawing.y - np.float32(18))
    drawing.fill(np.minimum(neck, -55 - drawing.z), _MUSCLE)
    drawing.add((0, -2, -4), (78, 98, 100), _FAT)
    drawing.add((0, -98, -42), (13, 16, 20), _MUSCLE)
    drawing.add((0, 0, -4), (72, 92, 92), _MUSCLE)
    drawing.add((33, -74, -36), (14, 15, 14), _CSF)
    drawing.add((0, 2, 6), (74, 91, 82), _BONE)
    drawing.add((0, 4, 6), (70, 87, 77), _CSF)


def _draw_brain(drawing: _Drawing, head: Head) -> None:
    """Draw cerebellum, brain stem, and hemispheres with a folded cortex that thins while its furrows open."""
    drawing.add((22, 50, -40), (27, 26, 20), _GREY)
    drawing.add((20, 46, -40), (15, 15, 10), _WHITE)
    drawing.add((0, 20, -48), (12, 13, 34), _WHITE)
    rng = make_generator("demo head folds", head.seed, head.domain, head.number)
    depth = drawing.distance((0, 2, 12), (69, 86, 66))
    first, second, third = (np.float32(v) for v in rng.uniform(0, 2 * np.pi, 3))
    fold = np.sin(drawing.y / 9 + first) * np.sin(drawing.z / 8 + second) + np.sin((drawing.x - drawing.y) / 10 + third)
    # Furrows: where the fold is low the surface lies deeper, the wider they are the more of it.
    depth -= np.float32(3.0 * head.sulci) * np.clip(np.float32(0.2) - fold, 0, None)
    fissure = np.minimum(np.float32(0.8 + 1.2 * head.sulci) - drawing.x, drawing.z + 4)
    sylvian = np.float32(1.5 * head.sulci) - np.abs(drawing.z + 6 - drawing.y / 6) - np.clip(52 - drawing.x, 0, None)
    depth = np.minimum(depth, -np.maximum(fissure, sylvian))
    drawing.fill(depth, _GREY)
    drawing.fill(depth - np.float32(head.cortex_mm), _WHITE)


def _draw_inside(drawing: _Drawing, head: Head) -> None:
    """Draw deep grey matter, ventricles, and the hippocampus in the water that it leaves behind."""
    v, h = head.ventricles, head.hippocampus
    drawing.add((24, -4, 8), (7, 17, 11), _GREY)
    drawing.add((10, 14, 10), (8, 14, 9), _GREY)
    for center, axes in (
        ((10, 0, 26), (6.5, 32, 8)),
        ((11, -26, 19), (6, 13, 10)),
        ((21, 36, 13), (6, 17, 8)),
        ((0, 8, 6), (3, 13, 9)),
    ):
        drawing.add(center, tuple(v * a for a in axes), _CSF)
    drawing.add((27, 6, -18), (9, 21, 9), _CSF)
    drawing.add((26, 7, -18), (9 * h, 21 * h, 9 * h), _GREY)
    drawing.add((30, 2, -13), (4 * v, 17 * v, 3.5 * v), _CSF)


def _coordinates(head: Head, scanner: Scanner) -> tuple[Floats, Floats, Floats]:
    """Return where each voxel is in the anatomy, x, y and z in mm: pose, size and a smooth warp taken back."""
    turns = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(head.turn_deg)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        turns = step @ turns
    affine = place_voxels(scanner)
    linear = turns.T @ affine[:3, :3] / np.array(head.size)[:, None]
    origin = turns.T @ (affine[:3, 3] - head.shift_mm) / head.size
    slices, rows, columns = (np.arange(n, dtype=np.float32) for n in scanner.shape)
    rng = make_generator("demo head warp", head.seed, head.domain, head.number)
    grids = []
    for axis in range(3):
        a, b, c = linear[axis].astype(np.float32)
        plane = a * slices[:, None, None] + b * rows[:, None] + c * columns + np.float32(origin[axis])
        grids.append(plane + 1.8 * _smooth_field(rng, scanner, nodes=5))
    return grids[0], grids[1], grids[2]


def _smooth_field(rng: np.random.Generator, scanner: Scanner, *, nodes: int) -> Floats:
    """Return a smooth field over the patient, whatever the scanner's grid, of unit deviation at its nodes.

    Cosine interpolation of independent draws at nodes over x, y, z of +-_REACH_MM.
    """
    order = [int(np.argmax(np.abs(axis))) for axis in scanner.axes]
    field = rng.standard_normal((nodes,) * 3).astype(np.float32).transpose(order)
    affine = place_voxels(scanner)
    for axis, (line, length) in enumerate(zip(order, scanner.shape, strict=True)):
        position = affine[line, axis] * np.arange(length) + affine[line, 3]
        places = np.clip((position / _REACH_MM + 1) / 2, 0, 1) * (nodes - 1)
        low = np.minimum(places.astype(int), nodes - 2)
        share = (0.5 - 0.5 * np.cos(np.pi * (places - low))).astype(np.float32)
        weights = np.zeros((length, nodes), np.float32)
        weights[np.arange(length), low], weights[np.arange(length), low + 1] = 1 - share, share
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)
