/* file.c - see file.h. */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE /* open file description locks */
#endif
#include "file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Never as 0, 1 or 2, where these are closed: what a program prints, not knowing, would go into the store. */
static int open_file(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0666);
    if (fd < 0 || fd > STDERR_FILENO) {
        return fd;
    }
    int above = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), error = errno;
    (void)close(fd);
    errno = error;
    return above;
}

static off_t size_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 ? status.st_size : -1;
}

static void *map_file(int fd, size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    return map == MAP_FAILED ? NULL : map;
}

static int make_folder(const char *path)
{
    return mkdir(path, 0777);
}

/* Bound to the open file, not to the process: two stores of one process exclude each other, and closing another file of the same
 * name gives nothing back (fcntl's older locks do both wrong). */
static int lock_file(int fd)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* A child that was forked has the same open file, and would keep the lock: so it is given back, not left to close(). */
static int unlock_file(int fd)
{
    struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_SETLK, &lock);
}

static bool is_locked(int fd)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

kna__calls kna__file_calls = {
    .open = open_file,
    .close = close,
    .read_at = pread,
    .write_at = pwrite,
    .sync = fdatasync,
    .sync_folder = fsync,
    .size = size_of,
    .map = map_file,
    .unmap = munmap,
    .advise = madvise,
    .make_folder = make_folder,
    .rename = rename,
    .unlink = unlink,
    .lock = lock_file,
    .unlock = unlock_file,
    .is_locked = is_locked,
};

int kna__path(char path[KNA_PATH_BYTES], kna_context *context, const char *folder, const char *name)
{
    int length = snprintf(path, KNA_PATH_BYTES, "%s/%s", folder, name);
    if (length < 0 || length >= KNA_PATH_BYTES) {
        return KNA_FAIL(context, KNA_ELIMIT, "%.100s...: a path of more than %d bytes", folder, KNA_PATH_BYTES - 1);
    }
    return KNA_OK;
}

static int failed(const kna__file *file, const char *what)
{
    const char *advice = errno == ENOSPC || errno == EDQUOT ? "; make room and try again" : "";
    return KNA_FAIL(file->context, KNA_EIO, "%s: %s: %s%s", file->name, what, strerror(errno), advice);
}

int kna__file_open(kna__file *file, kna_context *context, const char *folder, const char *name, int how)
{
    static const int flags[] = { O_RDONLY, O_RDWR, O_RDWR | O_CREAT | O_EXCL };
    char path[KNA_PATH_BYTES];
    *file = (kna__file){ .context = context, .fd = -1 };
    snprintf(file->name, sizeof file->name, "%s", name);
    KNA_TRY(kna__path(path, context, folder, name));
    do {
        file->fd = kna__file_calls.open(path, flags[how]);
    } while (file->fd < 0 && errno == EINTR);
    if (file->fd >= 0) {
        return KNA_OK;
    }
    int status = errno == ENOENT ? KNA_ENONE : errno == EEXIST ? KNA_EEXISTS : KNA_EIO;
    return KNA_FAIL(context, status, "%.180s: %s", path, strerror(errno));
}

void kna__file_close(kna__file *file)
{
    if (file->fd >= 0) {
        (void)kna__file_calls.close(file->fd); /* what mattered was synced */
    }
    file->fd = -1;
}

