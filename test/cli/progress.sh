# Progress: on a terminal for what takes longer than a second, wiped at the end; nothing before a second; never into a pipe or a file.
set -eu
exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
import os, pty, re, shutil, subprocess, tempfile, threading, time
import numpy as np

try:
    for end in pty.openpty(): os.close(end)
except OSError as error:
    print("skipped: this machine has no terminals to offer:", error)
    raise SystemExit(77)

KNA = os.environ["KNA"]
folder = tempfile.mkdtemp(prefix="kna-test-")
os.chdir(folder)
np.save("x.npy", np.ones((1, 4, 8), np.float32))
os.mkfifo("slow.npy")

def feed(wait_s):
    """What is read from the pipe comes late: so long does kna run, on any machine."""
    with open("slow.npy", "wb") as pipe:
        time.sleep(wait_s)
        pipe.write(open("x.npy", "rb").read())

def attend(wait_s, stderr, q="slow.npy", k="x.npy"):
    feeder = threading.Thread(target=feed, args=(wait_s,))
    feeder.start()
    done = subprocess.run([KNA, "attend", "--q", q, "--k", k, "--v", "x.npy", "--out", "o.npy"], stderr=stderr, stdout=subprocess.PIPE)
    feeder.join()
    assert done.stdout == b"", done.stdout
    return done

def on_terminal(wait_s, **operands):
    ours, theirs = pty.openpty()
    done = attend(wait_s, theirs, **operands)
    os.close(theirs)
    said = b""
    try:
        while True:
            said += os.read(ours, 65536)
    except OSError:
        pass
    os.close(ours)
    return done.returncode, said.decode()

code, said = on_terminal(2.0)
assert code == 0 and re.match(r"\rkna attend: reading [1-9] s\x1b\[K", said), (code, said)
assert said.endswith("\r\x1b[K") and "\n" not in said, said
assert 1 <= said.count("reading") <= 10, said
for attempt in range(5):
    start = time.monotonic()
    code, said = on_terminal(0.0)
    if time.monotonic() - start < 1:  # else the machine was busy, and progress in its place
        break
assert (code, said) == (0, ""), (code, said)
np.save("bad.npy", np.ones((1, 4, 7), np.float32))
code, said = on_terminal(1.5, k="bad.npy")
assert code == 2 and said.endswith("\r\x1b[Kkna: bad.npy: d = 7, but slow.npy has 8\r\n"), (code, said)
done = attend(1.5, subprocess.PIPE)
assert done.returncode == 0 and done.stderr == b"", done
with open("err", "wb") as err:
    done = attend(1.5, err)
assert done.returncode == 0 and os.path.getsize("err") == 0

# With a known share: a bar. The rounds take as long as they take; they are ended after the first bar.
ours, theirs = pty.openpty()
child = subprocess.Popen([KNA, "bench", "attend", "-n", "2048", "--contenders", "exact", "--rounds", "1001", "--cpu", "ref"],
                         stderr=theirs, stdout=subprocess.DEVNULL)
os.close(theirs)
said = b""
while not said.endswith(b"\x1b[K"):
    said += os.read(ours, 65536)
child.terminate()
child.wait()
assert re.match(rb"\rbench attend \[[#.]{24}\] +[0-9]+ %  1 s", said) or re.match(rb"\rbench attend 1 s", said), said
shutil.rmtree(folder)
END
