/*
 * sampled.h - attention by sampling: the keys of a row are a head, the k nearest ones, and a tail of which only a sample is looked
 * at. sampled.c draws keys, sampled_row.c makes estimates of the draws, sampled_tail.c of uniform samples, sampled_strata.c of those
 * that go by cells of keys.
 *
 * Weights are relative to exp(shift), shift being the largest logit of the head. No logit of the tail is above `bound`: the least of
 * the head, or, where that is not simply the nearest keys, the largest of all others (nearest_head.c knows it); or so much more where
 * that is all that is known; or, for any head at all, what the cells say, each for its own keys. Random numbers belong to (seed, head,
 * position of the query) and a counter, so a row decoded by itself draws what it draws in a batch.
 */
#ifndef KNA_SAMPLED_H
#define KNA_SAMPLED_H

#include "certificate.h"
#include "nearest.h"

/* A row as draws see it. */
typedef struct kna__sampler {
    const nearest_row *row;
    const int32_t *head; /* k keys */
    double *sums;        /* of their weights, first to last */
    int64_t k;
    double head_sum; /* all of them */
    int32_t *tail;   /* keys */
    int64_t rest;    /* how many */
    float shift;
    double bound;            /* relative to shift */
    const kna__cells *cells; /* the tail goes cell by cell; NULL: it does not */
    bool by_cell;            /* bounds are those of the cells */
    double *tail_sums;       /* of all the tail's weights, first to last, once they are known; else NULL */
    double sink;             /* weight of a sink */
    double envelope;         /* the sum of the tail's weights if all were at their bounds */
    int32_t *found;          /* room for the tail */
    float *logits;           /* likewise */
    uint64_t stream, counter;
    int64_t looked_at; /* keys of the tail whose logit was computed */
} kna__sampler;

/*
 * The weight of a logit of the tail. Only where the head was not found exactly can it be above 1; 300 above the head is taken for
 * all that is more, so that squares are numbers.
 */
static inline double kna__weight(float logit)
{
    return exp(fmin((double)logit, 300));
}

double kna__sampler_uniform(kna__sampler *s); /* in (0,1), the next one */
/* Logits of keys of the tail, less shift. */
void kna__sampler_logits(kna__sampler *s, const int32_t *keys, int64_t count, float *logits);

/* One key by the softmax of the row, exactly. *level: the maximum that came with it, or how many tries it took. */
int32_t kna__draw_gumbel(kna__sampler *s, double *level);
int32_t kna__draw_by_rejection(kna__sampler *s, double *level);
/*
 * Before `count` draws: where their bounds would have more keys looked at than there are, the tail is read once, and draws are by
 * its weights.
 */
void kna__draw_prepare(kna__sampler *s, int64_t count);
/* The entry of ascending sums that x, in [0, last), falls to. */
int64_t kna__draw_place(const double *sums, int64_t count, double x);
/* The first `count` of n keys are a uniform sample of them; *drawn of them are so already. */
void kna__draw_tail(kna__sampler *s, int32_t *keys, int64_t n, int64_t *drawn, int64_t count);

/* A part of the tail, and the sample that stands for it. */
typedef struct kna__stratum {
    int32_t *keys;
    int64_t rest, drawn;
    kna__moments m;
} kna__stratum;

/* sampled_tail.c - a row by its head and a uniform sample of the tail. */
void kna__sampled_tail(nearest_row *row, kna__row_stats *stats, kna__sampler *s);

/* sampled_row.c - a row whose k nearest keys have been found; the head's logits become weights. */
kna__sampler kna__sampler_of(nearest_row *row);
/* Keys drawn by the softmax; returns the sum of it that the draws tell. */
double kna__draw_keys(kna__sampler *s, int64_t count, int32_t *drawn);
void kna__sampled_attend(nearest_row *row, kna__row_stats *stats);
/* sampled_strata.c - likewise: stratified, centroid, control. */
void kna__strata_attend(nearest_row *row, kna__row_stats *stats, kna__sampler *s);

/* A key's value as f32 (dv); returns |v|^2. */
double kna__row_value(const nearest_row *row, int32_t key, float *value);
/* The head's weighted values into known (dv); returns its weighted |v|^2. */
double kna__head_values(const nearest_row *row, double *known);
/* An output (dv) and the softmax sum it belongs to, a sink's weight in it, as the row's result. */
void kna__sampled_write(nearest_row *row, const kna__sampler *s, double sum, const double *out);
/* A radius, or |out| and the largest |v| together where that is less: the truth is a mean of values. */
double kna__radius_trivial(const nearest_row *row, const double *out, double radius);
/* The head is all that the row sees: lists it, unless it is on the list already, and computes its logits. */
void kna__sampled_list_all(nearest_row *row);
/* Likewise: nothing is estimated, and keys are drawn if that is asked for. */
void kna__sampled_exact(nearest_row *row);

/* sampled_list.c - the row as a list for gradients; is_all: its head is all it sees. Uniform samples: below. */
void kna__list_row(nearest_row *row, bool is_all);
bool kna__list_has_room(const nearest_row *row);
/* The tail's first entries, the pilot, stand for themselves, samples of strata for these. sum: that of the softmax. */
void kna__list_sample(nearest_row *row, kna__sampler *s, double sum, const kna__moments *pilot, const kna__stratum *strata,
                      int64_t count);
/* By cells: keys of the sample and cells that stand by their means, with their weights; no keys after all; the sum, and then no more. */
void kna__list_key(const nearest_row *row, int32_t key, double weight);
void kna__list_cell(const nearest_row *row, int64_t cell, double weight);
void kna__list_drop_keys(const nearest_row *row);
void kna__list_end(const nearest_row *row, double sum);

#endif
