/* check_plain.c - what has no levels of its own: conversions of halves, types, packing, and top-k over every level's kernels. */
#include "check.h"

#include <fnmatch.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- halves, exhaustively */
static void half_to_float(void)
{
    for (unsigned h = 0; h < 1u << 16; h++) {
        double got = (double)kna__f16_to_float((uint16_t)h), want = check_f16((uint16_t)h);
        EXPECT_THAT((isnan(got) && isnan(want)) || (got == want && signbit(got) == signbit(want)), "f16 %04x: %g, expected %g", h,
                    got, want);
        uint32_t bits = kna__float_to_bits(kna__bf16_to_float((uint16_t)h));
        EXPECT_THAT(bits == h << 16, "bf16 %04x: bits %08x", h, bits);
    }
}

static void half_there_and_back(void)
{
    for (unsigned h = 0; h < 1u << 16; h++) {
        float f = kna__f16_to_float((uint16_t)h), b = kna__bf16_to_float((uint16_t)h);
        uint16_t again = kna__float_to_f16(f), bagain = kna__float_to_bf16(b);
        EXPECT_THAT(isnan(f) ? isnan(kna__f16_to_float(again)) : again == h, "f16 %04x comes back as %04x", h, again);
        EXPECT_THAT(isnan(b) ? isnan(kna__bf16_to_float(bagain)) : bagain == h, "bf16 %04x comes back as %04x", h, bagain);
    }
}

/* The nearest half to a finite |x|, by binary search over the ordered positive halves; ties to the even code. `limit` is the
 * code of infinity, read as one step beyond the largest number. */
static uint16_t nearest(double x, uint16_t limit, double (*value)(uint16_t))
{
    unsigned low = 0, high = limit;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        *(value((uint16_t)middle) <= x ? &low : &high) = middle;
    }
    double below = value((uint16_t)low);
    double above = high == limit ? 2 * below - value((uint16_t)(low - 1)) : value((uint16_t)high);
    bool is_up = x - below > above - x || (x - below == above - x && low % 2 == 1);
    return (uint16_t)(is_up ? high : low);
}

static double bf16_value(uint16_t h)
{
    int exponent = h >> 7 & 255, fraction = h & 127;
    return exponent == 0 ? ldexp(fraction, -133) : ldexp(128 + fraction, exponent - 134);
}

static void one_rounding(float x)
{
    uint32_t bits = kna__float_to_bits(x);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint16_t f16 = kna__float_to_f16(x), bf16 = kna__float_to_bf16(x);
    if (isnan(x)) {
        EXPECT_THAT(isnan(check_f16(f16)) && (bf16 & 0x7fff) > 0x7f80, "NaN %08x: %04x, %04x", bits, f16, bf16);
        return;
    }
    double magnitude = fabs((double)x);
    uint16_t want_f16 = isinf(x) ? 0x7c00 : nearest(magnitude, 0x7c00, check_f16);
    uint16_t want_bf16 = isinf(x) ? 0x7f80 : nearest(magnitude, 0x7f80, bf16_value);
    EXPECT_THAT(f16 == (sign | want_f16), "%a to f16: %04x, expected %04x", (double)x, f16, sign | want_f16);
    EXPECT_THAT(bf16 == (sign | want_bf16), "%a to bf16: %04x, expected %04x", (double)x, bf16, sign | want_bf16);
}

