"""Sum up an explanation's measurements in sentences, and write its page, one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from medcls.explain.faithfulness import LEAST_PATIENTS, Curves, compute_chance, mean_of
from medcls.explain.method import Method
from medcls.explain.sanity import Sanity
from medcls.files import write_bytes
from medcls.identity import format_count
from medcls.report.content import INTENDED_USE
from medcls.report.drawing import MUTED, SERIES, write_figure
from medcls.report.templates import load_template

SURE = 0.05  # p value below which the maps are called better or worse than chance
_MEANS = ["deletion_auc", "deletion_auc_random", "insertion_auc", "insertion_auc_random", "pointing"]
_MEANS += ["iou", "box_share", "r2", "stability", "completeness_gap"]


@dataclass(frozen=True, slots=True)
class _CurveKind:
    """Words for one kind of curve: which areas are better, what happens to the marked pixels, how true maps do."""

    name: str
    better: str
    sign: int
    verb: str
    done: str
    true: str


_CURVES = (
    _CurveKind("deletion", "lower", -1, "Hiding", "hidden", "a true map falls fast"),
    _CurveKind("insertion", "higher", 1, "Showing", "shown", "a true map rises fast"),
)


class Chance(TypedDict):
    """Whether maps are better than the same maps moved, as explanations.json has it."""

    gain: float
    p_value: float | None
    verdict: str
    images: int
    patients: int


class Summary(TypedDict):
    """What was found over all images, as explanations.json has it."""

    n_images: int
    n_boxes: int
    n_blank: int
    mean: dict[str, float | None]
    sanity: Sanity | None
    chance: NotRequired[dict[str, Chance]]
    submodular_pick: NotRequired[list[str]]
    held: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class MapPicture:
    """One explained image.

    Attributes:
        name: What the page calls it: its row in predictions.parquet, or its id if that is asked for.
        path: Path of its PNG.
        lines: Name and value, in words.
    """

    name: str
    path: Path
    lines: Sequence[tuple[str, str]]

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


def summarize(
    rows: Sequence[Mapping[str, Any]], sanity: Sanity | None, *, patients: Sequence[str], seed: int
) -> Summary:
    """Return the means over the images (None if no image has the number), tests against chance, and the check.

    Args:
        rows: Objects of the images in explanations.json.
        sanity: What `sanity.check_sanity` found; None if it was not made.
        patients: (n,) whose image each is.
        seed: Seed of the tests.
    """
    summary: Summary = {
        "n_images": len(rows),
        "n_boxes": sum("box_share" in row for row in rows),
        "n_blank": sum(bool(row["blank"]) for row in rows),
        "mean": {name: mean_of([row.get(name) for row in rows]) for name in _MEANS if any(name in row for row in rows)},
        "sanity": sanity,
    }
    if "deletion_auc" in summary["mean"]:
        summary["chance"] = {}
        for curve in _CURVES:
            own, rival = f"{curve.name}_auc", f"{curve.name}_auc_random"
            # A blank map has no curves.
            chosen = [number for number, row in enumerate(rows) if own in row]
            gains = [curve.sign * (rows[n][own] - rows[n][rival]) for n in chosen]
            summary["chance"][curve.name] = _test(gains, [patients[n] for n in chosen], seed=seed)
    return summary


def _test(gains: Sequence[float], patients: Sequence[str], *, seed: int) -> Chance:
    p_value, gain = compute_chance(gains, patients, seed=seed), float(np.mean(gains))
    verdict = "undecided"
    if p_value is not None and p_value < SURE:
        verdict = "beat chance" if gain > 0 else "worse than chance"
    return {
        "gain": gain,
        "p_value": p_value,
        "verdict": verdict,
        "images": len(patients),
        "patients": len(set(patients)),
    }


def write_sentences(summary: Summary) -> list[str]:
    """Return what was found, a plain sentence each, the verdict first."""
    mean, chance = summary["mean"], summary.get("chance", {})
    sentences = [describe_sanity(summary["sanity"])]
    if summary["n_blank"]:
        sentences.append(
            f"{summary['n_blank']} of {summary['n_images']} maps are BLANK, the same everywhere: they mark nothing and "
            "are left out of the curves. Choose another method= or stage=."
        )
    if not chance and summary["n_blank"] < summary["n_images"]:
        sentences.append("No curves (curves=false): whether the marked parts matter was not measured.")
    for curve in _CURVES:
        if curve.name in chance:
            sentences.append(
                f"{curve.verb} the marked parts first gives an area of {mean[f'{curve.name}_auc']:.3f} under the "
                f"score's curve; the same maps moved to random places give {mean[f'{curve.name}_auc_random']:.3f}; "
                f"{curve.better} is better. {_judge(chance[curve.name])}"
            )
    if summary["n_boxes"]:
        sentences.append(
            f"In {format_count(summary['n_boxes'], 'image')} the position of the sign is known: the strongest point "
            f"is inside it in {_share(mean['pointing'])} of them (a blind guess: {_share(mean['box_share'])}), and the "
            f"overlap (IoU) of as many marked pixels with it is {_number(mean['iou'])}."
        )
    if "r2" in mean:
        sentences.append(
            f"LIME's linear model explains R² = {_number(mean['r2'])} of the score's changes on average; two seeds "
            f"order the superpixels with a rank correlation of {_number(mean['stability'])}."
        )
    if "held" in summary:
        sentences.append(
            f"The network also takes {', '.join(summary['held'])}: the maps show what the image adds, with "
            "each image's values in these columns held fixed."
        )
    return sentences


def _judge(tested: Chance) -> str:
    """Return the verdict of a test against chance as a sentence."""
    where = f"{format_count(tested['images'], 'image')} of {format_count(tested['patients'], 'patient')}"
    if tested["p_value"] is None:
        return f"Undecided: {where}, too few for a test; explain images of {LEAST_PATIENTS} patients or more (worst=)."
    verdicts = {
        "beat chance": "The maps beat chance",
        "worse than chance": "The maps are WORSE than chance",
        "undecided": "Undecided: this difference may be chance",
    }
    return f"{verdicts[tested['verdict']]} (p {tested['p_value']:.3f}, sign flips over {where})."


def describe_sanity(sanity: Sanity | None) -> str:
    """Return the verdict of the weight-randomisation check as a sentence."""
    if sanity is None:
        return (
            "The weight-randomisation check was not made (sanity_images=0): whether the maps depend on the trained "
            "weights is unknown."
        )
    last, images = sanity["levels"][-1], sanity["images"]
    where = format_count(images, "image")
    # A constant map has no ranks: the mean is over the other images only.
    if last["undefined"]:
        where = f"{images - last['undefined']} of {images} images, the others have a constant map"
    alike = f"mean |rank correlation| {_number(last['rank_correlation'])} in {where}; limit {sanity['limit']:g}"
    if sanity["verdict"] == "passed":
        return f"Passed the weight-randomisation check: with all weights shuffled the maps change ({alike})."
    if sanity["verdict"] == "failed":
        return (
            f"FAILED the weight-randomisation check: with all weights shuffled the maps stay similar ({alike}). "
            "They show the image, not what the network has learnt: do not use them."
        )
    return "The weight-randomisation check is undecided: the scrambled network's maps are constant."


def write_explanation_page(
    folder: Path,
    method: Method,
    summary: Summary,
    *,
    curves: Sequence[Sequence[Curves]],
    pictures: Sequence[MapPicture],
    facts: tuple[str, Sequence[str]],
) -> Path:
    """Write explanation.html and the PNG of its curves, and return the page's path.

    The page is light and dark, printable, runs no script and loads nothing from the network.

    Args:
        folder: Folder of the explanation.
        method: How the maps were made.
        summary: What was found.
        curves: Curves of each image, of its map and of the map moved; [] of a blank map.
        pictures: The images.
        facts: Name of the store, and what a reader must know about the rows.
    """
    sanity = summary["sanity"]
    sentences = write_sentences(summary)
    warnings = list(facts[1])
    if sanity is None or sanity["verdict"] != "passed":
        warnings.insert(0, sentences[0])
    levels = []
    if sanity is not None:
        for level in sanity["levels"]:
            similar = _number(level["structural_similarity"])
            levels.append((", ".join(level["scrambled"]), _number(level["rank_correlation"]), similar))
    drawn = [each for each in curves if each]
    settings = {key: value for key, value in asdict(method.job).items() if value not in (None, [])}
    if method.job.images and not method.job.show_ids:
        # Ids may be paths.
        settings["images"] = f"{len(method.job.images)} chosen by their ids"
    page = load_template("explain", "explanation.html.j2").render(
        technique=method.technique,
        store=facts[0],
        split=method.job.split,
        warnings=warnings,
        sentences=sentences,
        cards=_list_cards(summary),
        levels=levels,
        figures=[_draw_curves(folder, drawn, curve) for curve in _CURVES if drawn],
        pictures=pictures,
        settings=list(settings.items()),
        intended_use=INTENDED_USE,
    )
    path = folder / "explanation.html"
    write_bytes(path, page.encode())
    return path


def _list_cards(summary: Summary) -> list[tuple[str, str, str]]:
    """Return the headline numbers: name, value, how to read it."""
    mean, sanity = summary["mean"], summary["sanity"]
    verdict = "not made" if sanity is None else sanity["verdict"]
    cards = [("Weight-randomisation check", verdict, "maps must change with it")]
    for curve in _CURVES:
        if "chance" in summary:
            value = f"{mean[f'{curve.name}_auc']:.3f}"
            text = f"random places {mean[f'{curve.name}_auc_random']:.3f}; {curve.better} is better: "
            cards.append((f"{curve.name.capitalize()}, area", value, text + summary["chance"][curve.name]["verdict"]))
    if summary["n_blank"]:
        cards.append(("Blank maps", f"{summary['n_blank']} of {summary['n_images']}", "they mark nothing"))
    if summary["n_boxes"]:
        cards.append(("Pointing game", _share(mean["pointing"]), f"blind guess {_share(mean['box_share'])}"))
        cards.append(("Overlap with the sign", _number(mean["iou"]), "intersection over union, 1 is best"))
    if "r2" in mean:
        cards.append(("R² of the local fit", _number(mean["r2"]), "mean over the images"))
        cards.append(("Stability", _number(mean["stability"]), "rank correlation of two seeds"))
    if "completeness_gap" in mean:
        cards.append(("Completeness gap", _number(mean["completeness_gap"]), "in logits; 0 is best"))
    return cards


def _draw_curves(folder: Path, curves: Sequence[Sequence[Curves]], kind: _CurveKind) -> tuple[str, str, str]:
    """Return title, data URI and caption of the mean curves of the maps and of the same maps at random places."""

    def mean_curve(chosen: Sequence[Curves]) -> NDArray[np.float64]:
        return np.asarray(np.mean([getattr(each, kind.name) for each in chosen], axis=0))

    def draw(axes: Axes) -> None:
        shares = curves[0][0].shares
        axes.plot(shares, mean_curve([each[0] for each in curves]), color=SERIES[0], label="maps")
        rivals = [rival for each in curves for rival in each[1:]]
        axes.plot(shares, mean_curve(rivals), color=MUTED, linestyle="--", label="same maps, random places")
        axes.set_xlabel(f"share of the pixels {kind.done}, most marked first")
        axes.set_ylabel("mean score")
        axes.legend()

    uri = write_figure(draw, folder / "figures" / f"{kind.name}.png", height=3.2)
    caption = f"Mean of the explained score over {format_count(len(curves), 'image')}; {kind.true}."
    return kind.name.capitalize(), uri, caption


def describe_row(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines below a picture."""
    lines = [("truth", row["true"]), ("prediction", row["predicted"]), (row["target"], _number(row["score"]))]
    titles = {
        "r2": "R² of the fit",
        "stability": "stability",
        "completeness_gap": "completeness gap",
        "pointing": "pointing game",
        "iou": "overlap (IoU)",
    }
    lines += [(title, _number(row[name])) for name, title in titles.items() if name in row]
    if row["blank"]:
        lines.append(("map", "blank: it marks nothing"))
    elif "deletion_auc" in row:
        areas = f"{row['deletion_auc']:.3f} (random places {row['deletion_auc_random']:.3f})"
        lines.append(("deletion area", areas))
    return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.0f} %"
