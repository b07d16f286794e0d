"""Draw a knee: from anatomy in millimetres to the attenuation along each ray of a radiograph.

A knee is drawn with x to the lateral side, y down and the origin on the middle of the tibial plateau, and is
placed on the detector by one affine map.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.demo.knees import Knee
from medcls.reproducibility import make_generator

Floats = NDArray[np.float32]

# Outlines in mm, lateral to the right. Femur: y = 0 where the condyles rest. Tibia: y = 0 at the plateau.
_FEMUR = (
    (-19, -150), (-19, -88), (-24, -66), (-34, -49), (-42, -37), (-43.5, -25), (-42, -12), (-38, -4),
    (-27, -0.2), (-17, -1), (-11, -4.5), (-5, -10), (1, -12.5), (7, -9.5), (12, -3.5), (18, -0.8), (27, -0.1),
    (38, -3.6), (41.5, -12), (42, -24), (39, -36), (32, -49), (24, -66), (20, -88), (19, -150),
)  # fmt: skip
_TIBIA = (
    (-16, 150), (-18, 85), (-22, 56), (-31, 33), (-37.5, 18), (-40.5, 7), (-39.5, 0.9), (-35, 0.1),
    (-26, 1.4), (-16, 0.2), (-10, -2.6), (-6.5, -7), (-2.5, -4.2), (1.5, -4.2), (5.5, -6.6), (9.5, -2.2),
    (16, -0.3), (26, 0.2), (35, -0.2), (39.5, 1.2), (40, 8), (37, 19), (30, 34), (23, 56), (19, 85),
    (18, 150),
)  # fmt: skip
_FIBULA = (
    (34, 150), (33.5, 70), (33, 46), (29.5, 33), (28.5, 22), (34, 11.5), (42, 13), (45.5, 23), (44, 33),
    (41, 47), (41, 70), (42, 150),
)  # fmt: skip
_PATELLA = ((-21, -44), (-15, -58), (1, -62), (17, -58), (22, -44), (17, -31), (3, -24), (-13, -30))


def signal_box(knee: Knee) -> tuple[int, int, int, int]:
    """Return the (y, x, height, width) box in pixels that holds the joint space and the marginal osteophytes.

    The signs of the grade lie in it, so explanations can be tested on it; only the femur's tilt reaches out.
    """
    reach = 43.0 + np.array((max(knee.osteophytes_mm[0::2]), max(knee.osteophytes_mm[1::2])))
    top, bottom = -17.0 - max(knee.joint_space_mm), 12.0
    corners = np.array([(-reach[0], top), (reach[1], top), (reach[1], bottom), (-reach[0], bottom)])
    points = _to_pixels(knee, corners)
    limit = np.array(knee.shape[::-1])
    low = np.clip(np.floor(points.min(axis=0)), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low + 1, limit).astype(int)
    return int(low[1]), int(low[0]), int(high[1] - low[1]), int(high[0] - low[0])


def render(knee: Knee) -> Floats:
    """Return the attenuation along each ray, (H, W) float32, about 0 in air and 3 in dense bone; no noise, no blur.

    Source: own choice, each bone as a soft core, a cortical line and trabeculae, added over soft tissue.
    """
    x, y = _coordinates(knee)
    femur, tibia, fibula, patella = _outlines(knee)
    person = make_generator("demo tissue", knee.seed, knee.patient)
    film = _soft_tissue(x, y, person)
    texture = _trabeculae(knee)
    density = float(person.uniform(0.8, 1.2))
    cores = (0.85, 0.80, 0.42, person.uniform(0.10, 0.30))
    for outline, core in zip((femur, tibia, fibula, patella), cores, strict=True):
        _add_bone(film, knee, outline, texture=texture, core=density * core, y=y)
    near = np.flatnonzero(np.abs(y).min(axis=1) < 32)
    joint = slice(near[0], near[-1] + 1)  # the rest is too far from the joint to change
    film[joint] += density * _sclerosis(knee, x[joint], y[joint], (femur, tibia))
    film += density * _faint_lines(x, y, person)
    return film


def _to_pixels(knee: Knee, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 2) points in mm as (column, row) on the detector; a left knee has its lateral side on the right."""
    turn = np.deg2rad(knee.rotation_deg)
    matrix = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
    placed = points * knee.size @ matrix.T + knee.shift_mm[::-1]
    if knee.side == "R":
        placed[:, 0] *= -1
    result: NDArray[np.float64] = placed / knee.spacing_mm + np.array(knee.shape[::-1]) / 2
    return result


