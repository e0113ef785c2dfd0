"""Charts as SVG text that takes its colours from the page around it: light, dark, and no network.

Colours are CSS variables: --text, --muted, --grid, and --c0 to --c3 of the series.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 40, 34  # margins around the plot
TICKS = 4
DODGE = 5  # pixels between series over named places


class Series(NamedTuple):
    """A line or dots of one colour; `intervals` are (low, high) of each point."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    dots: bool = False


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    x_names: Sequence[str] = (),
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    width: int = WIDTH,
) -> str:
    """A chart of lines; `x_names` stand below 0, 1, 2, … in place of numbers."""
    series = [one for one in series if one.points]
    if not series:
        raise ValueError(f"{title}: a chart needs points")
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for pair in (*one.intervals, [y for _, y in one.points]) for y in pair]
    low, high = y_range or _padded(min(ys), max(ys))
    height = HEIGHT + (24 if x_names else 0)
    place_x = _scale(min(xs), max(xs), LEFT, width - RIGHT, pad=16 if x_names else 0)
    place_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 14, title, size=13, weight=600)]
    parts += _y_axis(low, high, place_y, width, percent=percent)
    parts += _x_axis(xs, x_names, x_label, place_x, width)
    for number, one in enumerate(series):
        aside = DODGE * (number - (len(series) - 1) / 2) if x_names else 0  # intervals of one place stay apart
        parts += _drawn(one, f"var(--c{number % 4})", lambda x, aside=aside: place_x(x) + aside, place_y)
    parts += _legend([one.name for one in series]) if len(series) > 1 else []
    return _svg(width, height, title, parts)


def bars(title: str, names: Sequence[str], values: Sequence[float], *, percent: bool = False) -> str:
    """Vertical bars with their values above them."""
    top = max(*values, 1e-12)
    place_y = _scale(0, top, HEIGHT - BOTTOM, TOP + 14)
    step = (WIDTH - LEFT - RIGHT) / len(values)
    parts = [_text(LEFT, 14, title, size=13, weight=600)]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = LEFT + number * step + step * 0.15, place_y(value)
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
            'fill="var(--c0)" rx="2"/>'
        )
        parts.append(_text(x + step * 0.35, y - 4, _number(value, percent=percent), anchor="middle"))
        parts.append(_text(x + step * 0.35, HEIGHT - BOTTOM + 16, name, anchor="middle"))
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
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 17, y + 10, kind))
        x += 36 + 7 * len(kind)
    return _svg(width, y + 20, title, parts)


def _drawn(one: Series, colour: str, place_x: Callable, place_y: Callable) -> list[str]:
    points = [(place_x(x), place_y(y)) for x, y in one.points]
    parts = []
    if not one.dots and len(points) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    for (x, _), (low, high) in zip(points, one.intervals, strict=False):
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{place_y(low):.1f}" y2="{place_y(high):.1f}" stroke="{colour}" '
            'stroke-width="1.4"/>'
        )
    if one.dots or one.intervals or len(points) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in points]
    return parts


def _y_axis(low: float, high: float, place: Callable, width: int, *, percent: bool) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        y = place(tick)
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(_text(LEFT - 6, y + 4, _number(tick, percent=percent), anchor="end"))
    return parts


def _x_axis(xs: Sequence[float], names: Sequence[str], label: str, place: Callable, width: int) -> list[str]:
    if names:
        return [_text(place(x), HEIGHT - BOTTOM + 18, name, anchor="end", turn=-28) for x, name in enumerate(names)]
    ticks = [tick for tick in _ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]
    parts = [_text(place(tick), HEIGHT - BOTTOM + 16, _number(tick), anchor="middle") for tick in ticks]
    return [*parts, _text(width - RIGHT, HEIGHT - 4, label, anchor="end")] if label else parts


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], LEFT
    for number, name in enumerate(names):
        parts.append(f'<rect x="{x}" y="25" width="10" height="3" fill="var(--c{number % 4})"/>')
        parts.append(_text(x + 14, 30, name))
        x += 7 * len(name) + 26
    return parts


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="{html.escape(title)}">'
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


def _scale(low: float, high: float, start: float, end: float, *, pad: float = 0) -> Callable[[float], float]:
    """From values to pixels; a range of one value is drawn in the middle."""
    start, end = start + pad, end - pad
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if low >= 0 and low < 0.3 * high else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About `TICKS` round numbers from low to high."""
    if high == low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= TICKS + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, *, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
