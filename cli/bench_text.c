/*
 * bench_text.c - see bench_text.h.
 *
 * Taken apart, the keys of SmolLM2 (rotations undone; middle and late layers, 8,192 and 32,768 tokens of documentation) are a sum: a mean
 * that has three quarters of their square, a vector for the token, and one for its context; rotated by its position. So here:
 *
 *   text     a Pitman-Yor urn (concentration 55, discount 0.53: 1,469 kinds of token among 8,192, half of them met once), and runs that are
 *            repeated from earlier on.
 *   row      R(position) (mean + sqrt(.55) of the token + sqrt(.45) of the context); the context is two autoregressions that innovate by
 *            token and chance: correlations .5, .2, .1, .03 at 1, 4, 16, 64 tokens. Values have no rotation, and a small mean.
 *   mean     nearly all in three places: a wave of some 25,000 tokens (so that logits fall by 6 to 17 over 8,192), in quadrature between
 *            query and key; the slowest waves, where queries and keys are opposed and the first key is not: it is the sink; and little in
 *            fast ones, in phase: the recent tokens.
 *   heads    from local (the wave strong, logits at a distance within 2) to global (weak, within 3).
 *   variance geometric spectra behind a random basis, of keys mostly in slow waves.
 *
 * Rotation is RoPE with base 100,000; texts of more than 8,192 tokens are stretched as llama.cpp does it for this model (YaRN: slow waves
 * as many times slower, all rows longer by 1 + ln(stretch) / 10).
 */
#include "bench_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "random.h"

#define CONCENTRATION 55.0
#define DISCOUNT      0.53
#define RUNS          0.02 /* of the places where none goes on, one begins */
#define RUN_LENGTH    12.0 /* in the mean */

#define RHO_SLOW      0.98
#define RHO_FAST      0.75
#define PI            3.14159265358979323846

enum { WAVE = 23, SLOWEST = 30 }; /* of 32, from fast to slow */
enum { TRAINED = 8192, D_MOST = KNA_MAX_DIM };
enum { URN = 1, RUN, BASIS, MEAN, TOKEN, CONTEXT, FRESH };

static uint64_t key_of(uint64_t seed, int64_t layer, int64_t head, int stream)
{
    return cli_mix(cli_mix(seed + CLI_GOLDEN * (uint64_t)(layer + 1)) + CLI_GOLDEN * (uint64_t)(16 * head + stream));
}

static double uniform(uint64_t key, uint64_t counter)
{
    return ((double)(cli_mix(key + CLI_GOLDEN * counter) >> 11) + 0.5) * 0x1p-53;
}

/* Near enough to a standard normal: the sum of eight bytes, centred. */
static float normal(uint64_t key, uint64_t counter)
{
    const uint64_t bits = cli_mix(key + CLI_GOLDEN * counter);
    int sum = 0;
    for (int shift = 0; shift < 64; shift += 8) sum += (int)(bits >> shift & 255);
    return ((float)sum - 1020.0f) / 209.02f;
}

/* ------------------------------------------------------------------ the text */

typedef struct text {
    int64_t n, kinds;
    int32_t *token;
    unsigned char *is_first; /* of its kind */
} text;

/* One met before: kinds by how often they were met less the discount. */
static int32_t draw_again(const text *t, int64_t i, uint64_t key)
{
    for (uint64_t attempt = 0;; attempt += 2) {
        const uint64_t at = (uint64_t)(uniform(key, ((uint64_t)i << 8) + attempt) * (double)i);
        if (!t->is_first[at] || uniform(key, ((uint64_t)i << 8) + attempt + 1) > DISCOUNT) return t->token[at];
    }
}

/* Kinds are numbered in the order they are met. */
static void write_text(text *t, uint64_t seed)
{
    const uint64_t urn = key_of(seed, -1, 0, URN), run = key_of(seed, -1, 0, RUN), again = key_of(seed, -1, 1, URN);
    int64_t copied = 0, left = 0;
    for (int64_t i = 0; i < t->n; i++, left -= left > 0) {
        const double fresh = (CONCENTRATION + DISCOUNT * (double)t->kinds) / (CONCENTRATION + (double)i);
        if (left == 0 && i > 64 && uniform(run, 3 * (uint64_t)i) < RUNS) {
            copied = (int64_t)(uniform(run, 3 * (uint64_t)i + 1) * (double)(i - 32));
            left = 1 + (int64_t)(-RUN_LENGTH * log(uniform(run, 3 * (uint64_t)i + 2)));
        }
        t->is_first[i] = left == 0 && (i == 0 || uniform(urn, (uint64_t)i) < fresh);
        if (left > 0)
            t->token[i] = t->token[copied++];
        else
            t->token[i] = t->is_first[i] ? (int32_t)t->kinds++ : draw_again(t, i, again);
    }
}

