/*
 * near_row.c - one row: the exact list in full, the tail by block means.
 *
 * With w_x the weight of a tail key of block x, the tail's share of the numerator is sum_x w_x * (sum of the block's values -
 * sum of its listed values). Listed values are read anyway, so their weight becomes exp(logit) - w_x and the block's mean value
 * serves unchanged.
 */
#include "near.h"

#include <math.h>

enum { EXACT_KEYS = 512 };

/* The next keys the row sees, from `first` on: returns how many, at most EXACT_KEYS, and moves *first to them. */
static int64_t next_seen(const near_row *row, int64_t *first)
{
    while (*first < row->hi && !(row->s[*first] > -INFINITY)) {
        ++*first;
    }
    int64_t end = *first;
    while (end < row->hi && end - *first < EXACT_KEYS && row->s[end] > -INFINITY) {
        end++;
    }
    return end - *first;
}

/* Exact state over all keys the row sees; no other key is touched: it may be garbage. All approximate logits are in place. */
static kna__state exact_state(const near_row *row, float *values)
{
    const kna__problem *p = row->job->problem;
    float s[EXACT_KEYS], part[KNA_MAX_DIM];
    kna__state state = { -INFINITY, 0 };
    memset(values, 0, (size_t)p->dv * sizeof *values);
    for (int64_t first = row->lo, count; (count = next_seen(row, &first)) > 0; first += count) {
        p->kernels->dot[p->k.type](s, EXACT_KEYS, row->q, (size_t)p->d, 1, kna__span_at(&p->k, row->kv_head, first), (size_t)count,
                                   (size_t)p->d);
        kna__logits_finish(p, row->head, row->query, first, s, count);
        kna__state chunk = { p->kernels->max(s, (size_t)count), 0 };
        if (chunk.max == -INFINITY) {
            continue;
        }
        chunk.sum = (double)p->kernels->exp_sum(s, chunk.max, (size_t)count);
        memset(part, 0, (size_t)p->dv * sizeof *part);
        p->kernels->mix[p->v.type](part, (size_t)p->dv, s, EXACT_KEYS, 1, kna__span_at(&p->v, row->kv_head, first), (size_t)count,
                                   (size_t)p->dv);
        kna__state_join(p->kernels, &state, values, chunk, part, p->dv);
    }
    return state;
}

/* Logits of the exact list in full precision. */
static void score_list(near_row *row)
{
    const kna__problem *p = row->job->problem;
    near_room *room = &row->room;
    p->kernels->dot_at[p->k.type](room->exact, row->q, kna__span_at(&p->k, row->kv_head, 0), room->ids, (size_t)row->listed,
                                  (size_t)p->d);
    if (!kna__logits_plain(p)) {
        kna__logits_finish_at(p, row->head, row->query, room->ids, room->exact, row->listed);
    }
}

/*
 * The bound is that of near_head.c with half a step of the query's int8 in every column, times the key's largest number. A soft
 * cap only shrinks differences: fewer are found.
 */
int32_t kna__near_stale(const near_row *row, const int32_t *ids, const float *approx, const float *exact, int64_t count)
{
    const near_job *job = row->job;
    const kna__problem *p = job->problem;
    const float *scales = kna__index_scales(job->index, row->kv_head, 0);
    int64_t at = (row->kv_head * job->tile + (row->query - job->query)) * p->g + row->head % p->g;
    float lost = job->q_scale[at] * 0.5f * (float)p->d * 127.0f, beta = 0.51f * row->q_l1 + lost;
    int32_t stale = 0;
    for (int64_t i = 0; i < count; i++) {
        float bound = beta * scales[ids[i]] + 1e-5f * fabsf(exact[i]) + 1e-6f * p->options.softcap;
        stale += !(fabsf(exact[i] - approx[i]) <= bound);
    }
    return stale;
}

/* Mean logit of the tail keys of each block into tail_weight (-inf: none); returns the largest of them and of the list. */
static float tail_logits(near_row *row)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    near_room *room = &row->room;
    for (int64_t b = row->first_block; b < row->end_block; b++) {
        room->tail_weight[b] = room->tail_count[b] > 0 ? room->tail_sum[b] / room->tail_count[b] : -INFINITY;
    }
    float tail = kernels->max(room->tail_weight + row->first_block, (size_t)(row->end_block - row->first_block));
    float list = kernels->max(room->exact, (size_t)row->listed);
    return list > tail ? list : tail;
}

