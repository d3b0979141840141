/*
 * observe.c - a table of observers (see observe.h).
 */
#define _GNU_SOURCE
#include "observe.h"

#include <pthread.h>

struct observer {
    knnattn_observer_t call;
    void *user;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct observer observers[KNNATTN_SLOTS];

static struct observer observer_of(int slot)
{
    pthread_mutex_lock(&lock);
    struct observer found = observers[slot];
    pthread_mutex_unlock(&lock);
    return found;
}

void knnattn_observe(int slot, knnattn_observer_t observer, void *user)
{
    if (slot < 0 || slot >= KNNATTN_SLOTS) {
        return;
    }
    pthread_mutex_lock(&lock);
    observers[slot] = (struct observer){ observer, user };
    pthread_mutex_unlock(&lock);
}

void knnattn_observed(int slot, const struct knnattn_operands *operands)
{
    struct observer observer = observer_of(slot);

    if (observer.call != NULL) {
        observer.call(observer.user, operands);
    }
}
