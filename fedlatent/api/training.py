"""From records to a signed bundle and a report."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedlatent.api.data import read
from fedlatent.api.progress import watched
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.train import Trained, leave_out, run_of, worry
from fedlatent.simulations.train import train as train_on

if TYPE_CHECKING:
    import pandas as pd


def train(
    source: "Federation | str | Path | pd.DataFrame | NDArray[Any]",
    out: str | Path,
    *,
    family: str | None = None,
    options: Mapping[str, object] | None = None,
    epsilon: float | None = None,
    absent: int = 0,
    run: RunConfig | None = None,
    signing_key: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Trained:
    """Train a detector on records that are all here: a signed bundle, and a report beside it.

    Without an epsilon all clients' records are trained on together, and the bundle holds exact
    statistics of them. With one, each client is a node with a ledger of its own and secure noise,
    and the bundle is covered by it.

    Args:
        source: clients, as `read` gives them, or what it reads.
        out: the bundle; ``.html`` and ``.json`` of its name beside it are the report.
        family: of the model; ``fedlatent model list`` names all. Gaussian by default, or molecule
            where records are molecules.
        options: of the family, such as ``{"latent_dim": 4}``.
        epsilon: covers the bundle for each client's records; None for no privacy.
        absent: clients left out of training, to see how new ones fare.
        run: what to train, whole; in place of family, options and epsilon.
        signing_key: private key file; by default ``publisher.pem`` beside the bundle, made new.
        seed: of all that is random but the noise of nodes, which is secure.
        progress: show a bar.

    Returns:
        Bundle, loaded model and report; shows the report in a notebook.

    Raises:
        DataError: the records do not fit, or are too few.
        ConfigError: the family, an option or the run does not fit the records.

    Examples:
        >>> import fedlatent as fl
        >>> clients = fl.read("patients.csv", client="hospital", label="disease")
        >>> trained = fl.train(clients, "patients.fedlatent", absent=1, progress=False)
        >>> trained.report.detectors.columns.tolist()
        ['took part', 'absent']
        >>> trained.page.name
        'patients.html'
    """
    federation = source if isinstance(source, Federation) else read(source, seed=seed)
    if run is not None and (family, options, epsilon) != (None, None, None):
        raise ConfigError(
            "Expected a run, or family, options and epsilon, got both; put them into the run."
        )
    present, away = leave_out(federation, absent, seed)
    chosen = run or run_of(present, family=family, options=options, epsilon=epsilon, seed=seed)
    if text := worry(chosen, present):
        warnings.warn(text, stacklevel=2)
    target = Path(out)
    with (
        tempfile.TemporaryDirectory() as work,
        watched(shown=progress, name="training") as watch,
    ):
        return train_on(
            present,
            target,
            run=chosen,
            away=away,
            signing_key=None if signing_key is None else Path(signing_key),
            work=Path(work),
            watch=watch,
        )
