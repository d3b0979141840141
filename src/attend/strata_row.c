/*
 * strata_row.c - what one row uses of the strata: which cells, what they hold beside the head, how much they weigh by their means,
 * and between what bounds.
 *
 * A cell's N keys outside the head have logits with a known mean z: that of all members is the product with the mean key, and what
 * the head took is subtracted. By Jensen they weigh at least N e^z. No member's key is farther than r from the mean key, so that
 * logits are within |q| r of its product; and of numbers in [a, b] with mean z the exponentials add up to most when all lie at the
 * ends: N ((b - z) e^a + (z - a) e^b) / (b - a), which is N e^z cosh(|q| r) where nothing was subtracted. With a soft cap or
 * something added to logits only the ends hold.
 *
 * With weights of cells between these bounds and values no farther from a cell's mean value than its `stray`, what an output is off
 * by is bounded too: exact - out = (Z_H (out_H - out) + sum W_x (v_x - out)) / (Z_H + sum W_x), H being the head. Twice: by the share
 * of the softmax that the tail can have, times the farthest value; and with the least weights in place of W_x, plus all that may be
 * more, plus what values stray.
 */
#include "nearest.h"

#include <float.h>
#include <math.h>

enum { HEAD_CELLS = 4 /* times k: keys looked at to find the k nearest without a scan */ };

void kna__cells_cut(kna__cells *c, const kna__problem *p, int64_t ld, kna__cutter *cutter)
{
    size_t cells = (size_t)(ld / KNA_BLOCK), lifted = p->mask.data || p->options.slopes ? (size_t)ld : 0;
    c->cell = kna__cut(cutter, cells, sizeof *c->cell);
    c->first = kna__cut(cutter, cells, sizeof *c->first);
    c->rest = kna__cut(cutter, cells, sizeof *c->rest);
    c->share = kna__cut(cutter, cells, sizeof *c->share);
    c->of = kna__cut(cutter, (size_t)ld, sizeof *c->of);
    c->mean = kna__cut(cutter, cells, sizeof *c->mean);
    c->lower = kna__cut(cutter, cells, sizeof *c->lower);
    c->upper = kna__cut(cutter, cells, sizeof *c->upper);
    c->mass = kna__cut(cutter, cells, sizeof *c->mass);
    c->least = kna__cut(cutter, cells, sizeof *c->least);
    c->most = kna__cut(cutter, cells, sizeof *c->most);
    c->sums = kna__cut(cutter, cells, sizeof *c->sums);
    c->product = kna__cut(cutter, cells, sizeof *c->product);
    c->lift = kna__cut(cutter, lifted, sizeof *c->lift);
    if (!lifted) {
        c->lift = NULL;
    }
}

/* ---- which cells */

static bool sees_all(const nearest_row *row, int64_t first, int64_t rows)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    int64_t from = first < KNA_FIRST_ROWS && rows > KNA_BLOCK ? KNA_FIRST_ROWS : first;
    return first >= row->lo && first + rows <= row->hi &&
           (int64_t)kernels->count(row->s + from, (size_t)(first + rows - from), -FLT_MAX) == first + rows - from;
}

/* Adds the cells of a unit if it is formed and the row sees all of it. */
static bool use_unit(nearest_row *row, int32_t level, int64_t first)
{
    const kna__strata *s = &row->job->strata;
    kna__cells *c = &row->room.cells;
    int64_t rows = kna__strata_rows(level), cell = level * s->cells + first / KNA_BLOCK;
    if (first + rows > s->cells * KNA_BLOCK || !s->formed[cell] || !sees_all(row, first, rows)) {
        return false;
    }
    for (int64_t end = cell + rows / KNA_BLOCK; cell < end; cell++) {
        int32_t count = s->count[row->kv_head * KNA_STRATA_LEVELS * s->cells + cell];
        const int32_t *members = kna__strata_members(s, row->kv_head, (int32_t)cell);
        for (int32_t i = 0; i < count; i++) {
            c->of[members[i]] = (int32_t)c->count;
        }
        c->cell[c->count] = (int32_t)cell;
        c->count += count > 0;
    }
    return true;
}

