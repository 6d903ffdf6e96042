"""The pictures of an audit, as PNG."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fedlatent.simulations.audit.inversion import PUBLIC, RELEASED, STOLEN, Inversion
from fedlatent.simulations.audit.one_run import OneRun
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.study.figures import COLOURS, GREY, INK, WIDTH

_DPI = 130


def bounds_picture(claims: tuple[Finding, ...], controls: tuple[Finding, ...]) -> bytes:
    """Lower bounds beside what may at most be proven, a line for each finding."""
    findings = (*claims, *controls)
    with _drawing(0.36 * len(findings) + 1.0) as (figure, stream):
        axes = figure.subplots()
        places = np.arange(len(findings))[::-1]
        for place, one in zip(places, findings, strict=True):
            colour = COLOURS[1] if one.control else COLOURS[0]
            axes.plot([0, one.limit], [place, place], color="#e4e7eb", linewidth=5, zorder=1)
            axes.plot(one.limit, place, "|", color=INK, markersize=13, markeredgewidth=2)
            axes.plot(one.lower, place, "o", color=colour, markersize=7)
        axes.set_yticks(places, [one.name for one in findings])
        axes.set_xlabel("epsilon: claim (bar), and what the attack proves (dot)")
        axes.set_xlim(left=-0.2)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(stream, format="png", dpi=_DPI)
        return stream.getvalue()


def canaries_picture(found: OneRun) -> bytes:
    """Scores of canaries that were in and that were not."""
    with _drawing(2.8) as (figure, stream):
        axes = figure.subplots()
        edges = np.linspace(found.scores.min(), found.scores.max(), 41).tolist()
        for present, label, colour in ((False, "not in", GREY), (True, "in", COLOURS[0])):
            chosen = found.scores[found.present == present]
            axes.hist(chosen, edges, color=colour, alpha=0.6, label=label)
        order = np.sort(found.scores)
        half = found.guesses // 2
        for cut in (order[half - 1], order[-half]):
            axes.axvline(cut, color=INK, linestyle="--", linewidth=1)
        axes.set_xlabel("score of a canary; guesses are made outside of the lines")
        axes.set_ylabel("canaries")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(stream, format="png", dpi=_DPI)
        return stream.getvalue()


def inversion_picture(private: Inversion, plain: Inversion) -> bytes:
    """Records, what the attacks recover of them, and what the public mean says already."""
    rows = (("with privacy", private), ("without privacy", plain))
    styles = {
        PUBLIC: (GREY, ":", "mean of public beats"),
        RELEASED: (COLOURS[1], "-", "from what left (moments)"),
        STOLEN: (COLOURS[2], "--", "from a latent, which never leaves"),
    }
    with _drawing(4.6) as (figure, stream):
        grid = figure.subplots(2, len(private.records), sharex=True, sharey=True, squeeze=False)
        for line, (title, found) in zip(grid, rows, strict=True):
            for number, axes in enumerate(line):
                axes.plot(found.records[number], color=INK, linewidth=2, label="true record")
                for name, (colour, style, label) in styles.items():
                    axes.plot(found.recovered[name][number], style, color=colour, label=label)
                axes.set_title(f"{title}, client {number + 1}", fontsize=9, loc="left")
                axes.spines[["top", "right"]].set_visible(False)
            line[0].set_ylabel(found.unit)
        for axes in grid[-1]:
            axes.set_xlabel("sample of the beat")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
        figure.savefig(stream, format="png", dpi=_DPI)
        return stream.getvalue()


@contextmanager
def _drawing(height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        yield Figure(figsize=(WIDTH, height), layout="constrained"), io.BytesIO()
