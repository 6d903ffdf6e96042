"""The report of an audit: one HTML file that opens offline, and its pictures."""

from pathlib import Path

from fedlatent.shared.files import write_atomic
from fedlatent.simulations.audit import figures
from fedlatent.simulations.audit.checks import ALPHA, Check
from fedlatent.simulations.audit.inversion import Quality
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.run import CANARY_EPSILON, USUAL_EPSILON, Audit
from fedlatent.simulations.audit.unit import DELTA
from fedlatent.simulations.study import page

REPORT = "report.html"


def write_report(audit: Audit, folder: Path) -> Path:
    """Write ``report.html`` and the pictures into ``folder``; returns the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "bounds": figures.bounds_picture(audit.claims, audit.controls),
        "canaries": figures.canaries_picture(audit.canaries),
        "inversion": figures.inversion_picture(audit.inversion, audit.inversion_plain),
    }
    for name, content in pictures.items():
        write_atomic(folder / f"{name}.png", content)
    write_atomic(folder / REPORT, report(audit, pictures).encode())
    return folder / REPORT


def report(audit: Audit, pictures: dict[str, bytes]) -> str:
    """The page; ``pictures`` are PNG by name."""
    return page.render(
        "audit.html",
        title="fedlatent: privacy audit",
        audit=audit,
        summary=_summary(audit),
        delta=DELTA,
        alpha=ALPHA,
        canary_epsilon=CANARY_EPSILON,
        usual_epsilon=USUAL_EPSILON,
        claims=_rows(audit.claims),
        controls=_rows(audit.controls),
        checks=[[(one.name, one.what), *check_row(one)[1:]] for one in audit.checks],
        membership=_membership(audit),
        inversion=_inversion(audit),
        pictures=pictures,
    )


def row(finding: Finding) -> tuple[str, ...]:
    """A finding as cells of a table: name, claim, exact, bound, ratio, verdict."""
    return (
        finding.name,
        f"{finding.claimed:.2f}",
        "-" if finding.exact is None else f"{finding.exact:.2f}",
        f"{finding.lower:.2f}",
        f"{finding.ratio:.2f}",
        finding.verdict,
    )


def check_row(one: Check) -> tuple[str, ...]:
    """A check as cells of a table: name, statistic, limits, draws, verdict."""
    numbers = (f"{value:.4g}" for value in (one.statistic, one.low, one.high))
    return (one.name, *numbers, str(one.draws), one.verdict)


def _summary(audit: Audit) -> str:
    if audit.good:
        return "No attack passed a claim, every control was caught, and every check holds."
    bad = [one.name for one in audit.verdicts if not one.good]
    return f"The audit failed for: {', '.join(bad)}."


def _rows(findings: tuple[Finding, ...]) -> list[list[object]]:
    return [[(one.name, one.attack), *row(one)[1:]] for one in findings]


def _membership(audit: Audit) -> list[tuple[str, ...]]:
    rows = []
    for name, found in (
        (f"epsilon {USUAL_EPSILON:g}", audit.membership),
        ("without privacy", audit.membership_plain),
    ):
        low, high = found.interval
        cells = [f"{one.tpr:.3f} at {one.fpr:.3f}, allowed {one.allowed:.3f}" for one in found.hits]
        rows.append((name, f"{found.auroc:.3f} ({low:.3f} to {high:.3f})", *cells))
    return rows


def _inversion(audit: Audit) -> list[tuple[str, ...]]:
    def cell(quality: Quality) -> str:
        return f"{quality.correlation:.3f} / {quality.error:.3f}"

    plain = audit.inversion_plain.qualities
    return [(name, cell(one), cell(plain[name])) for name, one in audit.inversion.qualities.items()]
