/* knn_oracle.c - see knn_oracle.h. */
#include "knn_oracle.h"

#define HIDDEN (-(double)INFINITY)

enum { PROBES = 16 }; /* queries before a tile that choose for it */

/* Least share of softmax, in any of the rows that read together, for which a key's value is read; its key; of few rows, a cluster's mean value. */
static const double least_value = 2e-4, least_key = 2e-3, least_mean = 5e-4;

/* What is read of a key: nothing, for its cluster's means stand for it; its code; that and its value; key and value. */
enum { BY_MEAN, BY_CODE, OWN_VALUE, IN_FULL };

/* ---- one choice */

/* Clusters, or groups of them, and what the rows make of them. */
typedef struct means {
    const kna__level *level;
    int kind;
    int64_t count;
    int64_t *slot, *at;    /* numbers; within the index's arrays */
    double *mass;          /* (rows, count) relative to exp(top) */
    double *share, *score; /* summed over the rows that choose */
    bool *chosen;
} means;

typedef struct choice {
    const oracle *o;
    const kna_index *index;
    int64_t kv_head, query, queries;
    int64_t probes, rows;   /* rows = (probes + queries) * g, query-major: the probes' first */
    int64_t tile, choosers; /* rows of the queries; rows that choose */
    bool deep;
    means groups, clusters;
    bool *clustered;   /* (n) the row is in a cluster that may be used */
    double *exact;     /* (rows) sum over the keys in none, relative to exp(top) */
    double *total;     /* (rows) all of softmax as estimated when clusters were weighed */
    double *top;       /* (rows) */
    double *square;    /* (rows) |q|^2 */
    double *logits;    /* (n) */
    int8_t *codes;     /* (rows, d) queries in 8 bits */
    float *code_scale; /* (rows) */
    char *how;         /* (n) what is read of a key */
    double mean_square, error;
    bool doubtful;
} choice;

static int64_t count_option(int64_t given, int64_t usual)
{
    return given ? (given < 0 ? 0 : given) : usual;
}

static bool any_head_sees(const oracle *o, int64_t query, int64_t key)
{
    for (int64_t head = 0; head < o->h; head++) {
        if (oracle_sees(o, head, query, key)) return true;
    }
    return false;
}

/* Queries from .. to - 1, all heads of them. */
static bool all_see_plainly(const oracle *o, int64_t from, int64_t to, int64_t first, int64_t end)
{
    for (int64_t i = from * o->h; i < to * o->h; i++) {
        int64_t head = i % o->h, query = i / o->h;
        for (int64_t j = first; j < end; j++) {
            if (!oracle_sees(o, head, query, j) || oracle_finish(o, head, query, j, 0) != 0) return false;
        }
        if (o->options.slopes && !o->options.mask.data) return false;
    }
    return true;
}

/*
 * Rows first .. end - 1 hold no row that the first query must read in full: none of its first keys, none of its recent ones. These
 * are counted by what it may see, be they present or not.
 */
static bool is_ordinary(const choice *x, int64_t first, int64_t end)
{
    oracle all = *x->o, *o = &all;
    all.absent = NULL;
    int64_t low = 0, high = o->n, sinks = count_option(o->options.near_sinks, 4), window = count_option(o->options.near_window, 64);
    bool seen = false;
    while (low < high && !(seen = any_head_sees(o, x->query, low))) low++;
    while (high > low && !any_head_sees(o, x->query, high - 1)) high--;
    if (end > high - window) return false;
    return !seen || sinks == 0 || low + sinks <= KNA_FIRST_ROWS || end <= low || (first ? first : 0) >= low + sinks;
}

static bool has_order(const oracle *o)
{
    return o->options.causal || o->options.window > 0 || o->options.mask.data;
}

static int64_t shared_clusters(const choice *x)
{
    int64_t together = x->tile == 1 ? 1 : x->tile <= x->o->g ? 2 : 4;
    return (count_option(x->o->options.k_near, 384) * together + 15) / 16;
}

static bool is_tile(const choice *x)
{
    return x->tile > x->o->g;
}

/* By codes more clusters are looked into than by keys: by a group six times as many, by a query of a tile half as many again. */
static int64_t by_codes(const choice *x, int64_t clusters)
{
    return x->o->options.eps > 0 || x->o->options.differentiable ? clusters : is_tile(x) ? clusters * 3 / 2 : clusters * 6;
}

static int64_t own_clusters(const choice *x)
{
    return is_tile(x) ? (count_option(x->o->options.k_near, 384) + 15) / 16 : 0;
}

/* The heads of a query choose them together, twice as many. */
static int64_t own_together(const choice *x)
{
    return by_codes(x, own_clusters(x)) * (x->o->g > 1 ? 2 : 1);
}

static int64_t budget(const choice *x)
{
    return shared_clusters(x) + own_clusters(x);
}

static int64_t groups_opened(const choice *x)
{
    return 2 * budget(x) > 32 ? 2 * budget(x) : 32;
}

static void add_mean(means *x, const kna__clusters *c, int64_t kv_head, int64_t slot)
{
    x->slot[x->count] = slot;
    x->at[x->count++] = kna__level_at(c, x->kind, kv_head, slot);
}

