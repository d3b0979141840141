"""What search_peers.py measured, as tables (Markdown, on stdout), as CSV and as pictures."""
import csv
import json
import math
import os

COLOURS = ("#1f6feb", "#c8285a", "#2a8f3c", "#b26a00", "#7a3fb5", "#00808a", "#555555", "#d4a000")
DASHES = ("", "6 3", "2 3")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 80, 190, 40, 50


# ------------------------------------------------------------------ choices

def best(contender, recall, what):
    """The setting with the most queries per second among those that find enough; None: none does."""
    enough = [s for s in contender["settings"] if s["recall"] >= recall]
    return max(enough, key=lambda s: s[what], default=None)


def total_s(contender, recall, count):
    """Building and answering `count` queries in batches."""
    setting = best(contender, recall, "batch_qps")
    return contender["build_s"] + count / setting["batch_qps"] if setting else math.inf


def in_words(setting):
    return ", ".join(f"{name} {value}" for name, value in setting["setting"].items()) or "-"


# ------------------------------------------------------------------ tables

def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def head(*cells):
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def figure(x):
    if math.isinf(x):
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def cell_of(setting, what):
    return f"{figure(setting[what])} ({setting['recall']:.3f}; {in_words(setting)})" if setting else "-"


def print_tables(report, recall, totals):
    print(f"{report['title']}: {report['n']:,} rows of {report['d']}, {report['queries']:,} queries, {report['metric']}, "
          f"{report['threads']} threads, median of {report['rounds']} rounds")
    head(f"recall@{report['k']} >= {recall}", "build, s", "MB", "batch, queries/s", "single, queries/s", *(f"{q:,} queries, s" for q in totals))
    for c in report["contenders"]:
        row(c["name"], figure(c["build_s"]), figure(c["bytes"] / 1e6), cell_of(best(c, recall, "batch_qps"), "batch_qps"),
            cell_of(best(c, recall, "single_qps"), "single_qps"), *(figure(total_s(c, recall, q)) for q in totals))


# ------------------------------------------------------------------ files

def write_csv(report, path):
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("contender", "setting", "recall", "batch_qps", "single_qps", "build_s", "bytes"))
        for c in report["contenders"]:
            for s in c["settings"]:
                out.writerow((c["name"], in_words(s), f"{s['recall']:.4f}", f"{s['batch_qps']:.6g}", f"{s['single_qps']:.6g}",
                              f"{c['build_s']:.4g}", c["bytes"]))


def write(report, folder):
    path = os.path.join(folder, report["name"])
    with open(path + ".json", "w") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    write_csv(report, path + ".csv")
    for what, words in (("batch_qps", "all queries in one call"), ("single_qps", "one query a call")):
        with open(f"{path}.{what.split('_')[0]}.svg", "w") as file:
            file.write(picture(report, what, words))


# ------------------------------------------------------------------ pictures

def stretched(recall):
    """Recall on an axis by the share that is missed, since that is what settings trade: 0.5, 0.9, 0.95, 0.99, 0.999 and 1."""
    return -math.log10(max(1 - recall, 5e-4))


TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


class Frame:
    def __init__(self, points):
        self.x_low, self.x_high = stretched(0.5), stretched(1)
        self.y_low = math.floor(min(math.log10(y) for _, y in points))
        self.y_high = max(math.ceil(max(math.log10(y) for _, y in points)), self.y_low + 1)

    def at(self, recall, qps):
        x = LEFT + (stretched(recall) - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        y = TOP + (self.y_high - math.log10(qps)) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return x, y


def axes(frame, title):
    yield f'<text x="{LEFT}" y="20" font-size="14">{title}</text>'
    for power in range(frame.y_low, frame.y_high + 1):
        y = frame.at(0.5, 10 ** power)[1]
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10 ** power:,}</text>'
    for recall in (*TICKS, 1):
        x = frame.at(recall, 10 ** frame.y_low)[0]
        yield f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{"#999999" if recall == 0.95 else "#eeeeee"}"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{recall:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">recall</text>'
    yield f'<text x="{LEFT - 8}" y="{TOP - 8}" text-anchor="end">queries/s</text>'


def line(frame, contender, number, what):
    """Only settings that no other beats in both; points where it stands still show that a contender is there."""
    shown, points = [], []
    for s in sorted(contender["settings"], key=lambda s: -s[what]):
        if s["recall"] >= 0.5 and (not shown or s["recall"] > shown[-1]["recall"]):
            shown.append(s)
            points.append(frame.at(s["recall"], s[what]))
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    if points:
        yield (f'<path fill="none" stroke="{colour}" stroke-width="1.5"' + (f' stroke-dasharray="{dash}"' if dash else "") + ' d="M' +
               "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>')
    for (x, y), s in zip(points, shown):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{contender["name"]}: {in_words(s)}, {s["recall"]:.4f}, {s[what]:,.0f}/s</title></circle>'
    yield f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 8 + 16 * number}" fill="{colour}">{contender["name"]}</text>'


def picture(report, what, words):
    points = [(s["recall"], s[what]) for c in report["contenders"] for s in c["settings"] if s["recall"] >= 0.5]
    frame = Frame(points or [(1, 1)])
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    lines += axes(frame, f"{report['title']}: {words}")
    for number, contender in enumerate(report["contenders"]):
        lines += line(frame, contender, number, what)
    return "\n".join(lines) + "\n</svg>\n"
