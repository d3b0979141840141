/*
 * kernel_tmpl.h - the float kernels, written once over a vector of W floats. No include guard: each level includes it once.
 *
 * The level defines, before including:
 *   V_NAME(x)       x with the level's suffix          V_W      floats in a vector
 *   V_DOT_G         most queries per pass of dot and mix (register budget: V_DOT_G * 4 accumulators + 5)
 *   V_MR, V_NV      rows and vectors of the gemm tile    (V_MR * V_NV accumulators + V_NV + 1)
 *   vf              vector type
 *   v_load(p) v_store(p,x) v_set1(a) v_zero() v_add v_sub v_mul v_div
 *   v_max(a,b) v_min(a,b)          NaN where b is; x86 drops a NaN in a
 *   v_fma(a,b,c) = a*b+c   v_copysign(x,y) = |x| with the sign of y
 *   v_loadn(p,n) v_storen(p,x,n)   the first n < W floats, the rest read as 0 and not written
 *   v_sum(x) v_hmax(x)             across lanes
 *   v_sum4(out,a,b,c,d)            out[0..3] = the four lane sums; v_max4 likewise
 *   v_pow2(n)                      2^n for integral n in [-126,127]
 *   v_round(x)                     nearest even
 *   v_zero_below(x,y,limit)        0 where y < limit, else x
 *   vt_TYPE_load(row,c) vt_TYPE_loadn(row,c,n)   numbers c .. of a row of f32, f16, bf16, i8, q8_0 as floats (unscaled for i8)
 * and after including fills its table with V_FILL(table).
 *
 * Order of sums: lanes run over columns (dot) or rows in order (mix), so results do not depend on g, n or alignment of the
 * operands, except that dot sums lanes in a fixed tree.
 */

#define V_INLINE static inline __attribute__((always_inline))

/* Before a loop of few, known steps whose arrays must become registers; -O3 does this by itself, -O2 needs to be told. */
#if defined(__clang__)
#define V_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V_UNROLL _Pragma("GCC unroll 16")
#endif

/*
 * Rows are asked for V_AHEAD bytes before they are needed: hardware prefetchers stop at pages and lose strided rows. Measured
 * from memory (not cache) on two cores, f16, d = 64, exact decode: 13.0 GB/s without, 18.5 / 19.9 / 18.2 with 1 / 2 / 4 KiB.
 * A prefetch beyond the last row is harmless.
 */
#define V_AHEAD 2048
#define V_AHEAD_IDS 8 /* scattered rows: by number of rows */
#define V_BYTES_f32(d) (4 * (d))
#define V_BYTES_f16(d) (2 * (d))
#define V_BYTES_bf16(d) (2 * (d))
#define V_BYTES_i8(d) (d)
#define V_BYTES_q8_0(d) ((d) / KNA_Q8_BLOCK * KNA_Q8_BYTES)

V_INLINE void V_NAME(prefetch)(const char *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(row + at, 0, 3);
    }
}

/* From a row to the one to ask for now. */
V_INLINE size_t V_NAME(ahead)(size_t row_bytes, size_t bytes)
{
    return bytes ? (V_AHEAD + bytes - 1) / bytes * row_bytes : 0;
}

