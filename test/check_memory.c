/* check_memory.c - operands between pages nobody may touch, with known bytes around them. */
#include "check.h"

#define SLOT_BYTES ((size_t)16 << 20)
#define CANARY_BYTES 256
#define CANARY 0xa5

static struct {
    char *low, *high;    /* what may be touched; pages without rights on both sides */
    char *from, *to;     /* the operand */
} slots[SLOTS];
static char *saved_out;
static size_t page_bytes;

static void map_slots(void)
{
    page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (int s = 0; s < SLOTS; s++) {
        char *memory = mmap(NULL, SLOT_BYTES + 2 * page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory + page_bytes, SLOT_BYTES, PROT_READ | PROT_WRITE) != 0) {
            perror("check: mmap");
            exit(1);
        }
        slots[s].low = slots[s].from = slots[s].to = memory + page_bytes;
        slots[s].high = slots[s].low + SLOT_BYTES;
    }
    saved_out = malloc(SLOT_BYTES);
    if (!saved_out) {
        perror("check: malloc");
        exit(1);
    }
}

static size_t around(const char *near, const char *limit)
{
    size_t room = near < limit ? (size_t)(limit - near) : (size_t)(near - limit);
    return room < CANARY_BYTES ? room : CANARY_BYTES;
}

void *check_place(enum slot slot, size_t bytes, size_t unit, bool bench)
{
    if (!page_bytes) {
        map_slots();
    }
    if (bytes > SLOT_BYTES - 2 * CANARY_BYTES) {
        fprintf(stderr, "check: an operand of %zu bytes\n", bytes);
        exit(1);
    }
    /* Timed operands: aligned, and not at equal offsets into their pages, where stores would delay loads. */
    size_t gap = bench ? (1 + 7 * (size_t)slot) * KNA_ALIGNMENT : unit * test_below(16) + CANARY_BYTES * test_below(2);
    bool at_end = !bench && test_below(2);
    char *at = at_end ? slots[slot].high - bytes : slots[slot].low + gap;
    slots[slot].from = at;
    slots[slot].to = at + bytes;
    size_t before = around(at, slots[slot].low), after = around(at + bytes, slots[slot].high);
    memset(at - before, CANARY, before);
    memset(at + bytes, CANARY, after);
    memset(at, 0xff, bytes); /* padding that is read becomes NaN */
    return at;
}

size_t check_touched(enum slot slot)
{
    const char *from = slots[slot].from, *to = slots[slot].to;
    size_t before = around(from, slots[slot].low), after = around(to, slots[slot].high), changed = 0;
    for (size_t i = 0; i < before; i++) {
        changed += (unsigned char)from[-1 - (ptrdiff_t)i] != CANARY;
    }
    for (size_t i = 0; i < after; i++) {
        changed += (unsigned char)to[i] != CANARY;
    }
    return changed;
}

static void protect_inputs(int rights)
{
    for (int s = OUT + 1; s < SLOTS; s++) {
        uintptr_t from = (uintptr_t)slots[s].from / page_bytes * page_bytes;
        mprotect((void *)from, (size_t)((uintptr_t)slots[s].to - from), rights);
    }
}

void check_seal(void)
{
    protect_inputs(PROT_READ);
}

void check_unseal(void)
{
    protect_inputs(PROT_READ | PROT_WRITE);
}

const char *check_where(const void *address, char text[80])
{
    static const char *const names[SLOTS] = { "out", "left", "rows", "scales", "ids" };
    const char *at = address;
    snprintf(text, 80, "address %p", address);
    for (int s = 0; page_bytes && s < SLOTS; s++) {
        if (at >= slots[s].low - page_bytes && at < slots[s].high + page_bytes) {
            if (at >= slots[s].to) {
                snprintf(text, 80, "%td bytes after operand %s", at - slots[s].to, names[s]);
            } else if (at < slots[s].from) {
                snprintf(text, 80, "%td bytes before operand %s", slots[s].from - at, names[s]);
            } else {
                snprintf(text, 80, "a write to operand %s", names[s]);
            }
        }
    }
    return text;
}

/* ---- the output: rows with padding, put back before every call. */
static size_t padding(const job *j)
{
    static const size_t some[] = { 0, 0, 1, 3, 16, 17 };
    return j->bench ? 0 : some[test_below(sizeof some / sizeof some[0])];
}

static size_t out_bytes(const job *j)
{
    return j->out_rows ? ((j->out_rows - 1) * j->ldo + j->out_cols) * j->out_unit : 0;
}

void check_place_out(job *j, size_t rows, size_t cols, size_t unit)
{
    j->out_rows = rows;
    j->out_cols = cols;
    j->out_unit = unit;
    j->ldo = cols + padding(j);
    j->out = check_place(OUT, out_bytes(j), unit, j->bench);
}

float *check_place_left(job *j, size_t rows, size_t cols)
{
    j->ld_left = cols + padding(j);
    size_t count = rows ? (rows - 1) * j->ld_left + cols : 0;
    return j->left = check_place(LEFT, count * sizeof(float), sizeof(float), j->bench);
}

void check_save_out(const job *j)
{
    memcpy(saved_out, j->out, out_bytes(j));
}

void check_restore_out(const job *j)
{
    memcpy(j->out, saved_out, out_bytes(j));
}

size_t check_padding(const job *j)
{
    size_t changed = 0, pad = (j->ldo - j->out_cols) * j->out_unit;
    for (size_t r = 0; pad && r + 1 < j->out_rows; r++) {
        size_t at = (r * j->ldo + j->out_cols) * j->out_unit;
        changed += memcmp((char *)j->out + at, saved_out + at, pad) != 0;
    }
    return changed;
}
