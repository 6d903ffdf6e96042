"""Pages of results: one HTML file each, which opens without a network."""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def render(template: str, **facts: Any) -> str:  # noqa: ANN401
    """The page of a template of ``simulations/templates`` with these facts, all of them escaped."""
    return _PAGES.get_template(template).render(**facts)


def svg(markup: str | None) -> Markup | None:
    """A plot that was made here, which stands in a page as it is."""
    return None if markup is None else Markup(markup)


def _labelled(markup: Markup, caption: str) -> Markup:
    """A plot with its caption for those who do not see it."""
    label = f'<svg role="img" aria-label="{escape(caption)}"'
    return Markup(str(markup).replace("<svg", label, 1))


def _png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


_PAGES = Environment(
    loader=PackageLoader("fedlatent.simulations"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.filters |= {"labelled": _labelled, "png": _png}
