"""What an operator can do and know before a run: invite sites, and see whom a run would lose."""

from collections.abc import Sequence

from fedlatent.server.authority import fingerprint
from fedlatent.server.control import Site
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import load_settings
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.invitation import Invitation
from fedlatent.shared.privacy.delta import largest_delta
from fedlatent.shared.privacy.plan import PrivacyPlan, drowned
from fedlatent.shared.proxies import LOOPBACK, split_address
from fedlatent.shared.wire import PROTOCOL


def invite(home: ServerHome, site: str, run: RunConfig, address: str | None = None) -> Invitation:
    """An invitation of a site to this server.

    Args:
        home: Of the server.
        site: What the site is to be called.
        run: What a run asks for.
        address: ``host:port`` for the site; by default the first name of the server's settings.

    Raises:
        ConfigError: There is no server, or the name or the address is none.
        ServiceError: The authority is absent or damaged.
    """
    settings = load_settings(home)
    name = next(iter(settings.names), settings.near)
    usual = f"[{name}]:{settings.port}" if ":" in name else f"{name}:{settings.port}"
    facts = {
        "site": site,
        "server": address or usual,
        "protocol": PROTOCOL,
        "fingerprint": fingerprint(home),
        "certificate": home.ca_certificate.read_text(),
        "run": run,
    }
    return Invitation.parse(facts, "server invite")


def unreachable(home: ServerHome, invitation: Invitation) -> str | None:
    """Why a site would not reach the server at the address of an invitation, or None.

    Raises:
        ConfigError: There is no server.
    """
    names = load_settings(home).certified
    host = split_address(invitation.server)[0]
    if host in LOOPBACK:
        return (
            f"expected an address by which the site reaches this server, got {invitation.server}, "
            "which is the site's own machine; give one by --address"
        )
    if host.lower() not in (name.lower() for name in names):
        return (
            f"expected one of the names in the server's certificate ({', '.join(names)}), got "
            f"{host}, which nodes will refuse; add it to 'names' in server.toml and start anew"
        )
    return None


def worries(run: RunConfig, plan: PrivacyPlan, sites: Sequence[Site]) -> list[str]:
    """What would go wrong with a run, of this plan, at sites whose numbers of records are known.

    Raises:
        ConfigError: So many sites would refuse its delta that the quorum cannot be reached.
    """
    known = {site.name: site.records for site in sites if site.records is not None}
    if not plan.private or not known:
        return []
    found = []
    delta = run.privacy.delta
    small = {name: count for name, count in known.items() if delta > largest_delta(count)}
    if small:
        limit = largest_delta(min(small.values()))
        told = ", ".join(f"{name} ({count} records)" for name, count in small.items())
        text = f"delta of at most {limit:.3g}, 1 / (10 N), got {delta:g}, which {told} will refuse"
        if len(sites) - len(small) < run.federation.quorum:
            raise ConfigError(
                f"Expected {text}: fewer than the quorum of {run.federation.quorum} would be left; "
                "lower privacy.delta.",
                field="privacy.delta",
                reason="delta",
            )
        found.append(f"expected {text}; lower privacy.delta to have them")
    taking = [count for name, count in known.items() if name not in small]
    if len(known) == len(sites) and (told_of := drowned(run, plan, taking)):
        found.append(told_of)
    return found
