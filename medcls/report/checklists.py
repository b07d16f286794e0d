"""CLAIM and TRIPOD+AI: the items filled from the run, and those left to the authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Number, topic, and the fact that fills it ("" = only the authors know).
Item = tuple[str, str, str]

CLAIM_SOURCE = "Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update"
CLAIM: tuple[Item, ...] = (
    ("1", "Identification as a study of AI methodology, with the category of technology", "technology"),
    ("2", "Structured summary of design, methods, results and conclusions", ""),
    ("3", "Scientific and clinical background, intended use and role", ""),
    ("4", "Aims, objectives and hypotheses", ""),
    ("5", "Prospective or retrospective study", ""),
    ("6", "Study goal", ""),
    ("7", "Data sources", ""),
    ("8", "Inclusion and exclusion criteria", ""),
    ("9", "Data preprocessing", "preprocessing"),
    ("10", "Selection of data subsets", ""),
    ("11", "De-identification methods", "deidentification"),
    ("12", "How missing data were handled", "missing"),
    ("13", "Image acquisition protocol", ""),
    ("14", "Definition of the reference standard", "labels"),
    ("15", "Rationale for choosing the reference standard", ""),
    ("16", "Source of reference standard annotations", ""),
    ("17", "Annotation of the test set", ""),
    ("18", "Variability of annotators", "readers"),
    ("19", "How data were assigned to partitions", "partitions"),
    ("20", "Level at which partitions are disjoint", "disjoint"),
    ("21", "Intended sample size", "sample_size"),
    ("22", "Description of the model", "model"),
    ("23", "Software libraries, frameworks and packages", "software"),
    ("24", "Initialization of model parameters", "initialization"),
    ("25", "Training approach", "training"),
    ("26", "Method of selecting the final model", "selection"),
    ("27", "Ensembling techniques", "ensembling"),
    ("28", "Metrics of model performance", "metrics"),
    ("29", "Statistical measures of significance and uncertainty", "uncertainty"),
    ("30", "Robustness or sensitivity analysis", "robustness"),
    ("31", "Methods for explainability or interpretability", ""),
    ("32", "Evaluation on internal data", "internal"),
    ("33", "Testing on external data", "external"),
    ("34", "Clinical trial registration", ""),
    ("35", "Numbers of patients or examinations included and excluded", "flow"),
    ("36", "Demographic and clinical characteristics in each partition", "demographics"),
    ("37", "Performance metrics and their uncertainty", "performance"),
    ("38", "Estimates of diagnostic accuracy and their precision", "accuracy"),
    ("39", "Failure analysis of incorrect results", "failures"),
    ("40", "Study limitations", ""),
    ("41", "Implications for practice", ""),
    ("42", "Full study protocol or additional technical details", ""),
    ("43", "Availability of software, model and data", ""),
    ("44", "Sources of funding and role of funders", ""),
)

TRIPOD_SOURCE = "Collins et al., TRIPOD+AI statement, BMJ 2024"
TRIPOD: tuple[Item, ...] = (
    ("1", "Title", ""),
    ("2", "Abstract", ""),
    ("3a", "Healthcare context and rationale", ""),
    ("3b", "Target population and intended purpose", ""),
    ("3c", "Known health inequalities", ""),
    ("4", "Objectives", ""),
    ("5a", "Sources of data", ""),
    ("5b", "Dates of data", ""),
    ("6a", "Study setting", ""),
    ("6b", "Eligibility criteria", ""),
    ("6c", "Treatments received", ""),
    ("7", "Data preparation", "preprocessing"),
    ("8a", "Definition of the outcome", ""),
    ("8b", "Qualifications of outcome assessors", ""),
    ("8c", "Blinding of outcome assessment", ""),
    ("9a", "Choice of predictors", ""),
    ("9b", "Definition of predictors", "input"),
    ("9c", "Qualifications of predictor assessors", ""),
    ("10", "Sample size", "sample_size"),
    ("11", "Missing data", "missing"),
    ("12a", "How the data were used, including partitions", "partitions"),
    ("12b", "How predictors were handled", "preprocessing"),
    ("12c", "Type of model, building steps, internal validation", "training"),
    ("12d", "Heterogeneity across clusters", "subgroups_method"),
    ("12e", "Measures and plots of performance", "metrics"),
    ("12f", "Model updating (recalibration)", "recalibration_method"),
    ("12g", "How predictions were calculated", "software"),
    ("13", "Class imbalance", "imbalance"),
    ("14", "Fairness", "subgroups_method"),
    ("15", "Model output, and thresholds", "thresholds"),
    ("16", "Differences between training and evaluation", "external"),
    ("17", "Ethical approval", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Protocol", ""),
    ("18d", "Registration", ""),
    ("18e", "Data sharing", ""),
    ("18f", "Code sharing", ""),
    ("19", "Patient and public involvement", ""),
    ("20a", "Flow of participants", "flow"),
    ("20b", "Characteristics of participants", "demographics"),
    ("20c", "Comparison of training and evaluation data", "demographics"),
    ("21", "Participants and outcome events in each analysis", "numbers"),
    ("22", "Full specification of the model", "model"),
    ("23a", "Performance with intervals, including key subgroups", "performance"),
    ("23b", "Heterogeneity of performance", "subgroups"),
    ("24", "Results of model updating", "recalibration"),
    ("25", "Interpretation", ""),
    ("26", "Limitations", ""),
    ("27a", "How poor or missing input is handled in use", "input_checks"),
    ("27b", "User interaction and expertise", ""),
    ("27c", "Next steps", ""),
)


NOT_STATED = {
    "sample_size": {
        "known": "not stated",
        "how": "python -m medcls.samplesize … out=FILE.json, then samplesize=FILE.json",
    }
}
"""What stands beside an item that is left to the authors although a setting could fill it."""


def fill_checklist(items: tuple[Item, ...], facts: Mapping[str, Any], *, source: str) -> dict[str, object]:
    """Items with a known fact filled, all others listed for the authors; ready for JSON.

    Args:
        items: `CLAIM` or `TRIPOD`.
        facts: Name to what is known; "" or an absent name is not known.
        source: Of the checklist.
    """
    filled, left = [], []
    for number, topic, fact in items:
        known = facts.get(fact)
        if fact and known not in (None, "", [], {}):
            filled.append({"item": number, "topic": topic, "filled": known})
        else:
            left.append({"item": number, "topic": topic} | NOT_STATED.get(fact, {}))
    note = "Filled in by medcls from what it did; authors: check every item and add the rest."
    return {"checklist": source, "note": note, "filled": filled, "left_to_the_authors": left}