static void use_unit(choice *x, int64_t piece, int64_t pieces)
{
    const kna__clusters *c = &x->index->clusters;
    int32_t ids[KNA_SEGMENT];
    for (int64_t s = piece * KNA_SLOTS; s < (piece + pieces) * KNA_SLOTS; s++) {
        int64_t n = kna__cluster_rows(c, x->kv_head, s, ids);
        add_mean(&x->clusters, c, x->kv_head, s);
        for (int64_t i = 0; i < n; i++) x->clustered[ids[i]] = true;
    }
    for (int64_t s = piece * KNA_PIECE_GROUPS; s < (piece + pieces) * KNA_PIECE_GROUPS; s++) {
        add_mean(&x->groups, c, x->kv_head, s);
    }
}

static void find_clusters(choice *x)
{
    const kna__clusters *c = &x->index->clusters;
    const oracle *o = x->o;
    for (int64_t piece = 0; piece < c->capacity;) {
        int64_t row = kna__unit_row(c, piece), rows = kna__unit_rows(c, piece);
        bool formed = c->state[piece] != KNA_PIECE_OPEN && row + rows <= o->n;
        if (formed && is_ordinary(x, row, row + rows) &&
            all_see_plainly(o, x->query, x->query + x->queries, row ? row : KNA_FIRST_ROWS, row + rows)) {
            use_unit(x, piece, rows / KNA_PIECE);
        }
        piece += c->state[piece] == KNA_PIECE_OPEN ? 1 : rows / KNA_PIECE;
    }
    if (x->clusters.count < (own_clusters(x) ? 3 : 2) * budget(x)) { /* as good as all would be read */
        x->clusters.count = x->groups.count = 0;
        memset(x->clustered, 0, (size_t)o->n * sizeof *x->clustered);
    }
    bool codes = !is_tile(x) && by_codes(x, 1) > 1; /* far more clusters are looked into, so that groups gain less */
    x->deep = x->clusters.count > 0 && x->groups.count >= (codes ? 6 : 2) * groups_opened(x);
}

/* Of a tile: queries before it that see the first clusters. */
static void find_probes(choice *x)
{
    const oracle *o = x->o;
    bool is_many = x->tile > 16 || x->queries > 1; /* few rows go one by one */
    if (is_many && has_order(o) && x->clusters.count) {
        int64_t row = x->clusters.slot[0] / KNA_SLOTS * KNA_PIECE, first = row ? row : KNA_FIRST_ROWS;
        while (x->probes < PROBES && x->query > x->probes &&
               all_see_plainly(o, x->query - x->probes - 1, x->query - x->probes, first, row + KNA_PIECE)) {
            x->probes++;
        }
    }
    x->rows = x->tile + x->probes * o->g;
    x->choosers = is_many && has_order(o) ? (x->probes + 1) * o->g : x->rows;
}

static int64_t head_of(const choice *x, int64_t r)
{
    return x->kv_head * x->o->g + r % x->o->g;
}

static int64_t query_of(const choice *x, int64_t r)
{
    return x->query - x->probes + r / x->o->g;
}

/* What a row makes of keys in no cluster. */
static void begin_row(choice *x, int64_t r)
{
    const oracle *o = x->o;
    const double *q = o->q + (head_of(x, r) * o->m + query_of(x, r)) * o->d;
    oracle_logits(o, head_of(x, r), query_of(x, r), x->logits);
    for (int64_t i = 0; i < o->d; i++) x->square[r] += o->scale * o->scale * q[i] * q[i];
    if (r < x->choosers) x->mean_square += x->square[r] / (double)x->choosers;
    x->top[r] = HIDDEN;
    for (int64_t j = 0; j < o->n; j++) x->top[r] = fmax(x->top[r], x->logits[j]);
    float *scaled = malloc((size_t)o->d * sizeof *scaled), scale = o->options.scale;
    scale =
        scale != 0 ? scale : 1.0f / sqrtf((float)o->d); /* to the bit: where a number is half way between two codes it decides */
    for (int64_t i = 0; i < o->d; i++) scaled[i] = (float)q[i] * scale;
    x->code_scale[r] = kna__kernels_get(KNA_CPU_REF)->quantize(x->codes + r * o->d, scaled, (size_t)o->d);
    free(scaled);
    for (int64_t j = 0; j < o->n; j++) x->exact[r] += x->clustered[j] || x->logits[j] == HIDDEN ? 0 : exp(x->logits[j] - x->top[r]);
}

static bool must_look(const choice *x, const means *m, int64_t s)
{
    return kna__level_always(&x->index->clusters, m->kind, m->at[s]);
}

