"""A progress bar that suits terminals and notebooks."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

with warnings.catch_warnings():  # of notebooks without ipywidgets, where the bar is text
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

if TYPE_CHECKING:
    from fedlatent.simulations.federation import Progress


@contextlib.contextmanager
def watched(*, shown: bool, name: str) -> Iterator["Callable[[Progress], None]"]:
    """What is told of a simulation's progress, as a bar over its phases; nothing if not shown."""
    with tqdm(total=1.0, desc=name, disable=not shown, bar_format=_FORMAT, leave=False) as bar:

        def watch(news: "Progress") -> None:
            loss = "" if news.loss is None else f", loss {news.loss:.4g}"
            bar.set_postfix_str(f"phase {news.phase} of {news.phases}{loss}", refresh=False)
            bar.update(news.share - bar.n)

        yield watch


_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