def _coordinates(knee: Knee) -> tuple[Floats, Floats]:
    """Return the position of every pixel, x and y in mm: the inverse of _to_pixels."""
    origin, right, down = _to_pixels(knee, np.array(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))))
    inverse = np.linalg.inv(np.stack((right - origin, down - origin), axis=1))
    rows, columns = np.indices(knee.shape, dtype=np.float32)
    columns, rows = columns - np.float32(origin[0]), rows - np.float32(origin[1])
    (a, b), (c, d) = inverse.astype(np.float32)
    return a * columns + b * rows, c * columns + d * rows


def _outlines(knee: Knee) -> list[NDArray[np.float64]]:
    """Return smooth closed outlines in mm of femur, tibia, fibula and patella, of this person and this grade."""
    own = make_generator("demo shape", knee.seed, knee.patient, knee.side)
    person = make_generator("demo shape", knee.seed, knee.patient)  # the two knees of a person are alike, not equal
    bones = [np.array(points, dtype=np.float64) for points in (_FEMUR, _TIBIA, _FIBULA, _PATELLA)]
    for points in bones:
        # The nearer to the joint, the less the shape varies, or the joint space could not be read.
        amount = np.minimum(0.15 + 0.03 * np.abs(points[:, 1:]), 1.6)
        points += amount * (person.standard_normal(points.shape) + 0.4 * own.standard_normal(points.shape))
    bones[3] += person.normal(0.0, 4.0, 2) + own.normal(0.0, 1.5, 2)
    # Spurs pull the medial and the lateral margin of femur and tibia outwards, and their lips down or up.
    places = ((0, -1, -12.0, 0.5), (0, 1, -12.0, 0.5), (1, -1, 1.0, -0.3), (1, 1, 1.0, -0.3))
    for (bone, side, margin_y, lip), spur in zip(places, knee.osteophytes_mm, strict=True):
        distance = np.linalg.norm(bones[bone] - np.array((side * 41.0, margin_y)), axis=1)
        bones[bone][np.argmin(distance)] += spur * np.array((side, lip))
    smooth = [_smooth(points) for points in bones]
    for curve in smooth[:2]:
        near = np.exp(-((curve[:, 1] / 9.0) ** 2))
        ripple = np.interp(curve[:, 0], np.linspace(-45, 45, 25), own.standard_normal(25))
        curve[:, 1] += 1.2 * knee.roughness_mm * near * ripple
    medial, lateral = knee.joint_space_mm
    tilt = (medial - lateral) / 52.0  # narrowing of one compartment turns the femur (varus or valgus)
    for curve in (smooth[0], smooth[3]):
        curve += np.stack((-tilt * curve[:, 1], tilt * curve[:, 0] - (medial + lateral) / 2), axis=1)
    return smooth