static void use_rows(nearest_row *row, int32_t level, int64_t first, int64_t end)
{
    int64_t rows = kna__strata_rows(level);
    for (; first < end; first += rows) {
        if (!use_unit(row, level, first) && level > 0) {
            use_rows(row, level - 1, first, first + rows < end ? first + rows : end);
        }
    }
}

void kna__cells_see(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    kna__cells *c = &row->room.cells;
    c->count = 0;
    c->linear = p->options.softcap == 0 && !c->lift;
    for (int64_t j = 0; j < row->job->ld; j++) {
        c->of[j] = -1;
    }
    use_rows(row, KNA_STRATA_LEVELS - 1, row->first_block * KNA_BLOCK / KNA_SEGMENT * KNA_SEGMENT, row->end_block * KNA_BLOCK);
    if (c->lift) {
        memset(c->lift, 0, (size_t)row->job->ld * sizeof *c->lift);
        kna__logits_finish(p, row->head, row->query, row->lo, c->lift + row->lo, row->hi - row->lo);
    }
    if (c->count) {
        const kna__strata *s = &row->job->strata;
        kna__span keys = { (const char *)(s->key + row->kv_head * KNA_STRATA_LEVELS * s->cells * p->d),
                           (size_t)p->d * sizeof(float), NULL };
        p->kernels->dot_at[KNA_F32](c->product, 0, row->q, 0, 1, keys, c->cell, (size_t)c->count, (size_t)p->d);
    }
}

double kna__cells_read(const nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    double one = (double)(kna__row_bytes(p->k.type, p->d) + kna__row_bytes(p->v.type, p->dv));
    return row->job->stratified ? (double)row->room.cells.count * (double)(p->d + p->dv) * sizeof(float) / one : 0;
}

/* ---- the head */

/* Appends keys to the list and computes their logits. */
static void list_keys(nearest_row *row, int64_t first, int64_t count)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    p->kernels->dot_at[p->k.type](room->exact + first, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->ids + first,
                                  (size_t)count, (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->ids + first, room->exact + first, count);
    row->scored += count;
}

void kna__cells_add_loose(nearest_row *row)
{
    int64_t before = row->listed;
    int32_t *ids = row->room.ids;
    for (int64_t i = 0; i < before; i++) {
        row->s[ids[i]] = -INFINITY;
    }
    for (int64_t j = row->lo; j < row->hi; j++) {
        if (row->s[j] > -INFINITY && row->room.cells.of[j] < 0) {
            ids[row->listed++] = (int32_t)j;
            row->s[j] = -INFINITY;
        }
    }
    if (row->listed > before) {
        list_keys(row, before, row->listed - before);
    }
}

void kna__cells_find_head(nearest_row *row, int64_t k)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    const kna__cells *c = &room->cells;
    const kna__strata *s = &row->job->strata;
    int64_t wanted = (HEAD_CELLS * k + KNA_BLOCK - 1) / KNA_BLOCK, found = 0;
    if (wanted < c->count) {
        kna__topk(p->kernels, room->found, c->product, (size_t)c->count, (size_t)wanted, room->found_scratch, room->topk_scratch);
    }
    for (int64_t i = 0; i < (wanted < c->count ? wanted : c->count); i++) {
        int32_t cell = c->cell[wanted < c->count ? room->found[i] : i];
        int32_t count = s->count[row->kv_head * KNA_STRATA_LEVELS * s->cells + cell];
        memcpy(room->ids + found, kna__strata_members(s, row->kv_head, cell), (size_t)count * sizeof *room->ids);
        found += count;
    }
    list_keys(row, 0, found);
    row->listed = found;
    if (found > k) { /* topk() needs more than it keeps */
        memcpy(room->work, room->exact, (size_t)found * sizeof *room->work);
        kna__topk(p->kernels, room->found, room->work, (size_t)found, (size_t)k, room->found_scratch, room->topk_scratch);
        for (int64_t i = 0; i < k; i++) { /* ascending: what is needed later is not overwritten */
            room->ids[i] = room->ids[room->found[i]];
            room->exact[i] = room->exact[room->found[i]];
        }
        row->listed = k;
    }
    row->bound = INFINITY; /* as far as is known */
    for (int64_t i = 0; i < row->listed; i++) {
        row->bound = fminf(row->bound, room->exact[i]);
    }
    row->rejected = found - row->listed;
}

