"""Every option of every group composes; values out of range name the field, the value and the range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from medcls import config
from medcls.config import NAMED, SCHEMAS, check_choice, check_file_name, check_range, conf_folder, nearest
from medcls.data.label_words import is_healthy
from medcls.errors import ConfigError

Compose = Callable[..., Any]

GROUP_FILES = sorted(conf_folder().glob("*/*.yaml"))
# Which command a group belongs to, where it is not train's.
COMMAND = {
    "corruption": "pretrain",
    "image": "prepare",
    "split": "prepare",
    "deidentify": "prepare",
    "comparison": "compare",
    "pretraining": "pretrain",
}
# What an option needs beside itself to make sense.
ALONGSIDE: dict[str, list[str]] = {
    "transfer=partial": ["transfer.train_from=layer4"],
    "model=clinical": ["clinical.categorical=[sex]"],
    "model=timm": ["model.name=test_vit"],
    "model=torchvision": ["model.name=densenet121"],
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", GROUP_FILES, ids=name_of)
def test_every_option_composes_and_changes_only_its_group(path: Path, compose_job: Compose) -> None:
    group = path.parent.name
    command = COMMAND.get(group, "train")
    job = compose_job(command, name_of(path), *ALONGSIDE.get(name_of(path), []))
    assert isinstance(job, SCHEMAS[command])
    if group in ("experiment", "pretraining"):
        assert job.run
    elif group == "comparison":
        assert job.arms
    else:
        assert is_dataclass(getattr(job, group))


@pytest.mark.parametrize("path", sorted(conf_folder().rglob("*.yaml")), ids=lambda p: str(p.relative_to(conf_folder())))
def test_every_file_is_at_most_20_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 20


def test_groups_are_one_deep() -> None:
    assert [p for p in conf_folder().rglob("*.yaml") if len(p.relative_to(conf_folder()).parts) > 2] == []


STUDIES = [path for path in GROUP_FILES if path.parent.name in NAMED.values()]


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_every_study_starts_with_a_comment_that_has_its_command(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command = next(name for name, group in NAMED.items() if group == path.parent.name)
    assert any(f"python -m medcls.{command}" in line for line in comments)


@pytest.mark.parametrize("command", sorted(SCHEMAS))
def test_a_command_composes_with_its_defaults(command: str, compose_job: Compose) -> None:
    assert isinstance(compose_job(command), SCHEMAS[command])


def test_the_option_sets_what_its_file_says(compose_job: Compose) -> None:
    job = compose_job("train", "model=vgg16_bn", "transfer=frozen", "optimizer=sgd", "schedule=step")
    assert (job.model.name, job.transfer.kind, job.optimizer.name) == ("vgg16_bn", "frozen", "sgd")
    assert job.schedule.step_epochs == [6, 8]


def test_below_load_there_are_only_plain_objects(compose_job: Compose) -> None:
    job = compose_job("train", "task.classes={NC: 0, AD: 1}", "augment=dermoscopy")
    assert type(job.task.classes) is dict
    assert type(job.augment.transforms["Affine"]["scale"]) is list


OUT_OF_RANGE = [
    ("train", "trainer.epochs=0", ["trainer.epochs=0", ">= 1"]),
    ("train", "trainer.batch_size=1", ["trainer.batch_size=1", ">= 2"]),
    ("train", "trainer.clip_norm=0", ["trainer.clip_norm=0", "> 0"]),
    ("train", "trainer.ema_decay=1", ["trainer.ema_decay=1", "<= 0.99999"]),
    ("train", "trainer.patience=0", ["trainer.patience=0", ">= 1"]),
    ("train", "trainer.max_steps=0", ["trainer.max_steps=0", ">= 1"]),
    ("train", "optimizer.lr=0", ["optimizer.lr=0", "> 0 and <= 10"]),
    ("train", "optimizer.lr=nan", ["optimizer.lr=nan", "> 0"]),
    ("train", "optimizer.lr=-1", ["optimizer.lr=-1"]),
    ("train", "schedule.warmup_epochs=inf", ["schedule.warmup_epochs=inf"]),
    ("train", "schedule.name=step", ["schedule.step_epochs=[]"]),
    ("train", "transfer.layer_decay=0", ["transfer.layer_decay=0", "> 0 and <= 1"]),
    ("train", "transfer.kind=frozn", ["frozn", "nearest: frozen"]),
    ("train", "transfer=partial", ["transfer.train_from=STAGE"]),
    ("train", "transfer.train_from=layer4", ["transfer.train_from=layer4", "set transfer=partial or gradual"]),
    ("train", "transfer.thaw_every=0", ["transfer.thaw_every=0", ">= 1"]),
    ("train", "model.init=meanvar", ["model.init=meanvar", "nearest: mean_var"]),
    ("train", "model.init=hybrid", ["model.init=hybrid with model.init_to=None", "model.init_to=layer2"]),
    ("train", "model.init_to=layer2", ["model.init=full with model.init_to=layer2"]),
    ("train", "model.width=0", ["model.width=0", "> 0 and <= 1"]),
    ("train", "model.dropout=1", ["model.dropout=1", "<= 0.95"]),
    ("train", "model.planes=axal", ["nearest: axial"]),
    ("train", "model.pooling=max", ["mean, attention"]),
    ("train", "model.num_slices=-1", ["model.num_slices=-1", ">= 0"]),
    ("train", "model.pooling=attention", ["model.pooling=attention", "slices_NAME", "resnet18"]),
    ("train", "model=slices_resnet18 model.planes=orthogonal", ["model.num_slices=16", "three"]),
    ("train", "model.supervision=[1,1]", ["acnn3d", "resnet18"]),
    ("train", "model=acnn3d model.supervision=[1]", ["[FC1, FC2]"]),
    ("train", "model=dsa3dcnn model.supervision=[-1,1]", ["model.supervision=-1", ">= 0"]),
    ("train", "model=dsa3dcnn model.supervision=[1,0]", ["the last=0", "> 0"]),
    ("train", "model.name=clinical", ["model.weights=imagenet", "no network to load them into"]),
    ("train", "task.kind=multiclas", ["multiclas", "nearest: multiclass"]),
    ("train", "task.loss=mse", ["task.loss", "multiclass", "mse", "cross_entropy"]),
    ("train", "task.focal_gamma=11", ["task.focal_gamma=11", "<= 10"]),
    ("train", "task.sampler=balancd", ["nearest: balanced"]),
    ("train", "task.sampler=balanced task.class_weights=balanced", ["corrected for twice", "one of them only"]),
    ("train", "task.grades=true", ["task.grades=true", "regression"]),
    ("train", "task.classes={a: 0, b: 2}", ["without a gap"]),
    ("train", "task.classes={a: 0, b: 0}", ["at least two"]),
    ("train", "crop.size=224", ["crop.size=224", "crop.scales"]),
    ("train", "crop.scales=[256]", ["crop.scales=[256]", "[smallest, largest]"]),
    ("train", "crop.scales=[384,256]", ["crop.scales=[384, 256]", "[smallest, largest]"]),
    ("train", "crop.scales=[256,384]", ["crop.size=null", "one size"]),
    ("train", "crop=vgg_fixed crop.size=257", ["crop.size=257", "<= 256"]),
    ("train", "clinical.unseen=zero", ["clinical.unseen=zero", "refuse, missing"]),
    ("train", "clinical.lr_scale=-1", ["clinical.lr_scale=-1", ">= 0"]),
    ("train", "clinical.l2=0", ["clinical.l2=0", "> 0 and <= 1"]),
    ("train", "seed=-1", ["seed=-1", ">= 0"]),
    ("train", "workers=-2", ["workers=-2", ">= -1"]),
    ("train", "precision=fp8", ["precision=fp8", "auto, fp32, bf16, fp16"]),
    ("train", "device=gpu", ["device=gpu", "cuda"]),
    ("prepare", "image.size=4", ["image.size=4", "8 to 8192"]),
    ("prepare", "image.size=[1,2,3]", ["image.size", "height, width"]),
    ("prepare", "image.size=10.5", ["image.size=10.5"]),
    ("prepare", "image.channels=2", ["image.channels=2", "expected one of 1, 3"]),
    ("prepare", "image.dtype=float16", ["image.dtype=float16", "uint8, uint16"]),
    ("prepare", "image.percentiles=[99,1]", ["image.percentiles", "within 0 to 100"]),
    ("prepare", "image.percentiles=[1]", ["image.percentiles"]),
    ("prepare", "image.windows_hu=[[40,nan]]", ["image.windows_hu", "width > 1"]),
    ("prepare", "image.windows_hu=[[40,400],[0,80]]", ["2 windows", "image.channels=1"]),
    ("prepare", "split.test=0.91", ["split.test=0.91", "<= 0.9"]),
    ("prepare", "split.test=0.5 split.val=0.5", ["split.test + split.val=1.0", "<= 0.95"]),
    ("prepare", "split.on_leak=droop", ["nearest: drop"]),
    ("prepare", "split.near_duplicate_bits=256", ["split.near_duplicate_bits=256", "<= 255"]),
    ("prepare", "split.name=a/b", ["split.name=a/b", "plain name"]),
    ("prepare", "patients=per_file", ["patients=per_file", "nearest: per_image"]),
    ("prepare", "max_quarantined=1.5", ["max_quarantined=1.5", "<= 1"]),
    ("pretrain", "stacking=greed", ["stacking=greed", "nearest: greedy"]),
    ("pretrain", "loss=mae", ["loss=mae", "mse, l1, ssim, half_sse"]),
    ("pretrain", "corruption.kind=nose", ["nearest: noise"]),
    ("pretrain", "corruption.mask_ratio=1", ["corruption.mask_ratio=1", "<= 0.95"]),
    ("pretrain", "corruption.noise_std=0", ["corruption.noise_std=0", "> 0"]),
    ("pretrain", "patch.size=[8,8]", ["patch.size=[8, 8]", "[depth, height, width]"]),
    ("pretrain", "patch.size=[8,0,8]", ["patch.size=0", ">= 1"]),
    ("pretrain", "figures=-1", ["figures=-1", ">= 0"]),
    ("pretrain", "trainer.sync_batchnorm=true", ["sync_batchnorm=true", "no BatchNorm"]),
    ("pretrain", "trainer.batch_size=0", ["trainer.batch_size=0", ">= 1"]),
    ("pretrain", "model.weights=run", ["model.weights=run", "starts from random numbers"]),
    ("pretrain", "model.dropout=0.1", ["model.dropout=0.1", "corruption=noise"]),
    ("pretrain", "stacking=greedy trainer.max_steps=3", ["trainer.max_steps=3", "trainer.epochs"]),
    ("evaluate", "split=tset", ["split=tset", "nearest: test"]),
    ("evaluate", "replicates=10", ["replicates=10", ">= 100"]),
    ("evaluate", "replicates=0 report=false", ["replicates=0", ">= 1"]),
    ("evaluate", "replicates=10 report=false against=other", ["replicates=10", ">= 100"]),
    ("evaluate", "views=dens", ["views=dens", "nearest: dense"]),
    ("evaluate", "views=dense scales=[4]", ["scales=4", ">= 8"]),
    ("evaluate", "views=multicrop crops_per_side=1", ["crops_per_side=1", ">= 2"]),
    ("evaluate", "views=dense crops_per_side=3", ["crops_per_side=3", "only views=multicrop"]),
    ("evaluate", "views=dense robustness=true", ["robustness", "remove views="]),
    ("show", "per_class=0", ["per_class=0", ">= 1"]),
]


@pytest.mark.parametrize(("command", "arguments", "expected"), OUT_OF_RANGE, ids=[a for _, a, _ in OUT_OF_RANGE])
def test_out_of_range_names_field_value_and_range(
    command: str, arguments: str, expected: list[str], compose_job: Compose
) -> None:
    separate = arguments.split() if "{" not in arguments else [arguments]
    with pytest.raises(ConfigError) as error:
        compose_job(command, *separate)
    message = str(error.value)
    assert [part for part in expected if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["transfer.kind=scratch"], "transfer=scratch with model.weights=imagenet"),
        (["trainer.activation_checkpointing=true", "trainer.compile=true"], "remove one of the two"),
        (["model.weights=null", "model.init=mean_var"], "model.init=mean_var needs model.weights="),
        (["task=ordinal", "task.label_smoothing=0.1"], "only task.kind=multiclass"),
        (["model=clinical"], "takes no images: set clinical.categorical"),
        (["task=multilabel", "task.classes={a: 0, b: 1}"], "takes no classes"),
        (["task=binary", "task.classes={a: 0, b: 1, c: 2}"], "takes the indices 0 and 1"),
    ],
)
def test_values_that_contradict_each_other_are_refused(arguments: list[str], part: str, compose_job: Compose) -> None:
    with pytest.raises(ConfigError, match=part):
        compose_job("train", *arguments)


def test_auto_means_the_papers_choices_for_the_papers_autoencoder(compose_job: Compose) -> None:
    paper, modern = (compose_job("pretrain", f"model={name}") for name in ("autoencoder3d_hosseini", "autoencoder3d"))
    assert (paper.greedy, paper.loss_name, paper.model.normalize) == (True, "half_sse", "min_max")
    assert (modern.greedy, modern.loss_name) == (False, "mse")
    assert not compose_job("pretrain", "model=autoencoder3d_hosseini", "stacking=joint").greedy
    assert compose_job("pretrain", "trainer.batch_size=1").trainer.batch_size == 1


def test_the_studies_of_hosseini_asl_are_their_codes_settings(compose_job: Compose) -> None:
    """Adadelta without a schedule, no augmentation; the autoencoder greedily, the classifier frozen, a loss a layer."""
    autoencoder = compose_job("pretrain", "pretraining=ad_cae")
    classifier = compose_job("train", "experiment=ad_dsa3dcnn")
    for job in (autoencoder, classifier):
        chosen = (job.optimizer.name, job.optimizer.lr, job.optimizer.weight_decay, job.schedule.name)
        assert chosen == ("adadelta", 1.0, 0.0, "constant")
        assert (job.model.normalize, job.augment.transforms) == ("min_max", {})
    assert autoencoder.greedy
    assert (autoencoder.trainer.batch_size, autoencoder.trainer.epochs) == (1, 100)
    assert (classifier.transfer.kind, classifier.model.weights) == ("frozen", autoencoder.run)
    assert len(classifier.model.supervision) == 2


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("ad_nc", [{"NC"}, {"AD"}]),
        ("ad_mci", [{"MCI"}, {"AD"}]),
        ("mci_nc", [{"NC"}, {"MCI"}]),
        ("admci_nc", [{"NC"}, {"AD", "MCI"}]),
        ("ad_mci_nc", [{"NC"}, {"MCI"}, {"AD"}]),
    ],
)
def test_tasks_of_dementia_name_the_controls_or_the_milder_first(
    task: str, classes: list[set[str]], compose_job: Compose
) -> None:
    job = compose_job("train", "experiment=ad_dsa3dcnn", f"task={task}")
    made = [{label for label, index in job.task.classes.items() if index == number} for number in range(len(classes))]
    assert made == classes
    assert job.task.kind == ("binary" if len(classes) == 2 else "multiclass")


def test_scratch_takes_no_weights(compose_job: Compose) -> None:
    assert compose_job("train", "transfer=scratch").model.weights is None


def test_nearest_names_the_like_and_nothing_else() -> None:
    assert nearest("resnet19", ["vgg11", "resnet18"]) == " (nearest: resnet18)"
    assert nearest("zzz", ["vgg11", "resnet18"]) == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.1, 1.1])
def test_check_range_refuses_what_is_not_finite_or_outside(value: float) -> None:
    with pytest.raises(ConfigError, match="x="):
        check_range("x", value, low=0, high=1)


def test_check_range_keeps_the_closed_ends_and_leaves_the_open_one_out() -> None:
    check_range("x", 0, low=0, high=1)
    check_range("x", 1, low=0, high=1, open_low=True)
    with pytest.raises(ConfigError, match="> 0"):
        check_range("x", 0, low=0, high=1, open_low=True)


def test_check_choice_lists_and_suggests() -> None:
    check_choice("x", "a", ["a", "b"])
    with pytest.raises(ConfigError, match=r"x=beta: expected one of alpha, bet \(nearest: bet\)"):
        check_choice("x", "beta", ["alpha", "bet"])


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a/"])
def test_check_file_name_refuses_what_is_no_plain_name(name: str) -> None:
    with pytest.raises(ConfigError):
        check_file_name("split.name", name)


def test_conf_is_found_beside_the_package_or_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "medcls" / "conf"
    inside.mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "medcls" / "config" / "__init__.py"))
    with pytest.raises(ConfigError, match="conf/ is missing"):
        conf_folder()
    (inside / "train.yaml").touch()
    assert conf_folder() == inside


@pytest.mark.parametrize("path", [path for path in GROUP_FILES if path.parent.name == "task"], ids=name_of)
def test_ready_made_binary_tasks_have_no_healthy_positive_class(path: Path, compose_job: Compose) -> None:
    task = compose_job("train", name_of(path)).task
    positive = [label for label, index in task.classes.items() if index == 1]
    assert task.kind != "binary" or not any(map(is_healthy, positive))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["task=multiclass", "task.positive=a"], "only task.kind=binary has it"),
        (["task=binary", "task.order=[a,b]"], "task.kind=binary has no ordered classes"),
        (["task=regression", "task.order=[a,b]"], "task.kind=regression has no ordered classes"),
        (["task=ordinal", "task.order=[a,b]", "task.classes={a: 0, b: 1}"], ": remove one"),
    ],
)
def test_order_and_positive_class_where_they_mean_nothing_are_refused(
    settings: list[str], line: str, compose_job: Compose
) -> None:
    with pytest.raises(ConfigError, match=line):
        compose_job("train", *settings)
