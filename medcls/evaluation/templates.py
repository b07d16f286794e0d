"""The pages of this room, as Jinja templates."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def load_template(name: str) -> Template:
    """Returns a template of this folder; everything that it is handed is escaped, and nothing may be missing."""
    environment = Environment(
        loader=PackageLoader("medcls.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
