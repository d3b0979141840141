/*
 * nearest_row.c - one row: which keys it sees, its head of them, and their softmax. The rest is dropped, or its mean value stands for
 * it; its mass is known from the scan.
 */
#include "sampled.h"

#include <math.h>

/* -inf for what is not seen within the blocks first_block .. end_block - 1. */
static void cut_edges(nearest_row *row)
{
    const uint16_t *present = row->job->index->present;
    kna__forbid(row->s, row->first_block * KNA_BLOCK, row->lo);
    kna__forbid(row->s, row->hi, row->end_block * KNA_BLOCK);
    for (int64_t b = row->first_block; b < row->end_block; b++) {
        for (unsigned absent = (unsigned)(uint16_t)~present[b]; absent; absent &= absent - 1) {
            row->s[b * KNA_BLOCK + __builtin_ctz(absent)] = -INFINITY;
        }
    }
}

/* Finishes the logits of what the row sees; -inf for the rest. */
static void see(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    row->first_block = row->lo / KNA_BLOCK;
    row->end_block = (row->hi + KNA_BLOCK - 1) / KNA_BLOCK;
    row->listed = 0;
    row->seen = 0;
    row->q_l1 = 0;
    for (int64_t c = 0; c < p->d; c++) {
        row->q_l1 += fabsf(row->q[c]);
    }
    kna__logits_finish(p, row->head, row->query, row->lo, row->s + row->lo, row->hi - row->lo);
    cut_edges(row);
    for (int64_t j = row->lo; j < row->hi; j++) {
        row->seen += row->s[j] > -INFINITY;
    }
}

/* The largest |v| of what the row sees. */
static void find_largest_value(nearest_row *row)
{
    const float *norm = row->job->v_norm + row->kv_head * row->job->ld;
    for (int64_t j = row->lo; j < row->hi; j++) {
        row->v_most = row->s[j] > -INFINITY ? fmax(row->v_most, (double)norm[j]) : row->v_most;
    }
    row->v_most *= 1 + 1e-6;
}

/* Bytes read: keys scored, values mixed, the scan, means; in those of one key and its value. */
static double bytes_read(const nearest_row *row, int64_t keys, int64_t values)
{
    const nearest_job *job = row->job;
    const kna__problem *p = job->problem;
    double key = (double)kna__row_bytes(p->k.type, p->d), value = (double)kna__row_bytes(p->v.type, p->dv);
    double scan = (double)((row->end_block - row->first_block) * KNA_BLOCK) * (double)(job->index->d4 * 4 + sizeof(float));
    scan = job->scan ? scan : 0;
    return row->seen ? ((double)keys * key + (double)values * value + scan) / (key + value) + kna__cells_read(row) : 0;
}

static void attend_exact(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    stats->exact = true;
    stats->keys_full = (float)row->seen;
    stats->read = bytes_read(row, row->seen, row->seen);
    stats->audit_error = kna__is_audited(p, row->head, row->query) ? 0 : -1;
    kna__state state = kna__exact_row(p, row->job->index, row->head, row->query, row->q, row->room.values);
    kna__state_write(p, row->head, row->query, state, row->room.values);
}

/* So much of the softmax has the mean value of the tail. Returns how many values that took. */
static int64_t add_mean(nearest_row *row, kna__state *state, double tail)
{
    int64_t dv = row->job->problem->dv, read = kna__tail_mean(row, row->room.doubles);
    for (int64_t c = 0; c < dv; c++) {
        row->room.values[c] += (float)(tail * row->room.doubles[c]);
    }
    state->sum += tail;
    return read;
}

