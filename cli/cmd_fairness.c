/*
 * cmd_fairness.c - `kna fairness`: options, and the way from operands or a model to figures.
 */
#include "fairness.h"
#include "operands.h"
#include "page.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct request {
    operand_request operands;
    fair_source source;
    const char *labels, *methods, *html;
    int64_t buckets, late;
    int by; /* -1: not said */
    int no_loss, json;
    cli_method method;
    choice choice;
    cli_machine machine;
} request;

#define AT(member) offsetof(request, member)

static const cli_option model_options[] = {
    { "model", 'm', CLI_TEXT, AT(source.model), 0, 0, NULL, "FILE", "instead of --q, --k and --v: a model, a GGUF file" },
    { "file", 'f', CLI_TEXTS, AT(source.files), 0, 0, NULL, "FILE", "the text it reads, several times for several; - is standard input" },
    { "ctx", 'c', CLI_INT, AT(source.context), 2, 1 << 24, NULL, "N", "tokens in all, as many of each text (default 2048)" },
    { "turns", 0, CLI_INT, AT(source.turns), 1, 1 << 20, NULL, "N", "the texts take turns, each in N parts (default 1)" },
    { "layers", 0, CLI_TEXT, AT(source.layers), 0, 0, NULL, "LIST", "layers, as 0,8,20 or 0-3,29 (default: all)" },
    { "no-yarn", 0, CLI_FLAG, AT(source.no_yarn), 0, 0, NULL, NULL, "do not stretch positions beyond what the model was trained with" },
    { "no-loss", 0, CLI_FLAG, AT(no_loss), 0, 0, NULL, NULL, "do not measure what topk and knn cost the model's predictions" },
    { "verbose", 0, CLI_FLAG, AT(source.verbose), 0, 0, NULL, NULL, "let llama.cpp's log through to standard error" },
    { .name = NULL },
};

static const cli_option own_options[] = {
    { "by", 0, CLI_CHOICE, AT(by), 0, 0, fair_by_names, "NAME", "groups by document, position or frequency (default: position, of several texts document)" },
    { "labels", 0, CLI_TEXT, AT(labels), 0, 0, NULL, "l.npy", "instead: group of each key (n), float32: 0, 1, .." },
    { "buckets", 0, CLI_INT, AT(buckets), 2, FAIR_GROUPS, NULL, "N", "groups by position, as equal as can be (default 8)" },
    { "methods", 0, CLI_TEXT, AT(methods), 0, 0, NULL, "A,B,..", "methods (default --method, or topk,uniform,knn)" },
    { "late", 0, CLI_INT, AT(late), 1, KNA_MAX_ROWS, NULL, "N", "only the last N queries (default: all)" },
    { "html", 0, CLI_TEXT, AT(html), 0, 0, NULL, "FILE", "write the figures as one self-contained page" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON instead of tables" },
    { .name = NULL },
};

static const cli_usage usage = {
    "fairness",
    "--q q.npy --k k.npy --v v.npy [options]\n"
    "       kna fairness -m model.gguf -f text.txt [-f text.txt]... -c N [options]",
    "What approximate attention does to groups of keys, beside full attention: the\n"
    "share of the softmax that each group has with each of some methods, what of it is\n"
    "in keys read in full, how far the outputs of queries of each group are off, and,\n"
    "of a model, what tokens of each group cost it more. Groups are documents, parts of\n"
    "the text, frequent and rare tokens, or anything, by labels. Operands are those of\n"
    "kna attend, or what a model gives its attention when it reads texts.\n",
};

/* ------------------------------------------------------------------ options */

/* What goes with a model only, and what with files only. */
static int check_form(const request *r)
{
    const operand_request *o = &r->operands;
    const fair_source *s = &r->source;
    if (!s->model) {
        if (s->files.count || s->layers || s->context || s->turns || s->no_yarn || r->no_loss || s->verbose)
            return cli_refuse("fairness: -f, -c, --turns, --layers, --no-yarn, --no-loss and --verbose go with -m");
        return operands_require(&usage, o);
    }
    if (o->q || o->k || o->v || o->mask || o->slopes || o->sinks || o->kv_type || o->causal_shift)
        return cli_refuse("fairness: --q, --k, --v, --mask, --slopes, --sinks, --kv-type and --causal-shift do not go with -m");
    if (!r->no_loss && choice_is_any(&r->choice))
        return cli_refuse("fairness: losses are the plugin's, which has no --diverse, --landmarks, --stratify and --tail: add --no-loss");
    return cli_require(&usage, "file", s->files.count ? s->files.values[0] : NULL);
}

static int check_groups(request *r)
{
    if (r->labels && (r->buckets || r->by >= 0)) return cli_refuse("fairness: --labels and %s exclude each other", r->buckets ? "--buckets" : "--by");
    if (r->labels) r->by = FAIR_BY_LABELS;
    if (r->by < 0) r->by = r->source.files.count > 1 && !r->buckets ? FAIR_BY_DOCUMENT : FAIR_BY_POSITION;
    if (r->buckets && r->by != FAIR_BY_POSITION) return cli_refuse("fairness: --buckets goes with --by position");
    if (!r->buckets) r->buckets = 8;
    return CLI_GO_ON;
}

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Operands", operand_file_options, &r->operands },
        { "A model", model_options, r },
        { "Groups and methods", own_options, r },
        { "What attention means", operand_meaning_options, &r->operands },
        { "Which keys are read", cli_method_options, &r->method },
        { "Heads that are not all alike, and global context", choice_options, &r->choice },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = check_form(r);
    if (code == CLI_GO_ON) code = check_groups(r);
    if (code == CLI_GO_ON && r->html && cli_output_check(r->html) != CLI_OK) code = CLI_FAILED;
    if (!r->source.context) r->source.context = 2048;
    if (!r->source.turns) r->source.turns = 1;
    r->source.threads = r->machine.threads;
    return code;
}

