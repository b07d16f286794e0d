from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.clinical.encode import ClinicalSpec, Levels, NumericColumn
from medcls.data.crops import Crop
from medcls.data.targets import Task
from medcls.errors import ConfigError, DataError
from medcls.imaging.domain import Domain
from medcls.imaging.preprocess import PreprocessSpec
from medcls.records import from_json, newer, to_json
from medcls.runs.model_file import ModelCard


@dataclass(frozen=True, slots=True)
class Leaf:
    number: float
    pair: tuple[float, int]
    kind: Literal["leaf"] = "leaf"


@dataclass(frozen=True, slots=True)
class Bud:
    texts: tuple[str, ...]
    kind: Literal["bud", "flower"] = field(default="bud", metadata=newer())


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    height: int
    alive: bool
    place: Path
    crown: Leaf | Bud
    leaves: list[Leaf]
    counts: dict[str, list[int]]
    extra: dict[str, Any]
    note: int | str | None
    age: float | None = field(default=None, metadata=newer(omit=True))
    soil: str = field(default="clay", metadata=newer(before="unknown"))

    def __post_init__(self) -> None:
        if self.height < 0:
            raise ConfigError("height is below 0")


TREE: dict[str, Any] = {
    "name": "Anna",
    "height": 3,
    "alive": True,
    "place": "/x",
    "crown": {"number": 1, "pair": [2, 3], "kind": "leaf"},
    "leaves": [],
    "counts": {"Anna": [1]},
    "extra": {"any": [None]},
    "note": None,
    "soil": "sand",
}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.builds(Leaf, FINITE | st.integers(-(10**300), 10**300), st.tuples(FINITE, st.integers()), st.just("leaf"))
BUDS = st.builds(Bud, st.lists(st.text()).map(tuple), st.sampled_from(["bud", "flower"]))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TREES = st.builds(
    Tree,
    name=st.text(),
    height=st.integers(min_value=0),
    alive=st.booleans(),
    place=st.text().map(Path),
    crown=LEAVES | BUDS,
    leaves=st.lists(LEAVES, max_size=3),
    counts=st.dictionaries(st.text(), st.lists(st.integers(), max_size=3), max_size=3),
    extra=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
    note=st.none() | st.integers() | st.text(),
    age=st.none() | FINITE,
    soil=st.text(),
)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_record_comes_back_from_its_json_with_the_same_bytes(tree: Tree) -> None:
    text = json.dumps(to_json(tree))
    back = from_json(Tree, json.loads(text))
    assert back == tree
    assert json.dumps(to_json(back)) == text


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*(name for name in TREE if name != "place"), "other"]), JSON_VALUES)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(name: str, value: Any) -> None:
    message = ""
    try:
        written = to_json(from_json(Tree, TREE | {name: value}))
    except DataError as error:
        message, written = str(error), {name: value}
    assert written.get(name) == value
    assert "\n" not in message
    assert "Anna" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": "tall Anna"}, "tree.height: a text of 9 characters, expected a whole number"),
        ({"height": True}, "tree.height: true, expected a whole number"),
        ({"height": 2.0}, "tree.height: 2.0, expected a whole number"),
        ({"height": -1}, "tree: height is below 0"),
        ({"alive": 1}, "tree.alive: 1, expected true or false"),
        ({"place": 7}, "tree.place: 7, expected a path"),
        ({"age": False}, "tree.age: false, expected a number"),
        ({"age": 10**400}, "tree.age: a number of many digits, expected a number"),
        ({"note": [1, 2]}, "tree.note: a list of 2, expected a whole number or a text or null"),
        ({"leaves": {}}, "tree.leaves: an object, expected a list"),
        ({"leaves": [{"number": 1, "pair": [1], "kind": "leaf"}]}, "tree.leaves[0].pair: a list of 1, expected a list "
         "of 2"),
        ({"counts": {"Anna": [1, None]}}, "tree.counts, value 1[1]: null, expected a whole number"),
        ({"crown": {"texts": "CT"}}, "tree.crown.texts: a text of 2 characters, expected a list"),
        ({"crown": {"kind": 4}}, "tree.crown.kind: 4, expected leaf or bud or flower"),
        ({"crown": None}, "tree.crown: null, expected an object"),
        ({"colour": 1}, "tree: unknown field 'colour', expected name, height, alive, place, crown, leaves, counts, "
         "extra, note, age, soil"),
    ],
)  # fmt: skip
def test_wrong_field_is_refused_with_its_place_what_was_found_and_what_was_expected(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        from_json(Tree, TREE | change, name="tree")
    assert str(caught.value) == message


def test_record_that_is_not_an_object_or_lacks_fields_is_refused() -> None:
    with pytest.raises(DataError, match=r"^a list of 0, expected an object$"):
        from_json(Tree, [])
    with pytest.raises(DataError, match=r"^no field height, note$"):
        from_json(Tree, {name: value for name, value in TREE.items() if name not in ("height", "note")})


def test_fields_that_older_records_lack_mean_what_was_done_then() -> None:
    tree = from_json(Tree, {name: value for name, value in TREE.items() if name != "soil"})
    assert (tree.age, tree.soil) == (None, "unknown")
    assert "age" not in to_json(tree)
    assert to_json(from_json(Tree, TREE | {"age": 2}))["age"] == 2
    assert from_json(Leaf | Bud, {"texts": []}) == Bud(())


def test_whole_numbers_become_floats_in_tuples_only() -> None:
    leaf = from_json(Leaf, {"number": 0, "pair": [0, 0], "kind": "leaf"})
    assert json.dumps(to_json(leaf)) == '{"number": 0, "pair": [0.0, 0], "kind": "leaf"}'


CARD = ModelCard(
    architecture="resnet18",
    dropout=0,
    in_channels=1,
    max_value=255,
    task=Task("binary", ["no", "yes"], ["label"], {"no": 0, "yes": 1}),
    preprocess=PreprocessSpec(64, 64, percentiles=(0, 99.5), intensity="range", range=(0, 4095)),
    store_sha256="a",
    split_name="default",
    split_sha256="b",
    labels_sha256="c",
    ancestors=[{"weights": "imagenet", "file": "x.pth", "sha256": "d"}],
    training={"epoch": 3, "score": None},
    domain=Domain(["CT"], ["L"], [0, 1.5]),
    crop=Crop(None, 24, 32),
    clinical=ClinicalSpec([Levels("sex", "F", ["M"])], [NumericColumn("age", 50, 3.5, False)]),
    positive_class="yes",
)
WRITTEN = (
    '{"architecture": "resnet18", "dropout": 0, "in_channels": 1, "max_value": 255, "task": {"kind": "binary", '
    '"class_names": ["no", "yes"], "columns": ["label"], "mapping": {"no": 0, "yes": 1}, "grades": false, "ordinal": '
    '"corn"}, "preprocess": {"height": 64, "width": 64, "channels": 1, "dtype": "uint8", "fit": "pad", "intensity": '
    '"range", "percentiles": [0, 99.5], "window_index": 0, "windows_hu": [], "burnt_in": {"policy": "refuse", '
    '"mask_boxes": [], "keep_box": null}, "range": [0, 4095], "spatial_dims": 2}, "store_sha256": "a", "split_name": '
    '"default", "split_sha256": "b", "labels_sha256": "c", "ancestors": [{"weights": "imagenet", "file": "x.pth", '
    '"sha256": "d"}], "training": {"epoch": 3, "score": null}, "domain": {"modalities": ["CT"], "photometrics": ["L"], '
    '"spacing_mm": [0, 1.5], "body_parts": [], "intents": null, "few_levels": null, "regions": "", "region_share": '
    '[]}, "crop": {"size": null, "scale_min": 24, "scale_max": 32}, "deidentify": {}, "seen_sha256": {}, "normalize": '
    '"imagenet", "clinical": {"levels": [{"name": "sex", "reference": "F", "levels": ["M"]}], "numbers": [{"name": '
    '"age", "mean": 50, "std": 3.5, "missing": false}], "unseen": "refuse"}, "options": {}, "head": "linear", '
    '"head_width": 0, "positive_class": "yes", "distance_sha256": "", "format": 1}'
)
"""The card as the version before this module wrote it; checksums cover these bytes."""


def test_card_has_the_bytes_that_it_always_had() -> None:
    assert json.dumps(to_json(CARD)) == WRITTEN
    back = from_json(ModelCard, json.loads(WRITTEN))
    assert back == CARD
    # As ever, reading makes floats of the whole numbers in pairs, and of no others.
    floats = WRITTEN.replace('"percentiles": [0, ', '"percentiles": [0.0, ').replace("[0, 4095]", "[0.0, 4095.0]")
    assert json.dumps(to_json(back)) == floats


def test_card_of_an_early_version_is_read_by_the_fields_that_it_had() -> None:
    content = json.loads(WRITTEN)
    needed = {"architecture", "dropout", "in_channels", "max_value", "task", "preprocess", "store_sha256", "split_name"}
    early = {name: content[name] for name in needed | {"split_sha256", "labels_sha256", "format"}}
    early["task"] = {name: content["task"][name] for name in ("kind", "class_names", "columns")}
    early["domain"] = {"modalities": ["CT"], "photometrics": ["L"], "spacing_mm": []}
    del early["preprocess"]["burnt_in"], early["preprocess"]["spatial_dims"]
    card = from_json(ModelCard, early)
    assert (card.ancestors, card.crop, card.normalize, card.head, card.task.ordinal) == (
        [],
        None,
        "imagenet",
        "linear",
        "corn",
    )
    assert (card.preprocess.burnt_in.policy, card.preprocess.spatial_dims) == ("allow", 2)
    assert card.domain == Domain(["CT"], ["L"], [], [], None, None, "", [])
    for name in early.keys() - {"domain"}:
        with pytest.raises(DataError, match=rf"^no field {name}$"):
            from_json(ModelCard, {key: value for key, value in early.items() if key != name})
