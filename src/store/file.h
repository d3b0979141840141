/*
 * file.h - every call of the operating system that a store makes on files, through one table, so that tests can record what reaches
 * the disk, lose it, tear it, and let any call fail.
 *
 * Invariant: no other file of this room opens, reads, writes, syncs, maps, renames or removes anything by itself.
 */
#ifndef KNA_FILE_H
#define KNA_FILE_H

#include "../kernel/context.h"

#include <sys/types.h>

/* As the system calls of the same names, errno included; sync is fdatasync() of a file and fsync() of a folder. */
typedef struct kna__calls {
    int (*open)(const char *path, int flags);
    int (*close)(int fd);
    ssize_t (*read_at)(int fd, void *to, size_t bytes, off_t at);
    ssize_t (*write_at)(int fd, const void *from, size_t bytes, off_t at);
    int (*sync)(int fd);
    int (*sync_folder)(int fd);
    off_t (*size)(int fd);
    void *(*map)(int fd, size_t bytes); /* shared, read only; NULL: failed */
    int (*unmap)(void *map, size_t bytes);
    int (*advise)(void *map, size_t bytes, int advice);
    int (*make_folder)(const char *path);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    int (*lock)(int fd);       /* for this open file alone, exclusively: 0, or -1 with EAGAIN where another has it */
    int (*unlock)(int fd);     /* also where a child of this process has the file open, too */
    bool (*is_locked)(int fd); /* by another one */
} kna__calls;

extern kna__calls kna__file_calls;

/* A file of a store, with its name for messages. fd -1: not open. */
typedef struct kna__file {
    kna_context *context;
    int fd;
    char name[40]; /* within the folder */
} kna__file;

enum { KNA_FILE_READ, KNA_FILE_WRITE, KNA_FILE_CREATE }; /* CREATE: there must be none yet; opened for writing */

/* KNA_OK, KNA_ENONE (there is no such file), KNA_EEXISTS (CREATE: there is one), KNA_EIO (whatever else). */
int kna__file_open(kna__file *file, kna_context *context, const char *folder, const char *name, int how);
void kna__file_close(kna__file *file);
/* All of the bytes; KNA_EDAMAGED where the file ends before them. */
int kna__file_read(const kna__file *file, void *to, size_t bytes, uint64_t at);
/* The same without a message, for many threads at once. */
int kna__file_fetch(const kna__file *file, void *to, size_t bytes, uint64_t at);
/* KNA_EIO; a full disk is named. */
int kna__file_write(const kna__file *file, const void *from, size_t bytes, uint64_t at);
int kna__file_sync(const kna__file *file);
int kna__file_size(const kna__file *file, uint64_t *bytes);
/* Read the bytes `from`..`end`-1 and drop them: what cannot be read fails here, where it is an error, and not in a map, where it is the
 * end of the process. */
int kna__file_touch(const kna__file *file, uint64_t from, uint64_t end);
/* KNA_EDAMAGED where the file is shorter than what is to be mapped. bytes 0: *map is NULL. */
int kna__file_map(const kna__file *file, const void **map, size_t bytes);
void kna__file_unmap(const void *map, size_t bytes);
int kna__file_unlink(kna_context *context, const char *folder, const char *name);
/* What was created, renamed or removed in the folder is so after a crash too. */
int kna__folder_sync(kna_context *context, const char *folder);
/* Each name in the folder but . and .., in no order, until `each` returns false. A folder that cannot be read has none. */
void kna__folder_list(const char *folder, bool (*each)(void *user, const char *name), void *user);
/* folder/name into a buffer of KNA_PATH_BYTES; KNA_ELIMIT where it is too long. */
enum { KNA_PATH_BYTES = 4096 };
int kna__path(char path[KNA_PATH_BYTES], kna_context *context, const char *folder, const char *name);

#endif
