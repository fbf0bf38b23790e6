/* A disk that fails when told to: preloaded (LD_PRELOAD) into the server under test, it stands before the C library's
 * calls on files. `faulty_disk.rs` compiles it and writes the control file that FAULTY_DISK names; the two agree on
 * `struct control`. Counters are in that file, so the test sees how far the process has come. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CALL_OPEN = 1, CALL_WRITE = 2, CALL_SYNC = 4, CALL_READ = 8 };

struct control {
    uint64_t calls;   /* which calls, bits of the above; 0: none */
    uint64_t good;    /* so many of them still work, */
    uint64_t bad;     /* then so many fail */
    uint64_t error;   /* with this errno; 0: half of what is to be written is written, and said to be */
    uint64_t failed;  /* how many have failed */
    char path[216];   /* a part of the file's path */
};

static struct control *control;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void find_control(void) {
    const char *path = getenv("FAULTY_DISK");
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = path ? real_open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

/* 0: let it through. -1: fail, errno is set. 1: do half of it. */
static int fails(uint64_t call, const char *path, int fd) {
    if (!control || !(__atomic_load_n(&control->calls, __ATOMIC_SEQ_CST) & call)) return 0;
    char name[4096], link[64];
    if (!path) {
        int kept = errno;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, name, sizeof name - 1);
        errno = kept;
        if (length < 0) return 0;
        name[length] = 0;
        path = name;
    }
    int outcome = 0;
    pthread_mutex_lock(&lock);
    if (!(control->calls & call) || !strstr(path, control->path)) {
        /* another file, or disarmed meanwhile */
    } else if (control->good > 0) {
        control->good--;
    } else if (control->bad > 0) {
        control->bad--;
        control->failed++;
        outcome = control->error ? -1 : 1;
        if (control->error) errno = (int)control->error;
    }
    pthread_mutex_unlock(&lock);
    return outcome;
}

/* The library's own function of the same name, looked up once. */
#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Opening. */

#define OPENS(name, path, ...) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    } \
    REAL(name); \
    if (fails(CALL_OPEN, path, -1)) return -1; \
    return real(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPENS(open, path, path); }
int open64(const char *path, int flags, ...) { OPENS(open64, path, path); }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, path, at, path); }
int openat64(int at, const char *path, int flags, ...) { OPENS(openat64, path, at, path); }

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Writing: half of it is a short write, of one byte a whole one. */

#define WRITES(name, half, ...) \
    REAL(name); \
    switch (fails(CALL_WRITE, NULL, fd)) { \
    case -1: return -1; \
    case 1: half; \
    } \
    return real(__VA_ARGS__)
#define HALVES size = size > 1 ? size / 2 : size

ssize_t write(int fd, const void *data, size_t size) { WRITES(write, HALVES, fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { WRITES(pwrite, HALVES, fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { WRITES(pwrite64, HALVES, fd, data, size, at); }

#define HALVES_PARTS count = count > 1 ? count / 2 : count
ssize_t writev(int fd, const struct iovec *parts, int count) { WRITES(writev, HALVES_PARTS, fd, parts, count); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    WRITES(pwritev, HALVES_PARTS, fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    WRITES(pwritev64, HALVES_PARTS, fd, parts, count, at);
}

/* Changing the length is writing too, but can't be done by halves. */

int ftruncate(int fd, off_t length) { WRITES(ftruncate, (void)0, fd, length); }
int ftruncate64(int fd, off64_t length) { WRITES(ftruncate64, (void)0, fd, length); }

/* Syncing: what a failed one was to write is not told to be lost, as with a real disk. */

#define SYNCS(name, ...) \
    REAL(name); \
    if (fails(CALL_SYNC, NULL, fd)) { \
        if (control->error == 0) errno = EIO; \
        return -1; \
    } \
    return real(__VA_ARGS__)

int fsync(int fd) { SYNCS(fsync, fd); }
int fdatasync(int fd) { SYNCS(fdatasync, fd); }
int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
    SYNCS(sync_file_range, fd, at, length, flags);
}

/* Reading. */

#define READS(name, ...) \
    REAL(name); \
    if (fails(CALL_READ, NULL, fd) == -1) return -1; \
    return real(__VA_ARGS__)

ssize_t read(int fd, void *data, size_t size) { READS(read, fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { READS(pread, fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off64_t at) { READS(pread64, fd, data, size, at); }
