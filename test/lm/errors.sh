# What the commands that run a model refuse: models that are none, texts that do not fit, settings that do not exist.
source "$(dirname "$0")/_prepare.sh"

printf 'GGML old model' >wrong.gguf
printf 'GG' >short.gguf
: >empty.gguf
head -c 20 "$model" >header.gguf
head -c 40000000 "$model" >cut.gguf
printf 'GGUF\377\377\377\377\377\377\377\377\377\377\377\377\377\377\377\377' >absurd.gguf
mkdir folder
head -c 6000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt
: >empty.txt
printf 'a\0b' >zero.txt

for command in generate ppl demo eval "bench model" "dump --out dumped"; do
    run="$KNA $command"
    refuses 1 "missing.gguf: No such file" $run -m missing.gguf -f text.txt
    refuses 2 "wrong.gguf: not a GGUF model" $run -m wrong.gguf -f text.txt
    refuses 2 "--method" $run -m "$model" -f text.txt --method fastest
    refuses 2 "unknown" $run -m "$model" -f text.txt --no-such-option
    refuses 2 "--model" $run -f text.txt
    refuses 1 "missing.txt: No such file" $run -m "$model" -f missing.txt
done
for bad in short empty; do refuses 2 "$bad.gguf: not a GGUF model" "$KNA" ppl -m $bad.gguf -f text.txt; done
for bad in header cut absurd; do refuses 2 "$bad.gguf: llama.cpp cannot load this model: " "$KNA" ppl -m $bad.gguf -f text.txt; done
refuses 1 "folder: is a folder" "$KNA" ppl -m folder -f text.txt
refuses 1 "folder: " "$KNA" ppl -m "$model" -f folder
refuses 2 "empty.txt: the text is empty" "$KNA" ppl -m "$model" -f empty.txt
refuses 2 "zero.txt: not a text: zero byte at offset 1" "$KNA" ppl -m "$model" -f zero.txt

# Texts and contexts: the message names both numbers.
tokens=$("$KNA" generate -m "$model" -f text.txt -c 1 2>&1 |
    sed -n 's/.*the prompt has \([0-9]*\) tokens, the context only 1 .*/\1/p')
[ "${tokens:-0}" -gt 1000 ] || fail "the number of tokens is missing from the message: '$tokens'"
refuses 2 "the prompt has $tokens tokens, the context only 256" "$KNA" generate -m "$model" -f text.txt -c 256
refuses 2 "the prompt has $tokens tokens and 9 more are to be made (-n): the context of $tokens is too small" \
    "$KNA" generate -m "$model" -f text.txt -c "$tokens" -n 9
refuses 2 "$tokens tokens, fewer than one window of 4096" "$KNA" ppl -m "$model" -f text.txt -c 4096
refuses 2 "$tokens tokens, timing at depth 8192 takes 8704" "$KNA" bench model -m "$model" -f text.txt
refuses 2 "exceed the 8192 positions" "$KNA" demo -m "$model" -f "$KNA_DOCUMENTS/filesystems/path-lookup.rst" --tokens 8192 -n 64
refuses 2 "the list must ascend" "$KNA" bench model -m "$model" -f text.txt --depths 64,64
refuses 2 "a text is missing" "$KNA" generate -m "$model"
refuses 2 "exclude each other" "$KNA" generate -m "$model" -f text.txt -p text
refuses 2 "--ctx" "$KNA" ppl -m "$model" -f text.txt -c 1
refuses 2 "--eps" "$KNA" ppl -m "$model" -f text.txt --eps 2
refuses 2 "--temp" "$KNA" generate -m "$model" -p text --temp -1

# The plugin and llama.cpp's backends.
refuses 1 "missing.so cannot be loaded: no such file" env KNA_PLUGIN=missing.so "$KNA" ppl -m "$model" -f text.txt -c 256
refuses 1 "text.txt cannot be loaded" env KNA_PLUGIN="$PWD/text.txt" "$KNA" ppl -m "$model" -f text.txt -c 256
refuses 1 "folder: no CPU backend" env KNA_LLAMA_DIR=folder "$KNA" ppl -m "$model" -f text.txt -c 256

# A context that does not fit into memory. (A sanitizer needs more address space than any limit would leave.)
if [ -z "${KNA_SANITIZE:-}" ]; then
    for method in off exact; do
        refuses 1 "insufficient memory" bash -c "ulimit -v 3000000; $KNA generate -m $model -p Hi -n 1 -c 200000 $one --method $method"
    done
fi

# A page that cannot be written is known before the work begins.
refuses 1 "nowhere" "$KNA" demo -m "$model" -f text.txt --html nowhere/demo.html
finish 54 # two fewer under a sanitizer
