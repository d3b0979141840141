/*
 * disk.c - see disk.h.
 *
 * A file has what was flushed and a list of writes since. A crash keeps of each write: nothing, all, a random choice of its sectors of
 * 512 bytes, or of its pages of 4 KiB, or the sectors up to some point; what a file grows by that was not kept is zeros. Names (made,
 * renamed, removed) are kept up to a random point of those not flushed, in order, as journals keep them.
 */
#include "disk.h"

#include <errno.h>
#include <fcntl.h>

enum { MOST_FILES = 4096, MOST_FD = 4096, SECTOR = 512 };

typedef struct bytes {
    unsigned char *at;
    size_t count;
} bytes;

typedef struct written {
    bytes what;
    size_t at;
} written;

typedef struct inode {
    bytes flushed;
    written *writes;
    size_t count, room;
} inode;

typedef struct change { /* of a name: to an inode, or -1: gone */
    char name[64];
    int inode;
} change;

static struct {
    bool on, paused, dead;
    const char *lose; /* the flush of this one */
    char folder[128];
    void (*moment)(void);
    inode inodes[MOST_FILES];
    int inode_count;
    change names[MOST_FILES], changes[MOST_FILES];
    int name_count, change_count;
    int of_fd[MOST_FD];
    kna__calls system;
} disk;

/* ---- bytes */

static void overlay(bytes *to, const unsigned char *from, size_t count, size_t at)
{
    if (at + count > to->count) {
        to->at = realloc(to->at, at + count);
        if (!to->at) abort();
        memset(to->at + to->count, 0, at + count - to->count);
        to->count = at + count;
    }
    memcpy(to->at + at, from, count);
}

static void flush(inode *i)
{
    for (size_t w = 0; w < i->count; w++) {
        overlay(&i->flushed, i->writes[w].what.at, i->writes[w].what.count, i->writes[w].at);
        free(i->writes[w].what.at);
    }
    i->count = 0;
}

/* ---- names */

