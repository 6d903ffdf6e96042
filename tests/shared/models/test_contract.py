"""What every model family must do, whatever it is made of: `fedlatent.testing`, on our cases."""

from pathlib import Path

from fedlatent.shared.models import FAMILIES, encoder_state
from fedlatent.testing import contract
from tests.shared.models.cases import CASES

FROZEN = Path(__file__).parent / "frozen" / "encoder_keys.txt"

globals().update(contract(CASES))


def test_every_family_has_a_case() -> None:
    """A family cannot be registered without entering this contract."""
    assert {case.family for case in CASES.values()} == FAMILIES.keys()


def test_encoder_keys_are_frozen() -> None:
    """What sites share, by name and shape, changes only together with the frozen file."""
    lines = [
        f"{name} {key} {'x'.join(map(str, value.shape))}"
        for name, case in CASES.items()
        for key, value in encoder_state(case.model()).items()
    ]
    assert FROZEN.read_text(encoding="utf-8").splitlines() == lines
