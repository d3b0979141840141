/*
 * backward.h - one call of kna_attend_backward(), checked, as all methods see it: the problem of the forward call, what came out of
 * it, and where gradients go.
 *
 * With S the logits, P = exp(S - lse) and Delta_i = <dout_i, out_i> (Dao 2023, FlashAttention-2):
 *   dV_j = sum_i P_ij dout_i     dS_ij = P_ij (<dout_i, v_j> - Delta_i)     dQ_i = scale sum_j dS_ij k_j     dK_j = scale sum_i dS_ij q_i
 * and a soft cap multiplies dS by its slope 1 - (capped logit / cap)^2. A sink has the value 0, so the formulas hold with it as
 * they are, and its own gradient is -sum_i exp(sink - lse_i) Delta_i.
 */
#ifndef KNA_BACKWARD_H
#define KNA_BACKWARD_H

#include "problem.h"

typedef struct kna__backward {
    kna__problem problem; /* its out and lse are what the forward call wrote */
    kna_rows dout, out;   /* strides filled in */
    const float *lse;     /* (h,m) */
    kna_out_rows dq, dk, dv;
    float *dsinks, *dproject_k, *dproject_v;
} kna__backward;

/* A row of a gradient; NULL: that gradient is not wanted. */
static inline float *kna__gradient_at(const kna_out_rows *rows, int64_t head, int64_t row)
{
    char *base = (char *)rows->data;
    return base ? (float *)(void *)(base + head * rows->head_stride_bytes + row * rows->row_stride_bytes) : NULL;
}

/*
 * Rows row .. row + count - 1 of a KV head (numbered as in problem.h), as the formulas need them: q (count, d) times the scale,
 * dout (count, dv), delta and lse (count).
 */
typedef struct kna__backward_rows {
    float *q, *dout, *delta, *lse;
} kna__backward_rows;
void kna__backward_rows_cut(kna__backward_rows *rows, const kna__problem *problem, int64_t count, kna__cutter *cutter);
void kna__backward_rows_read(const kna__backward *backward, kna__backward_rows *rows, int64_t kv_head, int64_t row, int64_t count);

int kna__backward_exact(const kna__backward *backward);
int kna__backward_near(kna__backward *backward);         /* topk, uniform, and by keys drawn: out and lse are not looked at */
int kna__backward_window(const kna__backward *backward); /* rivals: rival_window.c, backward_*.c */
int kna__backward_linformer(const kna__backward *backward);
int kna__backward_nystrom(const kna__backward *backward);
int kna__backward_performer(const kna__backward *backward);
int kna__backward_lsh(const kna__backward *backward); /* rival_lsh.c; out and lse are not looked at */
int kna__backward_knn(const kna__backward *backward); /* knn_backward.c: out and lse are computed anew */

#endif
