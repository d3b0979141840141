/*
 * heads_time.c - times of `kna bench heads`: the last query alone (decode), the late queries together (prefill at depth), and the
 * whole text from nothing.
 *
 * Contenders take turns, round by round. Within a turn all layers are gone through, as a model does, so that keys and values do
 * not stay in a cache; a time is that of the turn over the layers. Indexes are those of the errors: they hold the text already;
 * appending the last row is part of a decode's time.
 */
#include <stdlib.h>

#include "heads.h"

static const int methods[HEADS_TIMES] = { KNA_EXACT, KNA_TOPK, KNA_KNN };

typedef struct clockwork {
    heads_study *study;
    float *out;
    double *seconds[HEADS_WAYS][HEADS_TIMES][CLI_LIST_MAX]; /* (rounds) */
    double *text[HEADS_TIMES];
    double *build;
} clockwork;

/* ------------------------------------------------------------------ turns */

static kna_index *index_of(const heads_result *result, int who, int way)
{
    return who == HEADS_TIME_EXACT ? NULL : who == HEADS_TIME_TOPK ? result->nearest : result->indexes[way];
}

static int call(const clockwork *c, int layer, int who, int way, int64_t k)
{
    const heads_study *s = c->study;
    const heads_layer *l = &s->set->layers[layer];
    const int64_t n = l->q.rows;
    kna_attend_options options = heads_options(s, l, methods[who], k);
    kna_report report;
    options.index = index_of(&s->results[layer], who, way);
    if (way == 0 && options.index) {
        const int status = kna_index_update(s->context, options.index, &l->k, &l->v, n - 1, 1);
        if (status != KNA_OK) return cli_status(s->context, status);
    }
    return way == 0 ? heads_attend(s, l, c->out, &report, n - 1, 1, &options)
                    : heads_attend(s, l, c->out, &report, n - s->late, s->late, &options);
}

/* Round -1 is not kept: memory is touched. */
static int take_turn(clockwork *c, int64_t round, int who, int way, int x)
{
    const int layers = c->study->set->count;
    const double start_s = cli_now_s();
    int code = CLI_OK;
    for (int layer = 0; layer < layers && code == CLI_OK; layer++) code = call(c, layer, who, way, c->study->k.values[x]);
    if (round >= 0) c->seconds[way][who][x][round] = (cli_now_s() - start_s) / layers;
    return code;
}

static int take_turns(clockwork *c, int64_t round)
{
    int code = CLI_OK;
    for (int way = 0; way < HEADS_WAYS; way++)
        for (int who = 0; who < HEADS_TIMES; who++)
            for (int x = 0; x < (who == HEADS_TIME_EXACT ? 1 : c->study->k.count) && code == CLI_OK; x++)
                code = take_turn(c, round, who, way, x);
    return code;
}

static int read_text(clockwork *c, int64_t round, int who)
{
    const heads_study *s = c->study;
    const int layers = s->set->count;
    double build_s = 0;
    const double start_s = cli_now_s();
    int code = CLI_OK;
    for (int layer = 0; layer < layers && code == CLI_OK; layer++) {
        const heads_layer *l = &s->set->layers[layer];
        const kna_attend_options options = heads_options(s, l, methods[who], HEADS_USUAL_K);
        kna_report report = { 0 };
        code = heads_attend(s, l, c->out, &report, 0, l->q.rows, &options);
        build_s += report.build_s;
    }
    c->text[who][round] = (cli_now_s() - start_s) / layers;
    if (who == HEADS_TIME_KNN) c->build[round] = build_s / layers;
    return code;
}

/* ------------------------------------------------------------------ the whole */

static int make_nearest(const heads_study *s)
{
    for (int i = 0; i < s->set->count; i++) {
        const heads_layer *l = &s->set->layers[i];
        kna_index **index = &s->results[i].nearest;
        int status = kna_index_new(s->context, index, KNA_TOPK, l->k.heads, l->q.dim, l->v.dim);
        if (status == KNA_OK) status = kna_index_update(s->context, *index, &l->k, &l->v, 0, l->k.rows);
        if (status != KNA_OK) return cli_status(s->context, status);
    }
    return CLI_OK;
}

static int clockwork_new(clockwork *c, heads_study *study)
{
    const heads_layer *l = &study->set->layers[0];
    const size_t rounds = (size_t)study->rounds;
    c->study = study;
    c->out = malloc((size_t)(l->q.heads * l->q.rows) * (size_t)l->v.dim * sizeof *c->out);
    c->build = calloc(rounds, sizeof *c->build);
    int good = c->out && c->build;
    for (int who = 0; who < HEADS_TIMES; who++) {
        c->text[who] = calloc(rounds, sizeof **c->text);
        good = good && c->text[who];
        for (int i = 0; i < HEADS_WAYS * CLI_LIST_MAX; i++) {
            double **seconds = &c->seconds[i / CLI_LIST_MAX][who][i % CLI_LIST_MAX];
            *seconds = calloc(rounds, sizeof **seconds);
            good = good && *seconds;
        }
    }
    return good ? CLI_OK : cli_fail("out of memory: times");
}

static heads_time summary(double *seconds, int64_t rounds)
{
    const double median_s = cli_median(seconds, (int)rounds); /* sorts */
    return (heads_time){ seconds[0], median_s, seconds[rounds - 1] };
}

static void summarise(clockwork *c)
{
    heads_study *s = c->study;
    for (int who = 0; who < HEADS_TIMES; who++) {
        s->text[who] = summary(c->text[who], s->rounds);
        for (int way = 0; way < HEADS_WAYS; way++)
            for (int x = 0; x < s->k.count; x++) s->times[way][who][x] = summary(c->seconds[way][who][x], s->rounds);
    }
    s->build_s = cli_median(c->build, (int)s->rounds);
    s->index_bytes = kna_index_bytes(s->results[0].indexes[0]);
}

static void clockwork_free(clockwork *c)
{
    for (int who = 0; who < HEADS_TIMES; who++) {
        free(c->text[who]);
        for (int i = 0; i < HEADS_WAYS * CLI_LIST_MAX; i++) free(c->seconds[i / CLI_LIST_MAX][who][i % CLI_LIST_MAX]);
    }
    free(c->build);
    free(c->out);
}

int heads_measure_times(heads_study *study)
{
    clockwork c = { 0 };
    int code = clockwork_new(&c, study);
    if (code == CLI_OK) code = make_nearest(study);
    for (int64_t round = -1; round < study->rounds && code == CLI_OK; round++) {
        code = take_turns(&c, round);
        for (int who = 0; who < HEADS_TIMES && round >= 0 && code == CLI_OK; who++) code = read_text(&c, round, who);
        cli_progress_share((double)(round + 1) / (double)study->rounds);
    }
    if (code == CLI_OK) summarise(&c);
    clockwork_free(&c);
    return code;
}
