# Shared by the scripts here: what they need or skip, a folder of their own, llama.cpp's programs with and without the plugin.
# Meant to be sourced under `set -eu`.

for name in KNA_PLUGIN KNA_LLAMA KNA_MODEL; do
    eval "value=\${$name:-}"
    if [ -z "$value" ] || [ ! -e "$value" ]; then
        echo "skipped: $name (${value:-not set}) is not there"
        exit 77
    fi
done
python=${KNA_PYTHON:-python3}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset GGML_BACKEND_PATH
# On a busy machine threads that spin at a barrier starve the one they wait for: programs were 30 times slower.
export OMP_WAIT_POLICY=passive
bad=0

complain() { echo "FAIL: $*"; bad=1; }

# plain PROGRAM ARGS.. - a program of llama.cpp as it is.
plain() {
    local program=$1
    shift
    "$KNA_LLAMA/$program" "$@"
}

# enter "NAME=VALUE .." PROGRAM ARGS.. - become the program with the plugin, under settings KNNATTN_NAME, away from any terminal.
enter() {
    local settings=$1 program=$2
    shift 2
    # shellcheck disable=SC2046,SC2086 # one word per setting
    exec env GGML_BACKEND_PATH="$KNA_PLUGIN" ${settings:+$(printf 'KNNATTN_%s ' $settings)} setsid "$KNA_LLAMA/$program" "$@"
}

# plugin "NAME=VALUE .." PROGRAM ARGS.. - run it so.
plugin() { (enter "$@"); }

# A text for perplexity: prose that is in this repository anyway.
prose() { sed -n '1,400p' "$KNA_SOURCE_DIR/include/kna.h"; }

# A text the model soon knows by heart, so that its continuation does not hang on rounding.
ferry() {
    local i
    for i in $(seq "$1"); do
        printf '%s ' "The ferry left the harbour at seven in the morning with twelve passengers, two horses and a cart of salt. Nobody" \
            "spoke until the lighthouse was behind them; then the oldest of the passengers, a clockmaker from the northern islands," \
            "began to tell how he had once repaired the bell of a drowned church."
    done
}

# near NAME FILE FACTOR FLOOR SPREAD - what llama-perplexity --kl-divergence left in FILE: divergence at most FACTOR times that of
# llama.cpp's own flash attention ($tmp/own) + FLOOR, perplexity within SPREAD of its (paired) standard error and within 3 %.
near() {
    "$python" - "$tmp/own" "$@" <<'END' || bad=1
import re, sys
def figures(path):
    text = open(path, errors="replace").read()
    kld = re.search(r"Mean +KLD: +([0-9.e+-]+)", text)
    ratio = re.search(r"Mean PPL\(Q\)/PPL\(base\) +: +([0-9.]+) ± +([0-9.]+)", text)
    if not kld or not ratio: sys.exit(f"FAIL: {path}: llama-perplexity printed no divergence: {text[-600:]}")
    return float(kld[1]), float(ratio[1]), float(ratio[2])
own, name, path, factor, floor, spread = sys.argv[1:]
kld, ratio, error = figures(path)
limit = float(factor) * figures(own)[0] + float(floor)
print(f"{name}: KL divergence {kld} (limit {limit:.6f}), perplexity ratio {ratio} ± {error}")
if not kld <= limit: sys.exit(f"FAIL: {name}: KL divergence {kld} above {limit}")
if not abs(ratio - 1) <= min(float(spread) * error, 0.03): sys.exit(f"FAIL: {name}: perplexity ratio {ratio} ± {error}")
END
}
