/* Another wall clock for one process and its children, preloaded: the kernel's, set by so many nanoseconds.
 *
 * The number lies in a file that is mapped, so that a clock jumps at once, for all who share the file, and asks for no
 * descriptor. The monotonic clock stays. Whoever waits until a moment of the wall clock waits by the kernel's, so such
 * moments are set back on their way there; a moment of the monotonic clock is told by how small it is. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define LONG_AGO 1000000000 /* 2001; no machine has run for as many seconds */

static const int64_t nothing = 0;
static const volatile int64_t *offset = &nothing;
static long (*kernel)(long, ...);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page;

    *(void **)&kernel = dlsym(RTLD_NEXT, "syscall");
    if (descriptor < 0)
        return;
    page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, descriptor, 0);
    if (page != MAP_FAILED)
        offset = page;
    close(descriptor);
}

static struct timespec moved(struct timespec moment, int64_t by)
{
    int64_t nanoseconds = moment.tv_sec * SECOND + moment.tv_nsec + by;

    moment.tv_sec = nanoseconds / SECOND;
    moment.tv_nsec = nanoseconds % SECOND;
    return moment;
}

static struct timespec to_kernel(const struct timespec *moment)
{
    return moved(*moment, moment->tv_sec > LONG_AGO ? -*offset : 0);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    int failed;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *now = moved(*now, *offset);
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec moment;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &moment);
    now->tv_sec = moment.tv_sec;
    now->tv_usec = moment.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec moment;

    clock_gettime(CLOCK_REALTIME, &moment);
    if (now)
        *now = moment.tv_sec;
    return moment.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec moment = to_kernel(until);

    if (!real)
        *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return real(condition, mutex, &moment);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
    static int (*real)(sem_t *, const struct timespec *);
    struct timespec moment = to_kernel(until);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sem_timedwait");
    return real(semaphore, &moment);
}

long syscall(long number, ...)
{
    long words[6];
    va_list list;
    struct timespec moment;

    va_start(list, number);
    for (int index = 0; index < 6; index++)
        words[index] = va_arg(list, long);
    va_end(list);
    if (number == SYS_futex && (words[1] & FUTEX_CLOCK_REALTIME) && words[3]) {
        moment = to_kernel((const struct timespec *)words[3]);
        words[3] = (long)&moment;
    }
    if (!kernel)
        *(void **)&kernel = dlsym(RTLD_NEXT, "syscall");
    return kernel(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
