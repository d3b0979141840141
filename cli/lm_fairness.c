/*
 * lm_fairness.c - what `kna fairness` needs a model for: operands of layers that read several texts, and the loss of tokens.
 *
 * Stages: texts, tokens in turns, one window through the model; later the same window once more by each method that the plugin has.
 * Invariant: all of it is of the same tokens in the same places.
 */
#include "fairness.h"
#include "lm_bootstrap.h"
#include "lm_take.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a set borrows from. */
typedef struct reading {
    lm_desk desk;
    lm_taken taken;
    lm_input input;
    int32_t *tokens, *documents;
    char *names[CLI_TEXTS_MAX];
    int texts;
} reading;

/* ------------------------------------------------------------------ texts */

static char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    return lm_clean(name, strlen(name));
}

/* Tokens of a text that stands behind others: it has no start of its own. */
static int read_text(lm_tokens *text, int *first, const reading *r, const char *path, int number)
{
    int code = lm_read_tokens(text, r->desk.model, path);
    *first = code == CLI_OK && number > 0 && text->count > 0 && text->ids[0] == lm_model_bos(r->desk.model);
    return code;
}

/* Where text t of so many, or part t of so many, begins among n. */
static int64_t part(int64_t n, int64_t t, int64_t count)
{
    return n * t / count;
}

/* A text's share of the window, in as many parts as there are turns. */
static int place_text(reading *r, const fair_source *from, int number)
{
    const char *path = from->files.values[number];
    const int64_t share = part(from->context, number + 1, r->texts) - part(from->context, number, r->texts);
    lm_tokens text = { 0 };
    int first = 0, code = read_text(&text, &first, r, path, number);
    if (code == CLI_OK && text.count - first < share) {
        code = cli_refuse("%s: %d tokens, fewer than its share of %d (-c %d, %d texts)", path, text.count - first, (int)share,
                          (int)from->context, r->texts);
    }
    for (int64_t turn = 0, done = 0; code == CLI_OK && turn < from->turns; turn++) {
        /* Of each text before this one that part and all parts before it; of each behind it all parts before. */
        int64_t at = done;
        for (int t = 0; t < r->texts; t++) {
            const int64_t other = part(from->context, t + 1, r->texts) - part(from->context, t, r->texts);
            at += t == number ? 0 : part(other, turn + (t < number), from->turns);
        }
        for (; done < part(share, turn + 1, from->turns); done++, at++) {
            r->tokens[at] = text.ids[first + done];
            r->documents[at] = number;
        }
    }
    lm_tokens_free(&text);
    return code;
}

static int read_texts(reading *r, const fair_source *from)
{
    r->texts = from->files.count;
    r->tokens = calloc((size_t)from->context, sizeof *r->tokens);
    r->documents = calloc((size_t)from->context, sizeof *r->documents);
    int code = r->tokens && r->documents ? CLI_OK : cli_fail("out of memory: %d tokens", (int)from->context);
    for (int i = 0; code == CLI_OK && i < r->texts; i++) {
        r->names[i] = name_of(from->files.values[i]);
        code = r->names[i] ? place_text(r, from, i) : cli_fail("out of memory");
    }
    return code;
}

/* ------------------------------------------------------------------ operands */

static void describe(fair_layer *layer, const lm_operands *o)
{
    layer->number = o->layer;
    layer->scale = o->scale;
    layer->q = (kna_rows){ o->q, KNA_F32, o->heads, o->rows, o->dim, 0, 0, NULL };
    layer->k = (kna_rows){ o->k, o->k_type, o->kv_heads, o->rows, o->dim, 0, 0, NULL };
    layer->v = (kna_rows){ o->v, o->v_type, o->kv_heads, o->rows, o->value_dim, 0, 0, NULL };
}

int fair_take(fair_set *set, const fair_source *from)
{
    reading *r = calloc(1, sizeof *r);
    set->source = r;
    if (!r) {
        return cli_fail("out of memory");
    }
    r->input = (lm_input){ from->model, NULL, from->threads, from->verbose };
    const lm_take_request wanted = { &r->input, from->layers, from->context, !from->no_yarn, LM_TAKE_QKV, LM_ATTENTION, 0, 0 };
    int code = lm_desk_open(&r->desk, &r->input);
    code = code == CLI_OK ? read_texts(r, from) : code;
    code = code == CLI_OK ? lm_take_tokens(&r->taken, &r->desk, &wanted, r->tokens) : code;
    lm_desk_clear(&r->desk);
    set->layers = calloc((size_t)r->taken.count + 1, sizeof *set->layers);
    if (code == CLI_OK && !set->layers) {
        code = cli_fail("out of memory: %d layers", r->taken.count);
    }
    for (int i = 0; code == CLI_OK && i < r->taken.count; i++) {
        describe(&set->layers[set->count++], &r->taken.operands[i]);
    }
    set->n = from->context;
    set->model = r->desk.model ? lm_model_name(r->desk.model) : NULL;
    set->tokens = r->tokens;
    set->documents = r->documents;
    set->names = (const char *const *)r->names;
    return code;
}

