/*
 * lm_eval.c - `kna eval`: what an attention costs a model, on texts and on tasks with known answers, beside full attention.
 *
 * Stages: options, texts, model, two sessions, the run (lm_eval_run.c), then table, JSON or page. Invariant: nothing long begins
 * before everything that can be refused has been looked at.
 */
#include "lm_eval.h"

#include "page.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct request {
    const char *model;
    cli_texts files;
    int64_t threads;
    int verbose;
    lm_choice choice;
    int reference;
    const char *tasks, *html;
    cli_list lengths, depths;
    int64_t context, chunks, samples;
    uint64_t seed;
    int json;
} request;

#define AT(member) offsetof(request, member)
#define END                                          \
    {                                                \
        NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL \
    }

static const cli_option input_options[] = {
    { "model", 'm', CLI_TEXT, AT(model), 0, 0, NULL, "FILE", "the model, a GGUF file" },
    { "file", 'f', CLI_TEXTS, AT(files), 0, 0, NULL, "FILE",
      "a text, several times for several; - is standard input (default: documents in the cache)" },
    { "threads", 0, CLI_INT, AT(threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { "verbose", 0, CLI_FLAG, AT(verbose), 0, 0, NULL, NULL, "let llama.cpp's log through to standard error" },
    END,
};

static const char *const reference_names[] = { "off", "exact", NULL };

static const cli_option eval_options[] = {
    { "tasks", 0, CLI_TEXT, AT(tasks), 0, 0, NULL, "A,B,..",
      "of text, passkey, needles, kv, repeat, tracking, common, frequent (default all)" },
    { "ctx", 'c', CLI_INT, AT(context), 4, 1 << 20, NULL, "N",
      "text: tokens per window; the second half of each is scored (default 2048)" },
    { "chunks", 0, CLI_INT, AT(chunks), 1, 1 << 20, NULL, "N", "text: at most N windows of each (default 4)" },
    { "lengths", 0, CLI_LIST, AT(lengths), 1, 1 << 20, NULL, "LIST", "tasks: tokens of a prompt, ascending (default 2048,4096)" },
    { "depths", 0, CLI_LIST, AT(depths), 0, 100, NULL, "LIST",
      "tasks: where in it the answer lies, in percent, ascending (default 10,50,90)" },
    { "samples", 0, CLI_INT, AT(samples), 1, 1000, NULL, "N", "tasks: prompts of each length (default 2)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "of prompts and intervals (default 0)" },
    { "reference", 0, CLI_CHOICE, AT(reference), 0, 0, reference_names, "NAME",
      "full attention is off, llama.cpp -fa 0, or exact, ours (default off)" },
    { "html", 0, CLI_TEXT, AT(html), 0, 0, NULL, "FILE", "write the figures as one self-contained page" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the figures as JSON instead of a table" },
    END,
};

static const cli_option method_options[] = {
    { "method", 0, CLI_CHOICE, AT(choice.method), 0, 0, lm_method_names, "NAME",
      "knn, topk or exact; off: llama.cpp's own attention (default knn)" },
    { "fa", 0, CLI_INT, AT(choice.flash), 0, 1, NULL, "0|1", "off: llama.cpp's -fa 0 or -fa 1 (default 1)" },
    END,
};

static const cli_usage usage = {
    "eval",
    "-m model.gguf [-f text.txt]... [--method NAME] [--html FILE] [options]",
    "What an attention costs a model, beside full attention on the same inputs: on texts\n"
    "perplexity, Kullback-Leibler divergence and equal most likely tokens; on tasks made\n"
    "from a seed and those texts how well the right answer is found. A small model fails\n"
    "many tasks with any attention, so three measures are given: match (what the model\n"
    "says by itself is right), accuracy (share of the right answer's tokens that are the\n"
    "most likely ones, the right ones before given) and their mean log-probability.\n"
    "Differences come with a paired bootstrap 95 % interval.\n",
};

/* ------------------------------------------------------------------ options */

static int parse_tasks(eval_plan *plan, const char *text)
{
    int wanted[LM_TASK_COUNT] = { 0 };
    plan->with_text = !text;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        size_t length = strcspn(at, ",");
        int t = 0;
        while (t < LM_TASK_COUNT && (strlen(lm_task_names[t]) != length || strncmp(lm_task_names[t], at, length) != 0)) {
            t++;
        }
        if (t < LM_TASK_COUNT) {
            wanted[t] = 1;
        } else if (length == 4 && strncmp(at, "text", 4) == 0) {
            plan->with_text = 1;
        } else {
            return cli_refuse("--tasks: '%.*s' is none of text, passkey, needles, kv, repeat, tracking, common, frequent",
                              (int)length, at);
        }
    }
    for (int t = 0; t < LM_TASK_COUNT; t++) {
        if (!text || wanted[t]) {
            plan->tasks[plan->task_count++] = t;
        }
    }
    return CLI_GO_ON;
}

static int check_list(const char *name, const cli_list *list)
{
    for (int i = 1; i < list->count; i++) {
        if (list->values[i] <= list->values[i - 1]) {
            return cli_refuse("--%s: the list must ascend, %d comes after %d", name, (int)list->values[i],
                              (int)list->values[i - 1]);
        }
    }
    return CLI_GO_ON;
}

static int parse(request *r, eval_plan *plan, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", input_options, r },
        { "What is measured", eval_options, r },
        { "Attention", method_options, r },
        { "Settings of the attention", lm_choice_settings, &r->choice },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->model) : code;
    code = code == CLI_GO_ON ? parse_tasks(plan, r->tasks) : code;
    code = code == CLI_GO_ON ? check_list("lengths", &r->lengths) : code;
    code = code == CLI_GO_ON ? check_list("depths", &r->depths) : code;
    plan->chunks = (int)r->chunks;
    return code == CLI_GO_ON && r->html && cli_output_check(r->html) != CLI_OK ? CLI_FAILED : code;
}

static int list_values(int *to, const cli_list *list)
{
    for (int i = 0; i < list->count; i++) {
        to[i] = (int)list->values[i];
    }
    return list->count;
}

static void describe(eval_result *result, const request *r)
{
    static const lm_choice none = LM_CHOICE;
    const lm_attention chosen = lm_choice_attention(&r->choice);
    const lm_attention full = lm_attention_of(r->reference ? LM_EXACT : LM_OFF, 0, &none);
    result->names[EVAL_FULL] = lm_attention_name(&full);
    result->names[EVAL_CHOSEN] = lm_attention_name(&chosen);
    result->length_count = list_values(result->lengths, &r->lengths);
    result->depth_count = list_values(result->depths, &r->depths);
    result->context = (int)r->context;
    result->samples = (int)r->samples;
    result->seed = r->seed;
    lm_machine_name(result->machine, sizeof result->machine);
}

/* ------------------------------------------------------------------ texts */

/* Where scripts/fetch_document.sh puts the documents. */
static int documents_folder(char *path, size_t size)
{
    const char *given = getenv("KNA_DOCUMENTS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = given && given[0]   ? snprintf(path, size, "%s", given)
                 : cache && cache[0] ? snprintf(path, size, "%s/knnattn/linux-doc-6.1", cache)
                                     : snprintf(path, size, "%s/.cache/knnattn/linux-doc-6.1", home ? home : "");
    return length > 0 && (size_t)length < size;
}

#define DEFAULT_TEXTS 2
typedef char text_path[1024];

/* Without -f: two documents of the cache, into the request. */
static int default_texts(request *r, text_path *paths)
{
    static const char *const names[DEFAULT_TEXTS] = { "filesystems/path-lookup.rst", "filesystems/vfs.rst" };
    char folder[512] = "";
    int found = documents_folder(folder, sizeof folder);
    for (int i = 0; i < DEFAULT_TEXTS; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
        found = found && access(paths[i], R_OK) == 0;
        r->files.values[i] = paths[i];
    }
    r->files.count = DEFAULT_TEXTS;
    return found ? CLI_OK
                 : cli_refuse("a text is missing: give one by -f FILE, or have scripts/fetch_document.sh put its documents into %s",
                              folder);
}

static int read_sources(eval_plan *plan, request *r, text_path *paths)
{
    int code = r->files.count == 0 ? default_texts(r, paths) : CLI_OK;
    for (int i = 0; code == CLI_OK && i < r->files.count; i++) {
        eval_source *source = &plan->sources[i];
        source->path = r->files.values[i];
        code = lm_read_text(&source->text, &source->bytes, source->path);
        plan->source_count += code == CLI_OK;
    }
    return code;
}

/* The beginning of every text, one behind the other. */
static int make_filler(eval_plan *plan, const request *r)
{
    const size_t most = (size_t)1 << 20;
    lm_error error = { { 0 } };
    size_t bytes = 0, room = 1;
    for (int i = 0; i < plan->source_count; i++) {
        room += plan->sources[i].bytes + 1;
    }
    plan->filler_text = malloc(room);
    for (int i = 0; plan->filler_text && i < plan->source_count; i++) {
        size_t taken = plan->sources[i].bytes < most ? plan->sources[i].bytes : most;
        memcpy(plan->filler_text + bytes, plan->sources[i].text, taken);
        bytes += taken;
        plan->filler_text[bytes++] = '\n';
    }
    if (!plan->filler_text) {
        return cli_fail("out of memory");
    }
    int status = lm_filler_make(&plan->filler, plan->filler_text, bytes, eval_count, plan->model, &error);
    int longest = (int)r->lengths.values[r->lengths.count - 1];
    if (status == LM_OK && plan->filler.tokens < longest) {
        cli_warn("the texts have %d tokens in all, prompts of %d repeat them", (int)plan->filler.tokens, longest);
    }
    return lm_failed(status, &error);
}

static int prepare_texts(eval_plan *plan, const request *r)
{
    lm_error error = { { 0 } };
    int code = CLI_OK;
    for (int i = 0; code == CLI_OK && plan->with_text && i < plan->source_count; i++) {
        eval_source *source = &plan->sources[i];
        code = lm_failed(lm_tokenize(&source->tokens, plan->model, source->text, source->bytes, 0, &error), &error);
        if (code == CLI_OK && source->tokens.count < r->context) {
            code =
                cli_refuse("%s: %d tokens, fewer than one window of %d (-c)", source->path, source->tokens.count, (int)r->context);
        }
    }
    return code == CLI_OK && plan->task_count > 0 ? make_filler(plan, r) : code;
}

static void plan_free(eval_plan *plan)
{
    for (int i = 0; i < plan->source_count; i++) {
        free(plan->sources[i].text);
        lm_tokens_free(&plan->sources[i].tokens);
    }
    lm_filler_free(&plan->filler);
    free(plan->filler_text);
}

/* ------------------------------------------------------------------ sessions */

static int positions_of(const eval_plan *plan, const request *r)
{
    int64_t tasks = plan->task_count > 0 ? r->lengths.values[r->lengths.count - 1] + LM_ANSWER_ROOM : 0;
    int64_t text = plan->with_text ? r->context : 0;
    return (int)(tasks > text ? tasks : text);
}

static void warn_beyond(const eval_plan *plan, const request *r, const lm_model *model)
{
    int trained = lm_model_positions(model);
    if (plan->with_text && r->context > trained) {
        cli_warn("-c %d is more than the %d positions this model was trained with", (int)r->context, trained);
    }
    if (plan->task_count > 0 && r->lengths.values[r->lengths.count - 1] > trained) {
        cli_warn("--lengths: %d is more than the %d positions this model was trained with",
                 (int)r->lengths.values[r->lengths.count - 1], trained);
    }
}

static int open_sessions(lm_desk *desk, eval_result *result, const request *r, const eval_plan *plan)
{
    static const lm_choice none = LM_CHOICE;
    const lm_attention full = lm_attention_of(r->reference ? LM_EXACT : LM_OFF, 0, &none), chosen = lm_choice_attention(&r->choice);
    int positions = positions_of(plan, r);
    int code = lm_desk_session(desk, positions, 0, (int)r->threads, &full);
    code = code == CLI_OK ? lm_desk_session(desk, positions, 0, (int)r->threads, &chosen) : code;
    result->model = lm_model_name(desk->model);
    result->threads = code == CLI_OK ? lm_session_threads(desk->group.sessions[0]) : 0;
    return code;
}

/* ------------------------------------------------------------------ answer */

static int put_page(const void *result, FILE *page)
{
    return eval_html(result, page);
}

static int work(const request *r, eval_result *result, lm_desk *desk, eval_plan *plan)
{
    const lm_input input = { r->model, NULL, r->threads, r->verbose };
    int code = lm_desk_open(desk, &input);
    plan->model = desk->model;
    code = code == CLI_OK ? prepare_texts(plan, r) : code;
    code = code == CLI_OK ? eval_fit(plan, result) : code;
    if (code == CLI_OK) {
        warn_beyond(plan, r, desk->model);
        code = open_sessions(desk, result, r, plan);
    }
    code = code == CLI_OK ? eval_run(result, desk, plan) : code;
    if (code == CLI_OK) {
        code = r->json ? eval_json(result) : eval_print(result);
    }
    return code == CLI_OK && r->html ? page_write(r->html, put_page, result) : code;
}

int kna_cmd_eval(int argc, char **argv)
{
    request r = { .choice = LM_CHOICE,
                  .lengths = { 2, { 2048, 4096 } },
                  .depths = { 3, { 10, 50, 90 } },
                  .context = 2048,
                  .chunks = 4,
                  .samples = 2 };
    eval_plan plan = { .source_count = 0 };
    eval_result result = { .text_count = 0 };
    lm_desk desk = { 0 };
    text_path paths[DEFAULT_TEXTS];
    r.choice.method = LM_KNN;
    int code = parse(&r, &plan, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    describe(&result, &r);
    code = read_sources(&plan, &r, paths);
    code = code == CLI_OK ? work(&r, &result, &desk, &plan) : code;
    eval_result_free(&result);
    plan_free(&plan);
    lm_desk_close(&desk);
    return code;
}
