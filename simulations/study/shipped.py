"""The studies that come with the package, and result folders on this machine."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from fedlatent.shared.data.catalog import CATALOG
from fedlatent.shared.errors import ConfigError, FedlatentError
from fedlatent.simulations.study.results import COPY, Results
from fedlatent.simulations.study.spec import Study

_FOLDER = Path(__file__).parents[1] / "studies"
#: A study of a user's own file, which says its path.
OWN = Path(__file__).parents[1] / "templates" / "own.toml"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A result folder.

    Attributes:
        folder: where.
        name: of the study; empty when its file cannot be read.
        cells: of the study.
        done: cells that are done.
        problem: why the folder cannot be read; empty when it can.
    """

    folder: Path
    name: str = ""
    cells: int = 0
    done: int = 0
    problem: str = ""

    @property
    def state(self) -> str:
        """In one word."""
        if self.problem:
            return "unreadable"
        return "finished" if self.done == self.cells else "unfinished"


def shipped() -> list[Study]:
    """The studies of the package, by name."""
    return [Study.load(path) for path in sorted(_FOLDER.glob("*.toml"))]


def readers() -> dict[str, list[str]]:
    """Names of the shipped studies that read each data set of the catalogue."""
    found: dict[str, list[str]] = {name: [] for name in CATALOG}
    for study in shipped():
        for name in study.needs:
            found[name].append(study.name)
    return found


def locate(name: str) -> Path:
    """The file of a study: a path, or the name of a shipped one.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    known = {path.stem: path for path in _FOLDER.glob("*.toml")}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; 'fedlatent simulate list' names them."
    raise ConfigError(f"Expected a .toml file or a shipped study, got {name!r}{hint}")


def folders(root: Path) -> list[Found]:
    """Result folders in ``root``, and ``root`` itself if it is one."""
    copies = [root / COPY, *sorted(root.glob(f"*/{COPY}"))]
    return [_found(copy.parent) for copy in copies if copy.is_file()]


def _found(folder: Path) -> Found:
    try:
        results = Results.load(folder)
    except FedlatentError as error:
        return Found(folder=folder, problem=str(error))
    return Found(
        folder=folder,
        name=results.study.name,
        cells=len(results.study.cells),
        done=len(results.cells),
    )