/* ------------------------------------------------------------------ one head's rows before rotation */

/* What rows of a head are made of: x = mean + parts, each D W z with z of a geometric spectrum. */
typedef struct recipe {
    int64_t d;
    uint64_t seed;
    int64_t layer, head; /* queries from 0 on, then keys, then values */
    double mean[D_MOST];
    float *basis;                    /* (d,d) D W sqrt(spectrum) */
    double token, slow, fast, white; /* shares of the variance */
} recipe;

static uint64_t stream(const recipe *r, int which)
{
    return key_of(r->seed, r->layer, r->head, which);
}

/* W: Gaussian columns, as good as orthogonal. profile: standard deviations by row, up to a factor. */
static void make_basis(recipe *r, const double *profile, double ratio, double variance)
{
    double sum = 0;
    for (int64_t i = 0; i < r->d * r->d; i++) {
        const double x = profile[i / r->d] * pow(ratio, (double)(i % r->d) / 2) * (double)normal(stream(r, BASIS), (uint64_t)i);
        r->basis[i] = (float)x;
        sum += x * x;
    }
    for (int64_t i = 0; i < r->d * r->d; i++) r->basis[i] *= (float)sqrt(variance / sum);
}

/* basis z, z the standard normals of a number. */
static void make_vector(float *to, const recipe *r, uint64_t key, int64_t number)
{
    float z[D_MOST];
    for (int64_t c = 0; c < r->d; c++) z[c] = normal(key, (uint64_t)(number * r->d + c));
    for (int64_t i = 0; i < r->d; i++) {
        float sum = 0;
        for (int64_t c = 0; c < r->d; c++) sum += r->basis[i * r->d + c] * z[c];
        to[i] = sum;
    }
}

/*
 * Rows first .. n - 1 of the text to x (n - first, d). Half of what is new in a context comes with the token: what is said again is said
 * in a like context. kinds: room for two vectors of each kind of token.
 */
static void write_rows(float *x, const recipe *r, const text *t, int64_t first, float *kinds)
{
    float slow[D_MOST] = { 0 }, fast[D_MOST] = { 0 }, fresh[D_MOST];
    const double of_slow = sqrt((1 - RHO_SLOW * RHO_SLOW) / 2), of_fast = sqrt((1 - RHO_FAST * RHO_FAST) / 2);
    for (int64_t kind = 0; kind < t->kinds; kind++) {
        make_vector(kinds + 2 * kind * r->d, r, stream(r, TOKEN), kind);
        make_vector(kinds + (2 * kind + 1) * r->d, r, stream(r, CONTEXT), kind);
    }
    for (int64_t i = 0; i < t->n; i++) {
        const float *token = kinds + 2 * (int64_t)t->token[i] * r->d, *said = token + r->d;
        make_vector(fresh, r, stream(r, FRESH), i);
        for (int64_t c = 0; c < r->d; c++) {
            slow[c] = (float)(RHO_SLOW * (double)slow[c] + of_slow * (double)(said[c] + fresh[c]));
            fast[c] = (float)(RHO_FAST * (double)fast[c] + of_fast * (double)(said[c] + fresh[c]));
        }
        for (int64_t c = 0; c < r->d && i >= first; c++)
            x[(i - first) * r->d + c] = (float)(r->mean[c] + sqrt(r->token) * (double)token[c] + sqrt(r->slow) * (double)slow[c] +
                                                sqrt(r->fast) * (double)fast[c] + sqrt(r->white) * (double)fresh[c]);
    }
}

/* ------------------------------------------------------------------ rotation */

