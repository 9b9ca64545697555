/* Preloaded into a replay service: keeps a journal of what it writes to its spool, and plays a full disk.

   POWER_FOLDER   the spool: only files below it matter
   POWER_JOURNAL  file, outside the folder, to which every write, truncation and sync is appended
   POWER_FULL     while this file exists the disk is full. Its first letter says how:
                    g  what would make a file grow fails (ENOSPC)
                    s  the same, but a large write is cut short first, as file systems do
                    a  every write fails
   POWER_SYNC_US  microseconds that a sync takes at least, so that acting before its end shows

   A write is journalled after it returned and a sync's begin before it is called: so a write that stands before
   the begin of a sync in the journal is covered by that sync. What the journal lacks at kill -9 had not returned. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PARTS 1024

struct head {
    uint8_t kind;    /* W write, T truncate, B begin of sync, E end of sync, M writable map: writes we cannot see */
    uint8_t durable; /* of a write: through a descriptor with O_DSYNC */
    uint16_t name;   /* bytes of the file's name, which follow */
    uint32_t unused;
    uint64_t offset; /* of a sync: its number */
    uint64_t size;   /* bytes of data, which follow the name; of a truncation: the new size */
};

static char folder[PATH_MAX];
static const char *full_path;
static int journal = -1;
static unsigned sync_us;
static uint64_t syncs;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("POWER_FOLDER"), *path = getenv("POWER_JOURNAL"), *us = getenv("POWER_SYNC_US");
    full_path = getenv("POWER_FULL");
    sync_us = us ? (unsigned)atoi(us) : 0;
    if (where == NULL || realpath(where, folder) == NULL) folder[0] = 0;
    if (path != NULL) journal = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The name of the file below the folder that `fd` is, or NULL. */
static const char *spooled(int fd, char *room) {
    char link[40];
    size_t length = strlen(folder);
    if (length == 0 || fd < 0 || fd == journal) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t found = readlink(link, room, PATH_MAX - 1);
    if (found <= (ssize_t)length) return NULL;
    room[found] = 0;
    return strncmp(room, folder, length) == 0 && room[length] == '/' ? room + length + 1 : NULL;
}

static void note(char kind, int durable, const char *name, uint64_t offset, uint64_t size, const struct iovec *data,
                 int parts) {
    struct head head = {(uint8_t)kind, (uint8_t)durable, (uint16_t)strlen(name), 0, offset, size};
    struct iovec all[PARTS + 2] = {{&head, sizeof head}, {(void *)name, head.name}};
    uint64_t left = kind == 'W' ? size : 0;
    int count = 2;
    for (int i = 0; i < parts && left > 0; i++) {
        size_t take = data[i].iov_len < left ? data[i].iov_len : left;
        all[count++] = (struct iovec){data[i].iov_base, take};
        left -= take;
    }
    if (journal < 0) return;
    pthread_mutex_lock(&order);
    for (int first = 0; first < count; first += IOV_MAX)
        if (syscall(SYS_writev, journal, all + first, count - first < IOV_MAX ? count - first : IOV_MAX) < 0) abort();
    pthread_mutex_unlock(&order);
}

/* What the full disk says to a write of `size` bytes that would end at `end`: bytes it takes, or -1. */
static ssize_t allowed(int fd, uint64_t offset, size_t size) {
    char how = 'g';
    struct stat found;
    int control = full_path ? syscall(SYS_openat, AT_FDCWD, full_path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (control < 0) return size;
    syscall(SYS_read, control, &how, 1);
    syscall(SYS_close, control);
    if (how != 'a' && fstat(fd, &found) == 0 && offset + size <= (uint64_t)found.st_size) return size;
    if (how == 's' && size > 4096) return 4096;
    errno = ENOSPC;
    return -1;
}

static ssize_t put(int fd, const struct iovec *data, int parts, off_t offset, int positioned) {
    char room[PATH_MAX];
    const char *name = spooled(fd, room);
    if (name == NULL)
        return positioned ? syscall(SYS_pwritev, fd, data, parts, offset, 0) : syscall(SYS_writev, fd, data, parts);
    struct iovec cut[1];
    size_t size = 0;
    for (int i = 0; i < parts; i++) size += data[i].iov_len;
    off_t from = positioned ? offset : lseek(fd, 0, SEEK_CUR);
    ssize_t may = allowed(fd, from, size);
    if (may < 0) return -1;
    if ((size_t)may < size) {
        cut[0] = (struct iovec){data[0].iov_base, data[0].iov_len < (size_t)may ? data[0].iov_len : (size_t)may};
        data = cut, parts = 1;
    }
    ssize_t done = syscall(SYS_pwritev, fd, data, parts, from, 0);
    if (done > 0) {
        if (!positioned) lseek(fd, from + done, SEEK_SET);
        note('W', (fcntl(fd, F_GETFL) & O_DSYNC) != 0, name, from, done, data, parts);
    }
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct iovec one = {(void *)data, size};
    return put(fd, &one, 1, offset, 1);
}

ssize_t pwritev(int fd, const struct iovec *data, int parts, off_t offset) { return put(fd, data, parts, offset, 1); }

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec one = {(void *)data, size};
    return put(fd, &one, 1, 0, 0);
}

ssize_t writev(int fd, const struct iovec *data, int parts) { return put(fd, data, parts, 0, 0); }

int ftruncate(int fd, off_t size) {
    char room[PATH_MAX];
    const char *name = spooled(fd, room);
    int failed = syscall(SYS_ftruncate, fd, size);
    if (name != NULL && !failed) note('T', 0, name, 0, size, NULL, 0);
    return failed;
}

static int synced(int fd, long call) {
    char room[PATH_MAX];
    const char *name = spooled(fd, room);
    if (name == NULL) return syscall(call, fd);
    uint64_t number = __atomic_add_fetch(&syncs, 1, __ATOMIC_SEQ_CST);
    note('B', 0, name, number, 0, NULL, 0);
    if (sync_us) usleep(sync_us);
    int failed = syscall(call, fd);
    if (!failed) note('E', 0, name, number, 0, NULL, 0);
    return failed;
}

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
int fsync(int fd) { return synced(fd, SYS_fsync); }

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    char room[PATH_MAX];
    const char *name = (flags & MAP_SHARED) && (protection & PROT_WRITE) ? spooled(fd, room) : NULL;
    if (name != NULL) note('M', 0, name, offset, size, NULL, 0);
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }
ssize_t pwritev64(int fd, const struct iovec *data, int parts, off_t offset) { return pwritev(fd, data, parts, offset); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap(at, size, protection, flags, fd, offset);
}
