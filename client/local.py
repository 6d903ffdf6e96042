"""Putting a node together: from a client home, or in memory for simulations."""

import functools
import json
import os
from pathlib import Path

import numpy as np

from fedlatent.client.approvals import Approvals
from fedlatent.client.basis import load_salt
from fedlatent.client.compute import make_noise
from fedlatent.client.door import ReleaseDoor
from fedlatent.client.home import ClientHome, user_folder
from fedlatent.client.ledger import Ledger, Person, Verified
from fedlatent.client.node import Node, NoiseFactory
from fedlatent.client.policy import DEFAULT_SHARING, NodeConfig, NodeData, Policy
from fedlatent.client.reconcile import claims, reconcile, traces
from fedlatent.client.store import Store
from fedlatent.shared.data.checks import Check, check
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.readers import RawRecords, read_raw
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import telling, write_atomic
from fedlatent.shared.privacy.selftest import check_random_numbers

SIMULATION_VARIABLE = "FEDLATENT_SIMULATION"
"""Environment variable that names a folder of client homes for Flower's own simulation."""
NODE_ID_FILE = "flower-node"
"""File in a simulated node's home: the id by which Flower knows the node in this run."""
SIMULATED_PATIENT_BEATS = 700


def open_node(home: ClientHome, noise_factory: NoiseFactory = make_noise) -> Node:
    """Load the node that ``home`` describes, with its records.

    Raises:
        ConfigError: ``node.toml`` is absent or wrong.
        DataError: the data file does not fit, holds too few normal records, or the check of it
            stops at what the owner has not accepted.
        ServiceError: the ledger is not usable.
    """
    config = NodeConfig.load(home.config)
    return assemble(config, read_accepted(home, config), home, noise_factory)


def read_dataset(home: ClientHome, data: NodeData) -> Dataset:
    """Read the records that ``data`` names; relative paths start at the home.

    Where it names persons, these are the normal records that are left of each person.

    Raises:
        DataError: the file does not fit.
    """
    return used(_read(home, data).dataset(data.record_schema), data)


def read_checked(home: ClientHome, config: NodeConfig) -> tuple[Dataset, Check]:
    """The same records, and what a look at the whole file found.

    Raises:
        DataError: the file does not fit, or holds no normal record.
    """
    data = config.data
    raw = _read(home, data)
    found = check(
        raw.records,
        data.record_schema,
        label=raw.label,
        names=raw.names,
        left_out=raw.left_out,
        least=config.policy.least_records,
    )
    return used(raw.dataset(data.record_schema), data), found


def read_accepted(home: ClientHome, config: NodeConfig) -> Dataset:
    """The same records, unless the check stops at what the owner has not accepted.

    Raises:
        RecordsRefused: it does.
        DataError: the file does not fit, or holds too few normal records.
    """
    dataset, found = read_checked(home, config)
    accepted = config.data.accept
    keys = [*accepted, *(one.key for one in found.stops(accepted))]
    found.refuse(f"write accept = {json.dumps(keys)} under [data] in {home.config}", accepted)
    config.policy.check_least(len(dataset.normals()))
    return dataset


def _read(home: ClientHome, data: NodeData) -> RawRecords:
    return read_raw(
        home.root / data.path,
        data.record_schema,
        records_key=data.records_key,
        columns=data.columns,
        label_key=data.label_key,
        normal_label=data.normal_label,
        person_key=data.person_key,
        names=data.names,
        dialect=data.dialect,
    )


def used(dataset: Dataset, data: NodeData) -> Dataset:
    """The records that a node works with: all, or the normal ones left of each person.

    Raises:
        DataError: ``data`` caps persons, and the records have none.
    """
    most = data.max_records_per_person
    return dataset if most is None else dataset.normals().capped(most)


def persons_of(config: NodeConfig) -> Person | None:
    """What the ledger must know of persons, where the node file names them."""
    most = config.data.max_records_per_person
    if most is None:
        return None
    return Person(records=most, max_epsilon=config.policy.max_person_epsilon)


