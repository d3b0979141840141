/* lm_demo.h - what a demo run measured, and the three ways to show it. */
#ifndef KNA_CLI_LM_DEMO_H
#define KNA_CLI_LM_DEMO_H

#include "lm_common.h"

#define DEMO_CONTENDERS 4
#define DEMO_FULL       0 /* llama.cpp -fa 0, the reference of all comparisons */
#define DEMO_FLASH      1
#define DEMO_EXACT      2
#define DEMO_KNN        3

/* One attention. Reading and making are counted apart: prefill and decode. */
typedef struct demo_entry {
    const char *name;
    lm_timing read, made;
    lm_usage read_usage, made_usage;
    lm_score score;
    lm_tokens tokens; /* its continuation */
    int equal;        /* leading tokens it shares with the reference's */
} demo_entry;

typedef struct demo_result {
    const lm_model *model;
    const char *document; /* name without folders */
    const char *tail;     /* the document's last lines, before the continuations */
    char machine[128];
    int threads;
    int tokens; /* read */
    int scored; /* of which scored, the last ones */
    int count;  /* made by each */
    demo_entry entries[DEMO_CONTENDERS];
} demo_result;

double demo_prefill_ratio(const demo_result *result, int i); /* to the faster of llama.cpp's two */
double demo_decode_ratio(const demo_result *result, int i);

/* A figure of one attention as text; nothing is written where it does not apply. The list ends with label NULL; labels that begin
 * with blanks belong to the row before. */
typedef struct demo_row {
    const char *label;
    void (*cell)(char *text, size_t size, const demo_result *result, int i);
} demo_row;
extern const demo_row demo_rows[];

int demo_print(const demo_result *result); /* lm_demo_text.c; exit codes */
int demo_json(const demo_result *result);
int demo_html(const demo_result *result, FILE *page); /* lm_demo_html.c */

#endif /* KNA_CLI_LM_DEMO_H */
