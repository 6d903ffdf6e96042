"""``fedlatent client``: a node on private data."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedlatent.cli import make_node
from fedlatent.cli.console import (
    err,
    figure,
    out,
    print_csv,
    print_json,
    print_processes,
    process_facts,
    size,
    stop_service,
    styled,
    table,
)
from fedlatent.cli.options import (
    ClientHomeOption,
    CsvOption,
    JsonOption,
)

if TYPE_CHECKING:
    from fedlatent.client.home import ClientHome
    from fedlatent.client.ledger import Ledger, Verified
    from fedlatent.client.policy import NodeConfig
    from fedlatent.client.rebuild import Rebuilt

app = typer.Typer(
    no_args_is_help=True, help="Set up and run a node; see what left and what it cost."
)
app.command("join", epilog=make_node.JOIN_EXAMPLES)(make_node.join)
app.command("init", epilog=make_node.INIT_EXAMPLES)(make_node.init)

AskedArgument = Annotated[
    str, typer.Argument(help="Id of a run that has asked; see 'client runs'.")
]


def _node(home: Path | None) -> "tuple[ClientHome, NodeConfig]":
    """The node's folder and its configuration.

    Raises:
        ConfigError: no node was made there, or its node.toml is wrong.
    """
    from fedlatent.client.home import ClientHome
    from fedlatent.client.policy import NodeConfig

    place = ClientHome.find(home)
    return place, NodeConfig.load(place.config)


def _warn(warning: str | None) -> None:
    if warning is not None:
        err.print(styled("yellow", "warning:", f" {warning}"))


@app.command(epilog="Example: fedlatent client certificate hospital-a.crt")
def certificate(
    file: Annotated[
        Path, typer.Argument(help="What the operator sent after admitting this site.", exists=True)
    ],
    home: ClientHomeOption = None,
) -> None:
    """Install the certificate without which the server's gateway lets nobody in."""
    from fedlatent.client.certificate import install_certificate
    from fedlatent.client.home import ClientHome

    place = ClientHome.find(home)
    install_certificate(place, file.read_bytes())
    out.print(f"installed in {place.client_certificate}; it counts from the node's next start")


@app.command(epilog="Example: fedlatent client start --home node")
def start(home: ClientHomeOption = None) -> None:
    """Serve until Ctrl-C or the terminal closes: the resident node, SuperNode and SuperExec."""
    from fedlatent.client.home import ClientHome
    from fedlatent.client.known import note_records
    from fedlatent.client.local import read_accepted
    from fedlatent.client.policy import NodeConfig
    from fedlatent.client.service import ClientService
    from fedlatent.shared.errors import ServiceError
    from fedlatent.shared.flower import reach_of
    from fedlatent.shared.supervisor import run_until_signal

    place = ClientHome.find(home)
    service = ClientService(place)
    config = NodeConfig.load(place.config)
    normals = read_accepted(place, config).normals()
    _warn(note_records(place, config.data.name, normals.records))

    def begin() -> None:
        with err.status("loading the records, starting the SuperNode"):
            service.start()
        err.print(reach_of(place.runtime_socket))
        err.print(f"node {service.site} runs; waiting to be let in by {service.address}")
        try:
            service.wait_online(30.0)
            err.print(styled("green", "in", ": training starts when the operator starts a run"))
        except ServiceError as error:
            err.print(styled("yellow", "not yet:", f" {error}"))
            err.print("trying on; Ctrl-C ends")

    run_until_signal(begin, service.stop)


@app.command(epilog="Example: fedlatent client stop --home node")
def stop(home: ClientHomeOption = None) -> None:
    """Stop the node, and what a killed one has left behind."""
    place, _ = _node(home)
    stop_service(place.services, "node")


@app.command(epilog="Example: fedlatent client status --json")
def status(home: ClientHomeOption = None, json: JsonOption = False) -> None:
    """Show this node's processes, and when their peer last answered."""
    from fedlatent.shared.supervisor import read_status

    place, _ = _node(home)
    found = read_status(place.services)
    print_json(process_facts(found)) if json else print_processes(found)


