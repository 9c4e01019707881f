"""`report.html`: a campaign as one file that needs nothing else, from disk and without a network.

Tables and texts stand in the page as escaped HTML and can be read without a script. The script
draws the pictures as SVG from JSON that lies beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from retrain import __version__
from retrain.analysis.page.completions import completions_section
from retrain.analysis.page.conditions import condition_section
from retrain.analysis.page.heading import heading
from retrain.analysis.page.learning import learning_section
from retrain.analysis.page.mechanisms import mechanism_section
from retrain.analysis.page.paper import paper_section
from retrain.analysis.page.problems import problem_section
from retrain.analysis.page.provenance import provenance_section
from retrain.analysis.page.rest import exploratory_section, failure_section, squeeze_section
from retrain.analysis.page.section import Section
from retrain.analysis.page.verdicts import verdict_section
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.samples.look import one_line
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.summary import Comparison
from retrain.analysis.webpage import json_element, policy, safe
from retrain.files import atomic_write_text

FOLDER = Path(__file__).parent
STYLES = ("page.css", "charts.css", "completions.css")
SCRIPTS = ("page.js", "svg.js", "dots.js", "lines.js", "start.js")
"""Parts of one script: they share their names."""
MODULES = ("completions.js",)
"""Scripts that share nothing with the others."""


def write_page(
    campaign: CampaignRecord,
    comparison: Comparison,
    reader: SeriesReader,
    path: Path,
    *,
    note: str = "",
) -> None:
    """Write the report of `campaign` to `path`; works at any time, of a running campaign too.

    `note` stands below the heading.
    """
    atomic_write_text(path, page(campaign, comparison, reader, note=note))


def page(
    campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader, *, note: str = ""
) -> str:
    """The document."""
    reader = _Snapshot(reader)
    found = [
        verdict_section(comparison),
        condition_section(campaign, comparison, reader),
        learning_section(campaign, comparison, reader),
        mechanism_section(campaign, comparison, reader),
        problem_section(campaign, comparison),
        exploratory_section(campaign, comparison, reader),
        failure_section(campaign),
        squeeze_section(campaign),
        completions_section(campaign),
        provenance_section(campaign, reader),
        paper_section(campaign, comparison),
    ]
    sections = [section for section in found if section is not None]
    shared = {
        "conditions": [one_line(label) for label in campaign.conditions],
        "baseline": campaign.conditions.index(comparison.baseline),
        "confidence": round(100 * comparison.confidence, 6),
        "seeds": len(campaign.seeds),
        "runs": max(c.done or c.planned for c in comparison.conditions),
    }
    style = "\n".join(_asset(file) for file in STYLES)
    script = _script()
    name = safe(campaign.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy(style, script, pictures=True))}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{name}: report</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#verdicts">Skip to the verdicts</a>
<header>
<div class="top"><nav aria-label="sections">{_contents(sections)}</nav><div id="theme"></div></div>
{heading(campaign, comparison, note)}
<noscript><p class="mark">Pictures need JavaScript; their numbers are in tables.</p></noscript>
</header>
<main>
{"".join(_section(section) for section in sections)}
</main>
<footer>Written by retrain {safe(__version__)}. The page is complete in itself and loads nothing.\
</footer>
{json_element("data-page", shared)}
<script>{script}</script>
</body>
</html>
"""


class _Snapshot(SeriesReader):
    """Each run as it was when the page first asked: all parts show the same moment."""

    def __init__(self, reader: SeriesReader) -> None:
        super().__init__()
        self._reader = reader
        self._series: dict[Path, RunSeries] = {}

    def read(self, run: RunView) -> RunSeries:
        if run.folder not in self._series:
            self._series[run.folder] = self._reader.read(run)
        return self._series[run.folder]


def _contents(sections: Sequence[Section]) -> str:
    return "".join(f'<a href="#{escape(s.id)}">{safe(s.title)}</a>' for s in sections)


def _section(section: Section) -> str:
    name = escape(section.id)
    data = "" if section.data is None else json_element(f"data-{section.id}", section.data)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">'
        f"{safe(section.title)}</h2>\n{section.html}\n{data}</section>\n"
    )


def _script() -> str:
    parts = ["\n".join(_asset(file) for file in SCRIPTS), *(_asset(file) for file in MODULES)]
    return '"use strict";\n' + "\n".join(f"{{\n{part}}}" for part in parts)


def _asset(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")
