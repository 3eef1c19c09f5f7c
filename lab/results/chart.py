#!/usr/bin/env python3
"""chart.py [--check]: draws docs/images/performance.svg from performance.json.

With --check it writes nothing, and fails if the picture is not the one that it would draw.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
SVG = HERE.parent.parent / "docs" / "images" / "performance.svg"

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 70, 60
STEP = 2000
BAR = 42

# Both schemes set the background too: a page may be dark where the viewer's system is light.
STYLE = """
  svg { font: 13px system-ui, sans-serif }
  .paper { fill: #ffffff } text { fill: #1f2328 } .title { font-size: 16px; font-weight: 600 }
  .grid { stroke: #d1d9e0 } .service { fill: #0969da } .pgbench { fill: #9a6700 } .value { font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #f0f6fc } .grid { stroke: #3d444d } .service { fill: #4493f8 } .pgbench { fill: #d29922 }
  }
"""


def draw(measured: dict) -> str:
    rows = measured["closed"]
    series = [("service", "vos-auth", "starts_per_second"), ("pgbench", "pgbench, single row", "pgbench_per_second")]
    highest = max(row[key] for row in rows for _, _, key in series)
    top = -(-highest // STEP) * STEP
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    y = lambda value: TOP + high - high * value / top
    label = "Starts a second by number of connections: " + "; ".join(
        f"{row['connections']}: vos-auth {row['starts_per_second']}, pgbench {row['pgbench_per_second']}" for row in rows
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' role="img" aria-label="{label}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">Starts a second, closed loop</text>',
    ]
    for at, (css, name, _) in enumerate(series):
        x = LEFT + at * 120
        out.append(f'<rect class="{css}" x="{x}" y="40" width="12" height="12"/><text x="{x + 18}" y="51">{name}</text>')
    for value in range(0, top + 1, STEP):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        out.append(f'<text text-anchor="end" x="{LEFT - 8}" y="{y(value) + 4:.1f}">{value:,}</text>')
    for place, row in enumerate(rows):
        middle = LEFT + wide * (place + 0.5) / len(rows)
        for side, (css, _, key) in enumerate(series):
            x, value = middle + (side - 1) * BAR, row[key]
            out.append(
                f'<rect class="{css}" x="{x + 1:.1f}" y="{y(value):.1f}" width="{BAR - 2}" height="{high * value / top:.1f}"/>'
                f'<text class="value" text-anchor="middle" x="{x + BAR / 2:.1f}" y="{y(value) - 5:.1f}">{value:,}</text>'
            )
        out.append(f'<text text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 20}">{row["connections"]}</text>')
    out.append(f'<text text-anchor="middle" x="{LEFT + wide / 2:.1f}" y="{HEIGHT - 16}">connections</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main() -> int:
    drawn = draw(json.loads((HERE / "performance.json").read_text()))
    if "--check" not in sys.argv[1:]:
        SVG.write_text(drawn)
        return 0
    if SVG.exists() and SVG.read_text() == drawn:
        return 0
    print("performance.svg is not of performance.json: run lab/results/chart.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
