"""The page: runs as one HTML file that needs nothing else, no network and no script.

Every text in it goes through `shown`: names of runs, keys, and what a model writes are not trusted.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from aigc_jax.errors import escaped, printable
from aigc_jax.report import panels
from aigc_jax.report.read import ABOUT, MAX_TEXT, Run, Shown

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
<p class="quiet">$about</p>
<nav>$links</nav>
$body
</body>
</html>
""")
STYLE = Path(__file__).with_name("page.css")


def page(runs: Sequence[Run], about: str) -> str:
    """The whole page.

    Args:
        runs: one or several.
        about: a line below the title.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = {
        "Overview": overview(runs),
        "Samples": pictures(runs),
        "Curves": curves(runs),
        "Numbers": numbers(runs),
        "Config": configs(runs),
        "Environment": environments(runs),
    }
    sections = {name: body for name, body in sections.items() if body}
    return PAGE.substitute(
        title=shown(title),
        about=shown(about),
        style=STYLE.read_text(encoding="utf-8"),
        links="\n".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        body="\n".join(
            f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{body}\n</section>'
            for name, body in sections.items()
        ),
    )


def shown(value: Any) -> str:
    """A value from outside as HTML: one line, at most 400 characters."""
    return html.escape(printable(value))


def shown_text(text: str) -> str:
    """A text of many lines as HTML; control characters can be seen, and do nothing."""
    lines = text.expandtabs(4).replace("\r\n", "\n").split("\n")
    return html.escape("\n".join(map(escaped, lines)))


def overview(runs: Sequence[Run]) -> str:
    """What the runs are, and what is missing of them."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        config, environment = run.config, run.environment
        devices = environment.get("devices")
        devices = devices if isinstance(devices, list) else []
        cells = {
            "task": config.get("task.name"),
            "data": config.get("data.source"),
            "steps": f"{run.step:,}" if run.step >= 0 else None,
            "duration asked for": config.get("train.duration"),
            "batch": config.get("data.batch_size"),
            "seed": config.get("seed"),
            "devices": ", ".join(f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices)),
            "time": duration(run.time.get("seconds")),
            "directory": run.workdir,
        }
        for name, value in cells.items():
            rows.setdefault(name, []).append("" if value in (None, "") else shown(value))
    table = _table(_heads(runs) if len(runs) > 1 else [], rows)
    notes = [
        f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in run.left_out
    ]
    if not notes:
        return table
    items = "\n".join(f"<li>{shown(note)}</li>" for note in notes)
    return f'{table}\n<div class="note"><ul>\n{items}\n</ul></div>'


def pictures(runs: Sequence[Run]) -> str:
    """Pictures and texts: of several runs those of a kind beside each other."""
    if len(runs) == 1:
        return _figures([(runs[0].shown, "")]) if runs[0].shown else ""
    kinds = list(dict.fromkeys(of.kind for run in runs for of in run.shown))
    parts = []
    for kind in kinds:
        groups = [([of for of in run.shown if of.kind == kind], run.name) for run in runs]
        parts.append(f"<h3>{shown(kind)}</h3>\n{_figures(groups)}")
    return "\n".join(parts)


def _figures(groups: Iterable[tuple[Sequence[Shown], str]]) -> str:
    figures = [_figure(of, name) for every, name in groups for of in every]
    return '<div class="figures">\n' + "\n".join(figures) + "\n</div>"


def _figure(of: Shown, run: str) -> str:
    about = ABOUT.get(of.kind.rpartition("-")[2], "") if of.png else ""
    told = [run, of.kind if not run else "", f"step {of.step:,}", about, of.path]
    caption = shown(" · ".join(filter(None, told)))
    if of.png:
        width, height = of.size
        data = base64.b64encode(of.png).decode()
        alt = shown(f"{run} {of.kind} at step {of.step}".strip())
        return (
            f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{alt}"><figcaption>{caption}</figcaption></figure>'
        )
    text = of.text[:MAX_TEXT]
    cut = f" · the first {MAX_TEXT:,} characters" if len(of.text) > MAX_TEXT else ""
    return (
        f'<figure class="text"><pre tabindex="0">{shown_text(text)}</pre>'
        f"<figcaption>{caption}{cut}</figcaption></figure>"
    )


