"""Markdown from what `kna bench heads --json` printed. Called by bench_heads.sh:

heads_tables.py tables FILE..    mass, errors, estimates and audits, for each TEXT.TOKENS.json
heads_tables.py growth FILE..    what an equal error takes at each length, and the power of the length it grows by
heads_tables.py few FILE..       errors alone, by layer
"""
import json
import math
import os
import sys

METHODS = ("topk", "drop", "oracle", "knn own", "knn decode", "knn prefill")
ERRORS = (0.05, 0.03, 0.02)
LOOKED_AT = (256, 384)  # k of the tables that show one


class Study:
    """One report: a text at one length."""

    def __init__(self, path):
        self.text, tokens = os.path.basename(path).removesuffix(".json").rsplit(".", 1)
        self.report = json.load(open(path))
        self.n = self.report["n"]
        assert self.n == int(tokens), path
        self.title = f"{self.text}, {self.n:,}"
        self.layers = self.report["layers"]
        self.ks = sorted({x["k"] for x in self.layers[0]["errors"]})

    def cell(self, layer, method, k):
        return next(x for x in layer["errors"] if x["method"] == method and x["k"] == k)

    def mean(self, method, k, what="error_mean"):
        return sum(self.cell(layer, method, k)[what] for layer in self.layers) / len(self.layers)

    def is_exact(self, layer, method, k):
        """Every key was read: only rounding is left."""
        return self.cell(layer, method, k)["error_mean"] < 1e-5

    def heads(self, method, k):
        """(error, layer, head), the worst first."""
        return sorted(((e, layer["layer"], head) for layer in self.layers
                       for head, e in enumerate(self.cell(layer, method, k)["head_errors"])), reverse=True)


def row(*cells):
    print("| " + " | ".join(str(x) for x in cells) + " |")


def head(*cells):
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def percent(x, digits=2):
    return f"{100 * x:.{digits}f}"


# ------------------------------------------------------------------ tables

def masses(layer):
    return layer["mass"]["first"], layer["mass"]["first_and_recent"], *(x["mass"] for x in layer["tails"])


def print_mass(study):
    head(f"layer ({study.title})", "first", "+ recent", *(f"k = {x['k']}" for x in study.layers[0]["tails"]))
    for layer in study.layers:
        row(layer["layer"], *(f"{x:.2f}" for x in masses(layer)))


def print_mean_mass(studies):
    head("all layers", "first", "+ recent", *(f"k = {x['k']}" for x in studies[0].layers[0]["tails"]))
    for study in studies:
        row(study.title, *(f"{sum(x) / len(x):.2f}" for x in zip(*(masses(layer) for layer in study.layers))))


def print_methods(studies):
    head("method", "text, tokens", *(f"k = {k}" for k in studies[0].ks))
    for method in METHODS:
        for study in studies:
            row(method, study.title, *("exact" if all(study.is_exact(layer, method, k) for layer in study.layers) else
                                       f"{percent(study.mean(method, k))} ({percent(study.mean(method, k, 'touched'), 0)})" for k in study.ks))


def print_layers(study, method):
    head(f"layer ({method}, {study.title})", *(f"k = {k}" for k in study.ks))
    for layer in study.layers:
        row(layer["layer"], *("exact" if study.is_exact(layer, method, k) else
                              f"{percent(study.cell(layer, method, k)['error_mean'])} / {percent(study.cell(layer, method, k)['error_p95'], 1)}"
                              for k in study.ks))


def print_asked(study):
    asked = [[x for x in layer["asked"] if x["method"] == "knn decode"] for layer in study.layers]
    head(f"layer ({study.title})", *(f"eps = {x['eps']}" for x in asked[0]))
    for layer, cells in zip(study.layers, asked):
        row(layer["layer"], *(f"{percent(x['estimated'], 1)}: {percent(x['error_mean'], 1)} / {percent(x['error_p95'], 1)}, "
                              f"{percent(x['above_eps'], 0)}, {percent(x['touched'], 0)}" for x in cells))


