"""Comparisons: planned once, run by the ordinary commands, resumed, and read from their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.cli.command_line import compose_job
from medcls.compare import compare as stage
from medcls.compare import comparison_executors
from medcls.compare.compare import ArmsFailedError, compare
from medcls.compare.comparison_commands import Work, choose_settings, merge_overrides
from medcls.compare.comparison_executors import LocalExecutor, SlurmExecutor, is_queued
from medcls.compare.comparison_plan import make_plan
from medcls.compare.comparison_runs import ComparisonFolder, describe_progress, run_works
from medcls.compare.comparison_task import ComparisonTask, main, run_task
from medcls.config import CompareJob, conf_folder
from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import read_json, read_json_lines, write_json
from medcls.runs.checksums import finish_run
from medcls.runs.model_file import read_card, read_state

QUICK = (
    "common=[model.weights=null,trainer.batch_size=8,trainer.epochs=1,trainer.max_steps=1,trainer.channels_last=false,"
    "workers=0,device=cpu,augment=none]"
)
ARMS = ("arms.classes=[task=grade_classification]", "arms.number=[task=grade_regression,optimizer.lr=0.001]")
Compare = Callable[..., Path]


@pytest.fixture
def run_compare(store: Store, copy_store: Callable[..., Path], executor: Any, tiny2d: None, tmp_path: Path) -> Compare:
    """Compares two arms over two folds on a copy of the store and returns out: run_compare("folds.k=3")."""
    places = [copy_store()]

    def run(*arguments: str, arms: tuple[str, ...] = ARMS, out: str = "out") -> Path:
        given = {
            text.partition("=")[0]: text
            for text in ("folds.k=2", "folds.val=0.34", "replicates=100", QUICK, *arms, *arguments)
        }
        compare(compose_job("compare", [f"store={places[-1]}", f"out={tmp_path / out}", *given.values()]))
        return tmp_path / out

    def move_store() -> Path:
        places.append(places[-1].rename(tmp_path / "moved" / places[-1].name))
        return places[-1]

    (tmp_path / "moved").mkdir()
    run.move_store = move_store  # type: ignore[attr-defined]
    return run


def commands_of(executor: Any, module: str) -> list[dict[str, str]]:
    return [
        {key: value for key, _, value in (text.partition("=") for text in arguments)}
        for name, *arguments in executor.commands
        if name == module
    ]


def test_each_arm_is_trained_and_evaluated_on_each_fold(
    run_compare: Compare, executor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_compare("sizes=[6,0]")
    trained, evaluated = (commands_of(executor, f"medcls.{name}") for name in ("train", "evaluate"))
    runs = [f"{arm}-{fold}{size}" for fold in ("r1f1", "r1f2") for size in ("-n6", "") for arm in ("classes", "number")]
    for commands in (trained, evaluated):
        assert [str(Path(one["run"]).relative_to(out.resolve() / "runs")) for one in commands] == runs
    assert {one["split"] for one in evaluated} == {"test"}
    assert {one["report"] for one in evaluated} == {"false"}
    found = read_json(out / "comparison.json")
    assert set(found["sizes"]) == {"6", "all"}
    everything = found["sizes"]["all"]
    assert set(everything["arms"]) == {"classes", "number"}
    fold = everything["arms"]["number"]["folds"][0]
    metrics = read_json(out / "runs" / "number-r1f1" / "evaluation" / "store-test" / "metrics.json")
    assert fold["metrics"]["quadratic_kappa"] == pytest.approx(metrics["quadratic_kappa"]["value"])
    assert fold["metrics"]["mse_value"] == pytest.approx(metrics["mse"]["value"]), "a regression's mse is of its value"
    assert fold["metrics"]["accuracy"] == pytest.approx(metrics["accuracy"]["value"])
    (pair,) = everything["pairs"]["quadratic_kappa"]
    assert pair["test"]["name"] == "corrected resampled t test"
    assert everything["arms"]["number"]["cost"]["trainings"] == 2
    printed = capsys.readouterr().out
    assert "quadratic_kappa (higher is better), training images: 6" in printed
    assert "classes - number: " in printed


def test_all_arms_see_the_same_rows_and_batches(run_compare: Compare, store: Store) -> None:
    out = run_compare(arms=("arms.one=[task=multiclass]", "arms.two=[task=multiclass]"))
    for fold in ("r1f1", "r1f2"):
        one, two = (out / "runs" / f"{arm}-{fold}" for arm in ("one", "two"))
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
        assert read_json(one / "config" / "settings.json")["split"]["name"] == f"kfold2-s0-{fold}"
    assert read_json(out / "comparison.json")["sizes"]["all"]["pairs"]["auc"][0]["difference"] == 0


def test_test_rows_of_the_store_stay_closed(run_compare: Compare, store: Store, copy_store: Any) -> None:
    out = run_compare()
    splits, _ = read_split(store, "default")
    closed = {image for image, code in zip(store.column("image_id"), splits, strict=True) if code == 2}
    seen = set()
    for path in out.glob("runs/*/evaluation/*/predictions.parquet"):
        seen |= set(pq.read_table(path).column("image_id").to_pylist())
    assert len(seen) == 36
    assert not seen & closed
    assert not (out / "opened.jsonl").exists()


def test_opening_the_test_rows_is_said_and_written_down(
    run_compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_compare("folds.over=all", arms=ARMS[:1])
    assert "opening the test rows as part of the folds of store" in capsys.readouterr().err
    assert len(read_json_lines(out / "opened.jsonl")) == 1
    found = read_json(out / "comparison.json")
    assert sum(fold["images"] for fold in found["sizes"]["all"]["arms"]["classes"]["folds"]) == 48
    assert found["design"]["openings"] == 1
    run_compare("folds.over=all", arms=ARMS[:1])
    assert len(read_json_lines(out / "opened.jsonl")) == 1, "nothing was opened again"


def test_a_second_start_does_only_what_is_left(run_compare: Compare, executor: Any) -> None:
    out = run_compare()
    before = (out / "comparison.json").read_bytes()
    executor.commands.clear()
    run_compare()
    assert executor.commands == []
    assert (out / "comparison.json").read_bytes() == before
    shutil.rmtree(out / "runs" / "number-r1f2" / "evaluation")
    run_compare()
    assert [(module, Path(a[0].partition("=")[2]).name) for module, *a in executor.commands] == [
        ("medcls.evaluate", "number-r1f2")
    ]
    assert (out / "comparison.json").read_bytes() == before


def test_arms_and_sizes_may_join_but_none_may_change(run_compare: Compare, executor: Any) -> None:
    out = run_compare(arms=ARMS[:1])
    executor.commands.clear()
    run_compare(arms=ARMS)
    assert len(commands_of(executor, "medcls.train")) == 2
    with pytest.raises(ConfigError, match=r"holds number-r1f1 with other settings \(optimizer.lr=0.001 -> none\)"):
        run_compare(arms=(ARMS[0], "arms.number=[task=grade_regression]"))
    before = (out / "comparison.json").read_bytes()
    run_compare("only=[classes]", arms=ARMS)
    assert (out / "comparison.json").read_bytes() == before, "only= says what runs; all that is finished is compared"
    run_compare("only=[classes]", arms=ARMS[:1])
    assert list(read_json(out / "comparison.json")["sizes"]["all"]["arms"]) == ["classes"]
    works = {work["name"] for work in read_json(out / "plan.json")["works"]}
    assert "number-r1f1" in works


def test_a_failing_arm_stops_and_the_others_go_on(
    run_compare: Compare, executor: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    broken = f"arms.broken=[task=multiclass,model.weights={tmp_path}/broken.safetensors]"
    with pytest.raises(
        ArmsFailedError, match=r"1 of 3 arms failed \(broken in broken-r1f1: see .*broken-r1f1.log\)"
    ) as caught:
        run_compare(arms=(broken, *ARMS))
    assert caught.value.exit_code == 70
    said = capsys.readouterr().err
    assert "FAILED broken-r1f1 (exit code" in said
    assert "broken.safetensors" in said
    assert [one["run"] for one in commands_of(executor, "medcls.train") if "broken" in one["run"]].__len__() == 1
    found = read_json(tmp_path / "out" / "comparison.json")
    assert set(found["sizes"]["all"]["arms"]) == {"classes", "number"}
    assert found["failed"]["broken"] == {"work": "broken-r1f1", "exit_code": 65, "log": "logs/broken-r1f1.log"}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([74], 74), ([75], 75), ([75, 74], 74), ([74, 70], 70), ([74, 65], 70), ([-9], 70), ([], 70)],
)
def test_comparison_that_only_a_disk_or_an_interruption_ended_may_be_started_again(
    codes: list[int], expected: int
) -> None:
    assert ArmsFailedError("2 of 2 arms failed", codes).exit_code == expected


def test_a_holdout_takes_the_split_as_it_is_with_several_seeds(run_compare: Compare, executor: Any) -> None:
    out = run_compare("folds.kind=holdout", "folds.k=null", "folds.repeats=2", "seed=5", arms=ARMS[:1])
    trained = commands_of(executor, "medcls.train")
    assert [(one["split.name"], one["seed"]) for one in trained] == [("default", "5"), ("default", "6")]
    found = read_json(out / "comparison.json")
    assert [fold["fold"] for fold in found["sizes"]["all"]["arms"]["classes"]["folds"]] == ["s1", "s2"]
    assert found["design"]["openings"] == 1


def test_each_seed_of_a_holdout_draws_its_own_smaller_training_set(
    run_compare: Compare, executor: Any, store: Store
) -> None:
    out = run_compare("folds.kind=holdout", "folds.k=null", "folds.repeats=2", "sizes=[6,7]", "plan_only=true")
    folds = read_json(out / "plan.json")["folds"]
    assert [fold["split"] for fold in folds] == [f"default-s{seed}-n{size}" for seed in (1, 2) for size in (6, 7)]
    copy = Store(Path(read_json(out / "plan.json")["store"]))
    six, seven, other, _ = (read_split(copy, fold["split"])[0] for fold in folds)
    assert not np.array_equal(six == 0, other == 0)
    assert ((six == 0) <= (seven == 0)).all(), "a smaller size lies within a larger one of its seed"
    assert np.array_equal(six == 2, read_split(store, "default")[0] == 2), "the test rows are always the split's"


def test_repeats_have_seeds_of_their_own_unless_told_otherwise(run_compare: Compare, executor: Any) -> None:
    run_compare("folds.kind=repeated", "folds.repeats=2", "plan_only=true", out="own")
    assert executor.commands == []
    for out, same, expected in (("own", "false", {"0", "1"}), ("one", "true", {"0"})):
        path = run_compare(
            "folds.kind=repeated", "folds.repeats=2", f"folds.same_seed={same}", "plan_only=true", out=out
        )
        seeds = {text for work in read_json(path / "plan.json")["works"] for text in work["commands"][0]}
        assert {text.partition("=")[2] for text in seeds if text.startswith("seed=")} == expected


@pytest.fixture
def other_store(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], draw_picture: Any, tmp_path: Path
) -> Store:
    """12 other patients."""

    def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"patient_id": "other" + row["patient_id"]} for row in rows]

    raw = write_source(tmp_path / "other_raw", patients=18, classes=("0", "1", "2"), rewrite=rename)
    for number, path in enumerate(sorted((raw / "images").iterdir())):
        cv2.imwrite(str(path), draw_picture(number // 2 % 3, 5000 + number))
    return run_prepare(raw, tmp_path / "other", "split.test=0.3", "split.val=0.3")


CHAINS = (
    "++arms.frozen={steps: [['store=first'], ['transfer=frozen']]}",
    "++arms.tuned={steps: [['store=first'], ['transfer=finetune']]}",
    "arms.direct=[transfer=finetune]",
)


def test_a_step_on_another_store_is_trained_once_and_shared(
    run_compare: Compare, executor: Any, other_store: Store
) -> None:
    out = run_compare(f"stores.first={other_store.folder}", arms=CHAINS)
    trained = commands_of(executor, "medcls.train")
    shared = [one for one in trained if "_shared" in one["run"]]
    assert len(shared) == 1
    assert shared[0]["store"] == str(other_store.folder)
    assert shared[0]["split.name"] == "default"
    heirs = [one for one in trained if one.get("model.weights") == shared[0]["run"]]
    assert len(heirs) == 4
    cost = read_json(out / "comparison.json")["sizes"]["all"]["arms"]
    assert cost["direct"]["cost"]["shared_seconds"] == 0
    assert len(commands_of(executor, "medcls.evaluate")) == 6


def test_an_arm_may_be_called_step(run_compare: Compare) -> None:
    """Works are found by their fold, not by what their names look like."""
    steps = "['transfer=finetune'], ['transfer=finetune', 'transfer.val_seen=allow']"
    out = run_compare(arms=(f"++arms.two-step2={{steps: [{steps}]}}",))
    cost = read_json(out / "comparison.json")["sizes"]["all"]["arms"]["two-step2"]["cost"]
    assert cost["trainings"] == 4
    assert cost["train_images_per_second"] > 0


def test_the_test_share_does_not_depend_on_the_sizes_asked_for(store: Store, copy_store: Callable[..., Path]) -> None:
    given = [f"store={copy_store()}", "out=nowhere", "folds.k=2", "folds.val=0.34", QUICK, *ARMS]
    shares = [make_plan(compose_job("compare", [*given, f"sizes={sizes}"])).test_share for sizes in ("[6]", "[6,0]")]
    assert shares[0] == shares[1] == pytest.approx(1.0, abs=0.2)


def test_runs_on_other_data_are_not_taken_for_finished(
    run_compare: Compare, other_store: Store, certify: Callable[[Path], None], tmp_path: Path
) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"some")
    arms = (*CHAINS[:1], f"++arms.file=[model.weights={weights}]")
    plan = ("plan_only=true", "common=[model.weights=null,device=cpu]")
    run_compare(f"stores.first={other_store.folder}", *plan, arms=arms)
    weights.write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"holds file-r1f1 on other weights than those found now"):
        run_compare(f"stores.first={other_store.folder}", *plan, arms=arms)
    weights.write_bytes(b"some")
    labels = other_store.folder / "labels.parquet"
    table = pq.read_table(labels)
    pq.write_table(table.append_column("label_more", table.column("label")), labels)
    certify(other_store.folder)
    with pytest.raises(ConfigError, match=r"holds _shared-first-.* on other labels than those found now"):
        run_compare(f"stores.first={other_store.folder}", *plan, arms=arms)


def test_store_and_results_may_move(
    run_compare: Compare, executor: Any, copy_store: Callable[..., Path], tmp_path: Path
) -> None:
    """Only paths change: nothing is trained again, and what is left is evaluated on the store where it is now."""
    before = (run_compare(arms=ARMS[:1]) / "comparison.json").read_bytes()
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere" / "runs" / "classes-r1f2" / "evaluation")
    executor.commands.clear()
    moved = run_compare.move_store()  # type: ignore[attr-defined]
    run_compare(arms=ARMS[:1], out="elsewhere")
    assert [module for module, *_ in executor.commands] == ["medcls.evaluate"]
    assert commands_of(executor, "medcls.evaluate")[0]["store"] == str(moved)
    assert (tmp_path / "elsewhere" / "comparison.json").read_bytes() == before


def test_what_cannot_be_planned_is_refused_before_anything_runs(
    run_compare: Compare, executor: Any, other_store: Store
) -> None:
    for arms, kind, message in (
        (CHAINS, MissingInputError, r"stores\.first=DIR is missing: arm frozen trains on it first"),
        (("arms.a=[trainer.epochs=0]",), ConfigError, r"arms\.a: trainer\.epochs=0: expected >= 1"),
        (("arms.a=[modle=resnet18]",), ConfigError, r"arms\.a: modle is not a setting"),
        (("arms.a=[seed=3]",), ConfigError, r"arms\.a: seed=3: the comparison sets seed= itself"),
        (("arms.a=[run=x]",), ConfigError, r"the comparison sets run= itself"),
        (("arms.a=[model]",), ConfigError, r"arms\.a: 'model' is not key=value"),
        (("arms._a=[model=vgg11]",), ConfigError, r"expected a name"),
        (("++arms.a={steps: []}",), ConfigError, r"expected \[overrides\] or \{steps"),
        (("arms.voxels=[model=vgg11]",), ConfigError, r"that is the name of the baseline beside arms on volumes"),
        (
            ("arms.a=[model=encoder3d]",),
            DataError,
            r"arms\.a: model\.name=encoder3d takes volumes, the store holds images",
        ),
        (
            ("arms.a=[model.weights=nowhere]",),
            MissingInputError,
            r"arms\.a: model\.weights=nowhere is neither a finished run",
        ),
    ):
        with pytest.raises(kind, match=message):
            run_compare(arms=arms)
    for setting, message in (
        ("metric=quadratic_kapa", r"do not share a metric quadratic_kapa.*nearest: quadratic_kappa"),
        ("secondary=[log_loss]", r"do not share a metric log_loss"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_compare(setting)
    with pytest.raises(ConfigError, match=r"arms one and two learn other things: classes"):
        run_compare(arms=("arms.one=[task=multiclass]", "arms.two=['task=binary','task.classes={0: 0, 1: 1, 2: 1}']"))
    with pytest.raises(ConfigError, match="only=nubmer: expected one of classes, number"):
        run_compare("only=[nubmer]")
    with pytest.raises(ConfigError, match="its last step sets store="):
        run_compare(f"stores.first={other_store.folder}", arms=("arms.a=[store=first]",))
    with pytest.raises(ConfigError, match=r"step 2 sets model\.weights=x, but it starts from the step before"):
        run_compare(
            f"stores.first={other_store.folder}", arms=("++arms.a={steps: [['store=first'], ['model.weights=x']]}",)
        )
    with pytest.raises(DataError, match=r"fold r1f\d+: .*test has no image of"):
        run_compare("folds.k=10")
    with pytest.raises(DataError, match=r"sizes=500: fold r1f1 has \d+ training images"):
        run_compare("sizes=[500]")
    assert executor.commands == []


def test_folds_of_other_arguments_take_other_names_or_are_refused(run_compare: Compare) -> None:
    run_compare("plan_only=true")
    run_compare("plan_only=true", "folds.seed=1", out="other")
    with pytest.raises(ConfigError, match=r"split\.name=kfold2-s0-r1f1 is already in the store.*folds\.name="):
        run_compare("plan_only=true", "folds.val=0.5", out="third")
    run_compare("plan_only=true", "folds.val=0.5", "folds.name=mine", out="third")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folds.kind=5x2", "folds.k=3"], "has k=2 and repeats=5"),
        (["folds.kind=kfold", "folds.repeats=2"], "folds.kind=repeated takes both"),
        (["folds.kind=holdout", "folds.over=all"], "takes the store's own split"),
        (["folds.kind=kfolds"], "nearest: kfold"),
        (["sizes=[10,10]"], "different numbers"),
        (["slurm.timeout_min=5"], "needs executor=slurm"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_job("compare", arguments)


SHIPPED = sorted(path.stem for path in (conf_folder() / "comparison").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_step_of_a_shipped_comparison_is_a_training(name: str) -> None:
    job = compose_job("compare", [f"comparison={name}"])
    for arm in job.arms:
        for number, step in enumerate(job.steps(arm)):
            chosen = merge_overrides(job.shared, step)
            weights = "a run" if number else ""
            trained = compose_job("train", choose_settings(chosen, weights=weights))
            assert trained.model.weights != "imagenet" or number == 0


@pytest.fixture
def lesions(write_source: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path) -> Store:
    """36 patients with one of Menegola's three labels."""

    def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"patient_id": "lesion" + row["patient_id"]} for row in rows]

    classes = ("benign", "basal_cell_carcinoma", "melanoma")
    raw = write_source(tmp_path / "lesions_raw", patients=36, classes=classes, rewrite=rename)
    for number, path in enumerate(sorted((raw / "images").iterdir())):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        image[:2] = number  # no pixels of the other store
        cv2.imwrite(str(path), image)
    return run_prepare(raw, tmp_path / "lesions", "split.test=0.2", "split.val=0.2")