/* A name of the list --methods; *list moves behind it. */
static int next_method(const char **list, int *method)
{
    const size_t length = strcspn(*list, ",");
    for (int i = 0; i < KNA_METHOD_COUNT; i++) {
        const char *name = kna_method_name(i);
        if (strlen(name) != length || strncmp(name, *list, length) != 0) continue;
        *method = i;
        *list += length + ((*list)[length] == ',');
        return CLI_OK;
    }
    return cli_refuse("--methods: '%.*s' is no method", (int)length, *list);
}

static int find_methods(fair_result *result, const request *r)
{
    const char *list = r->methods;
    if (!list) list = r->method.method == KNA_EXACT ? "topk,uniform,knn" : kna_method_name(r->method.method);
    while (*list) {
        if (result->method_count == FAIR_METHODS) return cli_refuse("--methods: more than %d methods", FAIR_METHODS);
        const int at = result->method_count++, code = next_method(&list, &result->methods[at]);
        if (code != CLI_OK) return code;
        for (int i = 0; i < at; i++)
            if (result->methods[i] == result->methods[at]) return cli_refuse("--methods: %s is there twice", kna_method_name(result->methods[at]));
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ operands */

static int explain(const kna_context *context, int status, const void *asked)
{
    return operands_explain(context, status, asked);
}

static int explain_model(const kna_context *context, int status, const void *unused)
{
    (void)unused;
    return cli_status(context, status);
}

/* One layer, on files; the set borrows from the operands. */
static int read_operands(fair_set *set, fair_layer *layer, operands *o, fair_plan *plan, kna_context *context, const request *r)
{
    const int code = operands_read(o, context, &r->operands);
    if (code != CLI_OK) return code;
    *layer = (fair_layer){ -1, 0, o->q_rows, o->k_rows, o->v_rows };
    *set = (fair_set){ .layers = layer, .count = 1, .n = o->k_rows.rows };
    plan->explain = explain;
    plan->user = &r->operands;
    return CLI_OK;
}

static int take_model(fair_set *set, fair_plan *plan, const request *r)
{
    plan->explain = explain_model;
    return fair_take(set, &r->source);
}

/* ------------------------------------------------------------------ command */

static int show(const request *r, const fair_result *result)
{
    int code = CLI_OK;
    if (r->json) code = fair_json(result);
    else fair_print(result);
    return code == CLI_OK && r->html ? page_write(r->html, fair_html, result) : code;
}

static int work(const request *r, fair_result *result, kna_context *context)
{
    operands o = { .q = { .data = NULL } };
    fair_layer layer;
    fair_set set = { .layers = NULL };
    fair_groups groups = { .of = NULL };
    fair_plan plan = { &r->method, &r->choice, KNA_ATTEND_OPTIONS, r->late, NULL, NULL };
    int code = r->source.model ? take_model(&set, &plan, r) : read_operands(&set, &layer, &o, &plan, context, r);
    operands_fill(&plan.meaning, &o, &r->operands);
    if (r->source.model) plan.meaning.causal = 1;
    result->groups = &groups;
    result->model = set.model;
    if (code == CLI_OK) code = fair_groups_find(&groups, &set, r->by, r->labels, r->buckets);
    if (code == CLI_OK) code = fair_measure(result, context, &set, &plan);
    if (code == CLI_OK && set.model && !r->no_loss) code = fair_lose(result, &set, &r->source, &r->method, r->late);
    if (code == CLI_OK) code = show(r, result);
    fair_groups_free(&groups);
    fair_give_back(&set);
    operands_free(&o);
    return code;
}

int kna_cmd_fairness(int argc, char **argv)
{
    request r = { .by = -1, .method = CLI_METHOD, .machine = CLI_MACHINE };
    fair_result result = { .method_count = 0 };
    kna_context *context = NULL;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    code = find_methods(&result, &r);
    if (code == CLI_OK) code = cli_context(&context, &r.machine);
    if (code == CLI_OK) code = work(&r, &result, context);
    fair_result_free(&result);
    kna_context_free(context);
    return code;
}
