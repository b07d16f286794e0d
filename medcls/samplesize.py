"""python -m medcls.samplesize: estimate the number of patients a study needs, by simulated studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from medcls.cli.command_line import check_printed, run_command
from medcls.config import SampleSizeJob
from medcls.console import put
from medcls.errors import ConfigError, UsageError
from medcls.files import write_json
from medcls.statistics.bounds import LEVEL
from medcls.statistics.definitions import DEFINITIONS
from medcls.statistics.study_size import Assumptions, Size, size_for_half_width, size_for_power

FORMAT = 1


def main(job: SampleSizeJob) -> None:
    """Compute the number of patients, print it with its assumptions, and write it if out= is set."""
    example = "python -m medcls.samplesize metric=auc expected=0.85 half_width=0.05"
    if job.expected is None:
        raise UsageError(f"expected= is missing: set the value that you expect of metric={job.metric}: {example}")
    if job.half_width is None and job.margin is None and job.difference is None:
        raise UsageError(f"the aim is missing: set half_width=, margin= or difference=: {example}")
    shared = {field.name for field in fields(Assumptions)} & {field.name for field in fields(job)}
    settings = {name: getattr(job, name) for name in shared}
    assumed = Assumptions(**settings | {"difference": job.difference or 0.0})
    drawn = {"replicates": job.replicates, "seed": job.seed}
    try:
        if job.half_width is not None:
            size = size_for_half_width(assumed, half_width=job.half_width, **drawn)
        else:
            size = size_for_power(assumed, margin=job.margin or 0.0, power=job.power, **drawn)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    record = describe_size(job, assumed, size)
    put(format_size(record))
    if job.out:
        write_json(Path(job.out), record)
        put(f"sample size: {job.out}")
    else:
        check_printed()


def describe_size(job: SampleSizeJob, assumed: Assumptions, size: Size) -> dict[str, object]:
    """Return what out=FILE.json holds, which `evaluate samplesize=FILE.json` reads."""
    title = DEFINITIONS[assumed.metric].title
    if job.half_width is not None:
        aim = {"kind": "half_width", "half_width": job.half_width}
        goal = f"a 95 % interval of {title} of ± {job.half_width:g}"
    elif job.margin is not None:
        aim = {"kind": "non_inferiority", "margin": job.margin, "power": job.power}
        goal = f"{100 * job.power:g} % power to show that {title} is not inferior by more than {job.margin:g}"
    else:
        aim = {"kind": "difference", "difference": assumed.difference, "power": job.power}
        goal = f"{100 * job.power:g} % power to show a difference in {title} of {assumed.difference:g}"
    return {
        "format": FORMAT,
        "aim": aim,
        "patients": size.patients,
        "images": size.patients * assumed.images_per_patient,
        "assumptions": list_assumptions(job, assumed),
        "settings": asdict(assumed) | {"level": LEVEL, "replicates": job.replicates, "seed": job.seed},
        "simulated": asdict(size),
        "sentence": f"{size.patients} patients for {goal}",
    }


def list_assumptions(job: SampleSizeJob, assumed: Assumptions) -> list[str]:
    """Return every assumption behind the number, one sentence each."""
    title = DEFINITIONS[assumed.metric].title
    lines = [f"expected {title}: {assumed.expected:g}"]
    if job.half_width is None:
        lines.append(f"expected difference of the two models: {assumed.difference:g}, on the same images")
        lines.append(f"correlation of the two models' latent scores on one image: {assumed.model_correlation:g}")
        lines.append("test: the paired 95 % interval of the difference is entirely above the limit (two-sided 5 %)")
    if assumed.metric == "quadratic_kappa":
        lines.append(f"{assumed.grades} grades, equally frequent; normal errors of the predicted grade")
    elif assumed.metric != "accuracy":
        lines.append(f"prevalence: {assumed.prevalence:g} of the patients are cases, drawn at random")
    images = "1 image per patient"
    if assumed.images_per_patient > 1:
        images = (
            f"{assumed.images_per_patient} images per patient, all with the patient's label; correlation of the latent "
            f"scores of two of them: {assumed.correlation:g}"
        )
    lines += [
        images,
        "latent scores are normal; patients are independent; no image is lost: add what you expect to lose",
    ]
    return [*lines, f"{job.replicates} simulated studies of each size, seed {job.seed}"]


def format_size(record: Mapping[str, Any]) -> str:
    """Return the number of patients, its Monte Carlo error, and the assumptions, as lines of text."""
    found, aim = record["simulated"], record["aim"]
    about = f"Monte Carlo error {found['error']:.2g}, which is about ± {found['patients_error']:.0f} patients"
    if aim["kind"] == "half_width":
        reached = (
            f"mean half-width {found['achieved']:.4f} ({about}); {100 * found['share']:.0f} % of the studies reach it"
        )
    else:
        reached = f"{100 * found['achieved']:.1f} % of the studies succeed ({about})"
    lines = [f"samplesize: {record['sentence']} ({record['images']} images)", f"  {reached}"]
    if found["undefined"]:
        lines.append(
            f"  {100 * found['undefined']:.1f} % of the studies had too few patients of a class for an interval"
        )
    return "\n".join([*lines, "assumptions:", *(f"  {line}" for line in record["assumptions"])])


if __name__ == "__main__":
    run_command("samplesize", main, program="python -m medcls.samplesize")
