"""What ``export site`` says about the one bundle that no epsilon covers."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.home import ClientHome
from fedlatent.shared.bundle.archive import CARD
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.toml import dumps
from tests.cli.conftest import Run
from tests.client.support import request, tiny_config, tiny_node, tiny_records, tiny_run, weights_of
from tests.client.test_node import run_whole

BUDGET = 20.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ClientHome:
    """A node's home after a seeded release and then a whole run with secret noise."""
    made = ClientHome(tmp_path_factory.mktemp("site"))
    run = tiny_run(privacy={"epsilon": 4.0, "rng": "secure"})
    node = tiny_node(made.root, run, max_epsilon=BUDGET)
    seeded = tiny_run(name="seeded", privacy={"epsilon": 1.0})
    node.handle(request(seeded, 1, run_id="seeded-1"), weights_of(seeded))
    run_whole(node, run)
    np.savez(made.root / "records.npz", X=tiny_records())
    config = tiny_config(run, max_epsilon=BUDGET)
    made.config.write_text(dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True)))
    SigningKey.generate(made.signing_key)
    return made


def test_a_site_bundle_is_said_to_be_covered_by_no_epsilon(run: Run, home: ClientHome) -> None:
    """The command's last word is that the bundle is not covered, not the site's epsilon."""
    status, out, _ = run("export", "site", "--home", home.root)
    said = " ".join(out.split())
    assert status == 0
    assert "what this site released cost epsilon" in said
    assert "(simulation random numbers)" in said
    assert said.endswith(
        "No epsilon covers this bundle: it holds exact statistics of this site's records. "
        "It is for this site's own devices alone."
    )


def test_scripts_and_devices_read_no_epsilon_for_a_site_bundle(run: Run, home: ClientHome) -> None:
    """JSON has null where a global bundle has its epsilon, and the card says why."""
    facts = json.loads(run("export", "site", "--home", home.root, "--json")[1])
    assert facts["epsilon"] is None
    assert 4.0 < facts["epsilon_released"] < BUDGET
    key = SigningKey.load(home.signing_key).public
    model = EdgeModel.load(Path(facts["path"]), [key])
    info = model.info()
    assert (info["epsilon"], info["noise_rng"]) == (None, "simulation")
    assert info["epsilon_released"] == pytest.approx(facts["epsilon_released"])
    card = model.bundle.files[CARD].decode()
    assert "No epsilon covers this bundle" in card
    assert "do not rely on this very model" in card
