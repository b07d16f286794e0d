"""The wide part adds to the logits what the columns say, beside the image's path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medcls.errors import ConfigError
from medcls.models.classifier import Answer, Classifier, WidePart, build_classifier, count_wide_outputs
from medcls.models.transfer import (
    build_parameter_groups,
    build_wide_group,
    choose_first_epochs,
    format_plan,
    plan_transfer,
    plan_wide,
)

Build = Callable[..., Classifier]


def draw(rows: int = 3, columns: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, 1, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randn(rows, columns, generator=generator)


def build(name: str = "resnet18", kind: str = "multiclass", columns: int = 2) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(name, Answer(kind, 3, num_clinical=columns)).eval()


def test_it_starts_at_nothing_and_adds_a_linear_function_of_the_columns() -> None:
    model, (images, clinical) = build(), draw()
    assert model.wide is not None
    with torch.no_grad():
        alone = model(images, clinical)
        model.wide.weight.copy_(torch.arange(6.0).view(3, 2))
        torch.testing.assert_close(model(images, clinical), alone + clinical @ model.wide.weight.T)


def test_the_image_sees_no_column() -> None:
    model, (images, clinical) = build(), draw()
    features: list[Tensor] = []
    model.backbone.register_forward_hook(lambda module, given, out: features.append(out))
    with torch.no_grad():
        model(images, clinical)
        model(images, -clinical)
    assert torch.equal(*features)


def test_corn_has_one_weight_a_column_for_all_grades_and_others_one_a_logit() -> None:
    outputs = {"binary": 1, "multiclass": 4, "multilabel": 4, "ordinal": 1, "joint": 5, "regression": 1}
    assert {output: count_wide_outputs(output, 4) for output in outputs} == outputs
    model, (images, clinical) = build(kind="ordinal"), draw()
    assert model.wide is not None
    with torch.no_grad():
        alone = model(images, clinical)
        model.wide.weight.fill_(1.0)
        moved = model(images, clinical) - alone
    torch.testing.assert_close(moved, clinical.sum(dim=1, keepdim=True).expand(-1, 2), atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_the_unit_of_a_number() -> None:
    wide = WidePart(1, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wide.weight.fill_(1.0)
        assert wide(torch.tensor([[129.0]])).item() == 129.0


def test_columns_that_are_missing_or_too_many_are_an_error() -> None:
    images, clinical = draw()
    with pytest.raises(ValueError, match="clinical columns are missing: this model takes clinical columns"):
        build()(images)
    with pytest.raises(ValueError, match="clinical columns given: this model takes only images"):
        build(columns=0)(images, clinical)


def test_without_columns_there_is_no_trace_of_it(build_meta: Build) -> None:
    assert build_meta("resnet18").wide is None
    assert not [name for name in build_meta("resnet18").state_dict() if "wide" in name]
    extra = set(build_meta("resnet18", Answer("multiclass", 3, num_clinical=2)).state_dict()) - set(
        build_meta("resnet18").state_dict()
    )
    assert extra == {"wide.weight"}


def test_clinical_has_no_image_network_only_a_bias() -> None:
    model, (images, clinical) = build("clinical"), draw()
    assert model.wide is not None
    assert list(model.stages) == ["head"]
    assert list(model.backbone.parameters()) == []
    with torch.no_grad():
        model.wide.weight.normal_()
        model.head.linear.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        expected = torch.tensor([1.0, 2.0, 3.0]) + clinical @ model.wide.weight.T
        torch.testing.assert_close(model(images, clinical), expected)
    with pytest.raises(ConfigError, match="model=clinical takes no images"):
        build("clinical", columns=0)


def test_it_is_a_row_of_the_plan_and_trained_whatever_the_transfer(build_meta: Build) -> None:
    model = build_meta("resnet18", Answer("multiclass", 3, num_clinical=2))
    epochs = choose_first_epochs(list(model.stages), kind="frozen")
    plans = plan_transfer(model, epochs, layer_decay=1.0, batchnorm="train")
    planned = [*plans, *plan_wide(model, lr_scale=0.1)]
    printed = format_plan(planned, lr=1e-2, origins={"wide": "regression"}).splitlines()
    assert next(line for line in printed if line.startswith("wide")).split()[1:4] == ["regression", "6", "1.00e-03"]
    assert plan_wide(build_meta("resnet18"), lr_scale=0.1) == []


def test_its_group_has_its_own_rate_and_penalty_and_no_other_group_holds_it(build_meta: Build) -> None:
    model = build_meta("resnet18", Answer("multiclass", 3, num_clinical=2))
    (group,) = build_wide_group(model, lr=1e-2, lr_scale=0.1, l2=0.5)
    assert (group["params"], group["lr"], group["weight_decay"]) == ([model.wide.weight], pytest.approx(1e-3), 0.5)  # type: ignore[union-attr]
    epochs = choose_first_epochs(list(model.stages), kind="finetune")
    plans = plan_transfer(model, epochs, layer_decay=1.0, batchnorm="train")
    groups = [*build_parameter_groups(model, plans, lr=1e-2, weight_decay=0.0), group]
    held = [id(p) for one in groups for p in one["params"]]  # type: ignore[attr-defined]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert build_wide_group(build_meta("resnet18"), lr=1e-2, lr_scale=0.1, l2=0.5) == []