/* Angle of a pair by one position; *stretch lengthens all rows. */
static double angle_of(int64_t pair, int64_t pairs, int64_t n, double *stretch)
{
    const double base = 1e5, at = pow(base, -(double)pair / (double)pairs), times = n > TRAINED ? (double)n / TRAINED : 1;
    const double per_turn = (double)pairs / log(base); /* the pair that turns so often in what the model was trained with */
    const double low = floor(per_turn * log(TRAINED / (32 * 2 * PI))), high = ceil(per_turn * log(TRAINED / (2 * PI)));
    const double slow = fmin(fmax(((double)pair - low) / fmax(high - low, 1e-3), 0), 1);
    *stretch = 1 + 0.1 * log(times);
    return at * (1 - slow + slow / times);
}

static void rotate(float *x, int64_t rows, int64_t d, int64_t position, int64_t n)
{
    for (int64_t pair = 0; pair < d / 2; pair++) {
        double stretch;
        const double angle = angle_of(pair, d / 2, n, &stretch);
        for (int64_t i = 0; i < rows; i++) {
            float *at = x + i * d + 2 * pair;
            const double c = stretch * cos(angle * (double)(position + i)), s = stretch * sin(angle * (double)(position + i));
            const double even = (double)at[0], odd = (double)at[1];
            at[0] = (float)(even * c - odd * s);
            at[1] = (float)(even * s + odd * c);
        }
    }
}

/* ------------------------------------------------------------------ heads */

/* A wave of the mean: so long, at a phase. */
static void put_wave(recipe *r, int64_t pair, double length, double phase)
{
    if (2 * pair + 1 >= r->d) return;
    r->mean[2 * pair] = length * cos(phase);
    r->mean[2 * pair + 1] = length * sin(phase);
}

/* The wave of d = 64 that is number f of 32, in d numbers. */
static int64_t pair_of(int64_t d, int64_t f)
{
    return f * (d / 2) / 32;
}

/* How global a query head is. */
static double global_of(const recipe *q)
{
    return q->head % 3 == 1 ? 0.7 + 0.3 * uniform(stream(q, MEAN), 900) : 0.35 * uniform(stream(q, MEAN), 900);
}

static void profile_of(double *profile, int64_t d, double steps)
{
    for (int64_t i = 0; i < d; i++) profile[i] = steps > 0 ? exp((double)(i / 2) / (double)d * 64 / steps / 2) : 1;
}

/* Means of keys, and of the queries that look at them: phases are those of the keys, and what logits want between. */
static void make_key(recipe *r, int64_t kv_head)
{
    double profile[D_MOST];
    const uint64_t key = stream(r, MEAN);
    for (int64_t f = 2; f < 18; f++) put_wave(r, pair_of(r->d, f), 1 + 2 * uniform(key, (uint64_t)f), 2 * PI * uniform(key, 100 + (uint64_t)f));
    put_wave(r, pair_of(r->d, WAVE + kv_head % 2), 10.5, 2 * PI * uniform(key, 200));
    put_wave(r, pair_of(r->d, SLOWEST), 5.5, 2 * PI * uniform(key, 201));
    profile_of(profile, r->d, 15);
    make_basis(r, profile, 0.95, 68);
    r->token = 0.55, r->slow = 0.12, r->fast = 0.33;
}

static void make_query(recipe *r, const recipe *k, int64_t kv_head)
{
    double profile[D_MOST];
    const uint64_t key = stream(r, MEAN);
    const double global = global_of(r), sharp = 0.7 + 0.4 * uniform(key, 901);
    for (int64_t f = 2; f < 18; f++) {
        const int64_t pair = pair_of(r->d, f);
        const double phase = atan2(k->mean[2 * pair + 1], k->mean[2 * pair]) + 0.4 * (double)normal(key, (uint64_t)f);
        put_wave(r, pair, sharp * (1 - 0.75 * global) * (0.6 + 2 * uniform(key, 100 + (uint64_t)f)), phase);
    }
    const int64_t wave = pair_of(r->d, WAVE + kv_head % 2), slowest = pair_of(r->d, SLOWEST);
    put_wave(r, wave, (9 - 6 * global) * sharp, atan2(k->mean[2 * wave + 1], k->mean[2 * wave]) + 1.7);
    put_wave(r, slowest, 6 + 2 * global, atan2(k->mean[2 * slowest + 1], k->mean[2 * slowest]) + 2.7);
    profile_of(profile, r->d, 40 - 30 * global);
    make_basis(r, profile, 0.95, (55 + 45 * global) * sharp * sharp);
    r->token = 0.5, r->slow = 0.1, r->fast = 0.25, r->white = 0.15;
}

