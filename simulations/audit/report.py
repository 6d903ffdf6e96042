"""The report of an audit: one HTML file that opens offline, and its pictures."""

import base64
from pathlib import Path

from fedlatent.shared.files import write_atomic
from fedlatent.simulations.audit import figures
from fedlatent.simulations.audit.checks import ALPHA, Check
from fedlatent.simulations.audit.inversion import Quality
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.run import CANARY_EPSILON, USUAL_EPSILON, Audit
from fedlatent.simulations.audit.unit import DELTA
from fedlatent.simulations.experiments import page

REPORT = "report.html"

_COLUMNS = ("release", "#claimed epsilon", "#exact", "#95 % lower bound", "#ratio", "verdict")

_CHECK_COLUMNS = ("check", "#statistic", "#least", "#most", "#draws", "verdict")


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
    body = [
        "<h1>Privacy audit</h1>",
        page.paragraph(_summary(audit), "lead" if audit.good else "warn"),
        page.heading("Claims"),
        page.paragraph(
            f"Epsilon at delta {DELTA:g}, one record, zero-out adjacency. Claimed is what the "
            "ledger would charge; exact is the least true epsilon where it is known. The ratio is "
            "the bound over the exact epsilon, or over the claim. Above 1 a claim is broken; unit "
            "attacks must also reach 0.8, for else there is more noise than stated."
        ),
        _table(audit.claims),
        _picture(pictures["bounds"], "What each attack proves, and what it may at most prove."),
        page.heading("Negative controls"),
        page.paragraph("Mechanisms broken on purpose: the same attacks must pass their claims."),
        _table(audit.controls),
        page.heading("A real node"),
        page.paragraph(
            "What a node with secure noise released for fresh requests, less what its records give "
            "without noise, in units of the deviation that its ledger pays for. Outside of its "
            "limits a check is broken. A sound node fails a check once in "
            f"{1 / ALPHA:,.0f} times."
        ),
        page.table(_CHECK_COLUMNS, [_check_cells(one) for one in audit.checks]),
        page.heading("One federated run"),
        page.paragraph(
            f"A whole federation at epsilon {CANARY_EPSILON:g}, attacked once: "
            f"{audit.canaries.correct} of {audit.canaries.guesses} guesses about canaries were "
            "right."
        ),
        _picture(pictures["canaries"], "Scores of planted records that were in, and were not."),
        page.heading("Membership"),
        *_membership(audit),
        page.heading("Inversion"),
        *_inversion(audit, pictures["inversion"]),
        page.footer(f"fedlatent audit, seed {audit.seed}; synthetic heart beats only."),
    ]
    return page.document("fedlatent: privacy audit", body)


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


def _check_cells(one: Check) -> tuple[object, ...]:
    name, *rest = check_row(one)
    return ((name, one.what), *rest)


def _summary(audit: Audit) -> str:
    if audit.good:
        return "No attack passed a claim, every control was caught, and every check holds."
    bad = [one.name for one in audit.verdicts if not one.good]
    return f"The audit failed for: {', '.join(bad)}."


def _table(findings: tuple[Finding, ...]) -> str:
    rows = [((name, one.attack), *rest) for one in findings for name, *rest in [row(one)]]
    return page.table(_COLUMNS, rows)


def _membership(audit: Audit) -> list[str]:
    rows = []
    for name, found in (
        (f"epsilon {USUAL_EPSILON:g}", audit.membership),
        ("without privacy", audit.membership_plain),
    ):
        low, high = found.interval
        cells = [f"{one.tpr:.3f} at {one.fpr:.3f}, allowed {one.allowed:.3f}" for one in found.hits]
        rows.append((name, f"{found.auroc:.3f} ({low:.3f} to {high:.3f})", *cells))
    return [
        page.paragraph(
            "Training records against held-out records of the same clients, by the released "
            "encoder and density. AUROC 0.5 is guessing. Hits are true positive rates at a false "
            "positive rate, with the most that epsilon allows."
        ),
        page.table(("run", "#AUROC (95 %)", "#hits at 1 %", "#hits at 10 %"), rows),
    ]


def _inversion(audit: Audit, picture: bytes) -> list[str]:
    def cell(quality: Quality) -> str:
        return f"{quality.correlation:.3f} / {quality.error:.3f}"

    plain = audit.inversion_plain.qualities
    rows = [(name, cell(one), cell(plain[name])) for name, one in audit.inversion.qualities.items()]
    return [
        page.paragraph(
            "Beats recovered by someone who has the encoder and public beats: correlation with "
            f"the true record, and root mean squared error in {audit.inversion.unit}. A latent of "
            "a single record never leaves a client; its row shows what a theft would give."
        ),
        page.table(("recovered", f"#epsilon {USUAL_EPSILON:g}", "#without privacy"), rows),
        _picture(picture, "One record of each of four clients, and what is recovered of it."),
    ]


def _picture(png: bytes, caption: str) -> str:
    source = base64.b64encode(png).decode()
    image = (
        f'<img style="width:100%" alt="{page.text(caption)}" src="data:image/png;base64,{source}">'
    )
    return f"<figure>{image}<figcaption>{page.text(caption)}</figcaption></figure>"
