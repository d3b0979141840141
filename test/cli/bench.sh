# kna bench decode, prefill and attend on small shapes: every contender is there, the figures fit together, naive attention agrees.
set -eu
exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
import json, os, subprocess

KNA = os.environ["KNA"]

def run(*arguments):
    done = subprocess.run([KNA, "bench", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == ("--svg" in arguments), (arguments, done)
    return done.stdout

def near(a, b, share=1e-6):
    return abs(a - b) <= share * max(abs(a), abs(b))

def check(report, counts, ns, contenders):
    rows = report["results"]
    assert [(row["n"], row["method"]) for row in rows] == [(n, who) for n in ns for who in contenders], rows
    exact = {row["n"]: row for row in rows if row["method"] == "exact"}
    for row in rows:
        assert 0 < row["time_min_s"] <= row["time_s"] <= row["time_max_s"], row
        assert near(row["speed_over_exact"], exact[row["n"]]["time_s"] / row["time_s"]), row
        if row["method"] == "naive":
            assert row["error"] < 1e-4, row
        elif row["method"] == "exact":
            assert row["error"] == 0 and row["keys_touched"] == 1 and row["build_s"] is None, row
        else:
            assert 0 < row["error"] < 1 and row["build_s"] > 0 and row["index_bytes"] > 0 and 0 < row["tail_mass"] < 1, row
    flops, kv_bytes = counts
    for row in exact.values():
        if "bytes_per_s" in row:
            assert near(row["bytes_per_s"], kv_bytes * row["n"] / row["time_s"]), row
            assert near(row["share_of_copy"], row["bytes_per_s"] / report["copy_bytes_per_s"]), row
        else:
            assert near(row["flops_per_s"], flops(row["n"]) / row["time_s"]), row
            assert near(row["share_of_peak"], row["flops_per_s"] / report["fma_flops_per_s"]), row

everyone = ["naive", "exact", "topk", "knn"]
report = json.loads(run("decode", "-n", "1500,2500", "--layers", "3", "--rounds", "3", "--k-near", "20", "--threads", "1", "--json"))
assert report["bench"] == "decode" and report["layers"] == 3 and report["rounds"] == 3 and report["threads"] == 1 and not report["causal"]
assert (report["h"], report["h_kv"], report["d"], report["type"]) == (9, 3, 64, "f16") and not report["time_includes_build"]
check(report, (None, 2 * 3 * 64 * 2), [1500, 2500], everyone)

report = json.loads(run("prefill", "-n", "1400", "--rounds", "2", "--k-near", "10", "--near-window", "8", "--json"))
assert report["causal"] and report["time_includes_build"]
check(report, (lambda n: 4 * 9 * 64 * n * (n + 1) / 2, None), [1400], everyone)

report = json.loads(run("attend", "-n", "500", "-m", "5", "--heads", "4", "--kv-heads", "1", "--dim", "32", "--type", "q8_0", "--rounds", "2",
                        "--contenders", "knn,exact", "--k-near", "10", "--near-sinks", "0", "--near-window", "0", "--cpu", "ref", "--json"))
assert report["cpu"] == "ref" and report["results"][0]["m"] == 5
check(report, (lambda n: 4 * 4 * 32 * 5 * n, None), [500], ["exact", "knn"])
for kind in ("f32", "bf16", "i8"):
    report = json.loads(run("attend", "-n", "300", "-m", "2", "--type", kind, "--rounds", "1", "--contenders", "naive,exact", "--json"))
    check(report, (lambda n: 4 * 9 * 64 * 2 * n, None), [300], ["naive", "exact"])

# The same operands for the same seed.
errors = [json.loads(run("attend", "-n", "600", "--rounds", "1", "--contenders", "exact,topk", "--seed", seed, "--json"))["results"][1]["error"]
          for seed in ("1", "1", "0x2")]
assert errors[0] == errors[1] != errors[2], errors

# The least k of its ladder for an error, found against exact attention or by audited rows; what times grow by; the picture.
import math, tempfile, xml.etree.ElementTree as tree

ladder = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
with tempfile.TemporaryDirectory() as folder:
    picture = os.path.join(folder, "growth.svg")
    decode = ["decode", "--layers", "2", "--rounds", "3", "--contenders", "exact,topk,knn"]
    report = json.loads(run(*decode, "-n", "1024,2048,3000", "--error", "0.05", "--svg", picture, "--json"))
    for row in report["results"][1:]:
        if row["method"] != "exact":
            assert row["error"] <= 0.05 and (row["k"] in ladder or row["k"] >= row["n"]), row
    for row in report["results"]:
        if row["method"] == "topk" and row["k"] > 16:
            less = json.loads(run(*decode, "-n", str(row["n"]), "--k-near", str(ladder[ladder.index(row["k"]) - 1]), "--json"))["results"][1]
            assert less["error"] > 0.05, (row, less)
    for method, power in report["growth"].items():
        points = [(math.log(row["n"]), math.log(row["time_s"])) for row in report["results"] if row["method"] == method]
        x, y = [sum(p[i] for p in points) / len(points) for i in (0, 1)]
        slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, b in points)
        assert abs(power - slope) < 1e-6, (method, power, slope)
    drawn = [element.text for element in tree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"1K", "2K", "3000", "keys"} <= set(drawn) and [text.split(",")[0] for text in drawn[-3:]] == ["exact", "topk", "knn"], drawn
audited = json.loads(run("prefill", "-n", "1400", "--rounds", "1", "--contenders", "knn", "--audit", "0.05", "--error", "0.2", "--json"))["results"][0]
assert 0 < audited["error"] <= 0.2 and audited["k"] in ladder, audited
alone = json.loads(run("prefill", "-n", "1400", "--rounds", "1", "--contenders", "knn", "--json"))
assert alone["results"][0]["error"] is None and alone["growth"]["knn"] is None, alone
refused = subprocess.run([KNA, "bench", "decode", "-n", "300", "--contenders", "knn", "--error", "0.1"], capture_output=True, text=True)
assert refused.returncode == 2 and "--error" in refused.stderr and refused.stdout == "", refused

table = run("decode", "-n", "200", "--layers", "2", "--rounds", "1", "--contenders", "exact,knn").splitlines()
assert len(table) == 7 and table[0].startswith("bench decode: 9 heads on 3, dim 64, f16, 1 query, 2 layers"), table
assert table[4].split()[:4] == ["n", "method", "k", "ms"] and [line.split()[1] for line in table[5:]] == ["exact", "knn"], table
END