SMALL = (
    "extra=[model=resnet18,model.weights=null,augment=none,trainer.epochs=1,trainer.max_steps=1,trainer.batch_size=8,"
    "trainer.channels_last=false,workers=0,device=cpu]"
)


@pytest.mark.usefixtures("tiny2d")
def test_menegolas_chain_goes_through_both_stores(store: Store, lesions: Store, executor: Any, tmp_path: Path) -> None:
    """ImageNet to retina to lesions to a support vector machine, and the machine on the retina's features alone."""
    arms = "only=[B_retina,F_imagenet_retina_tuned]"
    where = [f"store={lesions.folder}", f"stores.retina={store.folder}", f"out={tmp_path / 'out'}"]
    folds = ["folds.kind=kfold", "folds.k=2", "folds.val=0.3", "replicates=100"]
    compare(compose_job("compare", ["comparison=melanoma_menegola", *where, *folds, arms, SMALL]))
    trained = commands_of(executor, "medcls.train")
    assert sum("_shared" in one["run"] for one in trained) == 2, "the retina from scratch, and from ImageNet"
    chain = [one for one in trained if "F_imagenet" in one["run"]]
    assert [one["transfer"] for one in chain] == ["finetune", "frozen"] * 2
    assert chain[1]["model.weights"] == chain[0]["run"]
    last = read_card(Path(chain[1]["run"]) / "model.safetensors")
    assert [one["run"] for one in last.ancestors if one["weights"] == "run"] == [
        Path(chain[0]["model.weights"]).name,
        Path(chain[0]["run"]).name,
    ]
    found = read_json(tmp_path / "out" / "comparison.json")
    assert found["metric"] == "auc"
    assert set(found["sizes"]["all"]["arms"]) == {"B_retina", "F_imagenet_retina_tuned"}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["p1", "p2", "p3"])
