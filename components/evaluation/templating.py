"""The HTML templates of the reports."""

from __future__ import annotations

import jinja2


def templates() -> jinja2.Environment:
    """The folder `templates/`; what is put into a page is escaped, and a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("components.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
