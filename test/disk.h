/*
 * disk.h - a disk that forgets: the calls a store makes on files are carried out and written down, and at any moment the folder can be
 * had as a crash would leave it: what was flushed is there, of what was not any part may be, whole, torn or missing, names likewise.
 *
 * One folder at a time. Single-threaded.
 */
#ifndef DISK_H
#define DISK_H

#include "test.h"

#include "../src/store/file.h"

/* From now on kna__file_calls are recorded for files in `folder`, which holds what a flushed disk does; after each call that changes
 * something `moment` is called (NULL: never). */
void disk_begin(const char *folder, void (*moment)(void));
/* The system's own calls again; what was recorded is dropped. */
void disk_end(void);
/* While off calls go to the system and are not recorded. */
void disk_pause(bool off);

/* The process is as good as dead: nothing that it calls has an effect any more, and all of it fails. What it wrote is in the system's
 * memory still, unflushed. Until disk_die(false). */
void disk_die(bool dead);

/* The next flush of a file whose name begins so ("": any) fails, and what it was to flush is lost to the disk while the system's memory
 * has it still: later flushes go well without it, as on Linux. NULL: no longer. */
void disk_lose_flush(const char *name);

/* The folder as a crash now leaves it, made in `to`, an empty folder; what is kept is up to the test's random numbers. */
void disk_crash(const char *to);

#endif
