/*
 * lm_speed.c - how fast sessions decode and prefill at a depth of context.
 *
 * Stage: a filled cache -> seconds. Invariant: after every measurement the caches hold exactly the first `depth` tokens again; all
 * sessions are measured in every round, in rotating order, so that slow phases of the machine meet all of them.
 */
#include "lm_internal.h"
#include "lm_run.h"

#include <stdlib.h>

/* Times of one session: decode tokens of all rounds, prefills of all rounds. */
typedef struct samples {
    double *decode[LM_SESSIONS_MAX];
    double *prefill[LM_SESSIONS_MAX];
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

static int fill(const lm_group *group, const int32_t *tokens, int depth, lm_error *error)
{
    int at = lm_session_count(group->sessions[0]);
    for (int step = 0; at < depth; step++) {
        int n = depth - at < LM_STEP ? depth - at : LM_STEP;
        int status = lm_decode_all(group->sessions, group->count, step, tokens + at, n, 0, error);
        if (status != LM_OK) {
            return status;
        }
        at += n;
    }
    return LM_OK;
}

static int timed(double *seconds, lm_session *session, const int32_t *tokens, int n, lm_error *error)
{
    lm_timing before = *lm_session_timing(session);
    int status = lm_session_decode(session, tokens, n, 1, error);
    const lm_timing *after = lm_session_timing(session);
    *seconds = (after->decode_s - before.decode_s) + (after->prefill_s - before.prefill_s);
    return status;
}

static int take_back(const lm_group *group, int depth, lm_error *error)
{
    int status = LM_OK;
    for (int s = 0; status == LM_OK && s < group->count; s++) {
        status = lm_session_truncate(group->sessions[s], depth, error);
    }
    return status;
}

static int measure_round(samples *to, const lm_group *group, const int32_t *next, int depth, int decode, int round, lm_error *error)
{
    int status = LM_OK;
    for (int i = 0; status == LM_OK && i < decode * group->count; i++) {
        int s = (round + i / group->count + i) % group->count, t = i / group->count;
        status = timed(&to->decode[s][round * decode + t], group->sessions[s], next + t, 1, error);
    }
    if (status == LM_OK) {
        status = take_back(group, depth, error);
    }
    for (int i = 0; status == LM_OK && i < group->count; i++) {
        int s = (round + i) % group->count;
        status = timed(&to->prefill[s][round], group->sessions[s], next, LM_STEP, error);
    }
    return status == LM_OK ? take_back(group, depth, error) : status;
}

static int measure(lm_speed *speeds, samples *to, const lm_group *group, const int32_t *next, int depth, int decode, int rounds,
                   lm_error *error)
{
    int status = LM_OK;
    for (int round = 0; status == LM_OK && round < rounds; round++) {
        status = measure_round(to, group, next, depth, decode, round, error);
        if (group->progress) {
            group->progress(group->user, (double)(round + 1) / (double)rounds);
        }
    }
    for (int s = 0; status == LM_OK && s < group->count; s++) {
        speeds[s].decode_s = median(to->decode[s], decode * rounds);
        speeds[s].prefill_s = median(to->prefill[s], rounds);
    }
    return status;
}

int lm_speed_at(lm_speed *speeds, const lm_group *group, const lm_tokens *text, int depth, int decode, int rounds, lm_error *error)
{
    int reach = depth + (decode > LM_STEP ? decode : LM_STEP);
    if (decode < 1 || rounds < 1 || depth < lm_session_count(group->sessions[0]) || text->count < reach) {
        return lm__fail(error, LM_EINVAL, "timing at depth %d takes %d tokens of text, there are %d", depth, reach, text->count);
    }
    size_t each = (size_t)rounds * (size_t)(decode + 1);
    double *memory = calloc(each * (size_t)group->count, sizeof *memory);
    if (!memory) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    samples to;
    for (int s = 0; s < group->count; s++) {
        to.decode[s] = memory + (size_t)s * each;
        to.prefill[s] = to.decode[s] + (size_t)rounds * (size_t)decode;
    }
    int status = fill(group, text->ids, depth, error);
    if (status == LM_OK) {
        status = measure(speeds, &to, group, text->ids + depth, depth, decode, rounds, error);
    }
    free(memory);
    return status;
}