/* Weights of list and tail against the largest logit; returns the state and leaves the tail's share in *tail. */
static kna__state weigh(near_row *row, double *tail)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    near_room *room = &row->room;
    size_t blocks = (size_t)(row->end_block - row->first_block);
    kna__state state = { tail_logits(row), 0 };
    kna__span counts = { (const char *)(room->tail_count + row->first_block), 0, NULL };
    float mass = 0;
    *tail = 0;
    if (state.max == -INFINITY) {
        return state;
    }
    if (blocks) {
        kernels->exp_sum(room->tail_weight + row->first_block, state.max, blocks);
        kernels->dot[KNA_F32](&mass, 1, room->tail_weight + row->first_block, blocks, 1, counts, 1, blocks);
    }
    *tail = (double)mass;
    state.sum = (double)kernels->exp_sum(room->exact, state.max, (size_t)row->listed) + *tail;
    return state;
}

static void mix_values(near_row *row)
{
    const near_job *job = row->job;
    const kna__problem *p = job->problem;
    near_room *room = &row->room;
    int64_t blocks = row->end_block - row->first_block;
    kna__span means = { (const char *)kna__index_means(job->index, row->kv_head, row->first_block), (size_t)p->dv * 2, NULL };
    memset(room->values, 0, (size_t)p->dv * sizeof(float));
    if (row->whole) {
        p->kernels->mix[KNA_F16](room->values, (size_t)p->dv, room->tail_weight + row->first_block, (size_t)blocks, 1, means,
                                 (size_t)blocks, (size_t)p->dv);
        p->kernels->scale(room->values, KNA_BLOCK, (size_t)p->dv);
    }
    for (int64_t i = 0; i < row->listed; i++) {
        room->work[i] = room->exact[i] - room->tail_weight[room->ids[i] / KNA_BLOCK];
    }
    p->kernels->mix_at[p->v.type](room->values, room->work, kna__span_at(&p->v, row->kv_head, 0), room->ids, (size_t)row->listed,
                                  (size_t)p->dv);
}

/* Weight of the sink, which has a share of the softmax too. */
static double sink_weight(const near_row *row, kna__state state)
{
    const float *sinks = row->job->problem->options.sinks;
    return sinks ? exp(fmin((double)sinks[row->head] - (double)state.max, 600)) : 0;
}

/*
 * Total variation distance between the weights used and softmax, by the approximate logits of the tail: half the sum of
 * |difference|. The error of the output is at most twice this times the largest |value - centre|.
 */
static float total_variation(near_row *row, kna__state state)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    near_room *room = &row->room;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    memcpy(room->work, row->s + first, (size_t)count * sizeof(float));
    double tail = count ? (double)kernels->exp_sum(room->work, state.max, (size_t)count) : 0;
    double listed = sink_weight(row, state), difference = 0;
    double used = state.sum + listed;
    for (int64_t i = 0; i < row->listed; i++) {
        listed += (double)room->exact[i];
    }
    double total = listed + tail;
    for (int64_t j = 0; j < count; j++) {
        int64_t b = row->first_block + j / KNA_BLOCK;
        if (room->tail_count[b] > 0 && row->s[first + j] > -INFINITY) {
            difference += fabs((double)room->work[j] / total - (double)room->tail_weight[b] / used);
        }
    }
    difference += listed * fabs(1 / total - 1 / used);
    return (float)(0.5 * difference);
}

/* Bytes read over bytes exact attention reads: keys scored, values mixed, the scan, and the mean values for the tail. */
static double bytes_share(const near_row *row, int64_t keys, int64_t values, bool has_tail)
{
    const near_job *job = row->job;
    const kna__problem *p = job->problem;
    double key = (double)kna__row_bytes(p->k.type, p->d), value = (double)kna__row_bytes(p->v.type, p->dv);
    double scan = (double)((row->end_block - row->first_block) * KNA_BLOCK) * (double)(job->index->d4 * 4 + sizeof(float));
    double means = has_tail ? (double)(row->end_block - row->first_block) * (double)p->dv * 2 : 0;
    double read = (double)keys * key + (double)values * value + scan + means;
    return row->seen ? read / ((double)row->seen * (key + value)) : 0;
}

static bool is_audited(const near_row *row)
{
    return kna__is_audited(row->job->problem, row->head, row->query);
}

/* All approximate logits in place again: knn sets aside those of listed keys. */
static void restore_logits(near_row *row)
{
    for (int64_t i = 0; i < row->listed; i++) {
        row->s[row->room.ids[i]] = row->room.approx[i];
    }
}