/* ---- dot: g queries against a block of rows; four rows at a time, so that lane sums are taken four at once. */
#define V_DOT(T)                                                                                                              \
    V_INLINE void V_NAME(dot4_##T)(float *out, size_t ldo, const float *q, size_t ldq, size_t g, const char *const row[4],    \
                                   size_t d)                                                                                  \
    {                                                                                                                         \
        vf acc[V_DOT_G][4];                                                                                                   \
        V_UNROLL                                                                                                              \
        for (size_t i = 0; i < g; i++) {                                                                                      \
            acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = v_zero();                                                         \
        }                                                                                                                     \
        size_t c = 0;                                                                                                         \
        for (; c + V_W <= d; c += V_W) {                                                                                      \
            vf x0 = vt_##T##_load(row[0], c), x1 = vt_##T##_load(row[1], c);                                                  \
            vf x2 = vt_##T##_load(row[2], c), x3 = vt_##T##_load(row[3], c);                                                  \
            V_UNROLL                                                                                                          \
            for (size_t i = 0; i < g; i++) {                                                                                  \
                vf y = v_load(q + i * ldq + c);                                                                               \
                acc[i][0] = v_fma(y, x0, acc[i][0]);                                                                          \
                acc[i][1] = v_fma(y, x1, acc[i][1]);                                                                          \
                acc[i][2] = v_fma(y, x2, acc[i][2]);                                                                          \
                acc[i][3] = v_fma(y, x3, acc[i][3]);                                                                          \
            }                                                                                                                 \
        }                                                                                                                     \
        if (c < d) {                                                                                                          \
            V_UNROLL                                                                                                          \
            for (size_t r = 0; r < 4; r++) {                                                                                  \
                vf x = vt_##T##_loadn(row[r], c, d - c);                                                                      \
                V_UNROLL                                                                                                      \
                for (size_t i = 0; i < g; i++) {                                                                              \
                    acc[i][r] = v_fma(v_loadn(q + i * ldq + c, d - c), x, acc[i][r]);                                         \
                }                                                                                                             \
            }                                                                                                                 \
        }                                                                                                                     \
        V_UNROLL                                                                                                              \
        for (size_t i = 0; i < g; i++) {                                                                                      \
            v_sum4(out + i * ldo, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);                                                \
        }                                                                                                                     \
    }                                                                                                                         \
    V_INLINE void V_NAME(dot_g_##T)(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows,             \
                                    const int32_t *ids, size_t n, size_t d)                                                   \
    {                                                                                                                         \
        size_t bytes = V_BYTES_##T(d), ahead = V_NAME(ahead)(rows.row_bytes, bytes);                                          \
        for (size_t r = 0; r < n; r += 4) {                                                                                   \
            float some[V_DOT_G * 4];                                                                                          \
            const char *row[4];                                                                                               \
            bool whole = r + 4 <= n;                                                                                          \
            V_UNROLL                                                                                                          \
            for (size_t x = 0; x < 4; x++) {                                                                                  \
                size_t at = r + x < n ? r + x : n - 1;                                                                        \
                row[x] = rows.data + (ids ? (size_t)ids[at] : at) * rows.row_bytes;                                           \
                if (!ids) {                                                                                                   \
                    V_NAME(prefetch)(row[x] + ahead, bytes);                                                                  \
                } else if (r + x + V_AHEAD_IDS < n) {                                                                         \
                    V_NAME(prefetch)(rows.data + (size_t)ids[r + x + V_AHEAD_IDS] * rows.row_bytes, bytes);                   \
                }                                                                                                             \
            }                                                                                                                 \
            V_NAME(dot4_##T)(whole ? out + r : some, whole ? ldo : 4, q, ldq, g, row, d);                                     \
            V_UNROLL                                                                                                          \
            for (size_t i = 0; !whole && i < g; i++) {                                                                        \
                memcpy(out + i * ldo + r, some + 4 * i, (n - r) * sizeof(float));                                             \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    V_INLINE void V_NAME(dot_all_##T)(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows,           \
                                      const int32_t *ids, size_t n, size_t d)                                                 \
    {                                                                                                                         \
        for (size_t i = 0; i < g;) {                                                                                          \
            size_t some = g - i;                                                                                              \
            float *o = out + i * ldo;                                                                                         \
            const float *y = q + i * ldq;                                                                                     \
            if (some >= 4 && V_DOT_G >= 4) {                                                                                  \
                V_NAME(dot_g_##T)(o, ldo, y, ldq, V_DOT_G >= 4 ? 4 : 1, rows, ids, n, d);                                     \
                i += 4;                                                                                                       \
            } else if (some >= 3) {                                                                                           \
                V_NAME(dot_g_##T)(o, ldo, y, ldq, 3, rows, ids, n, d);                                                        \
                i += 3;                                                                                                       \
            } else if (some == 2) {                                                                                           \
                V_NAME(dot_g_##T)(o, ldo, y, ldq, 2, rows, ids, n, d);                                                        \
                i += 2;                                                                                                       \
            } else {                                                                                                          \
                V_NAME(dot_g_##T)(o, ldo, y, ldq, 1, rows, ids, n, d);                                                        \
                i += 1;                                                                                                       \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    static void V_NAME(dot_##T)(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows, size_t n,       \
                                size_t d)                                                                                     \
    {                                                                                                                         \
        V_NAME(dot_all_##T)(out, ldo, q, ldq, g, rows, NULL, n, d);                                                           \
        for (size_t i = 0; rows.scales && i < g; i++) {                                                                       \
            V_NAME(multiply)(out + i * ldo, rows.scales, n);                                                                  \
        }                                                                                                                     \
    }                                                                                                                         \
    static void V_NAME(dot_at_##T)(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows,              \
                                   const int32_t *ids, size_t n, size_t d)                                                    \
    {                                                                                                                         \
        V_NAME(dot_all_##T)(out, ldo, q, ldq, g, rows, ids, n, d);                                                            \
        for (size_t i = 0; rows.scales && i < g; i++) {                                                                       \
            for (size_t r = 0; r < n; r++) {                                                                                  \
                out[i * ldo + r] *= rows.scales[ids[r]];                                                                      \
            }                                                                                                                 \
        }                                                                                                                     \
    }

/* ---- mix: weighted sums of rows; up to four vectors of columns of V_DOT_G queries stay in registers. */
#define V_MIX(T)                                                                                                              \
    V_INLINE void V_NAME(mix_cols_##T)(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows,          \
                                       const int32_t *ids, size_t n, size_t c, size_t vectors, size_t tail, size_t d)         \
    {                                                                                                                         \
        size_t bytes = c == 0 ? V_BYTES_##T(d) : 0, ahead = V_NAME(ahead)(rows.row_bytes, bytes);                             \
        vf sum[V_DOT_G][4];                                                                                                   \
        V_UNROLL                                                                                                              \
        for (size_t i = 0; i < g; i++) {                                                                                      \
            V_UNROLL                                                                                                          \
            for (size_t x = 0; x < vectors; x++) {                                                                            \
                const float *a = acc + i * lda + c + x * V_W;                                                                 \
                sum[i][x] = tail ? v_loadn(a, tail) : v_load(a);                                                              \
            }                                                                                                                 \
        }                                                                                                                     \
        for (size_t r = 0; r < n; r++) {                                                                                      \
            size_t at = ids ? (size_t)ids[r] : r;                                                                             \
            const char *row = rows.data + at * rows.row_bytes;                                                                \
            if (!ids) {                                                                                                       \
                V_NAME(prefetch)(row + ahead, bytes);                                                                         \
            } else if (r + V_AHEAD_IDS < n) {                                                                                 \
                V_NAME(prefetch)(rows.data + (size_t)ids[r + V_AHEAD_IDS] * rows.row_bytes, bytes);                           \
            }                                                                                                                 \
            vf value[4];                                                                                                      \
            V_UNROLL                                                                                                          \
            for (size_t x = 0; x < vectors; x++) {                                                                            \
                value[x] = tail ? vt_##T##_loadn(row, c, tail) : vt_##T##_load(row, c + x * V_W);                             \
            }                                                                                                                 \
            V_UNROLL                                                                                                          \
            for (size_t i = 0; i < g; i++) {                                                                                  \
                float weight = w[i * ldw + r];                                                                                \
                vf y = v_set1(rows.scales ? weight * rows.scales[at] : weight);                                               \
                V_UNROLL                                                                                                      \
                for (size_t x = 0; x < vectors; x++) {                                                                        \
                    sum[i][x] = v_fma(y, value[x], sum[i][x]);                                                                \
                }                                                                                                             \
            }                                                                                                                 \
        }                                                                                                                     \
        V_UNROLL                                                                                                              \
        for (size_t i = 0; i < g; i++) {                                                                                      \
            V_UNROLL                                                                                                          \
            for (size_t x = 0; x < vectors; x++) {                                                                            \
                float *a = acc + i * lda + c + x * V_W;                                                                       \
                if (tail) {                                                                                                   \
                    v_storen(a, sum[i][x], tail);                                                                             \
                } else {                                                                                                      \
                    v_store(a, sum[i][x]);                                                                                    \
                }                                                                                                             \
            }                                                                                                                 \
        }                                                                                                                     \
    }                                                                                                                         \
    V_INLINE void V_NAME(mix_g_##T)(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows,             \
                                    const int32_t *ids, size_t n, size_t d)                                                   \
    {                                                                                                                         \
        size_t c = 0;                                                                                                         \
        for (; c + 4 * V_W <= d; c += 4 * V_W) {                                                                              \
            V_NAME(mix_cols_##T)(acc, lda, w, ldw, g, rows, ids, n, c, 4, 0, d);                                              \
        }                                                                                                                     \
        for (; c + V_W <= d; c += V_W) {                                                                                      \
            V_NAME(mix_cols_##T)(acc, lda, w, ldw, g, rows, ids, n, c, 1, 0, d);                                              \
        }                                                                                                                     \
        if (c < d) {                                                                                                          \
            V_NAME(mix_cols_##T)(acc, lda, w, ldw, g, rows, ids, n, c, 1, d - c, d);                                          \
        }                                                                                                                     \
    }                                                                                                                         \
    V_INLINE void V_NAME(mix_all_##T)(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows,           \
                                      const int32_t *ids, size_t n, size_t d)                                                 \
    {                                                                                                                         \
        size_t i = 0;                                                                                                         \
        for (; V_DOT_G >= 4 && i + 4 <= g; i += 4) {                                                                          \
            V_NAME(mix_g_##T)(acc + i * lda, lda, w + i * ldw, ldw, V_DOT_G >= 4 ? 4 : 1, rows, ids, n, d);                   \
        }                                                                                                                     \
        for (; i + 3 <= g; i += 3) {                                                                                          \
            V_NAME(mix_g_##T)(acc + i * lda, lda, w + i * ldw, ldw, 3, rows, ids, n, d);                                      \
        }                                                                                                                     \
        for (; i + 2 <= g; i += 2) {                                                                                          \
            V_NAME(mix_g_##T)(acc + i * lda, lda, w + i * ldw, ldw, 2, rows, ids, n, d);                                      \
        }                                                                                                                     \
        if (i < g) {                                                                                                          \
            V_NAME(mix_g_##T)(acc + i * lda, lda, w + i * ldw, ldw, 1, rows, ids, n, d);                                      \
        }                                                                                                                     \
    }                                                                                                                         \
    static void V_NAME(mix_##T)(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows, size_t n,       \
                                size_t d)                                                                                     \
    {                                                                                                                         \
        V_NAME(mix_all_##T)(acc, lda, w, ldw, g, rows, NULL, n, d);                                                           \
    }                                                                                                                         \
    static void V_NAME(mix_at_##T)(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows,              \
                                   const int32_t *ids, size_t n, size_t d)                                                    \
    {                                                                                                                         \
        V_NAME(mix_all_##T)(acc, lda, w, ldw, g, rows, ids, n, d);                                                            \
    }

/* ---- widen: rows to f32. */
#define V_WIDEN(T)                                                                                                            \
    static void V_NAME(widen_##T)(float *out, size_t ldo, kna__span rows, size_t n, size_t d)                                 \
    {                                                                                                                         \
        for (size_t r = 0; r < n; r++) {                                                                                      \
            const char *row = rows.data + r * rows.row_bytes;                                                                 \
            vf scale = v_set1(rows.scales ? rows.scales[r] : 1.0f);                                                           \
            size_t c = 0;                                                                                                     \
            for (; c + V_W <= d; c += V_W) {                                                                                  \
                vf x = vt_##T##_load(row, c);                                                                                 \
                v_store(out + r * ldo + c, rows.scales ? v_mul(scale, x) : x);                                                \
            }                                                                                                                 \
            if (c < d) {                                                                                                      \
                v_storen(out + r * ldo + c, v_mul(scale, vt_##T##_loadn(row, c, d - c)), d - c);                              \
            }                                                                                                                 \
        }                                                                                                                     \
    }

static void V_NAME(multiply)(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + V_W <= n; i += V_W) {
        v_store(x + i, v_mul(v_load(x + i), v_load(y + i)));
    }
    if (i < n) {
        v_storen(x + i, v_mul(v_loadn(x + i, n - i), v_loadn(y + i, n - i)), n - i);
    }
}

#define V_TYPE(T) V_DOT(T) V_MIX(T) V_WIDEN(T)
V_TYPE(f32)
V_TYPE(f16)
V_TYPE(bf16)
V_TYPE(i8)
V_TYPE(q8_0)

/* ---- gemm: a tile of mr rows by nv vectors of c in registers; the last vector may be partial (tail > 0 floats). */
V_INLINE void V_NAME(gemm_tile)(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t inner,
                                bool accumulate, size_t mr, size_t nv, size_t tail)
{
    vf sum[V_MR][V_NV];
    V_UNROLL
    for (size_t i = 0; i < mr; i++) {
        V_UNROLL
        for (size_t x = 0; x < nv; x++) {
            const float *at = c + i * ldc + x * V_W;
            sum[i][x] = !accumulate ? v_zero() : tail && x + 1 == nv ? v_loadn(at, tail) : v_load(at);
        }
    }
    for (size_t k = 0; k < inner; k++) {
        vf y[V_NV];
        V_UNROLL
        for (size_t x = 0; x < nv; x++) {
            const float *at = b + k * ldb + x * V_W;
            y[x] = tail && x + 1 == nv ? v_loadn(at, tail) : v_load(at);
        }
        V_UNROLL
        for (size_t i = 0; i < mr; i++) {
            vf weight = v_set1(a[i * lda + k]);
            V_UNROLL
            for (size_t x = 0; x < nv; x++) {
                sum[i][x] = v_fma(weight, y[x], sum[i][x]);
            }
        }
    }
    V_UNROLL
    for (size_t i = 0; i < mr; i++) {
        V_UNROLL
        for (size_t x = 0; x < nv; x++) {
            float *at = c + i * ldc + x * V_W;
            if (tail && x + 1 == nv) {
                v_storen(at, sum[i][x], tail);
            } else {
                v_store(at, sum[i][x]);
            }
        }
    }
}

/* All rows of a panel of nv vectors. */
V_INLINE void V_NAME(gemm_panel)(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m,
                                 size_t inner, bool accumulate, size_t nv, size_t tail)
{
    size_t i = 0;
    for (; i + V_MR <= m; i += V_MR) {
        V_NAME(gemm_tile)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, inner, accumulate, V_MR, nv, tail);
    }
    for (; i + 2 <= m; i += 2) {
        V_NAME(gemm_tile)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, inner, accumulate, 2, nv, tail);
    }
    if (i < m) {
        V_NAME(gemm_tile)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, inner, accumulate, 1, nv, tail);
    }
}

static void V_NAME(gemm)(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                         size_t inner, bool accumulate)
{
    size_t j = 0;
    for (; j + V_NV * V_W <= n; j += V_NV * V_W) {
        V_NAME(gemm_panel)(c + j, ldc, a, lda, b + j, ldb, m, inner, accumulate, V_NV, 0);
    }
    for (; j + V_W <= n; j += V_W) {
        V_NAME(gemm_panel)(c + j, ldc, a, lda, b + j, ldb, m, inner, accumulate, 1, 0);
    }
    if (j < n) {
        V_NAME(gemm_panel)(c + j, ldc, a, lda, b + j, ldb, m, inner, accumulate, 1, n - j);
    }
}

/* ---- element by element: V_EACH runs body(x) over p[0..n) in place. */
#define V_EACH(p, n, body)                                         \
    do {                                                           \
        size_t each_ = 0;                                          \
        for (; each_ + V_W <= (n); each_ += V_W) {                 \
            v_store((p) + each_, body(v_load((p) + each_)));       \
        }                                                          \
        if (each_ < (n)) {                                         \
            v_storen((p) + each_, body(v_loadn((p) + each_, (n) - each_)), (n) - each_); \
        }                                                          \
    } while (0)

/*
 * exp: x = n ln 2 + r with |r| <= ln 2 / 2 (Cody-Waite split of ln 2), then 1 + r + r^2 q(r), q of degree 4 for the least
 * relative error (0.05 u, Lawson's iteration; Taylor's coefficients leave 2.7 u), times 2^n. Clamped below at 2^-126, where the
 * result is flushed to 0. NaN stays NaN.
 */
V_INLINE vf V_NAME(exp)(vf x)
{
    vf clamped = v_max(v_set1(-87.33654f), x);
    vf n = v_round(v_mul(clamped, v_set1(1.44269504f)));
    vf r = v_fma(n, v_set1(-0.693145752f), clamped);
    r = v_fma(n, v_set1(-1.42860677e-6f), r);
    vf p = v_set1(0.00138144256f);
    p = v_fma(p, r, v_set1(0.00836879664f));
    p = v_fma(p, r, v_set1(0.0416683960f));
    p = v_fma(p, r, v_set1(0.166665200f));
    p = v_fma(p, r, v_set1(0.499999934f));
    p = v_fma(p, r, v_set1(1.0f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_zero_below(v_mul(p, v_pow2(n)), x, -87.33654f);
}

/* Four accumulators: the order of a maximum does not matter, its latency does. */
static float V_NAME(max)(const float *x, size_t n)
{
    float best = -__builtin_inff();
    size_t i = 0;
    if (n >= V_W) {
        vf most[4] = { v_load(x), v_load(x), v_load(x), v_load(x) };
        for (; i + 4 * V_W <= n; i += 4 * V_W) {
            V_UNROLL
            for (size_t j = 0; j < 4; j++) {
                most[j] = v_max(most[j], v_load(x + i + j * V_W));
            }
        }
        for (; i + V_W <= n; i += V_W) {
            most[0] = v_max(most[0], v_load(x + i));
        }
        best = v_hmax(v_max(v_max(most[0], most[1]), v_max(most[2], most[3])));
    }
    for (; i < n; i++) {
        best = x[i] > best ? x[i] : best;
    }
    return best;
}

/* Two accumulators; the tail is its own, so that the sum depends on n only. */
static float V_NAME(exp_sum)(float *x, float shift, size_t n)
{
    vf minus = v_set1(shift), sum = v_zero(), other = v_zero();
    size_t i = 0;
    for (; i + 2 * V_W <= n; i += 2 * V_W) {
        vf a = V_NAME(exp)(v_sub(v_load(x + i), minus));
        vf b = V_NAME(exp)(v_sub(v_load(x + i + V_W), minus));
        v_store(x + i, a);
        v_store(x + i + V_W, b);
        sum = v_add(sum, a);
        other = v_add(other, b);
    }
    for (; i + V_W <= n; i += V_W) {
        vf a = V_NAME(exp)(v_sub(v_load(x + i), minus));
        v_store(x + i, a);
        sum = v_add(sum, a);
    }
    float total = v_sum(v_add(sum, other));
    if (i < n) {
        v_storen(x + i, V_NAME(exp)(v_sub(v_loadn(x + i, n - i), minus)), n - i);
        for (; i < n; i++) {
            total += x[i];
        }
    }
    return total;
}

static void V_NAME(scale)(float *x, float a, size_t n)
{
    vf factor = v_set1(a);
#define V_BODY(y) v_mul(y, factor)
    V_EACH(x, n, V_BODY);
#undef V_BODY
}

static void V_NAME(axpy)(float *y, float a, const float *x, size_t n)
{
    vf factor = v_set1(a);
    size_t i = 0;
    for (; i + V_W <= n; i += V_W) {
        v_store(y + i, v_fma(factor, v_load(x + i), v_load(y + i)));
    }
    if (i < n) {
        v_storen(y + i, v_fma(factor, v_loadn(x + i, n - i), v_loadn(y + i, n - i)), n - i);
    }
}

/* The new number is v_max()'s second operand: what x86 returns where one is NaN. */
static void V_NAME(lift)(float *y, const float *x, float a, size_t n)
{
    vf shift = v_set1(a);
    size_t i = 0;
    for (; i + V_W <= n; i += V_W) {
        v_store(y + i, v_max(v_load(y + i), v_sub(v_load(x + i), shift)));
    }
    if (i < n) {
        v_storen(y + i, v_max(v_loadn(y + i, n - i), v_sub(v_loadn(x + i, n - i), shift)), n - i);
    }
}

static void V_NAME(tilt)(float *y, const float *x, float a, size_t n)
{
    vf shift = v_set1(a);
    size_t i = 0;
    for (; i + V_W <= n; i += V_W) {
        v_store(y + i, v_mul(v_load(x + i), v_sub(v_load(y + i), shift)));
    }
    if (i < n) {
        v_storen(y + i, v_mul(v_loadn(x + i, n - i), v_sub(v_loadn(y + i, n - i), shift)), n - i);
    }
}

/*
 * cap * tanh(x / cap) = cap * (e - 1) / (e + 1) with e = exp(2|x| / cap), sign put back. Near 0 the subtraction cancels, to an
 * absolute error of a few cap * u: what the contract states, and what a logit needs.
 */
V_INLINE vf V_NAME(tanh_cap)(vf x, vf cap, vf two_over_cap)
{
    vf positive = v_max(x, v_sub(v_zero(), x));
    vf clamped = v_min(v_set1(40.0f), v_mul(positive, two_over_cap));
    vf e = V_NAME(exp)(clamped);
    vf y = v_mul(cap, v_div(v_sub(e, v_set1(1.0f)), v_add(e, v_set1(1.0f))));
    return v_copysign(y, x);
}

static void V_NAME(softcap)(float *x, float cap, size_t n)
{
    vf c = v_set1(cap), s = v_set1(2.0f / cap);
#define V_BODY(y) V_NAME(tanh_cap)(y, c, s)
    V_EACH(x, n, V_BODY);
#undef V_BODY
}

static void V_NAME(add_f16)(float *x, float a, const uint16_t *mask, size_t n)
{
    vf factor = v_set1(a);
    const char *row = (const char *)mask;
    size_t i = 0;
    for (; i + V_W <= n; i += V_W) {
        v_store(x + i, v_fma(factor, vt_f16_load(row, i), v_load(x + i)));
    }
    if (i < n) {
        v_storen(x + i, v_fma(factor, vt_f16_loadn(row, i, n - i), v_loadn(x + i, n - i)), n - i);
    }
}

/* Blocks of 16 by fours, so that lanes are joined for four at once; the last few by repeating one of them. */
#define V_BLOCKS(name, join, join4)                                                           \
    V_INLINE vf V_NAME(name##_one)(const float *x)                                            \
    {                                                                                         \
        vf all = v_load(x);                                                                   \
        for (size_t i = V_W; i < KNA_BLOCK; i += V_W) {                                       \
            all = join(all, v_load(x + i));                                                   \
        }                                                                                     \
        return all;                                                                           \
    }                                                                                         \
    static void V_NAME(name)(float *out, const float *x, size_t blocks)                       \
    {                                                                                         \
        for (size_t b = 0; b < blocks; b += 4) {                                              \
            size_t left = blocks - b, last = left < 4 ? left - 1 : 3;                         \
            float four[4];                                                                    \
            vf w[4];                                                                          \
            V_UNROLL                                                                          \
            for (size_t i = 0; i < 4; i++) {                                                  \
                w[i] = V_NAME(name##_one)(x + (b + (i < last ? i : last)) * KNA_BLOCK);       \
            }                                                                                 \
            join4(left < 4 ? four : out + b, w[0], w[1], w[2], w[3]);                         \
            if (left < 4) {                                                                   \
                memcpy(out + b, four, left * sizeof(float));                                  \
            }                                                                                 \
        }                                                                                     \
    }
V_BLOCKS(block_max, v_max, v_max4)
V_BLOCKS(block_sum, v_add, v_sum4)

static void V_NAME(spread)(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        vf all = v_set1(x[i]);
        float *at = out + first[i];
        size_t left = (size_t)count[i];
        for (; left >= V_W; left -= V_W, at += V_W) {
            v_store(at, all);
        }
        if (left) {
            v_storen(at, all, left);
        }
    }
}

V_INLINE vf V_NAME(part)(const float *x, size_t n)
{
    vf sum = v_zero();
    for (; n >= V_W; n -= V_W, x += V_W) {
        sum = v_add(sum, v_load(x));
    }
    return n ? v_add(sum, v_loadn(x, n)) : sum;
}

/* By fours likewise. */
static void V_NAME(part_sum)(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        size_t left = n - i, last = left < 4 ? left - 1 : 3;
        float four[4];
        vf w[4];
        V_UNROLL
        for (size_t j = 0; j < 4; j++) {
            size_t part = i + (j < last ? j : last);
            w[j] = V_NAME(part)(x + first[part], (size_t)count[part]);
        }
        v_sum4(left < 4 ? four : out + i, w[0], w[1], w[2], w[3]);
        if (left < 4) {
            memcpy(out + i, four, left * sizeof(float));
        }
    }
}

#define V_FILL_TYPE(table, T, type)          \
    table->dot[type] = V_NAME(dot_##T);      \
    table->dot_at[type] = V_NAME(dot_at_##T); \
    table->mix[type] = V_NAME(mix_##T);      \
    table->mix_at[type] = V_NAME(mix_at_##T); \
    table->widen[type] = V_NAME(widen_##T);

#define V_FILL(table)                         \
    V_FILL_TYPE(table, f32, KNA_F32)          \
    V_FILL_TYPE(table, f16, KNA_F16)          \
    V_FILL_TYPE(table, bf16, KNA_BF16)        \
    V_FILL_TYPE(table, i8, KNA_I8)            \
    V_FILL_TYPE(table, q8_0, KNA_Q8_0)        \
    table->gemm = V_NAME(gemm);               \
    table->max = V_NAME(max);                 \
    table->exp_sum = V_NAME(exp_sum);         \
    table->scale = V_NAME(scale);             \
    table->axpy = V_NAME(axpy);               \
    table->lift = V_NAME(lift);               \
    table->tilt = V_NAME(tilt);               \
    table->softcap = V_NAME(softcap);         \
    table->add_f16 = V_NAME(add_f16);         \
    table->block_max = V_NAME(block_max);     \
    table->spread = V_NAME(spread);           \
    table->part_sum = V_NAME(part_sum);       \
    table->block_sum = V_NAME(block_sum);
