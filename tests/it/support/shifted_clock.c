/* A clock that is off: preloaded (LD_PRELOAD) into a server, it stands before the C library's calls that tell the time of
 * day. By how many microseconds is in the file that SHIFTED_CLOCK names, and may change at any time; `shifted_clock.rs`
 * compiles this and writes that file. Time that only passes (CLOCK_MONOTONIC) is left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MICROS = 1000000 };

static volatile int64_t *ahead;

__attribute__((constructor)) static void find_file(void) {
    const char *path = getenv("SHIFTED_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) ahead = mapped;
}

/* In microseconds since 1970, with what is left below a microsecond. */
static int64_t shifted(int64_t *nanos) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    struct timespec now;
    real(CLOCK_REALTIME, &now);
    *nanos = now.tv_nsec % 1000;
    return now.tv_sec * (int64_t)MICROS + now.tv_nsec / 1000 + (ahead ? *ahead : 0);
}

int clock_gettime(clockid_t clock, struct timespec *into) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return real(clock, into);
    int64_t nanos, micros = shifted(&nanos);
    into->tv_sec = micros / MICROS;
    into->tv_nsec = micros % MICROS * 1000 + nanos;
    return 0;
}

int gettimeofday(struct timeval *restrict into, void *restrict zone) {
    (void)zone;
    int64_t nanos, micros = shifted(&nanos);
    into->tv_sec = micros / MICROS;
    into->tv_usec = micros % MICROS;
    return 0;
}

time_t time(time_t *into) {
    int64_t nanos;
    time_t now = shifted(&nanos) / MICROS;
    if (into) *into = now;
    return now;
}