/* Masses of one row; `others` is all else in its softmax. Shares of softmax, if it chooses. */
static void weigh(choice *x, means *m, int64_t r, double others)
{
    const oracle *o = x->o;
    const double *q = o->q + (head_of(x, r) * o->m + query_of(x, r)) * o->d;
    double *mass = m->mass + r * m->count, cap = (double)o->options.softcap;
    x->total[r] = others;
    for (int64_t s = 0; s < m->count; s++) {
        const uint16_t *key = m->level->key + m->at[s] * o->d;
        double z = 0, spread = (double)m->level->spread[m->at[s]], count = (double)m->level->count[m->at[s]];
        for (int64_t i = 0; i < o->d; i++) z += o->scale * q[i] * oracle_f16(key[i]);
        z = cap > 0 ? cap * tanh(z / cap) : z;
        mass[s] = must_look(x, m, s) ? 0 : count * exp(z - x->top[r]) * (1 + x->square[r] * spread / 2);
        x->total[r] += mass[s];
    }
    for (int64_t s = 0; s < m->count && r < x->choosers; s++) m->share[s] += x->total[r] > 0 ? mass[s] / x->total[r] : 0;
}

static double stray(const choice *x, const means *m, int64_t s)
{
    return (double)m->level->deviation[m->at[s]] * sqrt(x->mean_square * (double)m->level->spread[m->at[s]] + 0.1);
}

/* The `want` largest scores of those not yet taken; says where it is a near thing. */
static void take_largest(choice *x, const means *m, const double *score, int64_t want, bool *taken)
{
    double last = (double)INFINITY;
    for (int64_t i = 0; i < want; i++) {
        int64_t best = -1;
        for (int64_t s = 0; s < m->count; s++) {
            if (!taken[s] && (best < 0 || score[s] > score[best])) best = s;
        }
        if (best < 0) return;
        taken[best] = true;
        last = score[best];
    }
    for (int64_t s = 0; s < m->count; s++) x->doubtful |= !taken[s] && score[s] > 0 && score[s] >= last * (1 - 2e-4);
}

/* Of what is not taken, by weights that add up to `total`. */
static double error_left(const choice *x, const means *m, const bool *taken, const double *weight, double total)
{
    double sum = 0;
    for (int64_t s = 0; s < m->count; s++) {
        double spread = (double)m->level->spread[m->at[s]];
        sum += taken[s] ? 0 : weight[s] * erf(sqrt(x->mean_square * spread / 8));
    }
    return total > 0 ? sum / total : 0;
}

/* At least `want`; twice as many as long as the error is above `limit`, where errors are asked for. Returns the error left. */
static double take_enough(choice *x, const means *m, const double *score, const double *weight, double total, int64_t want,
                          double limit, const bool *before, bool *taken)
{
    bool doubtful = x->doubtful;
    for (;; want *= 2) {
        memcpy(taken, before, (size_t)m->count);
        x->doubtful = doubtful;
        take_largest(x, m, score, want, taken);
        double error = error_left(x, m, taken, weight, total);
        bool asked = x->o->options.eps > 0;
        x->doubtful |= asked && fabs(error - limit) < 1e-4;
        if (!asked || error <= limit || want >= m->count) return error;
    }
}

/* The group that most of a mean's members are of, the lower of equal ones; -1: it has none. */
static int group_of(const choice *x, const means *m, int64_t s)
{
    int64_t first = m->kind == KNA_GROUPS ? m->slot[s] * KNA_GROUP_SLOTS : m->slot[s],
            slots = m->kind == KNA_GROUPS ? KNA_GROUP_SLOTS : 1;
    int64_t groups = x->o->options.key_group_count, best = -1;
    int64_t *members = calloc((size_t)groups + 1, sizeof *members);
    int32_t ids[KNA_SEGMENT];
    for (int64_t slot = first; slot < first + slots; slot++) {
        int64_t count = kna__cluster_rows(&x->index->clusters, x->kv_head, slot, ids);
        for (int64_t i = 0; i < count; i++) members[x->o->options.key_groups[ids[i]]]++;
    }
    for (int64_t g = 0; g < groups; g++) {
        if (members[g] && (best < 0 || members[g] > members[best])) best = g;
    }
    free(members);
    return (int)best;
}

/* Quotas: of what is worth a look and not `before`, every group's part of quota * want comes first. Returns how many that are. */
static int64_t raise_quotas(choice *x, const means *m, double *score, int64_t want, const bool *before)
{
    const kna_attend_options *o = &x->o->options;
    int64_t raised = 0, all = 0;
    if (o->diverse != KNA_DIVERSE_QUOTA || want <= 0) return 0;
    int *group = calloc((size_t)m->count + 1, sizeof *group);
    for (int64_t s = 0; s < m->count; s++) {
        bool worth = !before[s] && score[s] > 0 && score[s] < (double)INFINITY;
        group[s] = worth ? group_of(x, m, s) : -1;
        all += worth;
        x->doubtful |= worth && score[s] < 1e-30; /* may be 0 in f32 */
    }
    for (int64_t g = 0; g < o->key_group_count; g++) {
        int64_t count = 0;
        for (int64_t s = 0; s < m->count; s++) count += group[s] == g;
        int64_t quota = count ? (int64_t)ceil((double)o->quota * (double)want * (double)count / (double)all - 1e-6) : 0;
        double last = (double)INFINITY;
        for (int64_t i = 0; i < quota && i < count; i++) {
            int64_t best = -1;
            for (int64_t s = 0; s < m->count; s++) {
                if (group[s] == g && (best < 0 || score[s] > score[best])) best = s;
            }
            last = score[best];
            score[best] = (double)INFINITY;
            group[best] = -1;
            raised++;
        }
        for (int64_t s = 0; s < m->count && quota; s++) x->doubtful |= group[s] == g && score[s] >= last * (1 - 2e-4);
    }
    free(group);
    return raised;
}

