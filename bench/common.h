/* What the load client and the sink share: the clock, the payload, results as JSON. MIT licence, see LICENSE. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The payload of every stream: this many pseudo-random bytes over and over, a multiple of every frame size. */
#define PATTERN_BYTES (1u << 20)

static uint8_t pattern[PATTERN_BYTES];

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void make_pattern(void)
{
    uint64_t state = 20221122;
    for (size_t at = 0; at < PATTERN_BYTES; at += 8) {
        uint64_t word = next_random(&state);
        memcpy(pattern + at, &word, 8);
    }
}

/* Whether these are the bytes of the payload from `offset` on. */
static bool is_payload(const uint8_t *data, size_t size, uint64_t offset)
{
    while (size) {
        size_t at = offset % PATTERN_BYTES;
        size_t part = size < PATTERN_BYTES - at ? size : PATTERN_BYTES - at;
        if (memcmp(data, pattern + at, part) != 0)
            return false;
        data += part;
        size -= part;
        offset += part;
    }
    return true;
}

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static double cpu_s(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

/* What all streams of a program have moved; `bad` counts reads whose bytes differ from the payload. */
struct total {
    pthread_mutex_t lock;
    double first_s, last_s;
    uint64_t bytes, expected, bad;
    bool told;
};

static struct total total = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Add to the total; the one who completes it prints the result. */
static void count(size_t size, bool good)
{
    pthread_mutex_lock(&total.lock);
    total.last_s = now_s();
    if (total.bytes == 0)
        total.first_s = total.last_s;
    total.bytes += size;
    total.bad += !good;
    if (total.bytes >= total.expected && !total.told) {
        total.told = true;
        printf("{\"first_s\":%.6f,\"last_s\":%.6f,\"bytes\":%llu,\"bad\":%llu,\"cpu_s\":%.3f}\n", total.first_s,
               total.last_s, (unsigned long long)total.bytes, (unsigned long long)total.bad, cpu_s());
        fflush(stdout);
    }
    pthread_mutex_unlock(&total.lock);
}

static void say_ready(void)
{
    puts("{\"ready\":true}");
    fflush(stdout);
}

static void fail(const char *deed)
{
    fprintf(stderr, "%s: %s\n", deed, errno ? strerror(errno) : "failed");
    exit(1);
}

static void raise_file_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static pthread_t start_thread(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, run, argument)) != 0)
        fail("thread");
    return thread;
}

#endif