void fair_give_back(fair_set *set)
{
    reading *r = set->source;
    if (!r) {
        return;
    }
    lm_taken_free(&r->taken);
    lm_desk_close(&r->desk);
    free(r->tokens);
    free(r->documents);
    for (int i = 0; i < r->texts; i++) {
        free(r->names[i]);
    }
    free(r);
    free(set->layers);
}

/* ------------------------------------------------------------------ loss */

enum { LOSS_BLOCK = 64 }; /* neighbouring tokens that are resampled together */

static int plugin_method(int method)
{
    return method == KNA_TOPK ? LM_TOPK : (method == KNA_KNN ? LM_KNN : LM_OFF);
}

static lm_attention attention_of(int method, const cli_method *from)
{
    lm_attention attention = LM_ATTENTION;
    attention.method = method;
    attention.k_near = from->k_near;
    attention.near_sinks = from->near_sinks;
    attention.near_window = from->near_window;
    attention.exact_below = 0;
    attention.eps = from->eps;
    attention.delta = from->delta;
    return attention;
}

/* Token `first` + 1 + i of the text belongs to row i of both scores. */
static int add_groups(fair_loss *loss, const fair_groups *g, const lm_score *full, const lm_score *chosen, int64_t first,
                      uint64_t seed)
{
    const int64_t rows = chosen->nll.count;
    int blocks = (int)((rows + LOSS_BLOCK - 1) / LOSS_BLOCK), status = LM_OK;
    lm_unit *units = calloc((size_t)blocks + 1, sizeof *units);
    for (int group = 0; units && status == LM_OK && group < g->count; group++) {
        lm_interval added;
        int count = 0;
        for (int64_t block = 0; block < rows; block += LOSS_BLOCK) {
            lm_unit unit = { 0.0, 0.0 };
            for (int64_t i = block; i < block + LOSS_BLOCK && i < rows; i++) {
                if (g->of[first + 1 + i] == group) {
                    unit.sum += chosen->rows[i].nll - full->rows[i].nll;
                    unit.weight += 1.0;
                    loss->full[group] += full->rows[i].nll;
                    loss->tokens[group]++;
                }
            }
            units[count] = unit;
            count += unit.weight > 0.0;
        }
        status = lm_bootstrap(&added, units, &count, 1, seed);
        const int is_known = loss->tokens[group] > 0;
        loss->full[group] = is_known ? loss->full[group] / (double)loss->tokens[group] : (double)NAN;
        loss->added[group] = (fair_interval){ is_known ? added.value : (double)NAN, added.low, added.high };
    }
    loss->is_known = units && status == LM_OK;
    free(units);
    return loss->is_known ? LM_OK : LM_ENOMEM;
}

/* Sessions: full attention, then one for each method that the plugin has. */
static int open_sessions(lm_desk *desk, const fair_result *result, const fair_source *from, const cli_method *method)
{
    const lm_attention exact = attention_of(LM_EXACT, method);
    int code = lm_desk_session(desk, (int)from->context, 0, (int)from->threads, &exact);
    for (int m = 0; code == CLI_OK && m < result->method_count; m++) {
        const lm_attention attention = attention_of(plugin_method(result->methods[m]), method);
        if (attention.method != LM_OFF) {
            code = lm_desk_session(desk, (int)from->context, 0, (int)from->threads, &attention);
        }
    }
    return code;
}

static int score(fair_result *result, lm_score *scores, const reading *r, const fair_source *from, int first, uint64_t seed)
{
    lm_error error = { "out of memory" };
    int status = LM_OK, session = 1;
    for (int s = 0; s < r->desk.group.count; s++) {
        scores[s].room = from->context;
        scores[s].rows = calloc((size_t)from->context, sizeof *scores[s].rows);
        status = scores[s].rows ? status : LM_ENOMEM;
    }
    cli_progress_start("loss of tokens");
    if (status == LM_OK) {
        status = lm_score_text(scores, &r->desk.group, r->tokens, (int)from->context, first, &error);
    }
    cli_progress_end();
    for (int m = 0; status == LM_OK && m < result->method_count; m++) {
        if (plugin_method(result->methods[m]) != LM_OFF) {
            status = add_groups(&result->loss[m], result->groups, &scores[0], &scores[session++], first, seed);
        }
    }
    return lm_failed(status, &error);
}

int fair_lose(fair_result *result, const fair_set *set, const fair_source *from, const cli_method *method, int64_t late)
{
    reading *r = set->source;
    lm_score scores[LM_SESSIONS_MAX];
    int measured = 0;
    for (int m = 0; m < result->method_count; m++) {
        measured += plugin_method(result->methods[m]) != LM_OFF;
    }
    if (measured == 0) {
        return CLI_OK;
    }
    memset(scores, 0, sizeof scores);
    r->desk.yarn = !from->no_yarn;
    const int64_t first = late && late < from->context ? from->context - late : 0;
    int code = open_sessions(&r->desk, result, from, method);
    code = code == CLI_OK ? score(result, scores, r, from, (int)first, method->seed) : code;
    for (int s = 0; s < LM_SESSIONS_MAX; s++) {
        free(scores[s].rows);
    }
    lm_desk_clear(&r->desk);
    return code;
}