def curves(runs: Sequence[Run]) -> str:
    """A plot for each metric, all runs over each other."""
    every = panels.lines_of(runs)
    if not every:
        return ""
    drawn = {
        name: f"<figure><figcaption>{shown(name)}</figcaption>{panels.svg(lines, number)}</figure>"
        for number, (name, lines) in enumerate(list(every.items())[: panels.PANELS])
    }
    legend = "".join(
        f'<li><span class="swatch" style="color: {colour}; border-top-style: {style}"></span>'
        f"{shown(run.name)}</li>"
        for run, (colour, _, style) in zip(runs, map(panels.look, range(len(runs))))
    )
    parts = [f'<ul class="legend">{legend}</ul>'] if len(runs) > 1 else []
    parts.append(
        '<p class="quiet">Thin: training, means of log intervals. Dots: evaluations. A band goes '
        "from the lowest to the highest of several seeds, or of steps that share a point. Where "
        "the first twentieth of the steps reaches far beyond the rest, the plot is of the rest.</p>"
    )
    first = [plot for name, plot in drawn.items() if not panels.is_beside(name)]
    beside = [plot for name, plot in drawn.items() if panels.is_beside(name)]
    parts += [f'<div class="panels">{"".join(first)}</div>'] if first else []
    if beside:
        parts.append(
            "<details><summary>Optimisation, speed and time</summary>"
            f'<div class="panels">{"".join(beside)}</div></details>'
        )
    if len(every) > len(drawn):
        parts.append(f'<p class="quiet">{len(every) - len(drawn)} more metrics are not drawn.</p>')
    return "\n".join(parts)


def numbers(runs: Sequence[Run]) -> str:
    """The newest value of every metric of an evaluation, and the cards."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if not names:
        return ""
    steps = [max((step for step, _ in run.metrics.values()), default=-1) for run in runs]
    groups: dict[str, dict[str, list[str]]] = {}
    for name in names:
        evaluation, _, metric = name.partition("/")
        cells = [_value(run, name, at) for run, at in zip(runs, steps)]
        groups.setdefault(evaluation, {})[metric] = cells
    body = []
    for evaluation, rows in groups.items():
        told = [_told(run.protocol.get(evaluation, {})) for run in runs]
        about = " | ".join(dict.fromkeys(filter(None, told)))
        body.append(
            f'<tr class="group"><th colspan="{len(runs) + 1}">{shown(evaluation)} '
            f'<span class="quiet">{shown(about)}</span></th></tr>'
        )
        for metric, cells in rows.items():
            body.append(_row(metric, cells, "number"))
    heads = [
        f'{name}<br><span class="quiet">step {at:,}</span>' if at >= 0 else name
        for name, at in zip(_heads(runs), steps)
    ]
    return f"{_scrolled(_head(heads), body)}\n{cards(runs)}"


def _value(run: Run, name: str, newest: int) -> str:
    """The value of a metric, and its step where that is not the run's newest."""
    if name not in run.metrics:
        return ""
    step, values = run.metrics[name]
    mean = sum(values) / len(values)
    spread = ""
    if len(values) > 1:
        what = "runs of different keys" if run.config.get("train.vary") else "seeds"
        spread = f" ({min(values):.5g} to {max(values):.5g}, {len(values)} {what})"
    at = f' <span class="quiet">step {step:,}</span>' if step != newest else ""
    return html.escape(f"{mean:.5g}{spread}") + at


def _told(card: Mapping[str, Any]) -> str:
    told = [str(card[key]) for key in ("type", "data") if isinstance(card.get(key), str)]
    examples = card.get("examples")
    return ", ".join([*told, *([f"{examples:,} examples"] if isinstance(examples, int) else [])])


