# The fixed places: make -s print-llama and print-model print one path each, and nothing else, on stdout.
set -eu
[ -n "${KNA_LLAMA:-}" ] || exit 77
cd "$KNA_SOURCE_DIR"
folder=$(make -s print-llama 2>/dev/null)
for program in llama-bench llama-perplexity llama-completion llama-server; do
    [ -x "$folder/$program" ] || { echo "make -s print-llama: '$folder' has no $program"; exit 1; }
done
model=$(make -s print-model 2>/dev/null)
[ "$(head -c 4 "$model")" = GGUF ] || { echo "make -s print-model: '$model' is no GGUF"; exit 1; }
for file in kna libggml-knnattn.so libkna.a libkna.so; do
    [ -e "$KNA_BUILD_DIR/$file" ] || { echo "$KNA_BUILD_DIR/$file is missing"; exit 1; }
done
make -s help | grep -q 'make demo'