static const char *within(const char *path)
{
    size_t length = strlen(disk.folder);
    return disk.on && !disk.paused && strncmp(path, disk.folder, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

static void set_name(change *names, int *count, const change *c)
{
    for (int i = 0; i < *count; i++) {
        if (strcmp(names[i].name, c->name) == 0) names[i--] = names[--*count];
    }
    if (c->inode >= 0) names[(*count)++] = *c;
}

static int inode_named(const char *name)
{
    for (int i = disk.change_count; i-- > 0;) {
        if (strcmp(disk.changes[i].name, name) == 0) return disk.changes[i].inode;
    }
    for (int i = 0; i < disk.name_count; i++) {
        if (strcmp(disk.names[i].name, name) == 0) return disk.names[i].inode;
    }
    return -1;
}

static void rename_in_time(const char *name, int to)
{
    if (disk.change_count == MOST_FILES) abort();
    change *c = &disk.changes[disk.change_count++];
    snprintf(c->name, sizeof c->name, "%s", name);
    c->inode = to;
}

static void tell(void)
{
    if (disk.on && !disk.paused && disk.moment) disk.moment();
}

/* ---- calls */

static int new_inode(void)
{
    if (disk.inode_count == MOST_FILES) abort();
    disk.inodes[disk.inode_count] = (inode){ .count = 0 };
    return disk.inode_count++;
}

/* -1 as from a call that failed. */
static bool is_dead(void)
{
    errno = EIO;
    return disk.dead && !disk.paused;
}

static int recorded_open(const char *path, int flags)
{
    if (is_dead()) return -1;
    const char *name = within(path);
    int fd = disk.system.open(path, flags);
    if (fd < 0 || fd >= MOST_FD) return fd;
    disk.of_fd[fd] = -1;
    if (!name || (flags & O_DIRECTORY)) return fd;
    if (flags & O_CREAT) {
        int i = new_inode();
        rename_in_time(name, i);
        disk.of_fd[fd] = i;
        tell();
    } else {
        disk.of_fd[fd] = inode_named(name);
    }
    return fd;
}

static ssize_t recorded_write(int fd, const void *from, size_t count, off_t at)
{
    if (is_dead()) return -1;
    ssize_t put = disk.system.write_at(fd, from, count, at);
    if (put > 0 && !disk.paused && disk.of_fd[fd] >= 0) {
        inode *i = &disk.inodes[disk.of_fd[fd]];
        if (i->count == i->room) {
            i->room = 2 * i->room + 4;
            i->writes = realloc(i->writes, i->room * sizeof *i->writes);
            if (!i->writes) abort();
        }
        i->writes[i->count] = (written){ .at = (size_t)at };
        overlay(&i->writes[i->count++].what, from, (size_t)put, 0);
        tell();
    }
    return put;
}

static void forget(inode *i)
{
    for (size_t w = 0; w < i->count; w++) free(i->writes[w].what.at);
    i->count = 0;
}

/* Whether the flush of this file is the one that fails. */
static bool is_lost(int i)
{
    const char *lose = disk.lose;
    for (int c = 0; lose && c < disk.name_count + disk.change_count; c++) {
        const change *of = c < disk.name_count ? &disk.names[c] : &disk.changes[c - disk.name_count];
        if (of->inode == i && strncmp(of->name, lose, strlen(lose)) == 0) {
            disk.lose = NULL;
            forget(&disk.inodes[i]);
            errno = EIO;
            return true;
        }
    }
    return false;
}

static int recorded_sync(int fd)
{
    if (is_dead()) return -1;
    if (!disk.paused && disk.of_fd[fd] >= 0) {
        if (is_lost(disk.of_fd[fd])) return -1;
        tell(); /* a moment before */
        if (is_dead()) return -1;
        flush(&disk.inodes[disk.of_fd[fd]]);
        tell();
    }
    return 0; /* the place is memory: nothing to wait for */
}

static int recorded_sync_folder(int fd)
{
    (void)fd;
    if (is_dead()) return -1;
    if (!disk.paused) {
        tell();
        if (is_dead()) return -1;
        for (int i = 0; i < disk.change_count; i++) set_name(disk.names, &disk.name_count, &disk.changes[i]);
        disk.change_count = 0;
        tell();
    }
    return 0;
}

static int recorded_rename(const char *from, const char *to)
{
    int status = is_dead() ? -1 : disk.system.rename(from, to);
    if (status == 0 && within(from)) {
        int i = inode_named(within(from));
        rename_in_time(within(to), i); /* one change: the new name first, so the file is never without one */
        rename_in_time(within(from), -1);
        tell();
    }
    return status;
}

static int recorded_unlink(const char *path)
{
    int status = is_dead() ? -1 : disk.system.unlink(path);
    if (status == 0 && within(path)) {
        rename_in_time(within(path), -1);
        tell();
    }
    return status;
}

/* ---- begin and end */

static void take_file(const char *name)
{
    char path[256];
    unsigned char buffer[65536];
    snprintf(path, sizeof path, "%.120s/%.60s", disk.folder, name);
    int fd = open(path, O_RDONLY), i = new_inode();
    if (fd < 0) abort();
    size_t at = 0;
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0; at += (size_t)got) {
        overlay(&disk.inodes[i].flushed, buffer, (size_t)got, at);
    }
    close(fd);
    change c = { .inode = i };
    snprintf(c.name, sizeof c.name, "%s", name);
    set_name(disk.names, &disk.name_count, &c);
}

void disk_begin(const char *folder, void (*moment)(void))
{
    if (disk.on) abort();
    disk.system = kna__file_calls;
    disk.moment = moment;
    snprintf(disk.folder, sizeof disk.folder, "%s", folder);
    disk.on = true;
    disk.paused = disk.dead = false;
    disk.lose = NULL;
    for (int i = 0; i < MOST_FD; i++) disk.of_fd[i] = -1;
    FILE *list = NULL;
    char command[200], name[64];
    snprintf(command, sizeof command, "ls '%s'", folder);
    list = popen(command, "r");
    while (list && fgets(name, sizeof name, list)) {
        name[strcspn(name, "\n")] = 0;
        take_file(name);
    }
    if (!list || pclose(list) != 0) abort();
    kna__file_calls.open = recorded_open;
    kna__file_calls.write_at = recorded_write;
    kna__file_calls.sync = recorded_sync;
    kna__file_calls.sync_folder = recorded_sync_folder;
    kna__file_calls.rename = recorded_rename;
    kna__file_calls.unlink = recorded_unlink;
}

void disk_pause(bool off)
{
    disk.paused = off;
}

void disk_die(bool dead)
{
    disk.dead = dead;
}

void disk_lose_flush(const char *name)
{
    disk.lose = name;
}

void disk_end(void)
{
    kna__file_calls = disk.system;
    for (int i = 0; i < disk.inode_count; i++) {
        forget(&disk.inodes[i]);
        free(disk.inodes[i].flushed.at);
        free(disk.inodes[i].writes);
    }
    disk.inode_count = disk.name_count = disk.change_count = 0;
    disk.on = false;
}

/* ---- a crash */

/* What is left of a write. */
static void keep_some(bytes *file, const written *w)
{
    int way = (int)test_below(5);
    size_t unit = way == 3 ? 4096 : SECTOR, end = w->at + w->what.count, until = w->at + test_below(w->what.count + 1);
    if (way == 0) return;
    if (test_below(4) == 0 && end > file->count) overlay(file, (const unsigned char *)"", 1, end - 1); /* grown, not filled: a zero */
    for (size_t from = w->at; from < end;) {
        size_t to = (from / unit + 1) * unit < end ? (from / unit + 1) * unit : end;
        bool keep = way == 1 || (way == 4 ? from < until / SECTOR * SECTOR : test_below(2) == 0);
        if (keep) overlay(file, w->what.at + (from - w->at), to - from, from);
        from = to;
    }
}

void disk_crash(const char *to)
{
    static change names[MOST_FILES];
    int count = disk.name_count, kept = (int)test_below((size_t)disk.change_count + 1);
    memcpy(names, disk.names, (size_t)count * sizeof names[0]);
    for (int i = 0; i < kept; i++) set_name(names, &count, &disk.changes[i]);
    for (int i = 0; i < count; i++) {
        const inode *from = &disk.inodes[names[i].inode];
        bytes file = { NULL, 0 };
        if (from->flushed.count) overlay(&file, from->flushed.at, from->flushed.count, 0);
        for (size_t w = 0; w < from->count; w++) keep_some(&file, &from->writes[w]);
        char path[256];
        snprintf(path, sizeof path, "%.120s/%.60s", to, names[i].name);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd < 0 || write(fd, file.at, file.count) != (ssize_t)file.count) abort();
        close(fd);
        free(file.at);
    }
}
