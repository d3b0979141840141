/*
 * lm_speed.c - how fast sessions decode and prefill at a depth of context.
 *
 * Stage: text -> filled caches -> seconds. Invariant: after every measurement the caches hold exactly the first `depth` tokens
 * again; all contenders are measured in every round, in rotating order, so that slow phases of the machine meet all of them.
 */
#include "lm_internal.h"
#include "lm_run.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ filling */

static void tell(const lm_group *group, double share)
{
    if (group->progress) {
        group->progress(group->user, share);
    }
}

static int read_to(const lm_group *group, lm_session *session, const int32_t *tokens, int depth, lm_error *error)
{
    int status = LM_OK;
    for (int first = lm_session_count(session), at = first; status == LM_OK && at < depth;) {
        int n = depth - at < LM_STEP ? depth - at : LM_STEP;
        status = lm_session_decode(session, tokens + at, n, 0, error);
        at += n;
        tell(group, (double)(at - first) / (double)(depth - first));
    }
    return status;
}

/* What cannot be given to a session it reads itself. */
static int share(lm_fill *fill, const lm_group *group, const lm_session *reader, const int32_t *tokens, int depth, lm_error *error)
{
    int others = group->count - 1;
    int status = lm_session_share(group->sessions, others, reader, error);
    fill->is_shared = status == LM_OK;
    if (status != LM_EMODEL) {
        return status;
    }
    status = LM_OK;
    for (int s = 0; status == LM_OK && s < others; s++) {
        status = read_to(group, group->sessions[s], tokens, depth, error);
    }
    return status;
}

int lm_fill_to(lm_fill *fill, const lm_group *group, const lm_tokens *text, int depth, lm_error *error)
{
    lm_session *reader = group->sessions[group->count - 1];
    int before = lm_session_count(reader);
    lm_usage usage;
    if (depth < before || depth > text->count) {
        return lm__fail(error, LM_EINVAL, "filling to %d tokens: %d are in the cache, the text has %d", depth, before, text->count);
    }
    lm_session_reset_figures(reader);
    int status = read_to(group, reader, text->ids, depth, error);
    lm_session_usage(reader, &usage);
    *fill = (lm_fill){ .tokens = depth - before, .index_s = usage.index_s, .index_bytes = usage.index_bytes };
    fill->time_s = lm_session_timing(reader)->prefill_s + lm_session_timing(reader)->decode_s;
    fill->cache_bytes = lm_session_cache_bytes(reader);
    lm_session_reset_figures(reader);
    return status == LM_OK && depth > 0 ? share(fill, group, reader, text->ids, depth, error) : status;
}

/* ------------------------------------------------------------------ timing */

/* Times of one contender: decode tokens of all rounds, prefills of all rounds. */
typedef struct samples {
    double *decode, *prefill;
} samples;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

static int timed(double *seconds, lm_session *session, const int32_t *tokens, int n, lm_error *error)
{
    lm_timing before = *lm_session_timing(session);
    int status = lm_session_decode(session, tokens, n, 1, error);
    const lm_timing *after = lm_session_timing(session);
    *seconds = (after->decode_s - before.decode_s) + (after->prefill_s - before.prefill_s);
    return status;
}

static int take_turn(double *decode_s, double *prefill_s, const lm_contender *contender, const int32_t *next, int depth, int decode,
                     lm_error *error)
{
    lm_session *session = contender->session;
    int same = session->attention.method == contender->attention.method;
    int status = same ? LM_OK : lm_session_attention(session, &contender->attention, error);
    if (status == LM_OK) {
        status = lm_session_decode(session, next, 1, 0, error);
    }
    for (int t = 0; status == LM_OK && t < decode; t++) {
        status = timed(&decode_s[t], session, next + 1 + t, 1, error);
    }
    if (status == LM_OK) {
        status = lm_session_truncate(session, depth, error);
    }
    if (status == LM_OK) {
        status = timed(prefill_s, session, next, LM_STEP, error);
    }
    return status == LM_OK ? lm_session_truncate(session, depth, error) : status;
}

static int measure(samples *to, const lm_contender *contenders, int count, const lm_group *group, const int32_t *next, int depth,
                   int decode, int rounds, lm_error *error)
{
    for (int turn = 0; turn < rounds * count; turn++) {
        int round = turn / count, c = (round + turn) % count;
        int status = take_turn(to[c].decode + round * decode, to[c].prefill + round, &contenders[c], next, depth, decode, error);
        if (status != LM_OK) {
            return status;
        }
        tell(group, (double)(turn + 1) / (double)(rounds * count));
    }
    return LM_OK;
}

int lm_speed_reach(int depth, int decode)
{
    return depth + (decode + 1 > LM_STEP ? decode + 1 : LM_STEP);
}

int lm_speed_at(lm_speed *speeds, const lm_contender *contenders, int count, const lm_group *group, const lm_tokens *text,
                int depth, int decode, int rounds, lm_error *error)
{
    samples to[LM_SESSIONS_MAX];
    if (decode < 1 || rounds < 1 || count > LM_SESSIONS_MAX || text->count < lm_speed_reach(depth, decode)) {
        return lm__fail(error, LM_EINVAL, "timing at depth %d takes %d tokens of text, there are %d", depth,
                        lm_speed_reach(depth, decode), text->count);
    }
    size_t each = (size_t)rounds * (size_t)(decode + 1);
    double *memory = calloc(each * (size_t)count, sizeof *memory);
    if (!memory) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    for (int c = 0; c < count; c++) {
        to[c].decode = memory + (size_t)c * each;
        to[c].prefill = to[c].decode + (size_t)rounds * (size_t)decode;
    }
    int status = measure(to, contenders, count, group, text->ids + depth, depth, decode, rounds, error);
    for (int c = 0; status == LM_OK && c < count; c++) {
        speeds[c].decode_s = median(to[c].decode, decode * rounds);
        speeds[c].prefill_s = median(to[c].prefill, rounds);
    }
    free(memory);
    return status;
}
