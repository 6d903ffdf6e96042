"""Runs that wait for a person at the site: one file a run, written once and decided by hand.

The first request of a run leaves the facts of its configuration here. A later request of the same
name with another configuration never takes their place, so what a person reads is what a person
approves. Only the command line decides; the node reads.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlatent.shared.config import RunConfig, Sharing
from fedlatent.shared.errors import PolicyRefusal, ServiceError, StorageError
from fedlatent.shared.files import telling, utc_text, write_atomic
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.wire import RUN_ID_PATTERN, check_run_id

#: Runs that may wait at a time; more are refused without a file.
MAX_PENDING = 100

Decision = Literal["approved", "refused"]
State = Literal["pending", "approved", "refused"]

_MODE = 0o600


class AskedRun(BaseModel):
    """A run that asked for this site's records, in the words a person decides by.

    Attributes:
        run: its id.
        digest: SHA-256 of its configuration; the decision is about this one alone.
        state: what a person said.
        asked: when its first request came.
        decided: when a person said so.
        name: of the configuration.
        sharing: what of the model leaves.
        family: of the model.
        epsilon: of the whole run; None without noise.
        delta: of that epsilon.
        rounds: of training.
        steps: of training in each round.
        releases: how often each kind of answer would leave.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: Annotated[str, Field(pattern=RUN_ID_PATTERN)]
    digest: str
    state: State = "pending"
    asked: str
    decided: str | None = None
    name: str
    sharing: Sharing
    family: str
    epsilon: float | None
    delta: float
    rounds: int
    steps: int
    releases: dict[str, int]

    @classmethod
    def of(cls, run_id: str, run: RunConfig, plan: PrivacyPlan) -> "AskedRun":
        """The facts of a run that asks for the first time."""
        releases = {"train": plan.rounds} if plan.rounds else {}
        return cls(
            run=run_id,
            digest=run.digest(),
            asked=utc_text(),
            name=run.name,
            sharing=run.sharing,
            family=run.model.family,
            epsilon=plan.epsilon() if plan.private else None,
            delta=plan.delta,
            rounds=plan.rounds,
            steps=plan.steps_per_round,
            releases=releases | {kind: count for kind, count, _ in plan.summaries},
        )


class Approvals:
    """The runs that have asked, in a folder of the home."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which is made with the first run that asks."""
        self._folder = folder

    def check(self, run_id: str, run: RunConfig, plan: PrivacyPlan) -> None:
        """Let a run pass that a person has approved; note one that asks for the first time.

        Raises:
            PolicyRefusal: the run waits, was refused, or is not the one that was decided about.
        """
        found = self._read(run_id)
        if found is None:
            if sum(one.state == "pending" for one in self.runs()) >= MAX_PENDING:
                raise PolicyRefusal(
                    f"Expected at most {MAX_PENDING} runs that wait for a person at the site, "
                    "got another one; have the site decide about those first."
                )
            found = AskedRun.of(run_id, run, plan)
            self._write(found)
        if found.digest != run.digest():
            raise PolicyRefusal(
                f"Expected run {run_id!r} with the configuration it first came with, got another "
                "one; start a new run."
            )
        if found.state != "approved":
            raise PolicyRefusal(_REFUSALS[found.state])

    def runs(self) -> list[AskedRun]:
        """All runs that have asked, the first one first; without damaged files, see `damaged`."""
        found = [one for name in self._names() if (one := self._whole(name)) is not None]
        return sorted(found, key=lambda one: (one.asked, one.run))

    def damaged(self) -> list[Path]:
        """Files in which no run can be read; those runs are refused."""
        return [self._path(name) for name in self._names() if self._whole(name) is None]

    def decide(self, run_id: str, decision: Decision) -> AskedRun:
        """Write down what a person said about a run; a later word takes the place of an earlier.

        Raises:
            ServiceError: no such run has asked.
        """
        found = self._read(check_run_id(run_id))
        if found is None:
            raise ServiceError(
                f"Expected a run that has asked this node, got {run_id!r}; 'fedlatent client runs' "
                "lists them."
            )
        decided = found.model_copy(update={"state": decision, "decided": utc_text()})
        self._write(decided)
        return decided

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def _whole(self, run_id: str) -> AskedRun | None:
        try:
            return self._read(run_id)
        except (ServiceError, StorageError):
            return None

    def _read(self, run_id: str) -> AskedRun | None:
        path = self._path(run_id)
        try:
            with telling():
                found = AskedRun.model_validate_json(path.read_bytes()) if path.exists() else None
        except ValidationError:
            raise ServiceError(
                f"Expected an asked run in {path}, got something else; remove the file, and the "
                "run asks again."
            ) from None
        if found is not None and found.run != run_id:
            raise ServiceError(f"Expected run {run_id!r} in {path}, got {found.run!r}; remove it.")
        return found

    def _write(self, asked: AskedRun) -> None:
        text = asked.model_dump_json(indent=2) + "\n"
        with telling():
            write_atomic(self._path(asked.run), text.encode(), _MODE)

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.json"


_REFUSALS: dict[State, str] = {
    "pending": "Expected a run that a person at this site has approved, got one that waits for "
    "that; ask the site, then resume the run.",
    "refused": "Expected a run that a person at this site has approved, got one that was refused "
    "there; leave this site out.",
}