/* The mass of the tail is known from the scan, whether it is dropped or not. */
static void attend_topk(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    kna__state state = kna__soften(p->kernels, room->exact, row->listed);
    memcpy(room->work, row->s + first, (size_t)count * sizeof(float));
    double all = (double)p->kernels->exp_sum(room->work, state.max, (size_t)count);
    double scanned = 0; /* what the scan took the listed keys for: their true weights replace it */
    for (int64_t i = 0; i < row->listed; i++) {
        scanned += (double)room->work[room->ids[i] - first];
    }
    double tail = fmax(0, all - scanned);
    stats->tail_mass = (float)(tail / (tail + state.sum + kna__sink_weight(p, row->head, state.max)));
    stats->stale = row->stale;
    memset(room->values, 0, (size_t)p->dv * sizeof(float));
    p->kernels->mix_at[p->v.type](room->values, 0, room->exact, 0, 1, kna__span_at(&p->v, row->kv_head, 0), room->ids,
                                  (size_t)row->listed, (size_t)p->dv);
    row->mixed = row->listed + (p->options.tail == KNA_TAIL_MEAN ? add_mean(row, &state, tail) : 0);
    kna__state_write(p, row->head, row->query, state, room->values);
}

/*
 * The radius of what attend_topk() left in room->exact and wrote out, by the cells' bounds. Returns whether it is as small as option
 * eps asks for.
 */
static bool bound_topk(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    const float *out = kna__out_at(p, row->head, row->query);
    double head = 0, known_vv, *written = room->doubles, *known = room->doubles + p->dv;
    float shift = -INFINITY;
    for (int64_t i = 0; i < row->listed; i++) {
        row->s[room->ids[i]] = -INFINITY;
        shift = fmaxf(shift, room->approx[i]);
        head += (double)room->exact[i];
    }
    head += kna__sink_weight(p, row->head, shift);
    known_vv = kna__head_values(row, known);
    for (int64_t c = 0; c < p->dv; c++) {
        written[c] = (double)out[c];
    }
    double bound = (double)row->bound - (double)shift;
    int64_t rest = kna__cells_list_tail(row, room->found);
    kna__cells_weigh(row, (double)shift, bound);
    stats->radius = (float)kna__cells_radius(row, written, head, known, row->seen - row->listed - rest, bound);
    return p->options.eps == 0 || (double)stats->radius <= (double)p->options.eps * sqrt(known_vv / head);
}

static void attend_nearest(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    const kna_attend_options *o = &p->options;
    bool bounded = o->certificate == KNA_CERTIFICATE_DETERMINISTIC;
    if (o->method != KNA_TOPK) {
        kna__sampled_attend(row, stats);
        return;
    }
    if (bounded) {
        memcpy(row->room.approx, row->room.exact, (size_t)row->listed * sizeof(float));
    }
    attend_topk(row, stats);
    stats->keys_full = (float)(row->listed + row->rejected);
    if (bounded && !bound_topk(row, stats)) {
        attend_exact(row, stats);
        stats->tail_mass = stats->radius = 0;
        row->scored = row->mixed = row->seen;
    }
}

/* The keys that are read in full. */
static void find_head(nearest_row *row)
{
    const nearest_job *job = row->job;
    if (job->stratified) {
        kna__cells_see(row);
    }
    if (job->scan) {
        kna__head_choose(row);
    } else {
        kna__cells_find_head(row, job->problem->options.k_near);
    }
    if (job->stratified && job->problem->options.method != KNA_TOPK) {
        kna__cells_add_loose(row);
    }
    row->mixed = row->listed;
}

void kna__nearest_attend(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    memset(stats, 0, sizeof *stats);
    stats->error_est = stats->audit_error = stats->radius = -1;
    if (p->lists && !kna__list_has_room(row)) {
        return;
    }
    see(row);
    if (p->options.certificate != KNA_CERTIFICATE_ASYMPTOTIC) {
        find_largest_value(row);
    }
    stats->keys_seen = (float)row->seen;
    if (row->seen > p->options.k_near) {
        find_head(row);
    }
    bool is_all = row->seen <= p->options.k_near || row->listed == row->seen;
    if (p->lists && (is_all || (p->options.method != KNA_UNIFORM && p->options.method < KNA_STRATIFIED))) {
        kna__list_row(row, is_all);
        return;
    }
    if (is_all) {
        attend_exact(row, stats);
        kna__sampled_exact(row);
        return;
    }
    attend_nearest(row, stats);
    if (p->options.radius) {
        p->options.radius[row->head * p->m + row->query] = stats->radius;
    }
    stats->read = bytes_read(row, row->scored, row->mixed);
}
