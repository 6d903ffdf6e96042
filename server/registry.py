"""What the server knows about its runs: one small database, SQLite by default.

Runs, phases ("rounds"), sites, what each site did in each phase, and the files made. A phase is
one row per run and number, written again when it is done again, so nothing is counted twice.
Readers get detached rows; only the methods here write.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import (
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    create_engine,
    delete,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedlatent.server.outcome import ANSWERED, SiteOutcome
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.schedule import Kind

#: "interrupted": an unexpected error, worth a resume; "paused": quorum lost, a person decides.
RunStatus = Literal["running", "interrupted", "paused", "failed", "stopped", "complete"]
RoundStatus = Literal["running", "complete", "failed"]


#: Two processes that open a new file at once can collide while they make its tables.
_ATTEMPTS, _PAUSE_S = 5, 0.2


class Base(DeclarativeBase):
    """Base of the registry's tables."""


class Run(Base):
    """A training run: its configuration, how far it is and why it stopped."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str]  # of the run configuration
    config: Mapped[str]  # its canonical JSON
    phases: Mapped[int]  # training rounds + moments + threshold
    status: Mapped[str]
    sentence: Mapped[str] = mapped_column(default="")  # why, when paused or failed
    starts: Mapped[int] = mapped_column(default=0)  # processes that have driven it
    created: Mapped[float]  # seconds since 1970, as all times here
    updated: Mapped[float]


class Round(Base):
    """One phase of a run."""

    __tablename__ = "rounds"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    status: Mapped[str]
    attempt: Mapped[int]  # 1, or 2 after a lost quorum
    started: Mapped[float]
    finished: Mapped[float | None]
    asked: Mapped[int]
    good: Mapped[int]
    records: Mapped[int]  # sum over the good replies


class Site(Base):
    """A data holder as this server has seen it."""

    __tablename__ = "sites"

    name: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]  # Flower's 64-bit unsigned number, which an SQL integer cannot hold
    first_seen: Mapped[float]
    last_seen: Mapped[float]
    epsilon: Mapped[float | None]  # spent on its data set in all, as it last said
    delta: Mapped[float | None]
    last_status: Mapped[str]
    last_code: Mapped[str]
    last_sentence: Mapped[str]


class SiteRound(Base):
    """What one site did in one phase."""

    __tablename__ = "site_rounds"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "number"], ["rounds.run_id", "rounds.number"]),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]
    status: Mapped[str]
    code: Mapped[str]
    sentence: Mapped[str]
    records: Mapped[int]
    epsilon: Mapped[float | None]
    delta: Mapped[float | None]
    bytes: Mapped[int]  # of the arrays received
    sha256: Mapped[str] = mapped_column(default="")  # of the reply, as the site's log has it
    seconds: Mapped[float]  # from asking to the answer


class Artefact(Base):
    """A file that a run has made."""

    __tablename__ = "artefacts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int]
    created: Mapped[float]


class Registry:
    """The open database. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, location: Path | str) -> None:
        """Open the database file or URL ``location`` and make missing tables.

        Raises:
            ServiceError: the database cannot be opened.
        """
        self._engine = _engine(location)
        self._where = self._engine.url.render_as_string(hide_password=True)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                Base.metadata.create_all(self._engine)
                _widen(self._engine)
                return
            except SQLAlchemyError as error:  # maybe another process is making the same tables
                if attempt == _ATTEMPTS:
                    raise self._unusable(error) from None
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """The registry itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def start_run(self, run_id: str, *, name: str, digest: str, config: str, phases: int) -> Run:
        """Write or renew the row of a run that is driven from now on."""
        now = time.time()
        with self._session() as session, session.begin():
            run = session.get(Run, run_id)
            if run is None:
                run = Run(id=run_id, created=now, starts=0)
                session.add(run)
            run.name, run.digest, run.config, run.phases = name, digest, config, phases
            run.status, run.sentence, run.updated = "running", "", now
            run.starts += 1
        return run

    def set_status(self, run_id: str, status: RunStatus, sentence: str = "") -> None:
        """Change the status of a run.

        Raises:
            ServiceError: there is no such run.
        """
        with self._session() as session, session.begin():
            run = session.get(Run, run_id)
            if run is None:
                raise ServiceError(f"Expected a run of this server, got {run_id!r}; list the runs.")
            run.status, run.sentence, run.updated = status, sentence, time.time()

    def start_round(self, run_id: str, number: int, kind: Kind, attempt: int, asked: int) -> None:
        """Write the row of a phase that begins; one that began before begins again."""
        with self._session() as session, session.begin():
            session.execute(
                delete(SiteRound).where(SiteRound.run_id == run_id, SiteRound.number == number)
            )
            row = Round(run_id=run_id, number=number, kind=kind, status="running", attempt=attempt)
            row.started, row.finished = time.time(), None
            row.asked, row.good, row.records = asked, 0, 0
            session.merge(row)

    def finish_round(
        self, run_id: str, number: int, status: RoundStatus, outcomes: Iterable[SiteOutcome]
    ) -> None:
        """Close the row of a phase and write what each site did, in one transaction."""
        now, parts = time.time(), list(outcomes)
        good = [part for part in parts if part.status == "ok"]
        with self._session() as session, session.begin():
            row = session.get_one(Round, (run_id, number))
            row.status, row.finished = status, now
            row.good, row.records = len(good), sum(part.records for part in good)
            run = session.get_one(Run, run_id)
            run.updated = now
            session.execute(
                delete(SiteRound).where(SiteRound.run_id == run_id, SiteRound.number == number)
            )
            known = {site.name: site for site in session.scalars(select(Site))}
            for part in parts:
                session.add(_site_round(run_id, number, part))
                _see(session, known, part, now)

    def add_artefact(self, run_id: str, name: str, path: Path, sha256: str, size: int) -> None:
        """Write the row of a file; an older file of that name is replaced."""
        with self._session() as session, session.begin():
            row = Artefact(run_id=run_id, name=name, path=str(path), sha256=sha256, bytes=size)
            row.created = time.time()
            session.merge(row)

    def run(self, run_id: str) -> Run | None:
        """One run, or None."""
        with self._session() as session:
            return session.get(Run, run_id)

    def runs(self) -> Sequence[Run]:
        """All runs, the newest first."""
        with self._session() as session:
            return session.scalars(select(Run).order_by(Run.created.desc(), Run.id)).all()

    def unfinished(self) -> Sequence[Run]:
        """Runs that a restarted server should go on with by itself, the oldest first."""
        query = select(Run).where(Run.status.in_(["running", "interrupted"])).order_by(Run.created)
        with self._session() as session:
            return session.scalars(query).all()

    def rounds(self, run_id: str) -> Sequence[Round]:
        """The phases of a run in order."""
        query = select(Round).where(Round.run_id == run_id).order_by(Round.number)
        with self._session() as session:
            return session.scalars(query).all()

    def site_rounds(self, run_id: str, number: int | None = None) -> Sequence[SiteRound]:
        """What each site did, in all phases of a run or in one."""
        query = select(SiteRound).where(SiteRound.run_id == run_id)
        if number is not None:
            query = query.where(SiteRound.number == number)
        with self._session() as session:
            return session.scalars(query.order_by(SiteRound.number, SiteRound.site)).all()

    def sites(self) -> Sequence[Site]:
        """All sites ever seen, by name."""
        with self._session() as session:
            return session.scalars(select(Site).order_by(Site.name)).all()

    def artefacts(self, run_id: str) -> Sequence[Artefact]:
        """The files of a run, by name."""
        query = select(Artefact).where(Artefact.run_id == run_id).order_by(Artefact.name)
        with self._session() as session:
            return session.scalars(query).all()

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self._engine, expire_on_commit=False) as session:
                yield session
        except SQLAlchemyError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: SQLAlchemyError) -> ServiceError:
        reason = getattr(error, "orig", None) or type(error).__name__
        return ServiceError(
            f"Expected a usable registry at {self._where}, got: {reason}; check its path, its "
            "permissions, the room on its disk or the database server."
        )


def _widen(engine: Engine) -> None:
    """Give the tables of an earlier release the column that has come since."""
    with engine.begin() as connection:
        names = {one["name"] for one in inspect(connection).get_columns(SiteRound.__tablename__)}
        if "sha256" not in names:
            table = f"ALTER TABLE {SiteRound.__tablename__}"
            connection.execute(text(f"{table} ADD COLUMN sha256 VARCHAR DEFAULT '' NOT NULL"))


def _site_round(run_id: str, number: int, part: SiteOutcome) -> SiteRound:
    return SiteRound(
        run_id=run_id,
        number=number,
        site=part.site,
        node_id=str(part.node_id),
        status=part.status,
        code=part.code,
        sentence=part.sentence,
        records=part.records,
        epsilon=part.epsilon,
        delta=part.delta,
        bytes=part.bytes,
        sha256=part.sha256,
        seconds=part.seconds,
    )


def _see(session: Session, known: Mapping[str, Site], part: SiteOutcome, now: float) -> None:
    """Renew what is known about a site; a failure keeps the epsilon it last stated."""
    site = known.get(part.site)
    if site is None:
        site = Site(name=part.site, first_seen=now, last_seen=now, epsilon=None, delta=None)
        session.add(site)
    site.node_id = str(part.node_id)
    site.last_status, site.last_code, site.last_sentence = part.status, part.code, part.sentence
    if part.status in ANSWERED:
        site.last_seen = now
    if part.epsilon is not None:
        site.epsilon, site.delta = part.epsilon, part.delta


def _engine(location: Path | str) -> Engine:
    """Connect to a file (SQLite) or to a URL such as ``postgresql+psycopg://...``."""
    if isinstance(location, Path):
        location.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{location}"
    else:
        url = location
    try:
        engine = create_engine(make_url(url))
    except (ArgumentError, ImportError) as error:
        raise ServiceError(
            f"Expected a database URL with an installed driver, got: {type(error).__name__}; "
            "correct the registry's address."
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _durable)
    return engine


def _durable(connection: DBAPIConnection, record: object) -> None:
    """Let readers read during a write, and make every commit survive a power cut."""
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