/* ---- the tail */

int64_t kna__cells_list_tail(nearest_row *row, int32_t *tail)
{
    kna__cells *c = &row->room.cells;
    const kna__strata *s = &row->job->strata;
    int64_t rest = 0;
    for (int64_t x = 0; x < c->count; x++) {
        const int32_t *members = kna__strata_members(s, row->kv_head, c->cell[x]);
        int32_t count = s->count[row->kv_head * KNA_STRATA_LEVELS * s->cells + c->cell[x]];
        c->first[x] = (int32_t)rest;
        for (int32_t i = 0; i < count; i++) {
            if (row->s[members[i]] > -INFINITY) {
                tail[rest++] = members[i];
            }
        }
        c->rest[x] = (int32_t)rest - c->first[x];
    }
    return rest;
}

static double capped(const kna__problem *p, double product)
{
    double cap = (double)p->options.softcap;
    return cap != 0 ? cap * tanh(product / cap) : product;
}

/* What is added to the logits of a cell's keys: sum of its exponentials, least and most. */
static double lifts(const nearest_row *row, int64_t x, double *least, double *most)
{
    const kna__cells *c = &row->room.cells;
    const int32_t *tail = row->room.found + c->first[x];
    double sum = 0;
    *least = *most = 0;
    for (int32_t i = 0; c->lift && i < c->rest[x]; i++) {
        double lift = (double)c->lift[tail[i]];
        sum += exp(lift);
        *least = i ? fmin(*least, lift) : lift;
        *most = i ? fmax(*most, lift) : lift;
    }
    return c->lift ? sum : (double)c->rest[x];
}

/* The most that exponentials of numbers in [low, high] with a mean may be in the mean. */
static double chord(double mean, double low, double high)
{
    double t = high - low > 1e-9 ? (mean - low) / (high - low) : 1;
    return (1 - t) * exp(low) + t * exp(high);
}

/* A cell whose keys have a sum of logits `taken` in the head. */
static void weigh(nearest_row *row, int64_t x, double taken, double shift, double bound, double q_norm)
{
    const kna__problem *p = row->job->problem;
    const kna__strata *s = &row->job->strata;
    kna__cells *c = &row->room.cells;
    int64_t at = row->kv_head * KNA_STRATA_LEVELS * s->cells + c->cell[x];
    double rest = c->rest[x], product = (double)c->product[x], reach = q_norm * (double)s->reach[at], low, high;
    double rounding = 0x1p-23 * (double)(p->d + 8) * q_norm * ((double)s->norm[at] + (double)s->reach[at]) + 1e-6;
    double mean = c->linear ? (product * s->count[at] - taken) / rest : product;
    double sum = lifts(row, x, &low, &high);
    mean = fmin(fmax(mean, product - reach), product + reach);
    c->lower[x] = capped(p, product - reach) + low - shift - rounding;
    c->upper[x] = fmin(capped(p, product + reach) + high - shift + rounding, fmax(bound, c->lower[x]));
    c->mean[x] = fmin(capped(p, mean) - shift, c->upper[x]);
    c->mass[x] = sum * exp(c->mean[x]);
    c->least[x] = c->linear ? c->mass[x] * (1 - 1e-6) * exp(-rounding) : rest * exp(c->lower[x]);
    c->most[x] = c->linear ? rest * chord(c->mean[x], c->lower[x], c->upper[x]) * exp(rounding) : rest * exp(c->upper[x]);
}