static void audit_row(near_row *row, near_stats *stats)
{
    const kna__problem *p = row->job->problem;
    if (p->options.method == KNA_KNN) {
        restore_logits(row);
    }
    kna__state state = exact_state(row, row->room.audit);
    const float *out = kna__out_at(p, row->head, row->query);
    double sink = p->options.sinks ? exp((double)p->options.sinks[row->head] - (double)state.max) : 0;
    double difference = 0, norm = 0;
    for (int64_t c = 0; c < p->dv; c++) {
        double truth = (double)row->room.audit[c] / (state.sum + sink), off = (double)out[c] - truth;
        difference += off * off;
        norm += truth * truth;
    }
    stats->audit_error = (float)(norm > 0 ? sqrt(difference / norm) : sqrt(difference));
}

static void attend_exact(near_row *row, near_stats *stats)
{
    const kna__problem *p = row->job->problem;
    stats->exact = true;
    stats->keys_full = (float)row->seen;
    stats->bytes_share = (float)bytes_share(row, row->seen, row->seen, false);
    stats->error_est = p->options.eps > 0 ? 0 : -1;
    stats->audit_error = is_audited(row) ? 0 : -1;
    restore_logits(row);
    kna__state state = exact_state(row, row->room.values);
    kna__state_write(p, row->head, row->query, state, row->room.values);
}

/* k doubles until the estimated distance is at most eps; false: half of the keys would be read, so take them all. */
static bool attend_knn(near_row *row, near_stats *stats)
{
    const kna__problem *p = row->job->problem;
    int64_t fixed = row->listed;
    bool wants_error = p->options.eps > 0 || is_audited(row);
    double tail;
    for (int64_t k = p->options.k_near;; k *= 2) {
        if (k >= row->untaken || (k > p->options.k_near && fixed + k > row->seen / 2)) {
            return false;
        }
        kna__near_take(row, k);
        score_list(row);
        stats->stale = kna__near_stale(row, row->room.ids, row->room.approx, row->room.exact, row->listed);
        kna__state state = weigh(row, &tail);
        stats->error_est = wants_error ? total_variation(row, state) : -1;
        if (p->options.eps == 0 || stats->error_est <= p->options.eps) {
            mix_values(row);
            stats->tail_mass = (float)(tail / (state.sum + sink_weight(row, state)));
            kna__state_write(p, row->head, row->query, state, row->room.values);
            return true;
        }
        kna__near_untake(row, fixed);
    }
}

/* The tail is dropped; its mass is known from the scan all the same. */
static void attend_topk(near_row *row, near_stats *stats)
{
    const kna__problem *p = row->job->problem;
    near_room *room = &row->room;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    kna__near_topk(row, p->options.k_near);
    kna__state state = { p->kernels->max(room->exact, (size_t)row->listed), 0 };
    memcpy(room->work, row->s + first, (size_t)count * sizeof(float));
    double all = (double)p->kernels->exp_sum(room->work, state.max, (size_t)count);
    double scanned = 0; /* what the scan took the listed keys for: their true weights replace it */
    for (int64_t i = 0; i < row->listed; i++) {
        scanned += (double)room->work[room->ids[i] - first];
    }
    state.sum = (double)p->kernels->exp_sum(room->exact, state.max, (size_t)row->listed);
    double tail = fmax(0, all - scanned);
    stats->tail_mass = (float)(tail / (tail + state.sum + sink_weight(row, state)));
    stats->stale = row->stale;
    memset(room->values, 0, (size_t)p->dv * sizeof(float));
    p->kernels->mix_at[p->v.type](room->values, room->exact, kna__span_at(&p->v, row->kv_head, 0), room->ids, (size_t)row->listed,
                                  (size_t)p->dv);
    kna__state_write(p, row->head, row->query, state, room->values);
}

/* Top-k needs every visible logit in one array: nothing is set aside. */
static void see_for_topk(near_row *row)
{
    kna__near_see(row);
    restore_logits(row);
    row->listed = 0;
}

void kna__near_attend(near_row *row, near_stats *stats)
{
    const kna__problem *p = row->job->problem;
    bool is_topk = p->options.method == KNA_TOPK;
    memset(stats, 0, sizeof *stats);
    stats->error_est = stats->audit_error = -1;
    if (is_topk) {
        see_for_topk(row);
    } else {
        kna__near_see(row);
    }
    stats->keys_seen = (float)row->seen;
    if (is_topk && row->seen > p->options.k_near) {
        attend_topk(row, stats);
    } else if (is_topk || !attend_knn(row, stats)) {
        attend_exact(row, stats);
        return;
    }
    stats->keys_full = (float)row->listed;
    stats->bytes_share = (float)bytes_share(row, is_topk ? row->scored : row->listed, row->listed, !is_topk);
    if (is_audited(row)) {
        audit_row(row, stats);
    }
}
