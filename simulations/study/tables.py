"""The tables of a study file, and mistakes in them said with line and key."""

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import FAMILIES
from fedlatent.simulations.study.lines import line_of

Grid = Literal["stacked", "nodes", "flower", "deployed"]
Source = Literal[
    "hearts",
    "digits",
    "mitbih",
    "smd",
    "asd",
    "omniglot",
    "mnist",
    "mnist_one",
    "fashion",
    "heart_disease",
    "nsl_kdd",
    "file",
]
Kind = Literal["natural", "iid", "dirichlet", "shards", "quantity", "feature-shift"]
Question = Literal["seen", "absent", "new10", "new30", "new100"]

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Path = tuple[str, ...]

Baseline = Literal[
    "pca", "mahalanobis", "knn", "isolation-forest", "one-class-svm", "rolling-z-score"
]
USUAL: tuple[Baseline, ...] = ("pca", "mahalanobis")

QUESTIONS: tuple[Question, ...] = typing.get_args(Question)

#: Measures of the answers to a question: areas under the receiver operating characteristic and
#: under precision and recall, and the share of normals flagged where 95 % of anomalies are.
Metric = Literal["auroc", "auprc", "fpr95"]
METRICS: tuple[Metric, ...] = typing.get_args(Metric)
#: Overrides by name: tables of a study file that replace those of the whole file, key by key.
Variants = dict[Annotated[str, Field(min_length=1)], dict[str, object]]
#: Named overrides, with the axis of the results that their names make.
VARIANTS = {"datasets": "data", "methods": "method"}
#: What may be swept, and overridden by a method, a data set and the quick form.
SWEPT = ("work", "grid", "data", "run", "availability", "parameters")

#: Keys of a run file that a study says elsewhere.
_ELSEWHERE = {"name": "name", "seed": "seeds", "data": "[data]"}
_OPTIONS = ("run", "model", "options")
_OPTION_KINDS = "expected text, a number, true or false, or a list of whole numbers"


def _usual_or_none(value: object) -> object:
    """True and false are the usual baselines and none."""
    return (USUAL if value else ()) if isinstance(value, bool) else value