void kna__cells_weigh(nearest_row *row, double shift, double bound)
{
    kna__cells *c = &row->room.cells;
    double q_norm = sqrt((double)kna__square(row->job->problem->kernels, row->q, row->job->problem->d)) * (1 + 1e-6);
    for (int64_t x = 0; x < c->count; x++) {
        c->sums[x] = 0;
    }
    for (int64_t i = 0; i < row->listed; i++) { /* the head's logits */
        int32_t x = c->of[row->room.ids[i]];
        if (x >= 0) {
            c->sums[x] += (double)row->room.approx[i];
        }
    }
    for (int64_t x = 0; x < c->count; x++) {
        if (c->rest[x]) {
            weigh(row, x, c->sums[x], shift, bound, q_norm);
        } else {
            c->lower[x] = c->upper[x] = c->mean[x] = -INFINITY;
            c->mass[x] = c->least[x] = c->most[x] = 0;
        }
    }
}

void kna__cells_mean_value(const nearest_row *row, int64_t x, double *mean)
{
    const kna__problem *p = row->job->problem;
    const kna__strata *s = &row->job->strata;
    const kna__cells *c = &row->room.cells;
    float value[KNA_MAX_DIM];
    int64_t at = row->kv_head * KNA_STRATA_LEVELS * s->cells + c->cell[x];
    const int32_t *members = kna__strata_members(s, row->kv_head, c->cell[x]);
    int32_t count = s->count[at];
    for (int64_t i = 0; i < p->dv; i++) {
        mean[i] = (double)s->value[at * p->dv + i] * count;
    }
    for (int32_t i = 0; c->rest[x] < count && i < count; i++) {
        if (row->s[members[i]] > -INFINITY) {
            continue;
        }
        p->kernels->widen[p->v.type](value, (size_t)p->dv, kna__span_at(&p->v, row->kv_head, members[i]), 1, (size_t)p->dv);
        for (int64_t j = 0; j < p->dv; j++) {
            mean[j] -= (double)value[j];
        }
    }
    for (int64_t i = 0; i < p->dv; i++) {
        mean[i] /= c->rest[x];
    }
}

/* ---- how far an output may be from the truth */

static double square_of(const double *x, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) {
        square += x[i] * x[i];
    }
    return square;
}

double kna__cells_radius(const nearest_row *row, const double *out, double head, const double *known, int64_t loose, double bound)
{
    const kna__problem *p = row->job->problem;
    const kna__strata *s = &row->job->strata;
    const kna__cells *c = &row->room.cells;
    double pull[KNA_MAX_DIM], apart[KNA_MAX_DIM], least = 0, most = 0, extra = 0, far = 0, norm = 0;
    for (int64_t i = 0; i < p->dv; i++) {
        pull[i] = known[i] - head * out[i];
        norm += out[i] * out[i];
    }
    if (loose) {
        far = row->v_most + sqrt(norm);
        most = (double)loose * exp(bound);
        extra = most * far;
    }
    double off = sqrt(square_of(pull, p->dv)) / head;
    for (int64_t x = 0; x < c->count; x++) {
        int64_t at = row->kv_head * KNA_STRATA_LEVELS * s->cells + c->cell[x];
        double stray = (double)s->stray[at];
        if (!c->rest[x]) {
            continue;
        }
        for (int64_t i = 0; i < p->dv; i++) {
            apart[i] = (double)s->value[at * p->dv + i] - out[i];
            pull[i] += c->least[x] * apart[i];
        }
        double reach = fmin(sqrt(square_of(apart, p->dv)) + stray, row->v_most + sqrt(norm));
        far = fmax(far, reach);
        least += c->least[x];
        most += c->most[x];
        extra += c->least[x] * stray + (c->most[x] - c->least[x]) * reach;
    }
    double low = least / (head + least), high = isfinite(most) ? most / (head + most) : 1;
    double by_share = fmax(off + low * (far - off), off + high * (far - off));
    double by_cell = (sqrt(square_of(pull, p->dv)) + extra) / (head + least);
    return fmin(by_share, isfinite(by_cell) ? by_cell : INFINITY) + 1e-6 * row->v_most;
}