static double choose(choice *x, means *m, int64_t want, double limit)
{
    int64_t always = 0;
    bool *none = calloc((size_t)m->count + 1, 1);
    for (int64_t s = 0; s < m->count; s++) {
        always += must_look(x, m, s);
        m->score[s] = must_look(x, m, s) ? (double)INFINITY : m->share[s] * stray(x, m, s);
    }
    int64_t raised = raise_quotas(x, m, m->score, want, none);
    want = (want > raised ? want : raised) + always;
    double error = take_enough(x, m, m->score, m->share, (double)x->choosers, want, limit, none, m->chosen);
    free(none);
    return error;
}

/* Groups first: the clusters of those opened are all that is left to choose from. Returns the error of the others. */
static double open_groups(choice *x)
{
    for (int64_t r = 0; r < x->rows; r++) weigh(x, &x->groups, r, x->exact[r]);
    double error = choose(x, &x->groups, groups_opened(x), (double)x->o->options.eps / 2);
    x->clusters.count = 0;
    for (int64_t g = 0; g < x->groups.count; g++) {
        for (int64_t s = 0; x->groups.chosen[g] && s < KNA_GROUP_SLOTS; s++) {
            add_mean(&x->clusters, &x->index->clusters, x->kv_head, x->groups.slot[g] * KNA_GROUP_SLOTS + s);
        }
    }
    return error;
}

static double closed_mass(const choice *x, int64_t r)
{
    double sum = 0;
    for (int64_t g = 0; x->deep && g < x->groups.count; g++)
        sum += x->groups.chosen[g] ? 0 : x->groups.mass[r * x->groups.count + g];
    return sum;
}

static void choose_all(choice *x)
{
    bool tile = is_tile(x);
    double eps = (double)x->o->options.eps;
    x->error = x->deep ? open_groups(x) : 0;
    for (int64_t r = 0; r < x->rows; r++) weigh(x, &x->clusters, r, x->exact[r] + closed_mass(x, r));
    double error = choose(x, &x->clusters, tile ? shared_clusters(x) : by_codes(x, shared_clusters(x)),
                          tile ? (double)INFINITY : eps - x->error);
    x->error += tile ? 0 : error;
}

/* ---- one row, the choice made */

/* In prefill, the heads of a query, rows from r on, also read clusters of their own. Returns the error estimated for them. */
static double choose_own(choice *x, int64_t r, bool *taken)
{
    const means *m = &x->clusters;
    double *score = malloc((size_t)(m->count + 1) * sizeof *score), *share = calloc((size_t)m->count + 1, sizeof *share);
    bool *now = malloc((size_t)m->count + 1);
    for (int64_t s = 0; s < m->count; s++) {
        for (int64_t row = r; row < r + x->o->g; row++) {
            share[s] += x->total[row] > 0 ? x->clusters.mass[row * m->count + s] / x->total[row] : 0;
        }
        score[s] = share[s] * stray(x, m, s);
    }
    int64_t want = own_together(x), raised = raise_quotas(x, m, score, want, taken);
    double error = take_enough(x, m, score, share, (double)x->o->g, want > raised ? want : raised,
                               (double)x->o->options.eps - x->error, taken, now);
    memcpy(taken, now, (size_t)m->count);
    free(now);
    free(share);
    free(score);
    return error;
}

/* Whether so large a share is worth reading a value for; says where it is a near thing. */
static bool is_heavy(choice *x, double share, double least)
{
    x->doubtful |= fabs(share / least - 1) < 5e-5;
    return share >= least;
}

/* Few rows leave out mean values that weigh little in all of them, unless an error is asked for. */
static bool leaves_out(const choice *x)
{
    return !is_tile(x) && x->o->options.eps == 0;
}

static double share_of(const choice *x, int64_t r, double logit)
{
    if (logit == HIDDEN) return 0;
    return x->total[r] > 0 ? exp(logit - x->top[r]) / x->total[r] : (double)INFINITY;
}

/* Number i of a cluster's members among all that the index has of a KV head. */
static int64_t place_of(const choice *x, int64_t s, int64_t i)
{
    const kna__clusters *c = &x->index->clusters;
    return kna__unit_row(c, x->clusters.slot[s] / KNA_SLOTS) + c->first[x->clusters.at[s]] + i;
}

/* The logit of a member by its code. */
static double code_logit(const choice *x, int64_t r, int64_t s, int64_t i)
{
    const oracle *o = x->o;
    const kna__clusters *c = &x->index->clusters;
    int64_t at = x->clusters.at[s], place = x->kv_head * c->capacity * KNA_PIECE + place_of(x, s, i);
    const double *q = o->q + (head_of(x, r) * o->m + query_of(x, r)) * o->d;
    const uint8_t *quad = c->code + (size_t)(place / KNA_QUAD) * kna__code_chunks(o->d) * KNA_QUAD_BYTES;
    double z = 0, beside = 0, cap = (double)o->options.softcap;
    for (int64_t j = 0; j < o->d; j++) {
        z += o->scale * q[j] * oracle_f16(c->level[KNA_CLUSTERS].key[at * o->d + j]);
        beside += x->codes[r * o->d + j] * ((double)kna__code_at(quad, (size_t)(place % KNA_QUAD), (size_t)j) - 7.5);
    }
    z += (double)x->code_scale[r] * (double)c->step[at] * beside;
    return cap > 0 ? cap * tanh(z / cap) : z;
}

