"""``fedlatent server``: the aggregation server."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli import insight
from fedlatent.cli.console import (
    err,
    figure,
    out,
    print_csv,
    print_json,
    print_processes,
    process_facts,
    progress,
    size,
    stop_service,
    styled,
    table,
)
from fedlatent.cli.options import (
    CsvOption,
    JsonOption,
    RunArgument,
    RunFileArgument,
    ServerHomeOption,
    SiteArgument,
    WaitOption,
)

if TYPE_CHECKING:
    from fedlatent.server.home import ServerHome
    from fedlatent.server.registry import Registry, Run
    from fedlatent.shared.privacy.plan import PrivacyPlan

app = typer.Typer(no_args_is_help=True, help="Set up, run and watch the aggregation server.")
app.command("sites", epilog=insight.EXAMPLES)(insight.sites)


@app.command(
    epilog="Examples: fedlatent server init | "
    "fedlatent server init --host 0.0.0.0 --dns-name fl.hospital.example"
)
def init(
    home: ServerHomeOption = None,
    host: Annotated[str, typer.Option(help="Address to bind; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Public port; 0 takes a free one.")] = 8443,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--dns-name",
            help="DNS name or address nodes use; repeat for more.",
            show_default=False,
        ),
    ] = None,
    client_certificates: Annotated[
        bool,
        typer.Option(
            "--client-certificates",
            help="Let nobody connect without a certificate, which 'server admit' makes.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the authority, certificates, keys and settings; prints the next command."""
    from fedlatent.server.example import RUN_EXAMPLE
    from fedlatent.server.home import ServerHome
    from fedlatent.server.service import init_server
    from fedlatent.shared.config import RunConfig
    from fedlatent.shared.editor import directive, write_schema
    from fedlatent.shared.files import write_atomic

    place = ServerHome.find(home)
    settings = init_server(
        place, host=host, port=port, names=name or (), client_certificates=client_certificates
    )
    example = place.root / "run.toml"
    write_atomic(example, (directive("run") + RUN_EXAMPLE).encode())
    write_schema(example.parent, "run", RunConfig)
    if json:
        print_json(
            {
                "home": str(place.root),
                "host": settings.host,
                "port": settings.port,
                "ca": str(place.ca_certificate),
                "run_example": str(example),
            }
        )
        return
    out.print(f"server made in {place.root}")
    out.print(
        f"  for every site: {place.ca_certificate} and the address <this host>:{settings.port}"
    )
    out.print(f"  an example run: {example}")
    out.print(styled("bold", f"fedlatent server start --home {place.root}", before="next: "))


@app.command(epilog="Example: fedlatent server start --home server")
def start(home: ServerHomeOption = None) -> None:
    """Serve until Ctrl-C or the terminal closes; resumes unfinished runs.

    Runs the gateway, the SuperLink and the SuperExec.
    """
    from fedlatent.server.home import ServerHome
    from fedlatent.server.service import ServerService
    from fedlatent.shared.flower import reach_of
    from fedlatent.shared.supervisor import run_until_signal

    place = ServerHome.find(home)
    service = ServerService(place)

    def begin() -> None:
        with err.status("starting SuperLink, SuperExec and gateway"):
            service.start()
        ready = f" on {service.address}; authority {service.fingerprint}"
        err.print(styled("green", "ready", ready))
        err.print(reach_of(place.link_socket))
        admit = f"fedlatent server admit SITE node.pub --home {place.root}"
        err.print(styled("bold", admit, before="next: "))

    run_until_signal(begin, service.stop)


