"""An evaluation as one HTML page that needs nothing beside it: no script, no other file, no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tlearn.evaluate.evaluation import Evaluation
from tlearn.evaluate.plots import thumbnail_jpeg
from tlearn.evaluate.tables import difference_of, interval, number, title_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #999; }
tr:nth-child(even) td { background: #f6f6f6; } img { max-width: 100%; }
.note { background: #fff6dd; border-left: 4px solid #e0b030; padding: .3rem .8rem; margin: .4rem 0; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem; }
figure { margin: 0; font-size: .8rem; overflow-wrap: anywhere; } figcaption small { color: #777; }
figure img { width: 100%; border-radius: 3px; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } tr:nth-child(even) td { background: #242424; }
  .note { background: #3a3112; } .plot { background: #fff; }
}
"""


def evaluation_page(evaluation: Evaluation, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        evaluation: what it shows.
        pictures: PNG by title.
    """
    outputs, images = evaluation.outputs, evaluation.outputs.images
    title = f"{outputs.network} on {images.split}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{len(images):,} images of {_text(images.source.where)}</p>",
        *(f'<p class="note">{_text(notice)}</p>' for notice in evaluation.notices),
        *_scores(evaluation),
        *_comparison(evaluation),
        *(_plot(name, png) for name, png in pictures.items()),
        *_temperature(evaluation),
        *_confusions(evaluation),
        *_classes(evaluation),
        *_mistakes(evaluation),
        *_unreadable(evaluation),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    """Safe inside HTML; bytes of a file name that are no text are shown as such."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(header, 'th')}\n" + "\n".join(row(cells, "td") for cells in rows) + "</table>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _plot(name: str, png: bytes) -> str:
    return f'<h2>{_text(name.capitalize())}</h2><img class="plot" alt="{_text(name)}" src="{_data("png", png)}">'


def _scores(evaluation: Evaluation) -> list[str]:
    rows = [
        (title_of(name, several=evaluation.outputs.several), number(score.value, 4), interval(score))
        for name, score in evaluation.scores.items()
    ]
    how = f"Wilson's for shares of images, else bootstrap with {evaluation.resamples:,} samples"
    header = ("score", "value", f"{evaluation.confidence:.0%} interval")
    return ["<h2>Scores</h2>", _table(header, rows), f"<p><small>Intervals: {how}.</small></p>"]


def _comparison(evaluation: Evaluation) -> list[str]:
    found = evaluation.comparison
    if found is None:
        return []
    rows = [
        (f"{found.first} right", str(found.both), str(found.only_first)),
        (f"{found.first} wrong", str(found.only_second), str(found.neither)),
    ]
    spread = f"{number(found.difference.value)} ({interval(found.difference)})"
    difference = difference_of(found.first, found.second, several=evaluation.outputs.several)
    said = f"{difference[0].upper()}{difference[1:]}: {spread}. "
    said += f"McNemar's test, {found.test}: {found.verdict}."
    header = ("", f"{found.second} right", f"{found.second} wrong")
    return ["<h2>Comparison</h2>", _table(header, rows), f"<p>{_text(said)}</p>"]


def _temperature(evaluation: Evaluation) -> list[str]:
    if evaluation.temperature is None:
        return []
    before, after = evaluation.calibration, evaluation.temperature.after
    rows = [
        (title, number(getattr(before, name), 4), number(getattr(after, name), 4))
        for title, name in (("ECE", "ece"), ("largest gap", "mce"), ("loss", "loss"), ("Brier score", "brier"))
    ]
    fitted = f"fitted to {evaluation.temperature.images:,} {evaluation.temperature.split} images"
    header = ("calibration", "as it is", f"temperature {evaluation.temperature.value:.3g}")
    return [_table(header, rows), f"<p><small>Temperature {_text(fitted)}.</small></p>"]


def _confusions(evaluation: Evaluation) -> list[str]:
    if not evaluation.confusions:
        return []
    rows = [(truth, predicted, str(count)) for truth, predicted, count in evaluation.confusions]
    return ["<h2>Commonest confusions</h2>", _table(("true class", "taken for", "images"), rows)]


def _classes(evaluation: Evaluation) -> list[str]:
    several = evaluation.outputs.several
    header = ["class", "precision", "recall", "interval", "F1", "images", "predicted", *(["AP"] if several else [])]
    rows = []
    for each in evaluation.classes:
        row = [each.name, number(each.precision), number(each.recall.value), interval(each.recall), number(each.f1)]
        row += [str(each.support), str(each.predicted), *([number(each.average_precision)] if several else [])]
        rows.append(row)
    return ["<h2>Classes</h2>", _table(header, rows)]


def _mistakes(evaluation: Evaluation) -> list[str]:
    if not evaluation.mistakes:
        return []
    figures = []
    for mistake in evaluation.mistakes:
        said = f"<b>{_text(mistake.predicted)}</b> {mistake.probability:.3f}<br>is {_text(mistake.truth)} "
        said += f"{mistake.truth_probability:.3f}<br><small>{_text(mistake.path)}</small>"
        source = _data("jpeg", thumbnail_jpeg(evaluation, mistake))
        figures.append(f'<figure><img alt="" src="{source}"><figcaption>{said}</figcaption></figure>')
    what = "decisions" if evaluation.outputs.several else "images"
    heading = f"<h2>Most confident of {evaluation.wrong:,} wrong {what}</h2>"
    return [heading, '<div class="sheet">', *figures, "</div>"]


def _unreadable(evaluation: Evaluation) -> list[str]:
    if not evaluation.outputs.unreadable:
        return []
    return ["<h2>Could not be read</h2>", _table(("image", "reason"), evaluation.outputs.unreadable)]
