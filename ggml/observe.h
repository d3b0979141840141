/*
 * observe.h - the program's observers: who is shown the operands of attention, one per slot.
 *
 * Invariant: an observer is called without this file's lock, and only with the operands of a call that has been computed.
 */
#ifndef KNNATTN_OBSERVE_H
#define KNNATTN_OBSERVE_H

#include "knnattn.h"

/* What a program calls (knnattn_observe_t). */
void knnattn_observe(int slot, knnattn_observer_t observer, void *user);

/* Shows a call to the slot's observer, if there is one. */
void knnattn_observed(int slot, const struct knnattn_operands *operands);

#endif