def test_menegola_whole(protocol: str, store: Store, lesions: Store, executor: Any, tmp_path: Path) -> None:
    """All six arms over 5 x 2 folds: 5 x 2 x 14 trainings of one step, ImageNet's weights left out."""
    where = [f"store={lesions.folder}", f"stores.retina={store.folder}", f"out={tmp_path / 'out'}", "folds.val=0.3"]
    extra = SMALL.replace("[", f"[task=menegola_{protocol},")
    compare(compose_job("compare", ["comparison=melanoma_menegola", *where, "replicates=100", extra]))
    found = read_json(tmp_path / "out" / "comparison.json")["sizes"]["all"]
    assert len(found["arms"]) == 6
    assert all(len(arm["folds"]) == 10 for arm in found["arms"].values())
    assert len(found["pairs"]["auc"]) == 15
    assert {pair["test"]["name"] for pair in found["pairs"]["auc"]} == {"5x2cv F test"}


PICKLE = b"cos\nsystem\n(S'touch MARK'\ntR."


def task_of(tmp_path: Path, *codes: int) -> ComparisonTask:
    """A task of commands that print and exit with these codes."""
    commands = [
        ["python", "-c", f"import os; print('threads', os.environ['OMP_NUM_THREADS']); exit({c})"] for c in codes
    ]
    return ComparisonTask(
        name="arm-r1f1",
        commands=commands,
        makes=[tmp_path / f"made{n}" for n in range(len(codes))],
        log=tmp_path / "logs" / "arm.log",
        seconds=tmp_path / "logs" / "arm.json",
        environment={"OMP_NUM_THREADS": "3"},
    )


