# llama-server through the plugin: two conversations at once, prompts that share a beginning, requests cancelled while the answer is
# written and while the prompt is read (beside another that goes on), a prompt with a passage cut out (the keys behind it are moved),
# generation past the end of the context (the same), a conversation saved, erased and loaded again.
# Every answer continues a text that the model can only know from its cache, and the index learned of every change in time.
set -eu
. "$(dirname "$0")/_common.sh"

cat >"$tmp/scenario.py" <<'END'
import concurrent.futures, http.client, json, sys, time, urllib.request
port, folder = sys.argv[1:]
bad = 0

def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer: return json.load(answer)

def wait():
    for _ in range(600):
        try: return call("/health")
        except Exception: time.sleep(0.1)
    sys.exit("FAIL: the server does not answer")

def complete(prompt, slot, count=16):
    return call("/completion", {"prompt": prompt, "id_slot": slot, "n_predict": count, "temperature": 0, "cache_prompt": True})

def expect(what, answer, words):
    global bad
    if words not in answer["content"]:
        print(f"FAIL: {what}: {answer['content']!r} does not say {words!r}")
        bad = 1

def reused(what, answer, least):
    global bad
    if answer["tokens_cached"] < least or answer["timings"].get("cache_n", least) < least:
        print(f"FAIL: {what}: nothing was reused: {answer['timings']}")
        bad = 1

def free(slot):
    return not next(s for s in call("/slots") if s["id"] == slot)["is_processing"]

# Asks for far more than is read: hangs up after some lines of the answer (0: before it begins, as soon as the server is at it).
def cancel(prompt, slot, lines):
    global bad
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
    body = {"prompt": prompt, "id_slot": slot, "n_predict": 700, "ignore_eos": True, "temperature": 0, "cache_prompt": True, "stream": True}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    if lines:
        answer = connection.getresponse()
        for _ in range(2 * lines): answer.readline() # each is followed by an empty one
    else:
        while free(slot): time.sleep(0.002)
    connection.sock.shutdown(2)
    connection.close()
    start = time.monotonic()
    while not free(slot) and time.monotonic() < start + 60: time.sleep(0.02)
    done = next(s for s in call("/slots") if s["id"] == slot)
    decoded = done.get("next_token", [{}])[0].get("n_decoded", 0)
    if not free(slot) or decoded >= 700:
        print(f"FAIL: a request cancelled after {lines} lines was not given up: {decoded} tokens, {time.monotonic() - start:.1f} s")
        bad = 1

ferry = "The ferry left the harbour at seven in the morning with twelve passengers, two horses and a cart of salt. "
baker = "A baker in Lisbon counted forty loaves before sunrise, gave three of them to the night watchman and sold the rest. "
aside = "Meanwhile it rained on the hills, the mill stood still and the geese walked slowly back to the pond behind the church. "

wait()
with concurrent.futures.ThreadPoolExecutor(2) as both:
    first = both.submit(complete, ferry * 5 + "The ferry left the", 0)
    second = both.submit(complete, baker * 5 + "A baker in Lisbon counted", 1)
    expect("conversation 1 of 2", first.result(), "harbour at seven in the morning with twelve passengers")
    expect("conversation 2 of 2", second.result(), "forty loaves before sunrise, gave three of them")

again = complete(ferry * 5 + "The ferry left the harbour at seven in the morning with", 0)
expect("the same beginning", again, "twelve passengers, two horses")
reused("the same beginning", again, 100)

with concurrent.futures.ThreadPoolExecutor(2) as both:
    other = both.submit(complete, baker * 5 + "A baker in Lisbon counted forty loaves", 1, 24)
    both.submit(cancel, ferry * 5 + "The ferry left the", 0, 4).result()
    expect("beside a cancelled answer", other.result(), "before sunrise, gave three of them to the night watchman")
again = complete(ferry * 5 + "The ferry left the harbour at seven", 0)
expect("after a cancelled answer", again, "in the morning with twelve passengers")
reused("after a cancelled answer", again, 100)
cancel(aside * 30, 0, 0)
expect("after a cancelled prompt", complete(ferry * 5 + "The ferry left the", 0), "harbour at seven in the morning")

complete(ferry + aside + aside + ferry * 4, 0, 1)
cut = complete(ferry + aside + ferry * 4 + "The ferry left the", 0)
expect("a passage cut out", cut, "harbour at seven in the morning")

call("/slots/0?action=save", {"filename": "ferry.bin"})
call("/slots/0?action=erase", {})
expect("after erasing", complete(baker * 4 + "A baker in Lisbon", 0), "counted forty loaves before sunrise")
call("/slots/0?action=restore", {"filename": "ferry.bin"})
loaded = complete(ferry + aside + ferry * 4 + "The ferry left the", 0)
expect("after loading", loaded, "harbour at seven in the morning")
reused("after loading", loaded, 100)

long = complete(baker * 38 + "A baker in Lisbon", 1, 120)
expect("past the end of the context", long, "sold the rest. A baker in Lisbon counted forty loaves")
if long["tokens_predicted"] != 120 or not long["truncated"]: sys.exit(f"FAIL: the context was not shifted: {long['timings']}")
sys.exit(bad)
END

server=
trap '[ -z "$server" ] || kill -KILL "$server"; rm -rf "$tmp"' EXIT

# serve "SETTINGS": the scenario on a server of its own.
serve() {
    local port
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    enter "$1" llama-server -m "$KNA_MODEL" -t 2 -c 2048 -np 2 --host 127.0.0.1 --port "$port" --context-shift --cache-reuse 8 \
        --slot-save-path "$tmp" </dev/null >"$tmp/log" 2>&1 &
    server=$!
    "$python" "$tmp/scenario.py" "$port" "$tmp" || { complain "under $1"; tail -20 "$tmp/log"; }
    kill -INT "$server"
    wait "$server" || complain "llama-server ended with $?"
    server=
}

serve "METHOD=knn K=16 EXACT_BELOW=0 REPORT=$tmp/report"
"$python" - "$tmp/report" <<'END' || bad=1
import json, sys
r = json.load(open(sys.argv[1]))
print({name: r[name] for name in ("calls", "rows", "keys_seen", "keys_full", "rows_indexed", "stale_events", "stale_rows", "fallbacks")})
if r["stale_events"] or r["fallbacks"]: sys.exit("FAIL: the cache changed without the index being told, or memory was short")
if not r["keys_full"] < 0.9 * r["keys_seen"]: sys.exit("FAIL: nearly every key was read")
END
exit $bad