@app.command(
    epilog="Examples: fedlatent client ledger --json | fedlatent client ledger --verify | "
    "fedlatent client ledger --rebuild"
)
def ledger(
    home: ClientHomeOption = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check that the ledger is whole and paid for all that left; no table."
        ),
    ] = False,
    remake: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Make a lost, damaged or older ledger again, from all that left; never lower.",
        ),
    ] = False,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """Show what every release cost, and what is left of the budget."""
    from fedlatent.client.local import open_ledger, read_dataset

    place, config = _node(home)
    records = len(read_dataset(place, config.data).normals())
    if remake:
        from fedlatent.client.rebuild import rebuild

        _print_rebuilt(rebuild(place, config, records), config, as_json=json)
        return
    book, verified = open_ledger(place, config, records)
    if verify:
        _print_verified(book, verified, as_json=json)
    elif csv:
        print_csv(_entries(book))
    elif json:
        _print_ledger_json(book, records)
    else:
        _print_ledger(book, config, records)


def _print_verified(book: "Ledger", verified: "Verified", *, as_json: bool) -> None:
    states = [payment.state for payment in verified.payments.values()]
    counts = {name: states.count(name) for name in ("reserved", "released", "failed")}
    if as_json:
        facts = {"ok": True, "events": verified.events, "head": verified.head}
        print_json(facts | {"entries": len(states)} | counts)
        return
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    out.print(f"whole: {verified.events} events in one chain, the last {verified.head}")
    out.print(f"{len(states)} entries ({told}); every release in journal and outbox is paid for")


def _print_rebuilt(made: "Rebuilt", config: "NodeConfig", *, as_json: bool) -> None:
    if as_json:
        counts = {"released": made.released, "failed": made.failed, "dearest": made.dearest}
        spent = {"epsilon": _finite(made.epsilon), "said": _finite(made.said)}
        print_json({**counts, **spent, "kept": str(made.kept) if made.kept else None})
        return
    out.print(
        f"made again: {made.released} releases and {made.failed} charges that count without one, "
        f"{made.dearest} of them like the dearest known"
    )
    out.print(
        f"data set {config.data.name!r} has spent epsilon {made.epsilon:.4f}; the files told of "
        f"{made.said:.4f}"
    )
    if made.kept:
        out.print(f"the former ledger lies in {made.kept}")


def _entries(book: "Ledger") -> list[dict[str, object]]:
    """What each entry of a ledger says, for scripts."""
    return [
        {
            "run": e.run_id,
            "round": e.round,
            "kind": e.kind,
            "state": e.state,
            "noise_multiplier": e.noise_multiplier,
            "sample_rate": e.sample_rate,
            "steps": e.steps,
            "rng": e.rng,
            "epsilon_after": _finite(e.epsilon_after),
        }
        for e in book.entries()
    ]


def _print_ledger_json(book: "Ledger", records: int) -> None:
    from fedlatent.shared.privacy.accounting import ADJACENCY

    print_json(
        {
            "epsilon": _finite(book.epsilon()),
            "epsilon_pld": _finite(book.pld_epsilon()),
            "max_epsilon": book.max_epsilon,
            "delta": book.delta,
            "rng": book.rng(),
            "adjacency": ADJACENCY,
            "records": records,
            "person": _person_facts(book),
            "entries": _entries(book),
        }
    )


def _print_ledger(book: "Ledger", config: "NodeConfig", records: int) -> None:
    from fedlatent.shared.privacy.accounting import ADJACENCY

    shown = table(
        f"{config.site}, data set {config.data.name!r}, {records} records",
        "run",
        "#round",
        "kind",
        "state",
        "#sigma",
        "#q",
        "#steps",
        "rng",
        "#epsilon after",
    )
    for e in book.entries():
        numbers = (figure(e.noise_multiplier), f"{e.sample_rate:g}", str(e.steps))
        shown.add_row(
            e.run_id, str(e.round), e.kind, e.state, *numbers, e.rng, figure(e.epsilon_after, 4)
        )
    out.print(shown)
    out.print(
        f"spent: epsilon {book.epsilon():.4f} of {book.max_epsilon:g} at delta {book.delta:g} by "
        f"RDP, the guard; {book.pld_epsilon():.4f} by PLD "
        f"({ADJACENCY} adjacency, unit: one record, {book.rng()} random numbers)"
    )
    person = _person_facts(book)
    if person is not None:
        out.print(_person_line(person))


def _person_line(person: dict[str, Any]) -> str:
    start = f"per person (at most {person['records']} records): "
    if person["epsilon"] is None:
        return start + "no epsilon, since something left without noise or without a cap"
    limit = "" if person["max_epsilon"] is None else f" of {person['max_epsilon']:g}"
    return (
        f"{start}epsilon {person['epsilon']:.4f}{limit} at the same delta, by privacy loss "
        "distributions"
    )


