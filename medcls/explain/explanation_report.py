"""Sum up an explanation's measurements in sentences, and fill its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from medcls.config import ExplainJob
from medcls.explain.faithfulness import LEAST_PATIENTS, Curves, compute_chance
from medcls.explain.map_checks import mean_of
from medcls.explain.method import Method
from medcls.explain.page import Card, MapPicture, Page, write_page
from medcls.identity import format_count
from medcls.report.drawing import MUTED, SERIES, write_figure

METHODS = {
    "lime": ("LIME", "Ribeiro, Singh and Guestrin, arXiv 1602.04938: a sparse linear model over superpixels."),
    "gradcam": (
        "Grad-CAM",
        "Selvaraju et al., arXiv 1610.02391: the channels of one layer, weighted by their gradient.",
    ),
    "gradcam++": ("Grad-CAM++", "Chattopadhyay et al., arXiv 1710.11063: Grad-CAM with weights for each position."),
    "integrated_gradients": (
        "integrated gradients",
        "Sundararajan, Taly and Yan, arXiv 1703.01365: gradients along the path from a background to the image.",
    ),
    "occlusion": ("occlusion", "Zeiler and Fergus, arXiv 1311.2901: how hiding a window changes the score."),
}
_UNDEFINED = "undefined"
SURE = 0.05  # p value below which the maps are called better or worse than chance


def summarize(
    rows: Sequence[Mapping[str, Any]], sanity: Mapping[str, Any] | None, *, patients: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return the means over the images (None if no image has the number), tests against chance, and the check.

    Args:
        rows: One for each image.
        sanity: What `map_checks.check_sanity` found; None if it was not made.
        patients: (n,) whose image each is.
        seed: Seed of the tests.
    """
    names = ["deletion_auc", "deletion_auc_random", "insertion_auc", "insertion_auc_random"]
    names += ["pointing", "iou", "box_share", "r2", "stability", "completeness_gap"]
    means = {name: mean_of([row.get(name) for row in rows]) for name in names if any(name in row for row in rows)}
    counts = {"n_images": len(rows), "n_boxes": sum("box_share" in row for row in rows)}
    counts["n_blank"] = sum(bool(row["blank"]) for row in rows)
    kinds = ("deletion", "insertion") if "deletion_auc" in means else ()
    chance = {kind: _test(rows, kind, patients=patients, seed=seed) for kind in kinds}
    tested = {"chance": chance} if chance else {}
    return counts | {"mean": means, "sanity": dict(sanity) if sanity is not None else None} | tested


def _test(rows: Sequence[Mapping[str, Any]], kind: str, *, patients: Sequence[str], seed: int) -> dict[str, Any]:
    """By how much the maps are better than the same maps moved, and whether that could be chance."""
    sign = -1 if kind == "deletion" else 1
    chosen = [number for number, row in enumerate(rows) if f"{kind}_auc" in row]
    gains = [sign * (rows[n][f"{kind}_auc"] - rows[n][f"{kind}_auc_random"]) for n in chosen]
    own = [patients[n] for n in chosen]
    p_value, gain = compute_chance(gains, own, seed=seed), float(np.mean(gains))
    surely = p_value is not None and p_value < SURE
    verdict = ("beat chance" if gain > 0 else "worse than chance") if surely else "undecided"
    return {"gain": gain, "p_value": p_value, "verdict": verdict, "images": len(own), "patients": len(set(own))}


def write_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return what was found, a plain sentence each, the verdict first."""
    mean = summary["mean"]
    sentences = [describe_sanity(summary["sanity"])]
    if summary["n_blank"]:
        sentences.append(
            f"{summary['n_blank']} of {summary['n_images']} maps are BLANK, the same everywhere: they mark nothing and "
            "are left out of the curves. Choose another method= or stage=."
        )
    if "chance" not in summary and summary["n_blank"] < summary["n_images"]:
        sentences.append("No curves (curves=false): whether the marked parts matter was not measured.")
    for name, better, verb in (("deletion", "lower", "hiding"), ("insertion", "higher", "showing")):
        if "chance" not in summary:
            continue
        own, rival = mean[f"{name}_auc"], mean[f"{name}_auc_random"]
        sentences.append(
            f"{verb.capitalize()} the marked parts first gives an area of {own:.3f} under the score's curve; the "
            f"same maps moved to random places give {rival:.3f}; {better} is better. {_judge(summary['chance'][name])}"
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


def _judge(tested: Mapping[str, Any]) -> str:
    """Return the verdict of a test against chance as a sentence."""
    images, patients, p_value = tested["images"], tested["patients"], tested["p_value"]
    where = f"{format_count(images, 'image')} of {format_count(patients, 'patient')}"
    if p_value is None:
        return f"Undecided: {where}, too few for a test; explain images of {LEAST_PATIENTS} patients or more (worst=)."
    test = f"(p {p_value:.3f}, sign flips over {where})"
    if tested["verdict"] == "undecided":
        return f"Undecided: this difference may be chance {test}."
    return f"The maps {'beat chance' if tested['verdict'] == 'beat chance' else 'are WORSE than chance'} {test}."


def describe_sanity(sanity: Mapping[str, Any] | None) -> str:
    """Return the verdict of the weight-randomisation check as a sentence."""
    if sanity is None:
        return (
            "The weight-randomisation check was not made (sanity_images=0): whether the maps depend on the trained "
            "weights is unknown."
        )
    last = sanity["levels"][-1]
    # A constant map has no ranks: the mean is of the other images alone.
    counted, images = sanity["images"] - last["undefined"], sanity["images"]
    alike = f"mean |rank correlation| {_number(last['rank_correlation'])} in "
    alike += (
        format_count(images, "image")
        if counted == images
        else f"{counted} of {images} images, the others have a constant map"
    )
    limit = f"limit {sanity['limit']:g}"
    if sanity["verdict"] == "passed":
        return f"Passed the weight-randomisation check: with all weights shuffled the maps change ({alike}; {limit})."
    if sanity["verdict"] == "failed":
        return (
            f"FAILED the weight-randomisation check: with all weights shuffled the maps stay similar ({alike}; "
            f"{limit}). "
            "They show the image, not what the network has learnt: do not use them."
        )
    return "The weight-randomisation check is undecided: the scrambled network's maps are constant."


def write_explanation_page(
    folder: Path,
    method: Method,
    *,
    summary: Mapping[str, Any],
    curves: Sequence[Sequence[Curves]],
    pictures: Sequence[MapPicture],
    notes: Sequence[str],
    store: str,
) -> Path:
    """Write explanation.html and the PNG of its curves, and return the page's path."""
    sanity = summary["sanity"]
    failed = sanity is None or sanity["verdict"] != "passed"
    drawn = [each for each in curves if each]
    sentences = write_sentences(summary)
    name, source = METHODS[method.job.method]
    page = Page(
        method=name,
        source=source,
        store=store,
        split=method.job.split,
        warnings=[*(sentences[:1] if failed else []), *notes],
        sentences=sentences,
        cards=build_cards(summary),
        levels=build_levels(sanity),
        figures=[draw_curves(folder, drawn, kind=kind) for kind in ("deletion", "insertion") if drawn],
        pictures=pictures,
        settings=list_settings(method.job),
    )
    return write_page(folder / "explanation.html", page)


