/* libcuda over memfds, so that real node agents and workers run the whole way on "a device".
 *
 * An allocation is a memfd; its handle is the path under which other processes open it. Copies are
 * carried out as late as CUDA allows: when an event behind them is waited for. Every address is of
 * the host's memory, and cuPointerGetAttribute says so, unless FAKE_CUDA_KIND says otherwise.
 * FAKE_CUDA_BYTES is the memory of each device, FAKE_CUDA_DEVICES how many there are. Whatever acts
 * on a context fails in a thread that has made none current.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_PINNED = 3, INVALID_CONTEXT = 201,
    MAX = 4096, DEVICES = 8
};
#define IN_CONTEXT if (!current) return INVALID_CONTEXT

typedef struct { unsigned char bytes[64]; } Handle;
typedef struct { char *address; size_t size; int fd, device; } Allocation;
typedef struct { uint64_t target; const void *source; size_t size; void *event; } Item;
typedef struct { Item items[MAX]; int begin, end; } Stream;
typedef struct { Stream *stream; } Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation allocations[MAX];
static size_t used[DEVICES];
static __thread int current; /* the device whose context it is, and 1; or 0 */
static char *pinned;
static size_t pinned_size;

static size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

int cuInit(unsigned flags) { (void)flags; return OK; }

int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : "invalid argument";
    return OK;
}

int cuDeviceGetCount(int *count) { *count = (int)setting("FAKE_CUDA_DEVICES", 1); return OK; }

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, (size_t)size, "Fake GPU");
    return OK;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, device, 16); return OK; }

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(intptr_t)(device + 1);
    return OK;
}

int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }

int cuCtxSetCurrent(void *context) { current = (int)(intptr_t)context; return OK; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    IN_CONTEXT;
    *total = setting("FAKE_CUDA_BYTES", (size_t)1 << 30);
    *free_bytes = *total - used[current - 1];
    return OK;
}

static int allocate(uint64_t *address, size_t size) {
    size_t total = setting("FAKE_CUDA_BYTES", (size_t)1 << 30);
    if (used[current - 1] + size > total) return OUT_OF_MEMORY;
    int fd = memfd_create("fake-cuda", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size)) return OUT_OF_MEMORY;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    for (int i = 0; i < MAX; i++) {
        if (allocations[i].address) continue;
        allocations[i] = (Allocation){memory, size, fd, current - 1};
        used[current - 1] += size;
        *address = (uint64_t)memory;
        return OK;
    }
    return OUT_OF_MEMORY;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    IN_CONTEXT;
    pthread_mutex_lock(&lock); /* each device has a thread of its own */
    int code = allocate(address, size);
    pthread_mutex_unlock(&lock);
    return code;
}

static Allocation *find(uint64_t address) {
    for (int i = 0; i < MAX; i++)
        if (allocations[i].address && (uint64_t)allocations[i].address == address)
            return &allocations[i];
    return NULL;
}

int cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    Allocation *found = find(address);
    if (!found) return INVALID_VALUE;
    munmap(found->address, found->size);
    close(found->fd);
    used[found->device] -= found->size;
    *found = (Allocation){0};
    return OK;
}

int cuMemHostRegister_v2(void *address, size_t size, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    pinned = address;
    pinned_size = size;
    return OK;
}

int cuMemHostUnregister(void *address) {
    (void)address;
    IN_CONTEXT;
    pinned = NULL;
    return OK;
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    *stream = calloc(1, sizeof(Stream));
    return OK;
}

int cuStreamDestroy_v2(void *stream) { free(stream); return OK; }

int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    *event = calloc(1, sizeof(Event));
    return OK;
}

int cuEventDestroy_v2(void *event) { free(event); return OK; }

static int put(Stream *stream, Item item) {
    stream->items[stream->end] = item;
    stream->end = (stream->end + 1) % MAX;
    return OK;
}

int cuEventRecord(void *event, void *stream) {
    IN_CONTEXT;
    ((Event *)event)->stream = stream;
    return put(stream, (Item){.event = event});
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    const char *from = source;
    IN_CONTEXT;
    if (from < pinned || from + size > pinned + pinned_size) return NOT_PINNED;
    return put(stream, (Item){target, source, size, NULL});
}

int cuEventSynchronize(void *event) {
    IN_CONTEXT;
    Stream *stream = ((Event *)event)->stream;
    while (stream && stream->begin != stream->end) {
        Item item = stream->items[stream->begin];
        stream->begin = (stream->begin + 1) % MAX;
        if (item.event == event) break;
        if (!item.event) memcpy((void *)item.target, item.source, item.size);
    }
    return OK;
}

int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
    Allocation *found = find(address);
    if (!found) return INVALID_VALUE;
    memset(handle, 0, sizeof *handle);
    snprintf((char *)handle->bytes, sizeof handle->bytes, "/proc/%d/fd/%d", getpid(), found->fd);
    return OK;
}

int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    struct stat about;
    int fd = open((char *)handle.bytes, O_RDWR);
    if (fd < 0 || fstat(fd, &about)) return INVALID_VALUE;
    void *memory = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return INVALID_VALUE;
    *address = (uint64_t)memory;
    return OK;
}

int cuPointerGetAttribute(unsigned *value, int attribute, uint64_t address) {
    (void)attribute;
    (void)address;
    *value = (unsigned)setting("FAKE_CUDA_KIND", 1); /* CU_MEMORYTYPE_HOST: this is what it is */
    return OK;
}