def assemble(
    config: NodeConfig,
    dataset: Dataset,
    home: ClientHome,
    noise_factory: NoiseFactory = make_noise,
) -> Node:
    """Put a node together whose files lie in ``home``.

    Raises:
        DataError: no normal record; a deployed node's policy wants more, see `read_accepted`.
        ServiceError: the ledger is not usable, or not the one that paid for what left; or the
            machine's random numbers are broken.
    """
    dataset, policy = used(dataset, config.data), config.policy
    records = len(dataset.normals())
    if records == 0:
        raise DataError(
            "Expected at least one normal record, got none; check the labels.", reason="few"
        )
    check_random_numbers()
    home.create()
    ledger, _ = open_ledger(home, config, records)
    door = ReleaseDoor(
        ledger=ledger,
        outbox=home.outbox,
        log=home.release_log,
        journal=home.release_journal,
        site=config.site,
        records=records,
        allow_full="full" in policy.allowed_sharing,
    )
    store, approvals = Store(home.store), Approvals(home.approvals)
    salt = load_salt(home.salt)
    return Node(config, dataset, ledger, store, door, approvals, noise_factory, salt=salt)


def open_ledger(home: ClientHome, config: NodeConfig, records: int) -> tuple[Ledger, Verified]:
    """The ledger of a home, once its chain is whole and holds everything that left.

    Args:
        home: with ledger, journal and outbox.
        config: name of the data set and policy.
        records: number of normal records.

    Raises:
        LedgerError: the ledger is missing, damaged, older than what left, or changed by hand.
        ServiceError: another process holds it, or it is of another version.
        StorageError: the ledger, or what tells of releases, cannot be read or written.
    """
    # Before the ledger, which is written first.
    with telling():
        found = claims(home)
        told_by = traces(home, found)
    ledger = ledger_at(home.ledger, config, records, told_by)
    verified = ledger.verify()
    reconcile(home.ledger, verified, found)
    return ledger, verified


def ledger_at(path: Path, config: NodeConfig, records: int, traces: str | None = None) -> Ledger:
    """The ledger in a file, under the policy of a node; arguments and errors as of ``Ledger``."""
    policy = config.policy
    return Ledger(
        path,
        config.data.name,
        policy.max_epsilon,
        policy.effective_delta(records),
        allow_simulation_rng=policy.allow_simulation_rng,
        person=persons_of(config),
        traces=traces,
    )


def partition_node(run_id: str, partition: int, flower_node: int) -> Node:
    """The node that answers for one partition of Flower's own simulation.

    With ``$FEDLATENT_SIMULATION`` set it is the client home of that number in the named folder,
    in the order of the homes' names; without it, a synthetic patient.

    Args:
        run_id: the run.
        partition: which node, from 0.
        flower_node: Flower's random id of the node, which the home is told.

    Raises:
        ConfigError: the folder holds fewer homes, or a home's ``node.toml`` is wrong.
        DataError: the data file does not fit, or holds no normal record.
        ServiceError: the ledger is not usable.
    """
    folder = os.environ.get(SIMULATION_VARIABLE)
    if not folder:
        return simulated_node(run_id, partition)
    return _node_of_folder(Path(folder), partition, flower_node)


@functools.lru_cache(maxsize=64)
def _node_of_folder(folder: Path, partition: int, flower_node: int) -> Node:
    homes = sorted(path.parent for path in folder.glob("*/node.toml"))
    if partition >= len(homes):
        raise ConfigError(
            f"Expected a client home for partition {partition} in {folder}, got {len(homes)} "
            "homes; start the simulation with that number of nodes."
        )
    home = ClientHome(homes[partition])
    write_atomic(home.root / NODE_ID_FILE, str(flower_node).encode())
    return open_node(home)


@functools.lru_cache(maxsize=64)
def simulated_node(run_id: str, partition: int) -> Node:
    """A synthetic patient with a generous policy, for Flower's own simulation.

    State lies under ``$FEDLATENT_HOME/sim/<run>/<partition>`` (default ``~/.fedlatent``), so a
    simulated node keeps its decoder and its ledger when Flower moves it to another process.

    Args:
        run_id: the run.
        partition: which patient.
    """
    site = hearts(1, seed=partition, beats=SIMULATED_PATIENT_BEATS).sites[0]
    dataset = Dataset(
        records=HEARTS_SCHEMA.preprocess(np.asarray(site.train)), schema=HEARTS_SCHEMA
    )
    config = NodeConfig(
        site=f"patient-{partition}",
        data=NodeData(path=Path("synthetic"), schema=HEARTS_SCHEMA),
        policy=Policy(
            max_epsilon=1e6,
            delta=1e-3,
            allowed_sharing=(*DEFAULT_SHARING, "full"),
            allow_simulation_rng=True,
            allow_non_private=True,
        ),
    )
    return assemble(config, dataset, ClientHome(user_folder() / "sim" / run_id / str(partition)))