@app.command(
    epilog="Examples: fedlatent server admit hospital-a hospital-a.pub --records 5200 | "
    "fedlatent server admit hospital-a hospital-a.pub --records 5900 (the count has changed)"
)
def admit(
    site: SiteArgument,
    key: Annotated[Path, typer.Argument(help="The node's public key, keys/node.pub.")],
    records: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Normal records that the site trains on, as its 'client init' says: what it "
            "weighs (under a robust rule and in summaries as twice the median at most), and all "
            "that its replies may state. Without it the site's first word in a run counts, at most "
            "as twice the median. Again with the same key changes it.",
        ),
    ] = None,
    home: ServerHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Let the node with this public key join; also one that was removed before."""
    from fedlatent.server.control import Control
    from fedlatent.server.home import ServerHome
    from fedlatent.shared.keys import site_of_key

    control = Control(ServerHome.find(home))
    admitted = control.admit(site, key, records)
    if not site_of_key(key.read_text()):
        told = f" {key} states no name of a site, so nobody checked that it is {site}'s; a node"
        told += " of this version writes it there when it starts"
        err.print(styled("yellow", "warning:", told))
    certificate = control.certificate(site)
    if json:
        facts = {
            "site": admitted.name,
            "node_id": admitted.node_id,
            "records": admitted.records,
        }
        print_json(facts | ({} if certificate is None else {"certificate": str(certificate)}))
        return
    out.print(f"admitted {admitted.name}: key {admitted.fingerprint}")
    if admitted.records is None:
        words = "  weighs what it first states in a run; fix that by "
        out.print(styled("bold", "--records N", before=words))
    else:
        out.print(f"  weighs by its {admitted.records} records, which its replies must state;")
        out.print("  under a robust rule never more than twice the median of the sites")
    if certificate is not None:
        out.print(f"  send to the site: {certificate}")
        install = "fedlatent client certificate FILE"
        out.print(styled("bold", install, before="  the site installs it: "))


@app.command(
    epilog="Examples: fedlatent server invite hospital-a run.toml | "
    "fedlatent server invite hospital-a run.toml --address fl.example:8443 -o a.invite.toml"
)
def invite(
    site: SiteArgument,
    config: RunFileArgument,
    address: Annotated[
        str | None,
        typer.Option(help="host:port for the site; by default the server's first --dns-name."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file; by default SITE.invite.toml here."),
    ] = None,
    home: ServerHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make the one file that a site needs to join: server, authority, and what a record is."""
    from fedlatent.server.home import ServerHome
    from fedlatent.server.invite import invite as invited
    from fedlatent.server.invite import unreachable
    from fedlatent.shared.config import RunConfig
    from fedlatent.shared.files import write_atomic

    place = ServerHome.made(home)
    made = invited(place, site, RunConfig.load(config), address)
    warning = unreachable(place, made)
    target = output or Path(f"{site}.invite.toml")
    write_atomic(target, made.text.encode())
    if json:
        facts = made.model_dump(mode="json", exclude={"run"})
        print_json({"file": str(target), **facts, "warning": warning})
        return
    if warning is not None:
        err.print(styled("yellow", "warning:", f" {warning}"))
    out.print(f"invitation of {site} to {made.server} in {target}; nothing in it is secret")
    out.print(f"  tell the site over another channel: {made.fingerprint}")
    joined = f"fedlatent client join {target.name} --data RECORDS --fingerprint ..."
    out.print(styled("bold", joined, before="  the site then runs: "))


@app.command(epilog="Example: fedlatent server remove hospital-a")
def remove(
    site: SiteArgument,
    home: ServerHomeOption = None,
) -> None:
    """Take a site's admission back."""
    from fedlatent.server.control import Control
    from fedlatent.server.home import ServerHome

    Control(ServerHome.made(home)).remove(site)
    out.print(f"removed {site}")


@app.command(
    epilog="Examples: fedlatent server run run.toml | "
    "fedlatent server run run.toml --no-wait --json"
)
def run(
    config: RunFileArgument,
    home: ServerHomeOption = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; by default made of name and time."),
    ] = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Start a run and watch its rounds."""
    from fedlatent.server.control import Control
    from fedlatent.server.home import ServerHome
    from fedlatent.server.invite import worries
    from fedlatent.shared.config import RunConfig
    from fedlatent.shared.privacy.plan import PrivacyPlan

    chosen = RunConfig.load(config)
    plan = PrivacyPlan.from_config(chosen)
    if not json:
        _print_plan(plan)
    place = ServerHome.find(home)
    control = Control(place)
    for text in worries(chosen, plan, control.sites()):
        err.print(styled("yellow", "warning", f": {text}"))
    submission = control.submit(chosen, run_id)
    _follow(place, submission.run_id, wait=wait, as_json=json)


@app.command(epilog="Example: fedlatent server resume hearts-20260131-120000-a1b2")
def resume(
    run_id: RunArgument,
    home: ServerHomeOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Go on with a run from its last checkpoint."""
    from fedlatent.server.control import Control
    from fedlatent.server.home import ServerHome

    place = ServerHome.made(home)
    starts = Control(place).resume(run_id).starts
    _follow(place, run_id, wait=wait, as_json=json, starts=starts)


