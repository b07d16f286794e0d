"""Load the Jinja templates of pages from the folders of the modules that fill them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def load_template(room: str, name: str) -> Template:
    """Return a template of a room; everything that it is handed is escaped, and nothing may be missing."""
    environment = Environment(
        loader=PackageLoader(f"medcls.{room}", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
