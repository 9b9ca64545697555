/* Those functions of CUDA's driver that protocols/cuda_ipc.py calls, of a GPU whose memory is the host's.

As the real ones do, it refuses to map memory in the process that allocated it. DRIVER_REFUSES in the environment names a
function that fails, with the error that a GPU without peer access gives, or with that of a full one for cuMemAlloc_v2. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 64
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, NO_PEER = 217 };
typedef struct { char reserved[64]; } handle;
static struct { void *at; size_t size; int file; } known[MOST];

static int refuses(const char *name) {
    const char *refused = getenv("DRIVER_REFUSES");
    return refused != NULL && strcmp(refused, name) == 0;
}

static int mapped(int file, size_t size, int write, uint64_t *pointer) {
    for (int n = 0; n < MOST; n++) {
        if (known[n].at != NULL) continue;
        void *at = mmap(NULL, size, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, file, 0);
        if (at == MAP_FAILED) return INVALID;
        known[n].at = at, known[n].size = size, known[n].file = file;
        *pointer = (uint64_t)at;
        return OK;
    }
    return NO_MEMORY;
}

static int unmapped(uint64_t pointer) {
    for (int n = 0; n < MOST; n++) {
        if (known[n].at == NULL || (uint64_t)known[n].at != pointer) continue;
        munmap(known[n].at, known[n].size);
        close(known[n].file);
        known[n].at = NULL;
        return OK;
    }
    return INVALID;
}

int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    if (refuses("cuMemAlloc_v2")) return NO_MEMORY;
    int file = memfd_create("card", 0);
    return file < 0 || ftruncate(file, size) ? NO_MEMORY : mapped(file, size, 1, pointer);
}

int cuMemFree_v2(uint64_t pointer) { return unmapped(pointer); }

int cuIpcGetMemHandle(handle *made, uint64_t pointer) {
    if (refuses("cuIpcGetMemHandle")) return INVALID;
    for (int n = 0; n < MOST; n++) {
        if (known[n].at == NULL || (uint64_t)known[n].at != pointer) continue;
        memset(made, 0, sizeof *made);
        snprintf(made->reserved, sizeof made->reserved, "/proc/%d/fd/%d", getpid(), known[n].file);
        return OK;
    }
    return INVALID;
}

int cuIpcOpenMemHandle_v2(uint64_t *pointer, handle given, unsigned flags) {
    char own[64];
    struct stat facts;
    if (refuses("cuIpcOpenMemHandle_v2")) return NO_PEER;
    snprintf(own, sizeof own, "/proc/%d/", getpid());
    if (flags != 1) return INVALID;
    if (strncmp(given.reserved, own, strlen(own)) == 0) return NO_CONTEXT;
    int file = open(given.reserved, O_RDONLY);
    return file < 0 || fstat(file, &facts) ? INVALID : mapped(file, facts.st_size, 0, pointer);
}

int cuIpcCloseMemHandle(uint64_t pointer) { return unmapped(pointer); }

int cuGetErrorString(int code, const char **said) {
    *said = code == NO_PEER ? "peer access is not supported" : code == NO_MEMORY ? "out of memory" : "invalid value";
    return OK;
}
