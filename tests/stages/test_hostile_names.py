"""Names of classes, sites, stores and runs that are HTML, Markdown, formulas or escapes: shown, and harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from medcls.data.store import Store
from medcls.explain.explain import explain
from medcls.identity import KEY_VARIABLE

Run = Callable[..., Path]
SCRIPT, TAG, LINK = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "[x](javascript:alert(3))"
CLASSES = (SCRIPT, f"{TAG}|</script>", f"=1+1 `{LINK}`")
STORE = TAG.replace("/", "") + "\x1b[2J"
SECRET = "hunter2-of-the-environment"


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, and what stands within <script>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def named(
    write_source: Callable[..., Path], run_prepare: Callable[..., Store], run_train: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """A store, a run and its results whose every name is hostile, made with secrets in the environment."""
    folder = tmp_path_factory.mktemp("names")

    def add_site(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"site": SCRIPT if number % 2 else TAG} for number, row in enumerate(rows)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv(KEY_VARIABLE, "5e" * 32)
        raw = write_source(folder / "raw", classes=CLASSES, rewrite=add_site)
        store = folder / STORE
        splits = ("split.test=0.25", "split.val=0.25", "deidentify=hmac", "columns=[site]")
        run_prepare(raw, store, *splits)
        return {"store": store, "run": run_train(folder / "run<b>", f"store={store}"), "folder": folder}


@pytest.fixture(scope="module")
def results(named: dict[str, Path], run_evaluate: Run, compose_job: Callable[..., Any]) -> Path:
    job = compose_job(
        "explain", f"run={named['run']}", "split=test", "method=gradcam", "worst=1", "sanity_images=1", "device=cpu"
    )
    explain(job)
    return run_evaluate(named["run"], "split=test", "subgroups=[site]", "least_patients=2", "prevalences=[0.1]")


def test_pages_hold_no_script_but_their_own(results: Path) -> None:
    pages = [results / "report.html", *results.glob("explanation-*/explanation.html")]
    assert len(pages) == 2
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "alert(" in text, "the names are shown"
        page = Page(text)
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            links = [attributes.get(name) or "" for name in ("href", "src", "action")]
            assert not [link for link in links if not link.startswith(("#", "data:image/")) and link], (tag, attributes)
            assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
        assert kinds == (["application/json", None] if path.name == "report.html" else [])
        if page.scripts:
            json.loads(page.scripts[0])
            assert "alert" not in "".join(page.scripts[1:])


def test_the_model_card_holds_no_html_link_or_broken_row(results: Path) -> None:
    text = (results / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert "<" not in text
    assert "](" not in text.replace("\\](", "")
    assert "\x1b" not in text


def test_nothing_is_written_beside_store_and_run(named: dict[str, Path], results: Path) -> None:
    names = {"raw", named["store"].name, named["run"].name, f"{named['store'].name}.identity-map.csv"}
    assert {path.name for path in named["folder"].iterdir()} == names


def test_secrets_of_the_environment_are_in_no_file(
    named: dict[str, Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [path for path in named["folder"].rglob("*") if path.is_file()]
    assert {"config.yaml", "settings.json", "environment.json", "report.html"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert b"5e" * 32 not in content, path


def test_the_terminal_is_told_no_escape_sequence(
    named: dict[str, Path], run_evaluate: Run, run_train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(named["run"].parent / "again", f"store={named['store']}", "trainer.epochs=1")
    run_evaluate(named["run"].parent / "again")
    printed = "".join(capsys.readouterr())
    assert "alert(1)" in printed
    assert "\x1b[2J" not in printed