def cards(runs: Sequence[Run]) -> str:
    """The protocol of each evaluation; where those of all runs are the same, once."""
    parts = []
    for name in dict.fromkeys(name for run in runs for name in run.protocol):
        holders: dict[str, list[str]] = {}
        for run in runs:
            if name in run.protocol:
                card = json.dumps(run.protocol[name], sort_keys=True, default=str)
                holders.setdefault(card, []).append(run.name)
        for card, who in holders.items():
            of = f" of {', '.join(who)}" if len(holders) > 1 else ""
            rows = {key: [shown(value)] for key, value in flat(json.loads(card)).items()}
            parts.append(
                f"<details><summary>Protocol card: {shown(name)}{shown(of)}</summary>"
                f"{_table([], rows)}</details>"
            )
    return "\n".join(parts)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a nested object by their dotted paths; a list is one leaf."""
    if not isinstance(value, dict):
        return {path: ", ".join(map(str, value)) if isinstance(value, list) else value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{path}.{key}" if path else str(key))
    return found


def configs(runs: Sequence[Run]) -> str:
    """What differs between the configs, and each of them in full."""
    known = [run for run in runs if run.config]
    parts = []
    if len(known) > 1:
        keys = sorted(set().union(*(run.config for run in known)))
        different = {
            key: [_key(run, key) for run in known]
            for key in keys
            if len({str(run.config.get(key)) for run in known}) > 1
        }
        if different:
            parts.append(_table(_heads(known), different))
        else:
            parts.append("<p>The runs have the same config.</p>")
    for run in known:
        rows = {key: [_key(run, key)] for key in run.config}
        of = f" of {shown(run.name)}" if len(known) > 1 else ""
        parts.append(f"<details><summary>All keys{of}</summary>{_table([], rows)}</details>")
    return "\n".join(parts)


def _key(run: Run, key: str) -> str:
    """The value of a key: of a text that is empty `""`, of a run that has no such key nothing."""
    return shown(run.config[key] if run.config[key] != "" else '""') if key in run.config else ""


def environments(runs: Sequence[Run]) -> str:
    """What the runs were made on, and where their time went."""
    parts = []
    for run in runs:
        rows = {}
        for key, value in flat(run.environment).items():
            if key == "command" and isinstance(run.environment.get(key), list):
                value = " ".join(map(str, run.environment[key]))
            rows[key] = [shown(value)]
        shares = run.time.get("share", {})
        told = [f"{name} {x:.1%}" for name, x in shares.items() if isinstance(x, float) and x > 0]
        if told:
            rows["time"] = [shown(f"{duration(run.time.get('seconds'))}: {', '.join(told)}")]
        if rows:
            heading = f"<h3>{shown(run.name)}</h3>\n" if len(runs) > 1 else ""
            parts.append(heading + _table([], rows))
    return "\n".join(parts)


def duration(seconds: Any) -> str:
    """`45 s`, `12 min`, `3.4 h`; of what is no number nothing."""
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _heads(runs: Sequence[Run]) -> list[str]:
    return [shown(run.name) for run in runs]


def _table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table whose cells and heads are HTML already, and whose rows' names are not."""
    return _scrolled(_head(heads) if heads else "", [_row(*row) for row in rows.items()])


def _scrolled(head: str, body: Sequence[str]) -> str:
    rows = "\n".join(body)
    return f'<div class="wide" tabindex="0"><table>{head}<tbody>{rows}</tbody></table></div>'


def _head(heads: Sequence[str]) -> str:
    return "<thead><tr><td></td>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr></thead>"


def _row(name: str, cells: Sequence[str], kind: str = "") -> str:
    of = f' class="{kind}"' if kind else ""
    return f"<tr><th>{shown(name)}</th>" + "".join(f"<td{of}>{c}</td>" for c in cells) + "</tr>"