/* Rows from .. to - 1 look into a cluster together: what is read of its members, and what is left to its means. */
static void look_into(choice *x, int64_t s, int64_t from, int64_t to)
{
    int32_t ids[KNA_SEGMENT];
    int64_t n = kna__cluster_rows(&x->index->clusters, x->kv_head, x->clusters.slot[s], ids);
    bool all = must_look(x, &x->clusters, s) || x->o->options.eps > 0 || x->o->options.differentiable;
    for (int64_t r = from; r < to; r++) x->clusters.mass[r * x->clusters.count + s] = 0;
    for (int64_t i = 0; i < n; i++) {
        bool spot = ((x->o->n * 197 - place_of(x, s, i)) & 255) == 0;
        double share = all || spot ? (double)INFINITY : 0;
        for (int64_t r = from; r < to && share < 1; r++) share = fmax(share, share_of(x, r, code_logit(x, r, s, i)));
        x->how[ids[i]] = is_heavy(x, share, least_key) ? IN_FULL : is_heavy(x, share, least_value) ? OWN_VALUE : BY_CODE;
        for (int64_t r = from; r < to && x->how[ids[i]] == BY_CODE; r++) {
            x->clusters.mass[r * x->clusters.count + s] += exp(code_logit(x, r, s, i) - x->top[r]);
        }
    }
}

static double largest_share(const choice *x, int64_t s)
{
    double most = leaves_out(x) ? 0 : (double)INFINITY;
    for (int64_t r = 0; r < x->rows && leaves_out(x); r++) {
        most = fmax(most, x->total[r] > 0 ? x->clusters.mass[r * x->clusters.count + s] / x->total[r] : (double)INFINITY);
    }
    return most;
}

static void add_value(double *out, const double *v, double weight, int64_t dv)
{
    for (int64_t c = 0; c < dv; c++) out[c] += weight * v[c];
}

static void add_mean_value(const choice *x, double *out, const kna__level *level, int64_t at, double weight)
{
    for (int64_t i = 0; i < x->o->dv; i++) out[i] += weight * oracle_f16(level->value[at * x->o->dv + i]);
}

/* Means for row r: a cluster's, or if it weighs little in all rows its group's. Returns their mass. `gone`: have none left. */
static double mix_means(choice *x, const means *m, int64_t r, const bool *gone, double *out)
{
    const kna__clusters *c = &x->index->clusters;
    double tail = 0;
    for (int64_t s = 0; s < m->count; s++) {
        if (gone[s]) continue;
        double mass = m->mass[r * m->count + s];
        int64_t group = kna__level_at(c, KNA_GROUPS, x->kv_head, m->slot[s] / KNA_GROUP_SLOTS);
        bool own = m->kind == KNA_GROUPS || kna__level_always(c, KNA_GROUPS, group);
        own = own || is_heavy(x, largest_share(x, s), least_mean);
        tail += mass;
        add_mean_value(x, out, own ? m->level : &c->level[KNA_GROUPS], own ? m->at[s] : group, mass);
    }
    return tail;
}

/* Members of a cluster looked into. Returns the sum of weights of those whose value is read. */
static double mix_members(choice *x, int64_t r, int64_t s, double *out, knn_row *row)
{
    const oracle *o = x->o;
    int32_t ids[KNA_SEGMENT];
    int64_t n = kna__cluster_rows(&x->index->clusters, x->kv_head, x->clusters.slot[s], ids);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int how = x->how[ids[i]];
        row->full += how == IN_FULL;
        if (how == BY_CODE) continue;
        double weight = exp((how == IN_FULL ? x->logits[ids[i]] : code_logit(x, r, s, i)) - x->top[r]);
        add_value(out, o->v + (x->kv_head * o->n + ids[i]) * o->dv, weight, o->dv);
        sum += weight;
    }
    return sum;
}

/* out and the sum of weights; the sum of the tail's into *tail. */
static double mix(choice *x, int64_t r, const bool *taken, double *out, double *tail, knn_row *row)
{
    const oracle *o = x->o;
    double sum = 0;
    bool *gone = calloc((size_t)x->clusters.count + 1, 1); /* what a tile shares is read in full */
    for (int64_t i = 0; i < o->dv; i++) out[i] = 0;
    for (int64_t s = 0; s < x->clusters.count; s++) {
        gone[s] = is_tile(x) && x->clusters.chosen[s];
        sum += taken[s] ? mix_members(x, r, s, out, row) : 0;
    }
    *tail = mix_means(x, &x->clusters, r, gone, out) + (x->deep ? mix_means(x, &x->groups, r, x->groups.chosen, out) : 0);
    for (int64_t j = 0; j < o->n; j++) {
        row->seen += x->logits[j] > HIDDEN;
        if (x->clustered[j] || x->logits[j] == HIDDEN) continue;
        double weight = exp(x->logits[j] - x->top[r]);
        row->full++;
        sum += weight;
        add_value(out, o->v + (x->kv_head * o->n + j) * o->dv, weight, o->dv);
    }
    free(gone);
    return sum + *tail;
}

