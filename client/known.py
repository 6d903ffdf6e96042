"""Which records this user's nodes already hold: a warning before one budget becomes two.

One file of the user, ``records.json`` beside the default home (mode 0600), notes a digest of the
records of every home that was made or started, the home and the name of its data set. Digests are
keyed by a random number in that file, so they say nothing to anyone else, and nothing of it ever
leaves the machine. Records are known again in any order and file format, not once they are changed.
"""

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlatent.client.basis import SALT_BYTES, fingerprint_of, keyed_digest, load_salt
from fedlatent.client.home import ClientHome, user_folder
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import read_json, telling, utc_text, write_json

REGISTRY = "records.json"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """Where records were seen.

    Attributes:
        records: their keyed digest.
        home: path of the node's home.
        key: keyed digest of the home's own random key, by which a home that moved is known again.
        name: of the data set there.
        since: UTC time of the first start.
    """

    records: str
    home: str
    key: str
    name: str
    since: str


def note_records(home: ClientHome, name: str, records: np.ndarray) -> str | None:
    """Remember the records of a home; a warning when they have another budget already.

    Args:
        home: the node's home, already made.
        name: of its data set.
        records: preprocessed normal records [N, *shape].

    Raises:
        DataError: the file of sightings is damaged.
        StorageError: it cannot be read or written.
    """
    with telling():
        return _note(home, name, records)


def _note(home: ClientHome, name: str, records: np.ndarray) -> str | None:
    path = user_folder() / REGISTRY
    salt, seen = _read(path)
    mine = Sighting(
        records=fingerprint_of(salt, records),
        home=str(home.root),
        key=keyed_digest(salt, load_salt(home.salt)),
        name=name,
        since=utc_text(),
    )
    others = [one for one in seen if one.records == mine.records and not _same(one, mine)]
    again = [one for one in seen if one.records == mine.records and _same(one, mine)]
    kept = [one for one in seen if one not in again]
    kept.append(Sighting(**{**asdict(mine), "since": again[0].since} if again else asdict(mine)))
    write_json(path, {"salt": salt.hex(), "seen": [asdict(one) for one in kept]}, 0o600)
    return _warning(others[0], mine) if others else None


def _same(one: Sighting, mine: Sighting) -> bool:
    """Whether two sightings are of one budget: one name in one home, which may have moved.

    A home that was made anew in the same place has another key, and another ledger.
    """
    moved = one.home != mine.home and not ClientHome(Path(one.home)).ledger.exists()
    return one.name == mine.name and one.key == mine.key and (one.home == mine.home or moved)


def _warning(other: Sighting, mine: Sighting) -> str:
    where = f"the home {other.home} holds"
    if other.home == mine.home:
        where = "this home holds" if other.key == mine.key else "an earlier node in this home held"
    return (
        f"Expected records with one budget, got records that {where} as data set "
        f"{other.name!r} since {other.since}: two ledgers do not know of each other, so what both "
        "have spent adds up. Go on with that one, unless these are records of other people."
    )


def _read(path: Path) -> tuple[bytes, list[Sighting]]:
    if not path.exists():
        return secrets.token_bytes(SALT_BYTES), []
    value: Any = read_json(path)
    try:
        return bytes.fromhex(value["salt"]), [Sighting(**one) for one in value["seen"]]
    except (TypeError, KeyError, ValueError):
        raise DataError(
            f"Expected the list of known records in {path}, got a damaged file; restore it, or "
            "remove it: no budget depends on it, only the warning."
        ) from None