def list_settings(job: ExplainJob) -> list[tuple[str, str]]:
    """Return name and value of each setting; ids of images are counted unless show_ids asks for them."""
    settings = {key: value for key, value in asdict(job).items() if value not in (None, [])}
    if job.images and not job.show_ids:
        settings["images"] = f"{len(job.images)} chosen by their ids"
    return [(key, str(value)) for key, value in settings.items()]


def build_levels(sanity: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Return the rows of the randomisation table."""
    levels = sanity["levels"] if sanity is not None else []
    return [
        (", ".join(level["scrambled"]), _number(level["rank_correlation"]), _number(level["structural_similarity"]))
        for level in levels
    ]


def build_cards(summary: Mapping[str, Any]) -> list[Card]:
    """Return the headline numbers."""
    mean, sanity = summary["mean"], summary["sanity"]
    cards = [
        Card("Weight-randomisation check", sanity["verdict"] if sanity else "not made", "maps must change with it")
    ]
    for name, better in (("Deletion", "lower"), ("Insertion", "higher")):
        if "chance" not in summary:
            continue
        own, rival = mean[f"{name.lower()}_auc"], mean[f"{name.lower()}_auc_random"]
        verdict = summary["chance"][name.lower()]["verdict"]
        text = f"random places {rival:.3f}; {better} is better: {verdict}"
        cards.append(Card(f"{name}, area", f"{own:.3f}", text))
    if summary["n_blank"]:
        cards.append(Card("Blank maps", f"{summary['n_blank']} of {summary['n_images']}", "they mark nothing"))
    if summary["n_boxes"]:
        cards.append(Card("Pointing game", _share(mean["pointing"]), f"blind guess {_share(mean['box_share'])}"))
        cards.append(Card("Overlap with the sign", _number(mean["iou"]), "intersection over union, 1 is best"))
    if "r2" in mean:
        cards.append(Card("R² of the local fit", _number(mean["r2"]), "mean over the images"))
        cards.append(Card("Stability", _number(mean["stability"]), "rank correlation of two seeds"))
    if "completeness_gap" in mean:
        cards.append(Card("Completeness gap", _number(mean["completeness_gap"]), "in logits; 0 is best"))
    return cards


def draw_curves(folder: Path, curves: Sequence[Sequence[Curves]], *, kind: str) -> tuple[str, str, str]:
    """Return title, data URI and caption of the mean curves of the maps and of the same maps at random places."""
    shares = curves[0][0].shares

    def mean_curve(chosen: Sequence[Curves]) -> NDArray[np.float64]:
        return np.asarray(np.mean([getattr(each, kind) for each in chosen], axis=0))

    def draw(axes: Axes) -> None:
        axes.plot(shares, mean_curve([each[0] for each in curves]), color=SERIES[0], label="maps")
        rivals = [rival for each in curves for rival in each[1:]]
        axes.plot(shares, mean_curve(rivals), color=MUTED, linestyle="--", label="same maps, random places")
        axes.set_xlabel(f"share of the pixels {'hidden' if kind == 'deletion' else 'shown'}, most marked first")
        axes.set_ylabel("mean score")
        axes.legend()

    uri = write_figure(draw, folder / "figures" / f"{kind}.png", height=3.2)
    better = "a true map falls fast" if kind == "deletion" else "a true map rises fast"
    return kind.capitalize(), uri, f"Mean of the explained score over {format_count(len(curves), 'image')}; {better}."


def describe_row(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what stands under a picture."""
    lines = [("truth", row["true"]), ("prediction", row["predicted"]), (row["target"], _number(row["score"]))]
    titles = {"r2": "R² of the fit", "stability": "stability", "completeness_gap": "completeness gap"}
    titles |= {"pointing": "pointing game", "iou": "overlap (IoU)"}
    lines += [(title, _number(row[name])) for name, title in titles.items() if name in row]
    if row["blank"]:
        return [*lines, ("map", "blank: it marks nothing")]
    if "deletion_auc" not in row:
        return lines
    own, rival = row["deletion_auc"], row["deletion_auc_random"]
    return [*lines, ("deletion area", f"{own:.3f} (random places {rival:.3f})")]


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{100 * value:.0f} %"