/* ---- gradients */

typedef struct back_row {
    const double *q, *dout;
    double *dq, *dq_slack;
    double sum, delta, delta_most, slack; /* sum relative to exp(top); error of a weight in f32, relative */
    int64_t kv_head;
} back_row;

static void add_scaled(double *to, double *slack, const double *x, double a, double a_slack, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        to[i] += a * x[i];
        slack[i] += a_slack * fabs(x[i]);
    }
}

/* One key, or one mean that stands for `n` keys: `slope` is the derivative of its soft cap, `spread` what its mass grows by with |q|^2. */
static void add_one(const choice *x, gradient_oracle *g, const back_row *b, const double *k, const double *v, double weight,
                    double slope, double spread, double square, const int32_t *ids, int64_t n)
{
    const oracle *o = x->o;
    double p = weight / b->sum, product = 0, most = 0;
    for (int64_t c = 0; c < o->dv; c++) {
        product += b->dout[c] * v[c];
        most += fabs(b->dout[c] * v[c]);
    }
    double dz = p * (product - b->delta), slack = p * (most + b->delta_most) * b->slack, grows = spread / (1 + square * spread / 2);
    add_scaled(b->dq, b->dq_slack, k, dz * slope * o->scale, slack * fabs(o->scale), o->d);
    add_scaled(b->dq, b->dq_slack, b->q, dz * grows * o->scale * o->scale, slack * grows * o->scale * o->scale, o->d);
    for (int64_t i = 0; i < n; i++) {
        int64_t row = b->kv_head * o->n + ids[i];
        double share = 1 / (double)n;
        add_scaled(g->dk + row * o->d, g->dk_slack + row * o->d, b->q, dz * slope * o->scale * share,
                   slack * fabs(o->scale) * share, o->d);
        add_scaled(g->dv + row * o->dv, g->dv_slack + row * o->dv, b->dout, p * share, p * share * b->slack, o->dv);
    }
}

static double slope_of(const choice *x, double product)
{
    double cap = (double)x->o->options.softcap, t = cap > 0 ? tanh(product / cap) : 0;
    return 1 - t * t;
}

static double product_of(const choice *x, const double *q, const double *k)
{
    double z = 0;
    for (int64_t i = 0; i < x->o->d; i++) z += x->o->scale * q[i] * k[i];
    return z;
}

static void add_back_means(choice *x, gradient_oracle *g, const back_row *b, const means *m, int64_t r, const bool *gone)
{
    const oracle *o = x->o;
    const kna__clusters *c = &x->index->clusters;
    double *k = malloc((size_t)o->d * sizeof *k), *v = malloc((size_t)o->dv * sizeof *v);
    for (int64_t s = 0; s < m->count; s++) {
        int32_t ids[KNA_SEGMENT];
        int64_t n = 0, slots = m->kind == KNA_GROUPS ? KNA_GROUP_SLOTS : 1;
        if (gone[s]) continue;
        for (int64_t i = 0; i < slots; i++) n += kna__cluster_rows(c, x->kv_head, m->slot[s] * slots + i, ids + n);
        for (int64_t i = 0; i < o->d; i++) k[i] = oracle_f16(m->level->key[m->at[s] * o->d + i]);
        for (int64_t i = 0; i < o->dv; i++) v[i] = oracle_f16(m->level->value[m->at[s] * o->dv + i]);
        add_one(x, g, b, k, v, m->mass[r * m->count + s], slope_of(x, product_of(x, b->q, k)), (double)m->level->spread[m->at[s]],
                x->square[r], ids, n);
    }
    free(k);
    free(v);
}

/* A row's out is known, and the sum of its weights. taken: clusters that are read in full. */
static void differentiate_row(choice *x, int64_t r, const bool *taken, const double *out, double sum, const knn_truth *t)
{
    const oracle *o = x->o;
    int64_t head = head_of(x, r), query = query_of(x, r), at = head * o->m + query;
    gradient_oracle *g = t->gradients;
    back_row b = { .q = o->q + at * o->d,
                   .dout = t->dout + at * o->dv,
                   .dq = g->dq + at * o->d,
                   .dq_slack = g->dq_slack + at * o->d,
                   .sum = sum,
                   .kv_head = x->kv_head };
    b.slack = 5e-5 + 4 * (oracle_product_slack(o, head, query, x->logits) + oracle_finish_slack(o, head, query, x->logits));
    bool *full = calloc((size_t)o->n + 1, 1);
    for (int64_t j = 0; j < o->n; j++) full[j] = !x->clustered[j];
    for (int64_t s = 0; s < x->clusters.count; s++) {
        int32_t ids[KNA_SEGMENT];
        int64_t n = taken[s] ? kna__cluster_rows(&x->index->clusters, x->kv_head, x->clusters.slot[s], ids) : 0;
        for (int64_t i = 0; i < n; i++) full[ids[i]] = true;
    }
    for (int64_t c = 0; c < o->dv; c++) {
        b.delta += b.dout[c] * out[c];
        b.delta_most += fabs(b.dout[c]) * o->v_most[x->kv_head];
    }
    for (int64_t j = 0; j < o->n; j++) {
        if (!full[j] || x->logits[j] == HIDDEN) continue;
        const double *k = o->k + (x->kv_head * o->n + j) * o->d, *v = o->v + (x->kv_head * o->n + j) * o->dv;
        add_one(x, g, &b, k, v, exp(x->logits[j] - x->top[r]), slope_of(x, product_of(x, b.q, k)), 0, 0, &(int32_t){ (int32_t)j },
                1);
    }
    add_back_means(x, g, &b, &x->clusters, r, taken);
    if (x->deep) add_back_means(x, g, &b, &x->groups, r, x->groups.chosen);
    free(full);
}

