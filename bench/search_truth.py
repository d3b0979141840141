"""True neighbours: every product of a block of rows by matrix multiplication, candidates by the largest of groups, scores in double."""
import numpy as np

GROUP = 64  # rows whose largest score stands for them
SPARE = 22  # candidates beyond k: float32 may order the last ones wrongly


def prepared(base, queries, metric):
    """Rows, queries, what is taken off a row's product: more is better by all metrics."""
    if metric == "cosine":
        base = base / np.maximum(np.linalg.norm(base, axis=1, keepdims=True), 1e-30)
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    half = 0.5 * np.einsum("ij,ij->i", base, base, dtype=np.float64) if metric == "l2" else None
    return base, queries, half


def groups_of(base, half):
    """Rows filled up to whole groups with ones that are never chosen."""
    n, d = base.shape
    whole = -(-n // GROUP) * GROUP
    rows = np.zeros((whole, d), np.float32)
    rows[:n] = base
    off = np.full(whole, np.inf, np.float32)
    off[:n] = 0 if half is None else half
    return rows, off


def candidates(rows, off, queries, count):
    """The best `count` rows by float32 scores: they are in the `count` groups with the largest maxima."""
    # Row r is member r // groups of group r % groups, so that the maximum over members runs along whole vectors.
    groups = len(rows) // GROUP
    scores = (queries @ rows.T - off).reshape(len(queries), GROUP, groups)
    take = min(count, groups)
    best = np.argpartition(-scores.max(1), take - 1, axis=1)[:, :take]
    inside = np.take_along_axis(scores, best[:, None, :], axis=2).reshape(len(queries), -1)
    ids = (np.arange(GROUP)[None, :, None] * groups + best[:, None, :]).reshape(len(queries), -1)
    keep = min(count, inside.shape[1])
    chosen = np.argpartition(-inside, keep - 1, axis=1)[:, :keep]
    return np.take_along_axis(ids, chosen, 1)


def scores_of(base, half, queries, ids):
    """In double; -inf where there is no row."""
    safe = np.clip(ids, 0, len(base) - 1)
    scores = np.einsum("ijk,ik->ij", base[safe], queries, dtype=np.float64)
    if half is not None:
        scores = scores - half[safe]
    return np.where(ids >= 0, scores, -np.inf)


class Truth:
    def __init__(self, base, queries, metric, k, block=256):
        self.base, self.queries, self.half = prepared(base, queries, metric)
        rows, off = groups_of(self.base, self.half)
        self.k, parts = k, []
        for at in range(0, len(queries), block):
            some = self.queries[at:at + block]
            ids = np.sort(candidates(rows, off, some, k + SPARE), axis=1)
            ids = np.where(ids < len(base), ids, -1)
            order = np.argsort(-scores_of(self.base, self.half, some, ids), axis=1, kind="stable")[:, :k]
            parts.append(np.take_along_axis(ids, order, 1))
        self.ids = np.concatenate(parts)
        self.last = scores_of(self.base, self.half, self.queries, self.ids)[:, -1]

    def recall(self, ids, block=4096):
        """Share of the true ones found. A row that scores as the last true one does is one of them, whichever of equals was named."""
        found = 0
        for at in range(0, len(ids), block):
            some = np.sort(ids[at:at + block, :self.k], axis=1)
            scores = scores_of(self.base, self.half, self.queries[at:at + block], some)
            scores[:, 1:][some[:, 1:] == some[:, :-1]] = -np.inf  # named twice counts once
            last = self.last[at:at + block, None]
            found += int((scores >= last - 1e-6 * np.abs(last)).sum())
        return found / (len(ids) * self.k)