static void make_value(recipe *r)
{
    double profile[D_MOST];
    for (int64_t i = 0; i < r->d; i++) r->mean[i] = 0.27 * (double)normal(stream(r, MEAN), (uint64_t)i);
    profile_of(profile, r->d, 0);
    make_basis(r, profile, 0.96, 36);
    r->token = 0.5, r->slow = 0.06, r->fast = 0.24, r->white = 0.2;
}

/* The first key: short, with the slowest wave of queries and nothing else to speak of; its value is short, too. */
static void make_sink(float *key, float *value, const recipe *k, int64_t d)
{
    const int64_t slowest = 2 * pair_of(d, SLOWEST);
    const double phase = atan2(k->mean[slowest + 1], k->mean[slowest]) + 2.7;
    for (int64_t c = 0; c < d; c++) key[c] *= 0.06f, value[c] *= 0.17f;
    if (slowest + 1 < d) key[slowest] = (float)(4.9 * cos(phase)), key[slowest + 1] = (float)(4.9 * sin(phase));
}

typedef struct job {
    float *q, *k, *v;
    const bench_shape *shape;
    const text *text;
    uint64_t seed;
    int64_t layer;
} job;

static recipe recipe_of(const job *j, int64_t head, float *basis)
{
    return (recipe){ .d = j->shape->d, .seed = j->seed, .layer = j->layer, .head = head, .basis = basis };
}

/* Head x of queries, then keys, then values. Bases share the room: a query needs only the mean of its keys. */
static void fill_head(const job *j, int64_t x, float *basis, float *kinds)
{
    const bench_shape *s = j->shape;
    const int64_t kv_head = x < s->h ? x / (s->h / s->h_kv) : (x - s->h) % s->h_kv, rows = x < s->h ? s->m : s->n;
    recipe k = recipe_of(j, s->h + kv_head, basis), r = recipe_of(j, x, basis);
    make_key(&k, kv_head);
    if (x < s->h) make_query(&r, &k, kv_head);
    if (x >= s->h + s->h_kv) make_value(&r);
    float *to = x < s->h ? j->q + x * s->m * s->d : (x < s->h + s->h_kv ? j->k : j->v) + kv_head * s->n * s->d;
    write_rows(to, x < s->h || x >= s->h + s->h_kv ? &r : &k, j->text, s->n - rows, kinds);
    if (x >= s->h + s->h_kv) return;
    if (x >= s->h) {
        float unused[D_MOST] = { 0 };
        make_sink(to, unused, &k, s->d);
    }
    rotate(to, rows, s->d, s->n - rows, s->n);
}

static void fill_task(void *argument, int64_t x, void *room)
{
    const job *j = argument;
    fill_head(j, x, room, (float *)room + j->shape->d * j->shape->d);
}

int bench_text_fill(float *q, float *k, float *v, const bench_shape *s, uint64_t seed, int64_t layer)
{
    text t = { .n = s->n, .token = malloc((size_t)s->n * sizeof *t.token), .is_first = malloc((size_t)s->n) };
    int code = t.token && t.is_first ? CLI_OK : cli_fail("out of memory: a text of %lld tokens", (long long)s->n);
    if (code == CLI_OK) write_text(&t, seed);
    const job j = { q, k, v, s, &t, seed, layer };
    float *room = code == CLI_OK ? malloc((size_t)(s->d * (s->d + 2 * t.kinds)) * sizeof *room) : NULL;
    if (code == CLI_OK && !room) code = cli_fail("out of memory: %lld kinds of token", (long long)t.kinds);
    for (int64_t x = 0; x < s->h + 2 * s->h_kv && code == CLI_OK; x++) fill_task((void *)(uintptr_t)&j, x, room);
    for (int64_t head = 0; head < s->h_kv && code == CLI_OK; head++)
        for (int64_t c = 0; c < s->d; c++) v[head * s->n * s->d + c] *= 0.17f;
    free(room), free(t.token), free(t.is_first);
    return code;
}