static knn_row finish_row(choice *x, int64_t r, const bool *taken, double error, double tolerance, const knn_truth *t)
{
    expected *e = t->e;
    const oracle *o = x->o;
    int64_t head = head_of(x, r), query = query_of(x, r), at = head * o->m + query;
    double tail = 0, sink = o->options.sinks ? (double)o->options.sinks[head] : HIDDEN, *out = e->out + at * o->dv;
    knn_row row = { .clusters = x->clusters.count, .error = x->clusters.count ? error : -1, .doubtful = x->doubtful };
    oracle_logits(o, head, query, x->logits);
    double sum = mix(x, r, taken, out, &tail, &row), top = x->top[r];
    row.doubtful = x->doubtful;
    /* What is taken out of the sum of all masses leaves the rounding of that sum. */
    double excess = sum > 0 ? fmax(1, x->total[r] / sum) : 1;
    if (sink > HIDDEN) {
        double higher = fmax(top, sink), shrink = top == HIDDEN ? 0 : exp(top - higher);
        for (int64_t c = 0; c < o->dv; c++) out[c] *= shrink;
        sum = sum * shrink + exp(sink - higher);
        tail *= shrink;
        top = higher;
    }
    for (int64_t c = 0; c < o->dv; c++) out[c] /= sum > 0 ? sum : 1;
    if (t->gradients && sum > 0) differentiate_row(x, r, taken, out, sum * exp(top - x->top[r]), t);
    row.tail_mass = sum > 0 ? tail / sum : 0;
    e->lse[at] = row.lse = sum > 0 ? top + log(sum) : HIDDEN;
    expected_bounds(e, o, head, query, x->logits, tolerance * excess);
    if (row.doubtful) e->out_bound[at] = e->lse_bound[at] = 1e3;
    return row;
}

static void add_row(knn_truth *t, const knn_row *row)
{
    t->seen += (double)row->seen;
    t->full += (double)row->full;
    t->rows_exact += row->clusters == 0;
    t->doubtful += row->doubtful;
    t->tail_mass += row->tail_mass;
    t->seeing += row->seen > 0;
    if (row->error < 0) return;
    t->estimated++;
    t->error += row->error;
    t->error_most = fmax(t->error_most, row->error);
}

/* ---- all choices of a call */

static means means_new(const kna_index *index, int kind, int64_t rows)
{
    size_t most = (size_t)(index->clusters.capacity * (kind == KNA_GROUPS ? KNA_PIECE_GROUPS : KNA_SLOTS)) + 1;
    means m = { .level = &index->clusters.level[kind], .kind = kind };
    m.at = malloc(most * sizeof *m.at);
    m.slot = malloc(most * sizeof *m.slot);
    m.mass = malloc((size_t)rows * most * sizeof *m.mass);
    m.share = calloc(most, sizeof *m.share);
    m.score = malloc(most * sizeof *m.score);
    m.chosen = calloc(most, 1);
    return m;
}

static void means_free(means *m)
{
    void *held[] = { m->at, m->slot, m->mass, m->share, m->score, m->chosen };
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) free(held[i]);
}

static choice choice_new(const oracle *o, const kna_index *index, int64_t kv_head, int64_t query, int64_t queries)
{
    choice x = { .o = o, .index = index, .kv_head = kv_head, .query = query, .queries = queries, .tile = queries * o->g };
    size_t rows = (size_t)(x.tile + PROBES * o->g);
    x.groups = means_new(index, KNA_GROUPS, (int64_t)rows);
    x.clusters = means_new(index, KNA_CLUSTERS, (int64_t)rows);
    x.clustered = calloc((size_t)o->n + 1, 1);
    x.exact = calloc(rows, sizeof *x.exact);
    x.total = calloc(rows, sizeof *x.total);
    x.top = calloc(rows, sizeof *x.top);
    x.square = calloc(rows, sizeof *x.square);
    x.logits = malloc((size_t)(o->n + 1) * sizeof *x.logits);
    x.codes = malloc(rows * (size_t)o->d + 1);
    x.code_scale = malloc(rows * sizeof *x.code_scale);
    x.how = calloc((size_t)o->n + 1, 1);
    return x;
}