/* Every half, the point half way to the next one, the floats next to both, and random bits. */
static void float_to_half(void)
{
    for (unsigned h = 0; h < 1u << 16; h++) {
        uint32_t f16 = kna__float_to_bits(kna__f16_to_float((uint16_t)h)), bf16 = h << 16;
        for (uint32_t step = 0; step < 3; step++) {
            one_rounding(kna__bits_to_float(f16 - 1 + step));
            one_rounding(kna__bits_to_float(f16 + 0xfff + step));
            one_rounding(kna__bits_to_float(bf16 - 1 + step));
            one_rounding(kna__bits_to_float(bf16 + 0x7fff + step));
        }
        one_rounding(kna__bits_to_float((uint32_t)test_random()));
        one_rounding((float)(test_normal() * 0x1p-15));  /* subnormal halves */
        one_rounding((float)(65504 + 40 * test_normal())); /* near their largest */
    }
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) static uint16_t by_hardware(float x)
{
    return (uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}

/* A million floats of all magnitudes against the instruction. */
static void float_to_half_hardware(void)
{
    for (uint32_t i = 0; kna_cpu_is_present(KNA_CPU_AVX2) && i < 1u << 20; i++) {
        float x = kna__bits_to_float(i << 12 | (uint32_t)test_below(1 << 12));
        uint16_t got = kna__float_to_f16(x), want = by_hardware(x);
        EXPECT_THAT(isnan(x) ? isnan(check_f16(got)) : got == want, "%a to f16: %04x, the instruction gives %04x", (double)x, got,
                    want);
    }
}
#endif

/* ---- types */
static void type_sizes(void)
{
    static const char *const names[KNA_TYPE_COUNT] = { "f32", "f16", "bf16", "i8", "q8_0" };
    static const size_t per_32[KNA_TYPE_COUNT] = { 128, 64, 64, 32, 34 };
    for (int type = 0; type < KNA_TYPE_COUNT; type++) {
        EXPECT_TEXT(kna_type_name(type), names[type]);
        for (int64_t d = 0; d <= KNA_MAX_DIM; d++) {
            size_t want = type == KNA_Q8_0 && d % 32 ? 0 : per_32[type] * (size_t)d / 32;
            EXPECT_INT(kna_type_row_bytes(type, d), want);
            EXPECT_INT(kna__row_bytes(type, d), want);
        }
        EXPECT_INT(kna_type_row_bytes(type, -1), 0);
        EXPECT_INT(kna_type_row_bytes(type, KNA_MAX_DIM + 1), 0);
    }
    EXPECT(kna_type_name(-1) == NULL && kna_type_name(KNA_TYPE_COUNT) == NULL);
    EXPECT_INT(kna_type_row_bytes(-1, 32) + kna_type_row_bytes(KNA_TYPE_COUNT, 32), 0);
}

/* A bad number at each place, and two of them: the first is found. */
static void nonfinite_at(int type, void (*put)(char *row, size_t c), size_t unit)
{
    enum { D = 96 };
    char row[4 * D];
    memset(row, 0, sizeof row);
    EXPECT_INT(kna__find_nonfinite(type, row, 1, D), -1);
    for (size_t c = 0; c < D; c++) {
        memset(row, 0, sizeof row);
        put(row, D - 1);
        put(row, c);
        EXPECT_INT(kna__find_nonfinite(type, row, 1, D), c / unit * unit);
        EXPECT_INT(kna__find_nonfinite(type, row, 1, (int64_t)(c / unit * unit)), -1);
    }
}

static void put_f32_nan(char *row, size_t c) { memcpy(row + 4 * c, &(float){ NAN }, 4); }
static void put_f32_inf(char *row, size_t c) { memcpy(row + 4 * c, &(float){ -INFINITY }, 4); }
static void put_f16_nan(char *row, size_t c) { memcpy(row + 2 * c, &(uint16_t){ 0xfc01 }, 2); }
static void put_f16_inf(char *row, size_t c) { memcpy(row + 2 * c, &(uint16_t){ 0x7c00 }, 2); }
static void put_bf16_nan(char *row, size_t c) { memcpy(row + 2 * c, &(uint16_t){ 0x7f81 }, 2); }
static void put_bf16_inf(char *row, size_t c) { memcpy(row + 2 * c, &(uint16_t){ 0xff80 }, 2); }
static void put_q8_0_nan(char *row, size_t c) { memcpy(row + c / 32 * 34, &(uint16_t){ 0x7e00 }, 2); }

static void nonfinite(void)
{
    nonfinite_at(KNA_F32, put_f32_nan, 1);
    nonfinite_at(KNA_F32, put_f32_inf, 1);
    nonfinite_at(KNA_F16, put_f16_nan, 1);
    nonfinite_at(KNA_F16, put_f16_inf, 1);
    nonfinite_at(KNA_BF16, put_bf16_nan, 1);
    nonfinite_at(KNA_BF16, put_bf16_inf, 1);
    nonfinite_at(KNA_Q8_0, put_q8_0_nan, 32);
    const int8_t codes[4] = { -128, 127, -1, 0 };
    const char *row = (const char *)codes;
    EXPECT_INT(kna__find_nonfinite(KNA_I8, row, 1, 4), -1);
    EXPECT_INT(kna__find_nonfinite(KNA_I8, row, NAN, 4), 0);
    EXPECT_INT(kna__find_nonfinite(KNA_I8, row, INFINITY, 4), 0);
    EXPECT_INT(kna__find_nonfinite(KNA_I8, row, NAN, 0), -1);
    const float largest[2] = { 3.40282347e38f, -1e-45f };
    EXPECT_INT(kna__find_nonfinite(KNA_F32, (const char *)largest, 1, 2), -1);
}

/* ---- packing: rows come back, and lie where scan() looks for them. */
static void pack(void)
{
    for (size_t d = 0; d <= 67; d++) {
        size_t d4 = (d + 3) / 4, bytes = d4 * 4 * KNA_BLOCK;
        uint8_t *block = test_guarded(bytes);
        int8_t rows[KNA_BLOCK][68], back[69];
        for (size_t r = 0; r < KNA_BLOCK; r++) {
            for (size_t c = 0; c < d; c++) {
                rows[r][c] = (int8_t)test_random();
            }
            kna__pack_row(block, r, rows[r], d, d4);
        }
        for (size_t r = 0; r < KNA_BLOCK; r++) {
            back[d] = 77;
            kna__unpack_row(back, block, r, d);
            EXPECT_THAT(memcmp(back, rows[r], d) == 0 && back[d] == 77, "row %zu of %zu numbers does not come back", r, d);
            for (size_t c = 0; c < 4 * d4; c++) {
                int want = c < d ? rows[r][c] : 0;
                EXPECT_INT(block[((c / 4) * 16 + r) * 4 + c % 4], want + 128);
            }
        }
        test_guarded_free(block, bytes);
    }
}

/* Codes of a quad likewise. */
static void pack_codes(void)
{
    for (size_t chunks = 1; chunks <= 5; chunks++) {
        size_t bytes = chunks * KNA_QUAD_BYTES, columns = chunks * KNA_CODE_CHUNK;
        uint8_t *quad = test_guarded(bytes), rows[KNA_QUAD][5 * KNA_CODE_CHUNK];
        for (size_t r = 0; r < KNA_QUAD; r++) {
            for (size_t c = 0; c < columns; c++) rows[r][c] = (uint8_t)test_below(16);
            kna__pack_codes(quad, r, rows[r], chunks);
        }
        for (size_t r = 0; r < KNA_QUAD; r++) {
            for (size_t c = 0; c < columns; c++) {
                uint8_t byte = quad[((c / 32) * 4 + r) * 16 + c % 16];
                EXPECT_INT(kna__code_at(quad, r, c), rows[r][c]);
                EXPECT_INT(c % 32 < 16 ? byte & 15 : byte >> 4, rows[r][c]);
            }
        }
        test_guarded_free(quad, bytes);
    }
}

/* ---- top-k, against sorting */
typedef struct pair {
    float value;
    int32_t id;
} pair;

static int by_value_then_id(const void *a, const void *b)
{
    const pair *x = a, *y = b;
    return x->value != y->value ? (x->value < y->value) - (x->value > y->value) : (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

enum { TOPK_MOST = 1500, TOPK_KINDS = 8 };

static float topk_value(int kind, size_t i, size_t n)
{
    switch (kind) {
    case 0:
        return (float)test_normal();
    case 1:
        return (float)test_below(5); /* many ties */
    case 2:
        return 1.5f;
    case 3:
        return test_below(4) ? -INFINITY : (float)test_normal();
    case 4:
        return -INFINITY;
    case 5:
        return (float)i; /* ascending */
    case 6:
        return (float)(n - i);
    default:
        return test_below(2) ? 0.0f : -0.0f; /* equal, though of two signs */
    }
}

static void topk_once(const kna__kernels *kernels, int kind, size_t n, size_t k)
{
    static pair pairs[TOPK_MOST];
    int32_t want[TOPK_MOST];
    float *x = test_guarded(n * sizeof(float)), *scratch_max = test_guarded((n / 16 + 1 + n) * sizeof(float));
    int32_t *ids = test_guarded(k * sizeof(int32_t)), *scratch_ids = test_guarded(n * sizeof(int32_t));
    for (size_t i = 0; i < n; i++) {
        x[i] = topk_value(kind, i, n);
        pairs[i] = (pair){ x[i], (int32_t)i };
    }
    qsort(pairs, n, sizeof pairs[0], by_value_then_id);
    for (size_t i = 0; i < k; i++) {
        want[i] = pairs[i].id;
    }
    qsort(want, k, sizeof want[0], by_id);
    kna__topk(kernels, ids, x, n, k, scratch_ids, scratch_max);
    EXPECT_THAT(memcmp(ids, want, k * sizeof want[0]) == 0, "%s: top %zu of %zu, kind %d", kna_cpu_name(kernels->cpu), k, n, kind);
    EXPECT_NEAR(kna__kth_largest(x, n, k), pairs[k - 1].value, 0);
    test_guarded_free(x, n * sizeof(float));
    test_guarded_free(scratch_max, (n / 16 + 1 + n) * sizeof(float));
    test_guarded_free(ids, k * sizeof(int32_t));
    test_guarded_free(scratch_ids, n * sizeof(int32_t));
}

static void topk(void)
{
    for (size_t l = 0; check_levels[l]; l++) {
        for (int kind = 0; kind < TOPK_KINDS; kind++) {
            for (size_t n = 2; n <= 67; n++) {
                topk_once(check_levels[l], kind, n, 1 + test_below(n - 1));
            }
            for (size_t n = 100; n < TOPK_MOST; n += 1 + test_below(100)) {
                topk_once(check_levels[l], kind, n, 1 + test_below(test_below(2) ? n - 1 : 12));
                topk_once(check_levels[l], kind, n, n - 1);
            }
        }
    }
}

/* ---- exp and tanh over their ranges: the largest error found, in u, is worth seeing. */
static void accuracy(void)
{
    enum { COUNT = 4096 };
    static float x[COUNT], y[COUNT];
    for (size_t l = 0; check_levels[l]; l++) {
        double most_exp = 0, most_tanh = 0; /* the argument is exact here: exp's own error is left */
        for (int round = 0; round < 50; round++) {
            for (size_t i = 0; i < COUNT; i++) {
                x[i] = y[i] = (float)(-87 + 175 * test_uniform()) * (round % 2 ? 1.0f : 0.01f);
            }
            check_levels[l]->exp_sum(y, 0, COUNT);
            for (size_t i = 0; i < COUNT; i++) {
                double e = exp((double)x[i]);
                most_exp = fmax(most_exp, fabs((double)y[i] - e) / e / CHECK_U);
                y[i] = x[i];
            }
            check_levels[l]->softcap(y, 20, COUNT);
            for (size_t i = 0; i < COUNT; i++) {
                most_tanh = fmax(most_tanh, fabs((double)y[i] / 20 - tanh((double)x[i] / 20)) / CHECK_U);
            }
        }
        printf("     %-10s exp %.2f u, tanh %.2f u\n", kna_cpu_name(check_levels[l]->cpu), most_exp, most_tanh);
        EXPECT_THAT(most_exp <= 2, "%s: exp is off by %.2f u", kna_cpu_name(check_levels[l]->cpu), most_exp);
        EXPECT_THAT(most_tanh <= 6, "%s: tanh is off by %.2f u", kna_cpu_name(check_levels[l]->cpu), most_tanh);
    }
}

/* ---- levels */
static void levels(void)
{
    static const char *const names[KNA_CPU_COUNT] = { "best", "ref", "avx2", "avx512", "avx512vnni", "neon" };
    for (int cpu = 0; cpu < KNA_CPU_COUNT; cpu++) {
        EXPECT_TEXT(kna_cpu_name(cpu), names[cpu]);
        EXPECT((kna__kernels_get(cpu) != NULL) == (kna_cpu_is_present(cpu) != 0));
        EXPECT(cpu == KNA_CPU_BEST || !kna_cpu_is_present(cpu) || kna__kernels_get(cpu)->cpu == cpu);
    }
    EXPECT(kna_cpu_is_present(KNA_CPU_BEST) && kna_cpu_is_present(KNA_CPU_REF));
    EXPECT(!kna_cpu_is_present(-1) && !kna_cpu_is_present(KNA_CPU_COUNT));
    EXPECT(kna_cpu_name(-1) == NULL && kna_cpu_name(KNA_CPU_COUNT) == NULL);
    EXPECT(kna__kernels_get(KNA_CPU_BEST)->cpu >= KNA_CPU_REF);
#if defined(__aarch64__)
    EXPECT_INT(kna__kernels_get(KNA_CPU_BEST)->cpu, KNA_CPU_NEON);
#endif
}

/* Every entry of the table has its check, and every level has every entry. */
static void table_is_covered(void)
{
    static const check *const lists[] = { checks_rows, checks_dense, checks_vector, checks_int8 };
    enum { ENTRIES = (sizeof(kna__kernels) - offsetof(kna__kernels, dot)) / sizeof(void (*)(void)) };
    int covered[ENTRIES] = { 0 };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (const check *c = lists[i]; c->name; c++) {
            size_t first = (c->entry - offsetof(kna__kernels, dot)) / sizeof(void (*)(void));
            for (size_t type = 0; type < (c->per_type ? KNA_TYPE_COUNT : 1); type++) {
                covered[first + type]++;
            }
        }
    }
    for (size_t e = 0; e < ENTRIES; e++) {
        EXPECT_THAT(covered[e] == 1, "entry %zu of kna__kernels has %d checks", e, covered[e]);
        for (size_t l = 0; check_levels[l]; l++) {
            void (*entry)(void);
            memcpy(&entry, (const char *)check_levels[l] + offsetof(kna__kernels, dot) + e * sizeof entry, sizeof entry);
            EXPECT_THAT(entry != NULL, "%s: entry %zu is empty", kna_cpu_name(check_levels[l]->cpu), e);
        }
    }
}

void check_plain(const char *only)
{
    static const struct {
        const char *name;
        void (*body)(void);
    } tests[] = {
        { "levels", levels },
        { "table_is_covered", table_is_covered },
        { "accuracy", accuracy },
        { "half_to_float", half_to_float },
        { "half_there_and_back", half_there_and_back },
        { "float_to_half", float_to_half },
#if defined(__x86_64__)
        { "float_to_half_hardware", float_to_half_hardware },
#endif
        { "type_sizes", type_sizes },
        { "nonfinite", nonfinite },
        { "pack", pack },
        { "pack_codes", pack_codes },
        { "topk", topk },
    };
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (!only || fnmatch(only, tests[i].name, 0) == 0) {
            test_run(tests[i].name, tests[i].body);
        }
    }
}