/* How many of the bytes there are; below 0 where they cannot be read. */
static int64_t read_all(const kna__file *file, void *to, size_t bytes, uint64_t at)
{
    size_t done = 0;
    ssize_t got = 1;
    while (done < bytes && got != 0) {
        got = kna__file_calls.read_at(file->fd, (char *)to + done, bytes - done, (off_t)(at + done));
        if (got < 0 && errno != EINTR) {
            return -1;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return (int64_t)done;
}

int kna__file_fetch(const kna__file *file, void *to, size_t bytes, uint64_t at)
{
    int64_t got = read_all(file, to, bytes, at);
    return got < 0 ? KNA_EIO : got < (int64_t)bytes ? KNA_EDAMAGED : KNA_OK;
}

int kna__file_read(const kna__file *file, void *to, size_t bytes, uint64_t at)
{
    int64_t got = read_all(file, to, bytes, at);
    if (got < 0) {
        return failed(file, "reading");
    }
    if (got < (int64_t)bytes) {
        return KNA_FAIL(file->context, KNA_EDAMAGED, "%s: ends at byte %llu, before %llu", file->name,
                        (unsigned long long)(at + (uint64_t)got), (unsigned long long)(at + bytes));
    }
    return KNA_OK;
}

int kna__file_touch(const kna__file *file, uint64_t from, uint64_t end)
{
    unsigned char bytes[16384];
    while (from < end) {
        size_t now = end - from < sizeof bytes ? (size_t)(end - from) : sizeof bytes;
        KNA_TRY(kna__file_read(file, bytes, now, from));
        from += now;
    }
    return KNA_OK;
}

int kna__file_write(const kna__file *file, const void *from, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t put = kna__file_calls.write_at(file->fd, (const char *)from + done, bytes - done, (off_t)(at + done));
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            errno = put == 0 ? ENOSPC : errno;
            return failed(file, "writing");
        }
        done += (size_t)put;
    }
    return KNA_OK;
}

int kna__file_sync(const kna__file *file)
{
    return kna__file_calls.sync(file->fd) == 0 ? KNA_OK : failed(file, "syncing");
}

int kna__file_size(const kna__file *file, uint64_t *bytes)
{
    off_t size = kna__file_calls.size(file->fd);
    *bytes = size < 0 ? 0 : (uint64_t)size;
    return size < 0 ? failed(file, "its size") : KNA_OK;
}

int kna__file_map(const kna__file *file, const void **map, size_t bytes)
{
    uint64_t size = 0;
    *map = NULL;
    KNA_TRY(kna__file_size(file, &size));
    if (size < bytes) {
        return KNA_FAIL(file->context, KNA_EDAMAGED, "%s: %llu bytes, and %llu were committed", file->name,
                        (unsigned long long)size, (unsigned long long)bytes);
    }
    if (bytes) {
        *map = kna__file_calls.map(file->fd, bytes);
    }
    return *map || !bytes ? KNA_OK : failed(file, "mapping");
}

void kna__file_unmap(const void *map, size_t bytes)
{
    if (map) {
        (void)kna__file_calls.unmap((void *)(uintptr_t)map, bytes);
    }
}

int kna__file_unlink(kna_context *context, const char *folder, const char *name)
{
    char path[KNA_PATH_BYTES];
    KNA_TRY(kna__path(path, context, folder, name));
    if (kna__file_calls.unlink(path) != 0 && errno != ENOENT) {
        return KNA_FAIL(context, KNA_EIO, "%.180s: removing: %s", path, strerror(errno));
    }
    return KNA_OK;
}

int kna__folder_sync(kna_context *context, const char *folder)
{
    int fd;
    do {
        fd = kna__file_calls.open(folder, O_RDONLY | O_DIRECTORY);
    } while (fd < 0 && errno == EINTR);
    int status = fd < 0 ? -1 : kna__file_calls.sync_folder(fd), error = errno;
    if (fd >= 0) {
        (void)kna__file_calls.close(fd);
    }
    return status == 0 ? KNA_OK : KNA_FAIL(context, KNA_EIO, "%.180s: syncing the folder: %s", folder, strerror(error));
}

void kna__folder_list(const char *folder, bool (*each)(void *user, const char *name), void *user)
{
    DIR *all = opendir(folder);
    bool more = true;
    for (struct dirent *entry = all ? readdir(all) : NULL; entry && more; entry = readdir(all)) {
        bool is_name = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
        more = !is_name || each(user, entry->d_name);
    }
    if (all) {
        closedir(all);
    }
}
