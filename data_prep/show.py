"""python -m data_prep.show: write a contact sheet by class of stored and augmented images."""

from __future__ import annotations

from pathlib import Path

from medcls.cli.command_line import run_command
from medcls.config import ShowJob, TaskConfig
from medcls.console import say
from medcls.errors import UsageError
from medcls.inputs import check_store_folder


def main(job: ShowJob) -> None:
    """Write the sheet of all labelled images of a store."""
    if job.store is None:
        raise UsageError("store=DIR is missing: python -m data_prep.show store=DIR")
    check_store_folder(Path(job.store))
    import numpy as np

    from medcls.data.contact_sheet import write_contact_sheet
    from medcls.data.dataset import ImageView, StoreDataset
    from medcls.data.store import Store
    from medcls.data.targets import build_task, encode_targets
    from medcls.train.augment_choice import choose_augmentation, list_sides, read_kinds

    store = Store(Path(job.store))
    store.verify()
    labels = store.read_labels()
    kind = "multilabel" if job.label == "label" and "label" not in labels.column_names else "multiclass"
    task = build_task(TaskConfig(kind=kind, label=job.label), labels)
    targets, known = encode_targets(task, labels)
    rows = np.flatnonzero(known)
    sides, kinds = list_sides(task), read_kinds(store, rows)
    chosen = choose_augmentation(job.augment, store.spec, shape=store.shape, sides=sides, **kinds)
    if chosen.notice:
        say(chosen.notice)
    dataset = StoreDataset(store, rows, targets=targets[rows], view=ImageView(None, chosen.augmentation, job.seed))
    out = Path(job.out or f"{store.name}-contact-sheet.png")
    classes = task.class_names if kind == "multiclass" and task.num_classes <= 20 else []
    write_contact_sheet(out, dataset, class_names=classes, per_class=job.per_class)
    say(f"{out}: {len(rows)} images by class, stored above and augmented below")


if __name__ == "__main__":
    run_command("show", main, program="python -m data_prep.show")