def print_audits(studies, k):
    head(f"layer (k = {k})", *(study.title for study in studies))
    for i, layer in enumerate(studies[0].layers):
        cells = [study.cell(study.layers[i], "knn prefill", k) for study in studies]
        row(layer["layer"], *("exact" if x["error_mean"] < 1e-5 else
                              f"{percent(x['estimated'], 1)}; {percent(x['audit_mean'])}, {percent(x['error_mean'])}; "
                              f"{percent(x['audit_p95'], 1)}, {percent(x['error_p95'], 1)}" for x in cells))


def print_heads(studies, method, k):
    head(f"heads ({method}, k = {k})", "above 5 %", "above 3 %", "below 1 %", "of", "the worst (layer.head, %)")
    for study in studies:
        heads = study.heads(method, k)
        row(study.title, sum(e > 0.05 for e, _, _ in heads), sum(e > 0.03 for e, _, _ in heads), sum(e < 0.01 for e, _, _ in heads), len(heads),
            ", ".join(f"{layer}.{number} {percent(e, 1)}" for e, layer, number in heads[:6]))


def tables(studies):
    longest = max(study.n for study in studies)
    late = [study for study in studies if study.n == longest]
    for study in late:
        print_mass(study)
    print_mean_mass(studies)
    print_methods(studies)
    for study in late:
        for method in ("knn own", "knn decode", "knn prefill"):
            print_layers(study, method)
    for study in late:
        print_asked(study)
    for k in LOOKED_AT:
        if k in late[0].ks:
            print_audits(late, k)
    for method in METHODS[3:]:
        for k in LOOKED_AT:
            if k in late[0].ks:
                print_heads(late, method, k)


# ------------------------------------------------------------------ growth

def needed(study, method, error, layers=None):
    """(k, share of the bytes read) at which the mean error is this one, between the k that were measured by their logarithms; k None: less
    is enough than the least k; inf: every key."""
    layers = layers or study.layers
    before = None
    for k in study.ks:
        cells = [study.cell(layer, method, k) for layer in layers]
        now = (k, *(sum(x[what] for x in cells) / len(cells) for what in ("error_mean", "touched")))
        if now[1] <= error:
            if before is None:
                return None, now[2]
            if now[2] > 0.99:
                return math.inf, 1.0
            share = math.log(before[1] / error) / math.log(before[1] / now[1])
            return tuple(math.exp((1 - share) * math.log(before[i]) + share * math.log(now[i])) for i in (0, 2))
        before = now
    return math.inf, 1.0


def power(points):
    """Of the least squares fit of log y to log x."""
    if len(points) < 2:
        return math.nan
    x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
    x0, y0 = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x0) * (b - y0) for a, b in zip(x, y)) / sum((a - x0) ** 2 for a in x)


def print_growth(studies):
    for text in dict.fromkeys(study.text for study in studies):
        some = sorted((study for study in studies if study.text == text), key=lambda study: study.n)
        head(f"{text}: keys needed, rows' worth of bytes read", "error", *(f"{study.n:,}" for study in some), "power of n: k, bytes")
        for method in METHODS[2:]:
            for error in ERRORS:
                found = [(study.n, *needed(study, method, error)) for study in some]
                part = [x for x in found if x[1] is not None and math.isfinite(x[1])]
                row(method, f"{percent(error, 0)} %",
                    *(f"{'below ' + str(some[0].ks[0]) if k is None else 'all' if math.isinf(k) else f'{k:.0f}'}, {share * n:.0f}"
                      for n, k, share in found),
                    f"{power([x[:2] for x in part]):.2f}, {power([(n, share * n) for n, _, share in part]):.2f}" if len(part) > 1 else "-")


def growth(studies):
    print_methods(studies)
    print_growth(studies)


def few(studies):
    for study in studies:
        print_mass(study)
    print_methods(studies)
    for study in studies:
        for method in METHODS[2:]:
            print_layers(study, method)


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("tables", "growth", "few"):
        sys.exit(__doc__)
    studies = [Study(path) for path in sys.argv[2:]]
    {"tables": tables, "growth": growth, "few": few}[sys.argv[1]](studies)


main()
