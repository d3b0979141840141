/*
 * share.c - sessions with a real model: a cache given to others predicts the same, with and without flash attention; a session
 * switches between llama.cpp's attention and ours and back; positions beyond the model's are stretched.
 */
#include "test.h"

#include "lm.h"
#include "lm_score.h"

#include <unistd.h>

static lm_model *model;
static lm_error error;
static int32_t tokens[900];

static lm_session *session_with(int method, int flash, int positions, int yarn)
{
    lm_session *session = NULL;
    lm_session_options options = { positions, 512, 1, 1, LM_ATTENTION, yarn, 1, 0 };
    options.attention.method = method;
    options.attention.flash = flash;
    EXPECT_THAT(lm_session_open(&session, model, &options, &error) == LM_OK, "%s", error.text);
    EXPECT_INT(lm_session_warm(session, &error), LM_OK);
    return session;
}

static void read_tokens(lm_session *session, int count)
{
    for (int at = 0; at < count; at += 512) {
        int n = count - at < 512 ? count - at : 512;
        EXPECT_THAT(lm_session_decode(session, tokens + at, n, 1, &error) == LM_OK, "%s", error.text);
    }
}

static const float *next_logits(lm_session *session, int at)
{
    EXPECT_THAT(lm_session_decode(session, &tokens[at], 1, 1, &error) == LM_OK, "%s", error.text);
    return lm_session_logits(session, 0);
}

/* Of what b says next from what a says, both given the token at `at`. */
static double divergence(lm_session *a, lm_session *b, int at)
{
    const float *reference = next_logits(a, at);
    return lm_divergence(reference, next_logits(b, at), lm_model_vocab(model));
}

/* Between attentions that should agree: this model's weights of 4 bits make something of every rounding. A wrong cache: nats. */
#define NEAR 0.05

/* Given twice over: what the receivers held before does not matter. The same attention says the very same. */
static void shared(void)
{
    lm_session *from = session_with(LM_EXACT, 1, 900, 0), *plain = session_with(LM_OFF, 0, 900, 0),
               *twin = session_with(LM_EXACT, 1, 1000, 0), *to[2] = { plain, twin };
    read_tokens(plain, 60);
    for (int depth = 300; depth <= 700; depth += 400) {
        EXPECT_INT(lm_session_truncate(from, 0, &error), LM_OK);
        read_tokens(from, depth);
        EXPECT_THAT(lm_session_share(to, 2, from, &error) == LM_OK, "%s", error.text);
        EXPECT_INT(lm_session_count(plain), depth);
        EXPECT_INT(lm_session_count(twin), depth);
        EXPECT_NEAR(divergence(from, twin, depth), 0.0, 0.0);
        EXPECT_INT(lm_session_truncate(from, depth, &error), LM_OK);
        EXPECT_NEAR(divergence(from, plain, depth), 0.0, NEAR);
        double bytes = (double)lm_session_cache_bytes(from) / (depth + 1);
        EXPECT_THAT(bytes >= 30 * 2 * 192 * 2 && bytes < 30 * 2 * 192 * 2 + 64, "%g bytes per token", bytes);
    }
    lm_session *small = session_with(LM_OFF, 1, 300, 0);
    EXPECT_INT(lm_session_share(&small, 1, from, &error), LM_ELIMIT);
    EXPECT_INT(lm_session_share(to, 2, plain, &error), LM_EINVAL);
    lm_session_close(small);
    lm_session_close(twin);
    lm_session_close(plain);
    lm_session_close(from);
}

static int64_t rows_of(const lm_session *session)
{
    lm_usage usage;
    lm_session_usage(session, &usage);
    return usage.rows;
}

/* Steps of one shape throughout, whose graphs llama.cpp would keep. */
static void switched(void)
{
    const int64_t rows = 30 * 9;
    lm_session *session = session_with(LM_EXACT, 1, 300, 0), *full = session_with(LM_OFF, 1, 300, 0);
    lm_attention exact = LM_ATTENTION, off = LM_ATTENTION;
    off.method = LM_OFF;
    read_tokens(session, 200);
    read_tokens(full, 200);
    lm_session_reset_figures(session);
    int64_t want = 0;
    for (int i = 0; i < 8; i++) {
        int ours = i / 2 % 2 == 0;
        EXPECT_INT(lm_session_attention(session, ours ? &exact : &off, &error), LM_OK);
        want += ours ? rows : 0;
        EXPECT_NEAR(divergence(full, session, 200 + i), 0.0, NEAR);
        EXPECT_INT(rows_of(session), want);
    }
    lm_attention other = off;
    other.flash = 0;
    EXPECT_INT(lm_session_attention(session, &other, &error), LM_EINVAL);
    other = exact;
    other.method = LM_KNN;
    EXPECT_INT(lm_session_attention(session, &other, &error), LM_EINVAL);
    EXPECT_INT(lm_session_attention(full, &exact, &error), LM_EINVAL);
    lm_session_close(full);
    lm_session_close(session);
}

/* Two contexts one after the other are stretched alike, and what was trained stays what it was. */
static void stretched(void)
{
    int trained = lm_model_positions(model);
    EXPECT_NEAR(lm_model_yarn(model, trained), 1.0, 0.0);
    EXPECT_NEAR(lm_model_yarn(model, 3 * trained), 3.0, 0.0);
    lm_session *plain = session_with(LM_EXACT, 1, 300, 1), *one = session_with(LM_EXACT, 1, 3 * trained, 1),
               *two = session_with(LM_EXACT, 1, 3 * trained, 1), *taken = session_with(LM_EXACT, 1, 3 * trained, 0);
    EXPECT_INT(lm_model_positions(model), trained);
    read_tokens(plain, 250);
    read_tokens(one, 250);
    read_tokens(two, 250);
    read_tokens(taken, 250);
    EXPECT_NEAR(divergence(one, two, 250), 0.0, 0.0);
    EXPECT_NEAR(divergence(plain, taken, 250), 0.0, 0.0);
    double apart = divergence(plain, one, 251);
    EXPECT_THAT(apart > 1e-4 && apart < 2.0, "%g nats", apart);
    lm_session_close(taken);
    lm_session_close(two);
    lm_session_close(one);
    lm_session_close(plain);
}

/* Any document will do: this file. */
static int read_text(void)
{
    char path[4096];
    static char text[1 << 14];
    lm_tokens all;
    snprintf(path, sizeof path, "%s/test/lm/share.c", getenv("KNA_SOURCE_DIR"));
    FILE *file = fopen(path, "rb");
    size_t bytes = file ? fread(text, 1, sizeof text, file) : 0;
    if (file) fclose(file);
    if (lm_tokenize(&all, model, text, bytes, 0, &error) != LM_OK) return 0;
    int count = all.count < 900 ? all.count : 900;
    memcpy(tokens, all.ids, (size_t)count * sizeof *tokens);
    lm_tokens_free(&all);
    return count == 900;
}

int main(int argc, char **argv)
{
    const char *path = getenv("KNA_MODEL");
    test_begin(argc, argv);
    if (!path || access(path, R_OK) != 0 || !getenv("KNA_LLAMA") || !getenv("KNA_SOURCE_DIR")) {
        printf("no model or no llama.cpp: skipped\n");
        return 77;
    }
    int status = lm_runtime_open(NULL, &error);
    status = status == LM_OK ? lm_model_open(&model, path, &error) : status;
    if (status != LM_OK || !read_text()) {
        printf("%s\n", error.text);
        return 1;
    }
    TEST(shared);
    TEST(switched);
    TEST(stretched);
    lm_model_close(model);
    lm_runtime_close();
    return test_end();
}