class Table(BaseModel):
    """A table of the study file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataTable(Table):
    """Which records, how they are shared among clients, and how many clients take no part."""

    source: Source
    path: str = ""  # of source "file": from the folder of data sets, or from here
    schema_file: Annotated[str, Field(alias="schema")] = ""  # by default proposed from the file
    client: str = ""  # column or array of its clients
    label: str = ""  # column or array of its labels
    normal_label: str | int | float | bool | None = None
    columns: tuple[str, ...] | None = None
    array: str = "X"  # of an NPZ
    delimiter: str = ","  # of a CSV file: a comma, semicolon, bar or "tab"
    decimal: str = "."  # before its decimals: a point or a comma
    encoding: str = "utf-8"
    header: bool | None = None  # whether its first line is one; by default the line shows it
    partition: Kind = "natural"
    clients: Count | None = None
    alpha: Positive = 0.5  # Dirichlet concentration, of "dirichlet" and "quantity"
    shards: Count = 2  # shards a client gets, of "shards"
    strength: Annotated[float, Field(ge=0)] = 0.5  # of "feature-shift"
    absent: Natural = 0
    contamination: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # anomalies in training records
    seed: Seed | None = None  # of the records and who is absent; by default that of the cell

    @model_validator(mode="after")
    def _file(self) -> Self:
        """A path goes with the source "file" alone."""
        if (self.source == "file") != bool(self.path):
            raise ValueError('expected source "file" and a path together, got only one of them')
        try:
            _ = self.dialect
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def dialect(self) -> Dialect:
        """How a CSV file is written."""
        return Dialect(**{key: getattr(self, key) for key in _OF_DIALECT})

    def facts(self) -> dict[str, Any]:
        """All keys as JSON values; those of a file only where there is one."""
        found = self.model_dump(mode="json", by_alias=True)
        usual = [key for key in _OF_DIALECT if getattr(self, key) == getattr(COMMAS, key)]
        aside = usual if self.path else (*_OF_FILE, *_OF_DIALECT)
        return {key: found[key] for key in found if key not in aside}


#: Keys of [data] that a named source does not have.
_OF_FILE = ("path", "schema", "client", "label", "normal_label", "columns", "array")
_OF_DIALECT = ("delimiter", "decimal", "encoding", "header")


class AvailabilityTable(Table):
    """How often clients do not answer."""

    dropout: Probability = 0.0
    late: Probability = 0.0


class EvaluateTable(Table):
    """What is measured."""

    every: Natural = 1  # rounds between two points of the curve; 0: none
    questions: tuple[Question, ...] = QUESTIONS
    kinds: tuple[str, ...] = ()  # more kinds of anomalies that "seen" is asked about, such as S
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("auroc",)
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(_usual_or_none)] = USUAL
    clients: Count = 100  # most clients that are rated, of those that take part and of the absent


class ReportTable(Table):
    """How the tables of results are laid out; by default a row a setting, a column a measure."""

    rows: str = ""  # a swept key: its values are the rows, and every setting of the rest a table
    columns: str = ""  # another one: its values are the columns, and every measure a table
    over: str = ""  # another one: one more table of the means over its values
    against: dict[str, object] = Field(default_factory=dict)  # settings to show the change from
    accepted: dict[str, float] = Field(default_factory=dict)  # by measure: what may be lost there


class FileTable(Table):
    """The whole file; what may be swept is checked cell by cell."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    description: str = ""
    work: object = "federated"
    grid: object = "stacked"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    data: dict[str, object] = Field(default_factory=dict)
    run: dict[str, object] = Field(default_factory=dict)
    availability: dict[str, object] = Field(default_factory=dict)
    parameters: dict[str, object] = Field(default_factory=dict)
    datasets: Variants = Field(default_factory=dict)
    methods: Variants = Field(default_factory=dict)
    quick: dict[str, object] = Field(default_factory=dict)
    evaluate: EvaluateTable = EvaluateTable()
    report: ReportTable = ReportTable()


class CellTable(Table):
    """The swept part of the file, with one value for each key."""

    work: str
    grid: Grid
    data: DataTable | None
    availability: AvailabilityTable
    run: RunConfig
    parameters: dict[str, object]


class Mistake(Exception):
    """Something wrong at a key; :meth:`said` makes the sentence for people.

    Attributes:
        path: of the key, as if there were no named overrides.
        sentence: what was expected and what came.
        within: overrides that the key may come from, such as ("methods", "fedavg").
    """

    def __init__(self, path: Sequence[str], sentence: str, within: Sequence[Path] = ()) -> None:
        """Say ``sentence`` of the key at ``path``."""
        super().__init__(sentence)
        self.path, self.sentence, self.within = tuple(path), sentence, tuple(within)

    def said(self, source: str, lines: Mapping[Path, int]) -> ConfigError:
        """The error with the file, and the line of the key or of the table it belongs in."""

        def known(place: Path) -> tuple[int, bool]:
            depth = _depth(lines, (*place, *self.path)) - len(place)
            return depth, depth > 0 and bool(place)

        path = (*max(((), *self.within), key=known), *self.path)
        line = line_of(lines, path)
        where = f", line {line}" if line else ""
        key = f"{'.'.join(path)}: " if path else ""
        return ConfigError(f"{source}{where}: {key}{self.sentence}")