def _person_facts(book: "Ledger") -> dict[str, Any] | None:
    """What releases cost one person so far; None where the node does not know persons."""
    spent = book.person_epsilon()
    if book.person is None or spent is None:
        return None
    return {
        "records": book.person.records,
        "epsilon": spent if math.isfinite(spent) else None,
        "max_epsilon": book.person.max_epsilon,
    }


def _finite(epsilon: float) -> float | None:
    """JSON has no infinity: null stands for no finite epsilon."""
    return epsilon if math.isfinite(epsilon) else None


@app.command(
    epilog="Examples: fedlatent client releases | fedlatent client releases --last 5 --json | "
    "fedlatent client releases --csv > left.csv"
)
def releases(
    home: ClientHomeOption = None,
    last: Annotated[int, typer.Option(help="Show only so many; 0 shows all.")] = 0,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """Show everything that left this node: what, why, bytes, hash, epsilon after."""
    from fedlatent.client.home import ClientHome
    from fedlatent.client.journal import read_journal

    journal = ClientHome.made(home).release_journal
    found = read_journal(journal)
    lines = found.values[-last:] if last else found.values
    _warn(_torn(found.torn, f"lines in {journal}"))
    if csv:
        print_csv([one.model_dump(exclude={"receipt"}) for one in lines])
        return
    if json:
        print_json([one.model_dump() for one in lines])
        return
    rows = table(
        f"what left ({journal})",
        "time",
        "run",
        "#round",
        "kind",
        "what",
        "#bytes",
        "sha256",
        "#epsilon after",
    )
    for one in lines:
        cells = (one.time, one.run, str(one.round), one.kind, one.what)
        rows.add_row(*cells, size(one.bytes), one.sha256, figure(one.epsilon, 4))
    out.print(rows)
    out.print(f"{len(lines)} messages, {size(sum(one.bytes for one in lines))} in all")


def _torn(count: int, what: str) -> str | None:
    return f"Expected whole {what}, got {count} cut short or damaged, left out." if count else None


@app.command(epilog="Example: fedlatent client runs --json")
def runs(home: ClientHomeOption = None, json: JsonOption = False, csv: CsvOption = False) -> None:
    """Show the runs that have asked for approval: what each costs and what would leave."""
    from fedlatent.client.approvals import Approvals

    place, config = _node(home)
    book = Approvals(place.approvals)
    found, damaged = book.runs(), book.damaged()
    if damaged:
        _warn(_torn(len(damaged), f"runs in {place.approvals}, such as {damaged[0].name}"))
    if csv:
        print_csv([one.model_dump() for one in found])
        return
    if json:
        print_json([one.model_dump() for one in found])
        return
    columns = ("run", "state", "asked", "sharing", "#epsilon", "#delta", "would leave")
    rows = table("runs that asked", *columns)
    for one in found:
        what = ", ".join(f"{count} {kind}" for kind, count in one.releases.items())
        numbers = (figure(one.epsilon, 4), f"{one.delta:g}")
        rows.add_row(one.run, one.state, one.asked, one.sharing, *numbers, what)
    out.print(rows)
    if config.policy.approval == "none":
        out.print('this node asks nobody: policy.approval is "none" in its node.toml')


@app.command(epilog="Example: fedlatent client approve hearts-20260101-120000")
def approve(
    run: AskedArgument,
    home: ClientHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Let a run have its answers, within the policy and the budget."""
    _decide(run, "approved", home, json=json)


@app.command(epilog="Example: fedlatent client refuse hearts-20260101-120000")
def refuse(
    run: AskedArgument,
    home: ClientHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Give a run no further answer."""
    _decide(run, "refused", home, json=json)


def _decide(
    run: str, decision: Literal["approved", "refused"], home: Path | None, *, json: bool
) -> None:
    from fedlatent.client.approvals import Approvals
    from fedlatent.client.home import ClientHome

    decided = Approvals(ClientHome.made(home).approvals).decide(run, decision)
    if json:
        print_json(decided.model_dump())
        return
    cost = "no noise" if decided.epsilon is None else f"epsilon {decided.epsilon:.4f}"
    out.print(
        f"run {decided.run} {decision}: {cost} at delta {decided.delta:g}, sharing "
        f"{decided.sharing!r}, {decided.rounds} rounds; configuration {decided.digest}"
    )