def test_commands_run_in_order_until_one_fails_and_are_logged(tmp_path: Path) -> None:
    assert run_task(task_of(tmp_path, 0, 7, 0)) == 7
    log = (tmp_path / "logs" / "arm.log").read_text()
    assert log.count("$ python -c") == 2
    assert log.count("threads 3") == 2
    assert run_task(task_of(tmp_path, 0)) == 0
    assert "exit(7)" in (tmp_path / "logs" / "arm.log").read_text(), "an earlier log is kept"


def test_seconds_count_until_something_is_made(tmp_path: Path) -> None:
    task = task_of(tmp_path, 0)
    run_task(task)
    (kept,) = read_json(task.seconds).values()
    task.makes[0].touch()
    run_task(task)
    assert list(read_json(task.seconds).values()) == [kept]


def test_local_processes_end_when_told(tmp_path: Path) -> None:
    executor = LocalExecutor(2)
    waiting = task_of(tmp_path, 0)
    waiting.commands[0] = ["python", "-c", "import time; time.sleep(60)"]
    handle = executor.start(waiting)
    assert executor.start(task_of(tmp_path, 5)).result() == 5
    executor.stop()
    assert handle.done()
    assert handle.result() != 0


def test_submitit_runs_the_same_tasks(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    executor = SlurmExecutor(tmp_path / "slurm", slots=4, options={"cluster": "local", "timeout_min": 5})
    good, bad = executor.start(task_of(tmp_path, 0)), executor.start(task_of(tmp_path / "bad", 9))
    assert (good.result(), bad.result()) == (0, 9)
    assert (good.done(), bad.done()) == (True, True)
    assert read_json(tmp_path / "slurm" / "jobs.json").keys() == {"arm-r1f1"}
    assert not list((tmp_path / "slurm").rglob("*.pkl")), "nothing is pickled into a folder that others may write into"
    with pytest.raises(ConfigError, match="submitit says"):
        SlurmExecutor(tmp_path / "slurm", slots=1, options={"cluster": "local", "timeout": 5})


@pytest.fixture
def set_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A squeue that does what a line of shell says: set_queue("echo RUNNING")."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(line: str) -> None:
        (folder / "squeue").write_text(f"#!/bin/sh\n{line}\n")
        (folder / "squeue").chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("line", "queued"),
    [
        ("echo RUNNING", True),
        ("exit 0", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", True),
    ],
)
def test_what_slurm_says_of_a_job(line: str, queued: bool, set_queue: Callable[[str], None]) -> None:
    set_queue(line)
    assert is_queued("12") is queued


def test_missing_tools_of_slurm_are_named_before_anything_is_submitted(
    set_queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ConfigError, match=r"executor=slurm: sbatch and squeue not found on PATH: .*executor=local"):
        SlurmExecutor(tmp_path / "slurm", slots=1, options={})
    set_queue("exit 0")
    with pytest.raises(ConfigError, match="executor=slurm: sbatch not found on PATH"):
        SlurmExecutor(tmp_path / "slurm", slots=1, options={})


def test_job_that_slurm_refuses_is_told_in_its_words(
    set_queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    set_queue("exit 0")
    for name, line in {"srun": "exit 0", "sbatch": "echo 'sbatch: error: invalid partition: gpus' >&2; exit 1"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    executor = SlurmExecutor(tmp_path / "slurm", slots=1, options={})
    with pytest.raises(ConfigError, match=r"sbatch refused arm-r1f1: .*invalid partition: gpus.*: correct slurm"):
        executor.start(task_of(tmp_path, 0))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"commands": 1}', "[" * 100_000, "null"]
    + [json.dumps({"name": "a", "commands": c, "makes": m, "log": "l", "seconds": "s", "environment": e})
       for c, m, e in (([[]], ["x"], {}), ([["python"]], [], {}), ([[1]], ["x"], {}), ([["a"]], ["x"], {"A": 1}))],
)  # fmt: skip
def test_damaged_task_of_a_job_is_one_line_and_65(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([text, str(tmp_path / "result.json")]) == 65
    said = capsys.readouterr().err
    assert said.startswith("comparison_task: TASK is not a task of medcls.compare (")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_the_cluster_ended_has_an_exit_code(
    set_queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_executors, "_ASK_SECONDS", 0.0)
    result = tmp_path / "result.json"
    set_queue("echo PENDING")
    waiting = comparison_executors._QueuedJob("12", result)
    assert not waiting.done()
    set_queue("exit 0")
    assert not waiting.done(), "its result may still be on the way"
    assert waiting.done()
    assert waiting.result() == 70
    write_json(result, {"exit_code": 65})
    assert comparison_executors._QueuedJob("12", result).done()
    assert comparison_executors._QueuedJob("12", result).result() == 65


@pytest.mark.parametrize(
    "content",
    [b"{}", b'{"exit_code": "0"}', b'{"exit_code": true}', b"[0]", b"\xff", b"cos\nsystem\n(S'touch MARK'\ntR."],
)
def test_result_of_a_job_that_somebody_else_wrote_is_no_success_and_runs_nothing(
    content: bytes, tmp_path: Path
) -> None:
    mark, result = tmp_path / "mark", tmp_path / "result.json"
    result.write_bytes(content.replace(b"MARK", str(mark).encode()))
    job = comparison_executors._QueuedJob("12", result)
    assert job.done()
    assert job.result() == 70
    assert not mark.exists()


@pytest.mark.parametrize(
    "entry",
    [
        "12",
        {"job": "--help", "result": f"result-{'0' * 32}.json"},
        {"job": "12", "result": "../../result.json"},
        {"job": "12"},
    ],
)
def test_entry_of_jobs_that_somebody_else_wrote_names_no_job(
    entry: Any, set_queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    executor = SlurmExecutor(tmp_path / "slurm", slots=1, options={"cluster": "local"})
    monkeypatch.setattr(executor, "_cluster", "slurm")
    set_queue("echo RUNNING")
    assert executor._find(entry) is None
    found = executor._find({"job": "12", "result": f"result-{'0' * 32}.json"})
    assert found is not None
    assert not found.done()


def test_shell_of_a_cluster_comes_from_the_command_line_only(
    run_compare: Compare, executor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Commands and slurm.* that somebody has written into the comparison's folder, a run or the store run nothing."""
    out = run_compare(arms=ARMS[:1])
    plan = read_json(out / "plan.json")
    shell = {"slurm": {"slurm_setup": ["touch /tmp/mark"]}, "executor": "slurm"}
    for work in plan["works"]:
        work["commands"] = [["touch", "/tmp/mark"]]
    write_json(out / "plan.json", plan | shell)
    run = next((out / "runs").iterdir())
    write_json(run / "config" / "settings.json", read_json(run / "config" / "settings.json") | shell)
    finish_run(run, *read_state(run / "model.safetensors"))
    for folder in (out / "runs").iterdir():
        shutil.rmtree(folder / "evaluation")
    asked: list[Any] = []

    def build(job: CompareJob, _: Path) -> tuple[Any, int]:
        asked.append((job.executor, job.slurm))
        return executor, 1

    monkeypatch.setattr(stage, "build_executor", build)
    executor.commands.clear()
    run_compare(arms=ARMS[:1])
    assert asked == [("local", {})]
    assert executor.commands
    assert {command[0] for command in executor.commands} <= {"medcls.train", "medcls.evaluate"}


def test_task_comes_back_from_a_command_line_and_its_exit_code_is_written(tmp_path: Path) -> None:
    task = task_of(tmp_path, 0, 7)
    assert ComparisonTask.from_text(task.to_text()) == task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        assert main([task.to_text(), str(tmp_path / "result.json")]) == 7
    assert read_json(tmp_path / "result.json") == {"exit_code": 7}


def test_an_interrupted_training_starts_again(store: Store, tmp_path: Path) -> None:
    class Preempting:
        """Exit code 75 twice, then 0; and a training that always is."""

        slots = 2

        def __init__(self) -> None:
            self.started: list[str] = []

        def start(self, task: ComparisonTask) -> Future[int]:
            self.started.append(task.name)
            future: Future[int] = Future()
            future.set_result(0 if task.name == "a-r1f1" and self.started.count(task.name) == 3 else 75)
            return future

        def stop(self) -> None:
            raise AssertionError("nothing runs")

    works = [Work(f"{arm}-r1f1", (arm,), "r1f1", [], {}, [["python"]], (), False) for arm in "ab"]
    executor = Preempting()
    failed = run_works(works, ComparisonFolder(tmp_path, store), executor, threads=1)
    assert executor.started.count("a-r1f1") == 3
    assert {arm: one.exit_code for arm, one in failed.items()} == {"b": 75}


def test_progress_says_how_long_it_may_take() -> None:
    assert describe_progress("a-r1f1", [40.0, 20.0], left=4, slots=2) == "2/6 a-r1f1 in 20 s; about 60 s left"
    assert describe_progress("a-r1f1", [7200.0], left=0, slots=2) == "1/1 a-r1f1 in 2.0 h"


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(store: Store, copy_store: Callable[..., Path], tmp_path: Path) -> None:
    job = compose_job(
        "compare",
        [
            f"store={copy_store()}",
            f"out={tmp_path / 'out'}",
            "folds.k=2",
            "folds.val=0.34",
            "replicates=100",
            QUICK,
            *ARMS,
            "jobs=2",
        ],
    )
    compare(job)
    found = read_json(tmp_path / "out" / "comparison.json")
    for arm in found["sizes"]["all"]["arms"].values():
        assert arm["cost"]["train_seconds"] > 0
        assert arm["cost"]["evaluate_seconds"] > 0
    environment = read_json(tmp_path / "out" / "runs" / "number-r1f1" / "environment.json")
    assert environment["threads"] >= 1
    assert np.isfinite(arm["cost"]["train_images_per_second"])