def mistake_of(error: ValidationError, model: type[BaseModel]) -> Mistake:
    """The first problem that pydantic found; a misspelt key goes before all others."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    path = tuple(str(part) for part in problem["loc"])
    if path[:3] == _OPTIONS and len(path) > 3:
        return Mistake(path[:4], f"{_OPTION_KINDS}, got {_shown(problem['input'])}.")
    if problem["type"] == "extra_forbidden":
        return unknown(path, _keys(model, path[:-1]))
    if problem["type"] == "missing":
        return Mistake(path, "expected a value, got none; add it.")
    expected = _expected(problem["msg"])
    while path and path[-1].isdecimal():
        path = path[:-1]
    hint = near(str(problem["input"]), str(problem.get("ctx", {}).get("expected", "")).split("'"))
    return Mistake(path, f"{expected}, got {_shown(problem['input'])}{hint or '.'}")


def _depth(lines: Mapping[Path, int], path: Path) -> int:
    """How many parts of ``path`` stand in the text."""
    return max((end for end in range(len(path) + 1) if path[:end] in lines), default=0)


def parameters_of(function: Callable[..., object], values: Mapping[str, object]) -> dict[str, Any]:
    """``values`` checked against the keyword arguments of ``function``, whose types they take.

    Raises:
        Mistake: one is unknown, missing or of another type.
    """
    named = inspect.signature(function, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        one.name: (one.annotation, ... if one.default is one.empty else one.default)
        for one in named
        if one.kind is one.KEYWORD_ONLY
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        return dict(model.model_validate(values))
    except ValidationError as error:
        raise mistake_of(error, model) from None


def unknown(path: Path, known: Sequence[str]) -> Mistake:
    """The mistake of a key that does not exist."""
    if path[0] == "run" and len(path) == 2 and path[1] in _ELSEWHERE:
        there = _ELSEWHERE[path[1]]
        return Mistake(path, f"expected no such key under [run], got one; use {there} instead.")
    hint = near(path[-1], known) or f"; known are {', '.join(known)}."
    return Mistake(path, f"expected a known key, got {path[-1]!r}{hint}")


def takes_list(path: Path) -> bool:
    """Whether the value at ``path`` is a list by itself, so that only lists of lists sweep it."""
    if path[:3] == _OPTIONS and len(path) == 4:
        return any(
            _is_list(typing.get_type_hints(family.config).get(path[3]))
            for family in FAMILIES.values()
        )
    return _is_list(_annotation(CellTable, path))


#: How pydantic starts a sentence, and how it goes on here.
_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should be a valid dictionary or instance of \w+", "expected a table"),
    (r"^Input should be (greater|less|a multiple|finite)", r"expected a number \1"),
    (r"^Input should be a valid ([aeiou])", r"expected an \1"),
    (r"^Input should be a valid tuple", "expected a list"),
    (r"^Input should be a valid dictionary", "expected a table"),
    (r"^Input should be (a valid )?", r"expected "),
    (r"^String should match pattern .*", "expected small letters, digits and hyphens"),
    (r"^(Tuple|List) should have at least (\d+) items?.*", r"expected at least \2 value(s)"),
)


def _expected(message: str) -> str:
    """Pydantic's sentence in the words of this project."""
    for pattern, words in _WORDS:
        if re.search(pattern, message):
            message = re.sub(pattern, words, message)
            break
    return message if message.startswith("expected") else f"expected another value ({message})"


def near(word: str, known: Sequence[str]) -> str:
    """A question whether a known word was meant; empty where none is near."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """Keys of the table at ``path``, as a user may write them."""
    table = _annotation(model, path) if path else model
    if not (isinstance(table, type) and issubclass(table, BaseModel)):
        return []
    hidden = _ELSEWHERE if table is RunConfig else {}
    return [key for key in table.model_fields if key not in hidden]


def _annotation(model: type[BaseModel], path: Path) -> object:
    """The type of the value at ``path``; None where the models do not say."""
    found: object = model
    for part in path:
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return None
        if part not in found.model_fields:
            return None
        found = found.model_fields[part].annotation
        tables = [one for one in typing.get_args(found) if isinstance(one, type)]
        if tables and issubclass(tables[0], BaseModel):
            found = tables[0]  # a table that may be left out
    return found


def _is_list(annotation: object) -> bool:
    kinds = (annotation, *typing.get_args(annotation))
    return any((typing.get_origin(kind) or kind) in (list, tuple) for kind in kinds)