static void choice_free(choice *x)
{
    void *held[] = { x->clustered, x->exact, x->total, x->top, x->square, x->logits, x->codes, x->code_scale, x->how };
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) free(held[i]);
    means_free(&x->groups);
    means_free(&x->clusters);
}

static void one_choice(knn_truth *t, const oracle *o, const kna_index *index, int64_t kv_head, int64_t query, int64_t queries,
                       double tolerance)
{
    choice x = choice_new(o, index, kv_head, query, queries);
    find_clusters(&x);
    find_probes(&x);
    for (int64_t r = 0; r < x.rows; r++) begin_row(&x, r);
    if (x.clusters.count) choose_all(&x);
    for (int64_t s = 0; s < x.clusters.count; s++) {
        int32_t ids[KNA_SEGMENT];
        int64_t n = x.clusters.chosen[s] && is_tile(&x) ? kna__cluster_rows(&index->clusters, kv_head, x.clusters.slot[s], ids) : 0;
        for (int64_t i = 0; i < n; i++) x.how[ids[i]] = IN_FULL;
        if (x.clusters.chosen[s] && !is_tile(&x)) look_into(&x, s, 0, x.rows);
    }
    bool *taken = malloc((size_t)x.clusters.count + 1), shared_doubt = x.doubtful;
    for (int64_t r = x.rows - x.tile; r < x.rows; r += o->g) {
        memcpy(taken, x.clusters.chosen, (size_t)x.clusters.count);
        x.doubtful = shared_doubt;
        double error = x.error + (own_clusters(&x) && x.clusters.count ? choose_own(&x, r, taken) : 0);
        for (int64_t s = 0; s < x.clusters.count && is_tile(&x); s++) {
            if (taken[s] && !x.clusters.chosen[s]) look_into(&x, s, r, r + o->g);
        }
        for (int64_t row = r; row < r + (is_tile(&x) ? o->g : x.tile); row++) {
            knn_row result = finish_row(&x, row, taken, error, tolerance, t);
            add_row(t, &result);
        }
    }
    free(taken);
    choice_free(&x);
}

static knn_truth truth_of(const oracle *o, const kna_index *index, int64_t together, double tolerance, const double *dout)
{
    knn_truth t = { .e = expected_new(o), .dout = dout, .gradients = dout ? gradient_oracle_empty(o) : NULL };
    for (int64_t kv_head = 0; kv_head < o->h_kv; kv_head++) {
        for (int64_t query = 0; query < o->m; query += together) one_choice(&t, o, index, kv_head, query, together, tolerance);
    }
    t.tail_mass /= t.seeing ? (double)t.seeing : 1;
    t.error = t.estimated ? t.error / (double)t.estimated : -1;
    t.error_most = t.estimated ? t.error_most : -1;
    return t;
}

knn_truth knn_truth_of(const oracle *o, const kna_index *index, int64_t together, double tolerance)
{
    return truth_of(o, index, together, tolerance, NULL);
}

knn_truth knn_gradients_of(const oracle *o, const kna_index *index, int64_t together, const double *dout)
{
    return truth_of(o, index, together, 1e-5, dout);
}

static bool report_holds(random_case *c, const kna_report *r, const knn_truth *t)
{
    bool good =
        EXPECT_THAT(r->rows == t->e->rows && r->method == KNA_KNN, "rows = %lld, method = %d", (long long)r->rows, r->method);
    good = good && EXPECT_THAT(r->keys_seen == t->seen, "keys_seen = %g, expected %g: %s", r->keys_seen, t->seen, case_text(c));
    good = good && EXPECT_THAT(r->rows_exact == t->rows_exact, "rows_exact = %lld, expected %lld: %s", (long long)r->rows_exact,
                               (long long)t->rows_exact, case_text(c));
    if (!good || t->doubtful) return good;
    good = EXPECT_THAT(fabs(r->keys_full - t->full) <= 1e-5 * t->full, "keys_full = %g, expected %g: %s", r->keys_full, t->full,
                       case_text(c));
    good = good && EXPECT_THAT(fabs(r->tail_mass - t->tail_mass) <= 1e-4, "tail_mass = %g, expected %g: %s", r->tail_mass,
                               t->tail_mass, case_text(c));
    if (!good || (c->options.eps == 0 && c->options.audit == 0)) return good;
    return EXPECT_THAT(fabs(r->error_est - t->error) <= 1e-4 && fabs(r->error_est_max - t->error_most) <= 1e-4,
                       "error_est = %g, at most %g; expected %g, %g: %s", r->error_est, r->error_est_max, t->error, t->error_most,
                       case_text(c));
}

bool knn_case_holds(random_case *c, kna_context *context, const bool *absent, int64_t together, int64_t *rows, int64_t *doubtful)
{
    kna_report r = { .size = sizeof r };
    if (case_attend(c, context, &r) != KNA_OK) return false;
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
    knn_truth t = knn_truth_of(o, c->options.index, together, 1e-5);
    bool good = case_matches(c, t.e) && report_holds(c, &r, &t);
    *rows += t.e->rows;
    *doubtful += t.doubtful;
    expected_free(t.e);
    oracle_free(o);
    return good;
}