@app.command(
    epilog="Examples: fedlatent server stop RUN (one run) | fedlatent server stop (the server)"
)
def stop(
    run_id: Annotated[str | None, typer.Argument(help="The run; none stops the server.")] = None,
    home: ServerHomeOption = None,
) -> None:
    """Stop one run, or the whole server; both can go on later."""
    from fedlatent.server.control import Control
    from fedlatent.server.home import ServerHome

    place = ServerHome.made(home)
    if run_id is not None:
        Control(place).stop(run_id)
        out.print(f"stopped {run_id}; 'fedlatent server resume {run_id}' goes on with it")
    else:
        stop_service(place.services, "server")


@app.command(
    epilog="Examples: fedlatent server status | fedlatent server status RUN --json | "
    "fedlatent server status RUN --csv > sites.csv"
)
def status(
    run_id: Annotated[str | None, typer.Argument(help="Show the rounds of this run.")] = None,
    home: ServerHomeOption = None,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """Show processes, sites and runs, or the rounds of one run."""
    from fedlatent.server.control import Control
    from fedlatent.server.strikes import Strikes
    from fedlatent.shared.supervisor import read_status

    with _registry(home) as (place, registry):
        if run_id is not None:
            row = _known(registry, run_id)
            facts: dict[str, Any] = _run_facts(place, row) | {
                "phases": [
                    _row(one)
                    | {"sites": [_row(s) for s in registry.site_rounds(run_id, one.number)]}
                    for one in registry.rounds(run_id)
                ],
                "artefacts": [_row(one) for one in registry.artefacts(run_id)],
                "left_out": [
                    {"site": one.site, "sentence": one.sentence}
                    for one in Strikes(place.run(run_id)).left_out().values()
                ],
            }
            if csv:
                print_csv([site for one in facts["phases"] for site in one["sites"]])
            else:
                print_json(facts) if json else _print_run(facts)
            return
        sites = Control(place).sites()
        overview: dict[str, Any] = {
            "processes": process_facts(found := read_status(place.services)),
            "admitted": [site.name for site in sites],
            "records": {site.name: site.records for site in sites},
            "sites": [_row(one) for one in registry.sites()],
            "runs": [_run_facts(place, one) for one in registry.runs()],
            "damaged": Control(place).survey()[1],
        }
    if csv:
        print_csv(overview["runs"])
        return
    if json:
        print_json(overview)
        return
    print_processes(found)
    _print_overview(overview)


@app.command(epilog="Example: fedlatent server readmit hearts-20260131-120000-a1b2 hospital-a")
def readmit(
    run_id: RunArgument,
    site: SiteArgument,
    home: ServerHomeOption = None,
    json: JsonOption = False,
) -> None:
    """Let a site back into a run that left it out, as one whose replies misbehaved."""
    from fedlatent.server.strikes import Strikes

    with _registry(home) as (place, registry):
        _known(registry, run_id)
    Strikes(place.run(run_id)).readmit(site)
    if json:
        print_json({"run_id": run_id, "readmitted": site})
    else:
        out.print(f"{site} is asked again from the next phase of {run_id} on")


@contextmanager
def _registry(home: Path | None) -> "Iterator[tuple[ServerHome, Registry]]":
    """The server's folder and its registry of runs.

    Raises:
        ConfigError: no server was made there.
    """
    from fedlatent.server.home import ServerHome
    from fedlatent.server.registry import Registry

    place = ServerHome.made(home)
    with Registry(place.registry) as registry:
        yield place, registry


def _known(registry: "Registry", run_id: str) -> "Run":
    """The row of a run.

    Raises:
        ConfigError: No such run.
    """
    from fedlatent.shared.errors import ConfigError

    row = registry.run(run_id)
    if row is None:
        raise ConfigError(f"Expected a known run, got {run_id!r}; see 'server status'.")
    return row


def _follow(home: "ServerHome", run_id: str, *, wait: bool, as_json: bool, starts: int = 0) -> None:
    """Say that a run was started, or watch it to its end."""
    from fedlatent.server.watch import watch_run

    if wait:
        if not as_json:
            err.print(f"run {run_id} goes on without this terminal; see 'server status {run_id}'")
        with progress(quiet=as_json) as stages:
            watch_run(home, run_id, stages, starts=starts, note=stages.note)
    if as_json:
        print_json({"run_id": run_id} | ({"status": "complete"} if wait else {}))
    elif not wait:
        out.print(f"run {run_id} started; watch it with 'fedlatent server status {run_id}'")
    else:
        out.print(styled("green", "complete", f": {home.run(run_id) / 'result'}"))
        export = f"fedlatent export global --home {home.root} --run {run_id}"
        out.print(styled("bold", export, before="next: "))


def _print_plan(plan: "PrivacyPlan") -> None:
    if not plan.private:
        err.print(styled("yellow", "This run has no differential privacy."))
        return
    summaries = ", ".join(
        f"{kind} {count} x sigma {sigma:g}" for kind, count, sigma in plan.summaries
    )
    err.print(
        f"privacy plan: epsilon {plan.epsilon():.3f} by RDP ({plan.pld_epsilon():.3f} by PLD) at "
        f"delta {plan.delta:g} for each client (zero-out adjacency, one record); "
        f"training {plan.rounds} x {plan.steps_per_round} steps, sigma {plan.noise_multiplier:g}, "
        f"q {plan.sample_rate:g}; {summaries}; {plan.rng} random numbers"
    )


def _row(row: object) -> dict[str, object]:
    return {key: value for key, value in vars(row).items() if not key.startswith("_")}


def _run_facts(home: "ServerHome", row: "Run") -> dict[str, object]:
    from fedlatent.server.watch import standing

    facts = _row(row)
    facts.pop("config")
    facts["status"], facts["sentence"] = standing(home, row)
    return facts


def _print_run(facts: Mapping[str, Any]) -> None:
    out.print(f"run {facts['id']}: {facts['status']} {facts['sentence']}")
    rows = table("", "#phase", "kind", "status", "#good", "#asked", "#records", "not counted")
    for one in facts["phases"]:
        bad = [f"{s['site']} ({s['code']})" for s in one["sites"] if s["status"] != "ok"]
        cells = (one["number"], one["kind"], one["status"], one["good"], one["asked"])
        rows.add_row(*map(str, cells), str(one["records"]), ", ".join(bad))
    out.print(rows)
    for one in facts["phases"]:
        for site in one["sites"]:
            if site["status"] != "ok":
                words = f"{site['site']}: {site['sentence']}"
                out.print(f"phase {one['number']}, {words}")
    for (name, _), sentences in _notes(facts["phases"]).items():
        out.print(f"{name}, {len(sentences)} of {len(facts['phases'])} phases: {sentences[-1]}")
    for one in facts["left_out"]:
        words = f"{one['site']} {one['sentence']}"
        out.print(styled("yellow", "left out", f": {words}"))
    for one in facts["artefacts"]:
        out.print(f"{one['name']}: {one['path']} ({size(one['bytes'])})")


def _notes(phases: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """What was done to replies that passed the screening, by site and code."""
    found: dict[tuple[str, str], list[str]] = {}
    for phase in phases:
        for site in phase["sites"]:
            if site["status"] == "ok" and site["sentence"]:
                found.setdefault((site["site"], site["code"]), []).append(site["sentence"])
    return found


def _print_overview(facts: Mapping[str, Any]) -> None:
    sites = table("sites", "name", "last answer", "#epsilon spent", "node", "why")
    for one in facts["sites"]:
        cells = (one["name"], one["last_status"], figure(one["epsilon"]), one["node_id"])
        sites.add_row(*cells, one["last_sentence"])
    runs = table("runs", "run", "status", "#phases", "why")
    for one in facts["runs"]:
        runs.add_row(one["id"], one["status"], str(one["phases"]), one["sentence"])
    for shown in (sites, runs):
        out.print(shown)
    for sentence in facts["damaged"].values():
        out.print(styled("yellow", "damaged", f": {sentence}"))
    named = [
        name if count is None else f"{name} ({count} records)"
        for name, count in facts["records"].items()
    ]
    admitted = ", ".join(named) or "none; use 'fedlatent server admit'"
    out.print(f"admitted sites: {admitted}")