def _smooth(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed Catmull-Rom curve through the points, eight steps from each to the next."""
    before, after, second = (np.roll(points, shift, axis=0) for shift in (1, -1, -2))
    t = np.linspace(0.0, 1.0, 8, endpoint=False)[:, None, None]
    curve = points + 0.5 * t * (
        after - before
        + t * (2 * before - 5 * points + 4 * after - second + t * (3 * (points - after) + second - before))
    )  # fmt: skip
    result: NDArray[np.float64] = curve.transpose(1, 0, 2).reshape(-1, 2)
    return result


def _soft_tissue(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """Draw muscle and fat: an elliptic limb, wider towards the thigh, with slow mottling."""
    half = rng.uniform(50, 64) - rng.uniform(0.0, 0.08) * y
    half += rng.uniform(-3, 3) * np.sin(y / 25 + rng.uniform(0, 6))
    across = np.clip(1 - ((x - rng.normal(0, 2)) / half) ** 2, 0, None)
    coarse = rng.standard_normal((6, 5)).astype(np.float32)
    mottle = cv2.resize(coarse, x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    limb: Floats = (rng.uniform(0.9, 1.3) * np.sqrt(across) * (1 + 0.07 * mottle)).astype(np.float32)
    return limb


def _trabeculae(knee: Knee) -> Floats:
    """Draw a zero-mean bone texture, streaked along the limb, unit deviation."""
    rng = make_generator("demo bone", knee.seed, knee.patient, knee.side)
    white = rng.standard_normal(knee.shape, dtype=np.float32)
    fine = cv2.GaussianBlur(white, (0, 0), sigmaX=0.7, sigmaY=2.4) - cv2.GaussianBlur(white, (0, 0), sigmaX=4)
    coarse = rng.standard_normal((14, 12)).astype(np.float32)
    slow = cv2.resize(coarse, knee.shape[::-1], interpolation=cv2.INTER_CUBIC)
    texture: Floats = fine / fine.std() + 0.9 * slow
    return texture


def _add_bone(
    film: Floats, knee: Knee, outline: NDArray[np.float64], *, texture: Floats, core: float, y: Floats
) -> None:
    """Add one bone in place: core, cortex (thick along the shaft, thin at the joint) and trabeculae."""
    points = _to_pixels(knee, outline)
    low = np.clip(np.floor(points.min(axis=0)) - 2, 0, None).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 3, 0, knee.shape[::-1]).astype(int)
    if (high <= low).any():  # a patella may lie above the film
        return
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    size, scale = (int(high[0] - low[0]), int(high[1] - low[1])), 2  # twice the size: edges without jags
    mask = np.zeros((scale * size[1], scale * size[0]), np.uint8)
    corners = np.round((points - low + 0.5) * scale * 16 - 8).astype(np.int32)
    cv2.fillPoly(mask, [corners], color=255, shift=4)
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    cover = cv2.resize(mask, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    depth = cv2.resize(inside, size, interpolation=cv2.INTER_AREA) * np.float32(knee.spacing_mm / scale)
    cortex_mm = 1.0 + 2.2 * np.clip((np.abs(y[window]) - 30) / 50, 0, 1)
    cortex = (0.10 + 0.28 * core) * np.exp(-((depth / cortex_mm) ** 2))
    filled = core * (1 - np.exp(-depth / 9.0)) * (1 + 0.10 * texture[window])
    film[window] += cover * (cortex + filled)


def _sclerosis(knee: Knee, x: Floats, y: Floats, bones: tuple[NDArray[np.float64], ...]) -> Floats:
    """Return the bright subchondral plate of any knee, and its thickening with the grade."""
    medial = 1 / (1 + np.exp(np.clip(x / 4, -30, 30)))
    inner = np.exp(-(((x / 38) ** 2) ** 4))
    extra = knee.sclerosis[0] * medial + knee.sclerosis[1] * (1 - medial)
    column = np.clip(np.round((x + 45) * 2), 0, 180).astype(np.intp)
    film = np.zeros_like(x)
    for outline, sign in zip(bones, (-1, 1), strict=True):
        part = outline[(np.abs(outline[:, 1]) < 22) & (np.abs(outline[:, 0]) < 40)]
        part = part[np.argsort(part[:, 0])]
        surface = np.interp(np.linspace(-45, 45, 181), part[:, 0], part[:, 1]).astype(np.float32)
        depth = sign * (y - surface[column])
        below = np.clip(depth / 0.6 + 0.5, 0, 1) * np.exp(-np.clip(depth, 0, None) / (1.6 + 2.2 * extra))
        film += (0.22 + 0.45 * extra) * inner * below
    return film


def _faint_lines(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """Draw the closed growth plates of femur and tibia, and the far rim of the tibial plateau."""
    film = np.zeros_like(x)
    wave = 2 * np.cos(x / 11 + rng.uniform(-1, 1))
    rim = rng.uniform(3.0, 6.0) - 4 * np.cos(x / 14)
    lines = (
        (rng.uniform(-40, -30) - wave, rng.uniform(0.0, 0.15), 33),
        (rng.uniform(14, 22) + wave, rng.uniform(0.0, 0.15), 33),
        (rim, rng.uniform(0.05, 0.2), 37),
    )
    for middle, strength, reach in lines:
        film += strength * np.exp(-(((y - middle) / 0.9) ** 2)) * (np.abs(x) < reach)
    return film
