/* The local end of the streams: a UNIX socket whose connections are read to nowhere, or written full.
 *
 *   sink --unix PATH --bytes N [--streams K] [--rate BYTES_PER_S] [--verify] [--source]
 *
 * Prints {"ready":true} once it listens, and {"first_s","last_s","bytes","bad","cpu_s"} when N bytes of each of the K
 * streams have moved. --source writes instead of reading, after a byte on its standard input: a relay that takes
 * without a bound would have everything before the clock starts. Runs until it is killed. MIT licence, see LICENSE. */
#include "common.h"

#include <getopt.h>
#include <poll.h>
#include <sys/un.h>

#define READ_BYTES (256u << 10)
#define SLOW_READ_BYTES (64u << 10)

static const char *path;
static uint64_t bytes, rate;
static bool verify, source;

static void keep_rate(double start_s, uint64_t moved)
{
    double ahead_s = start_s + (double)moved / rate - now_s();
    if (ahead_s > 0)
        usleep(ahead_s * 1e6);
}

static void drain(int fd)
{
    uint8_t *buffer = malloc(READ_BYTES);
    size_t most = rate ? SLOW_READ_BYTES : READ_BYTES;
    double start_s = now_s();
    uint64_t moved = 0;
    ssize_t size;
    while ((size = read(fd, buffer, most)) > 0) {
        count(size, !verify || is_payload(buffer, size, moved));
        moved += size;
        if (rate)
            keep_rate(start_s, moved);
    }
    free(buffer);
}

/* The byte stays where it is, for all streams. */
static void wait_until_told(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (poll(&input, 1, -1) < 0)
        continue;
}

static void fill(int fd)
{
    wait_until_told();
    uint64_t moved = 0;
    while (moved < bytes) {
        size_t at = moved % PATTERN_BYTES;
        size_t most = PATTERN_BYTES - at < READ_BYTES ? PATTERN_BYTES - at : READ_BYTES;
        ssize_t size = write(fd, pattern + at, most < bytes - moved ? most : bytes - moved);
        if (size <= 0)
            return;
        count(size, true);
        moved += size;
    }
    for (char byte; read(fd, &byte, 1) > 0;)
        continue;
}

static void *serve(void *argument)
{
    int fd = (int)(intptr_t)argument;
    (source ? fill : drain)(fd);
    close(fd);
    return NULL;
}

static int listen_unix(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path == NULL || strlen(path) >= sizeof address.sun_path)
        fail("--unix PATH");
    strcpy(address.sun_path, path);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 1024) != 0)
        fail(path);
    return fd;
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"unix", required_argument, NULL, 'u'},  {"bytes", required_argument, NULL, 'b'},
        {"streams", required_argument, NULL, 'n'}, {"rate", required_argument, NULL, 'r'},
        {"verify", no_argument, NULL, 'v'},      {"source", no_argument, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    uint64_t streams = 1;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'u': path = optarg; break;
        case 'b': bytes = strtoull(optarg, NULL, 10); break;
        case 'n': streams = strtoull(optarg, NULL, 10); break;
        case 'r': rate = strtoull(optarg, NULL, 10); break;
        case 'v': verify = true; break;
        case 's': source = true; break;
        default: exit(2);
        }
    }
    total.expected = bytes * streams;
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    make_pattern();
    int listener = listen_unix();
    say_ready();
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            fail("accept");
        pthread_detach(start_thread(serve, (void *)(intptr_t)fd));
    }
}
