"""Charts as SVG text that takes its colours from the page around it: light, dark, and no network.

Colours are CSS variables: --text, --muted, --grid, and --c0 to --c3 of the series. A number is a pixel of the viewBox.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 40, 34  # margins around the plot
TICKS = 4
DODGE = 5  # pixels between series over named places
TURN = 28  # degrees, of the names below an axis
NAME_WIDTH = 7 * math.cos(math.radians(TURN))  # of a character, at the size of texts in a wide font
NAME_HEIGHT = 7 * math.sin(math.radians(TURN))

Point = tuple[float, float]


class Series(NamedTuple):
    """A line or dots of one colour; `intervals` are (low, high) of each point.

    `links` are pairs of points that a line joins; None joins each point with the next.
    """

    name: str
    points: Sequence[Point]
    intervals: Sequence[Point] = ()
    dots: bool = False
    links: Sequence[tuple[int, int]] | None = None


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    x_names: Sequence[str] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    log: bool = False,
    width: int = WIDTH,
    max_width: int | None = None,
) -> str:
    """A chart of lines, at most `max_width` pixels wide on the page; its texts grow with it.

    `x_names` stand below 0, 1, 2, … in place of numbers. `log` makes both axes logarithmic. Raises ValueError where no
    series has a point.
    """
    series = [one for one in series if one.points]
    if not series:
        raise ValueError(f"{title}: a chart needs points")
    if log:
        series = [one._replace(points=[(math.log10(x), math.log10(y)) for x, y in one.points]) for one in series]
    xs = [x for one in series for x, _ in one.points]
    left, right = x_range or (min(xs), max(xs))
    low, high = y_range or padded(values_of(series), log=log)
    height = HEIGHT + round(max((NAME_HEIGHT * len(name) - 10 for name in x_names), default=0))
    first = LEFT + max(16, NAME_WIDTH * len(x_names[0]) - LEFT) if x_names else LEFT
    place_x = _scale(left, right, first, width - RIGHT - (16 if x_names else 0))
    place_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_text(0, 14, title, size=13, weight=600)]
    parts += _y_axis(_ticks(low, high, log=log), place_y, width, percent=percent, log=log)
    parts += _x_names(x_names, place_x) if x_names else _x_axis(left, right, x_label, place_x, width, log=log)
    for number, one in enumerate(series):
        aside = DODGE * (number - (len(series) - 1) / 2) if x_names else 0  # intervals of one place stay apart
        parts += _drawn(one, f"var(--c{number % 4})", lambda x, aside=aside: place_x(x) + aside, place_y)
    parts += _legend(series) if len(series) > 1 else []
    return _svg(width, height, title, parts, max_width or width)


def values_of(series: Sequence[Series]) -> list[float]:
    """All that a y axis has to hold: the values of points and the ends of intervals."""
    return [y for one in series for pair in (*one.intervals, [y for _, y in one.points]) for y in pair]


def bars(title: str, names: Sequence[str], values: Sequence[float], *, percent: bool = False) -> str:
    """Vertical bars with their values above them; a value of 0 is a thin line."""
    top = max(*values, 1e-12)
    place_y = _scale(0, top, HEIGHT - BOTTOM, TOP + 14)
    step = (WIDTH - LEFT - RIGHT) / len(values)
    parts = [_text(0, 14, title, size=13, weight=600)]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = LEFT + number * step + step * 0.15, min(place_y(value), HEIGHT - BOTTOM - 1.5)
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
            'fill="var(--c0)" rx="2"/>'
        )
        parts.append(_text(x + step * 0.35, y - 4, _number(value, percent=percent), anchor="middle", size=10))
        parts.append(_text(x + step * 0.35, HEIGHT - BOTTOM + 16, name, anchor="middle", size=10))
    return _svg(WIDTH, HEIGHT, title, parts)


def strip(title: str, rows: Sequence[tuple[str, Sequence[str]]], colours: dict[str, str]) -> str:
    """Rows of boxes, one a layer, coloured by their kind; `colours` is also the legend."""
    cell, gap, name_width = 26, 4, 130
    columns = max(len(kinds) for _, kinds in rows)
    width = max(name_width + columns * (cell + gap) + RIGHT, WIDTH)
    parts = [_text(0, 14, title, size=13, weight=600)]
    for row, (name, kinds) in enumerate(rows):
        y = 28 + row * (cell + gap)
        parts.append(_text(0, y + 17, name))
        for column, kind in enumerate(kinds):
            x = name_width + column * (cell + gap)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" rx="4" fill="{colours[kind]}">'
                f"<title>{html.escape(name)}, layer {column}: {html.escape(kind)}</title></rect>"
            )
    y, x = 40 + len(rows) * (cell + gap), 0
    for kind, colour in colours.items():
        parts.append(f'<rect class="key" x="{x}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 17, y + 10, kind))
        x += 36 + 7 * len(kind)
    return _svg(width, y + 20, title, parts)


def _drawn(one: Series, colour: str, place_x: Callable, place_y: Callable) -> list[str]:
    points = [(place_x(x), place_y(y)) for x, y in one.points]
    parts = []
    if one.links is not None:
        paths = [(points[start], points[end]) for start, end in one.links]
    else:
        paths = [] if one.dots or len(points) == 1 else [points]
    for path in paths:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    for (x, _), (low, high) in zip(points, one.intervals, strict=False):
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{place_y(low):.1f}" y2="{place_y(high):.1f}" stroke="{colour}" '
            'stroke-width="1.4"/>'
        )
    if one.dots or one.intervals or len(points) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in points]
    return parts


def _y_axis(ticks: Sequence[float], place: Callable, width: int, *, percent: bool, log: bool) -> list[str]:
    parts = []
    for tick in ticks:
        y, value = place(tick), 10**tick if log else tick
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(_text(LEFT - 6, y + 4, _number(value, percent=percent), anchor="end"))
    return parts


def _x_names(names: Sequence[str], place: Callable) -> list[str]:
    return [_text(place(x), HEIGHT - BOTTOM + 18, name, anchor="end", turn=-TURN) for x, name in enumerate(names)]


def _x_axis(left: float, right: float, label: str, place: Callable, width: int, *, log: bool) -> list[str]:
    whole = left == int(left) and right == int(right)  # such as steps
    ticks = [tick for tick in _ticks(left, right, log=log) if left <= tick <= right and (tick % 1 == 0 or not whole)]
    parts = [
        _text(place(tick), HEIGHT - BOTTOM + 16, _number(10**tick if log else tick), anchor="middle") for tick in ticks
    ]
    return [*parts, _text(width - RIGHT, HEIGHT - 4, label, anchor="end")] if label else parts


def _legend(series: Sequence[Series]) -> list[str]:
    parts, x = [], LEFT
    for number, one in enumerate(series):
        colour = f"var(--c{number % 4})"
        mark = (
            f'<circle class="key" cx="{x + 5}" cy="26.5" r="3.2"'
            if one.dots
            else (f'<rect class="key" x="{x}" y="25" width="10" height="3"')
        )
        parts += [f'{mark} fill="{colour}"/>', _text(x + 14, 30, one.name)]
        x += 7 * len(one.name) + 26
    return parts


def _svg(width: int, height: int, title: str, parts: Sequence[str], max_width: int | None = None) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{max_width or width}px" role="img" '
        f'aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, weight: int = 400, turn: float = 0
) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    colour = "var(--text)" if weight > 400 else "var(--muted)"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}"{turned}>{html.escape(text)}</text>'
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to pixels; a range of one value is drawn in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def padded(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """A range with a margin; it begins at 0 where the values come near it."""
    low, high = min(values), max(values)
    if not log and low == high == 0:
        return 0.0, 1.0
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if not log and 0 <= low < 0.3 * high else low - margin), high + margin


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """About `TICKS` round numbers from low to high; powers of ten, as their exponents, on a logarithmic axis."""
    if log:
        return [float(n) for n in range(math.ceil(low), math.floor(high) + 1)]
    if high == low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= TICKS + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, *, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.3g} %"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
