/* The far end of the streams: clients on the loopback address that send or receive as fast as they can.
 *
 *   load --port P --bytes N [--streams K] [--tls] [--raw] [--receive] [--verify] [--frame BYTES]
 *        [--random-mask] [--rate BYTES_PER_S] [--resumable] [--prepared] [--target URL_PATH]… [--header LINE]
 *
 * Connects K streams, one after the other, and upgrades each to a websocket unless --raw, to the targets in turn;
 * prints {"ready":true}. After a byte on its standard input it moves N payload bytes on each, a frame at a time, as
 * Proxmox's helper does (TLS: small ones leave in larger pieces, or this program would be the bottleneck), and prints
 * {"first_s","last_s","bytes","bad","cpu_s"}. With --rate the kernel paces each stream, so that bytes come in pieces as
 * from a slower network. With --resumable the streams are flows that outlive their connections (`Mtunnel-Resume: 1`), and
 * what comes is acknowledged. With --prepared all that is to be sent is encrypted and in memory before {"ready":true}:
 * else this program, which shares a core with the sink, is slower than the fastest relays. When its standard input ends it closes the streams in order and is done.
 * MIT licence, see LICENSE. */
#include "common.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#define HEAD_BYTES 14
#define READ_BYTES (256u << 10)
#define SMALL_BYTES (16u << 10)
#define PIECE_BYTES (64u << 10)
#define MOST_TARGETS 64
#define RECORD_ROOM_BYTES 64
#define ACK_BYTES (4u << 20)
#define RESUME_HEADER "Mtunnel-Resume: 1"
#define SUITE "TLS_AES_256_GCM_SHA384"

static int port;
static uint64_t bytes, streams = 1, rate;
static size_t frame = 128u << 10;
static bool tls, raw, receives, verify, random_mask, resumable, prepared;
static const char *targets[MOST_TARGETS] = {"/"}, *header = "";
static size_t target_count;

/* A connection; `data` holds what was read and not yet used, from `at` to `end`. */
struct stream {
    int fd;
    SSL *ssl;
    uint8_t *data;
    size_t at, end;
    uint64_t moved, acknowledged;
    uint8_t *sealed; /* what --prepared has made, of `sealed_size` bytes; each frame has become `piece_size` */
    size_t sealed_size, piece_size;
};

/* Frames that hold the whole pattern, each masked; the same for all streams. */
static uint8_t *frames;
static size_t frames_size, frame_size;

static void fail_tls(const char *deed)
{
    ERR_print_errors_fp(stderr);
    fail(deed);
}

static void write_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t sent = write(fd, data, size);
        if (sent <= 0)
            fail("send");
        data += sent;
        size -= sent;
    }
}

static void send_all(struct stream *stream, const uint8_t *data, size_t size)
{
    if (stream->ssl) {
        if (SSL_write(stream->ssl, data, size) != (int)size)
            fail_tls("send");
        return;
    }
    write_all(stream->fd, data, size);
}

/* Send what waits in `join_small_writes`. */
static void flush(struct stream *stream)
{
    if (stream->ssl && BIO_flush(SSL_get_wbio(stream->ssl)) != 1)
        fail_tls("flush");
}

/* Read more behind what is there; the end of the connection is a failure. */
static void receive_more(struct stream *stream)
{
    if (stream->at == stream->end)
        stream->at = stream->end = 0;
    uint8_t *free_space = stream->data + stream->end;
    size_t most = READ_BYTES - stream->end;
    ssize_t size = stream->ssl ? SSL_read(stream->ssl, free_space, most) : read(stream->fd, free_space, most);
    if (size <= 0)
        fail("receive");
    stream->end += size;
}

/* Wait until `size` unused bytes are there, in one piece. Returns: where they are. */
static uint8_t *receive_exactly(struct stream *stream, size_t size)
{
    if (stream->at + size > READ_BYTES) {
        memmove(stream->data, stream->data + stream->at, stream->end - stream->at);
        stream->end -= stream->at;
        stream->at = 0;
    }
    while (stream->end - stream->at < size)
        receive_more(stream);
    stream->at += size;
    return stream->data + stream->at - size;
}

static void connect_tcp(struct stream *stream)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(stream->fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (rate && setsockopt(stream->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate) != 0)
        fail("pace");
}

/* The TLS records stay as they are, each with a frame; they only share system calls. */
static void join_small_writes(struct stream *stream)
{
    BIO *buffer = BIO_new(BIO_f_buffer());
    BIO_set_write_buffer_size(buffer, PIECE_BYTES);
    SSL_set0_wbio(stream->ssl, BIO_push(buffer, BIO_new_socket(stream->fd, BIO_NOCLOSE)));
}

static void connect_tls(struct stream *stream)
{
    static SSL_CTX *context;
    if (context == NULL) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
        SSL_CTX_set_ciphersuites(context, SUITE);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, READ_BYTES);
    }
    stream->ssl = SSL_new(context);
    SSL_set_fd(stream->ssl, stream->fd);
    if (SSL_connect(stream->ssl) != 1)
        fail_tls("TLS handshake");
    if (frame < SMALL_BYTES)
        join_small_writes(stream);
}

static void upgrade(struct stream *stream, const char *target)
{
    static const char request[] = "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bXR1bm5lbC10eCBiZW5jaA==\r\n"
                                  "Sec-WebSocket-Protocol: binary\r\n%s%s%s\r\n";
    char text[8192];
    int size = snprintf(text, sizeof text, request, target, header, *header ? "\r\n" : "",
                        resumable ? RESUME_HEADER "\r\n" : "");
    send_all(stream, (uint8_t *)text, size);
    flush(stream);
    uint8_t *border;
    do
        receive_more(stream);
    while ((border = memmem(stream->data, stream->end, "\r\n\r\n", 4)) == NULL);
    if (memcmp(stream->data, "HTTP/1.1 101", 12) != 0) {
        fprintf(stderr, "%.*s\n", (int)strcspn((char *)stream->data, "\r"), stream->data);
        exit(1);
    }
    stream->at = border + 4 - stream->data;
    if (resumable && !memmem(stream->data, stream->at, RESUME_HEADER ";", strlen(RESUME_HEADER ";")))
        fail("flow is not resumable");
}

static size_t put_head(uint8_t *head, size_t size, const uint8_t mask[4])
{
    size_t at = 0;
    head[at++] = 0x82;
    if (size < 126) {
        head[at++] = 0x80 | size;
    } else {
        int width = size < 65536 ? 2 : 8;
        head[at++] = 0x80 | (width == 2 ? 126 : 127);
        while (width--)
            head[at++] = (uint64_t)size >> (8 * width);
    }
    memcpy(head + at, mask, 4);
    return at + 4;
}

static void make_frames(void)
{
    uint64_t state = 1 + time(NULL);
    frames = malloc((PATTERN_BYTES / frame) * (frame + HEAD_BYTES));
    for (size_t start = 0; start < PATTERN_BYTES; start += frame) {
        uint8_t *at = frames + frames_size, mask[4] = {0};
        uint32_t word = (uint32_t)(next_random(&state) >> 16) | 1;
        if (random_mask)
            memcpy(mask, &word, 4);
        size_t head_size = raw ? 0 : put_head(at, frame, mask);
        for (size_t i = 0; i < frame; i++)
            at[head_size + i] = pattern[start + i] ^ (raw ? 0 : mask[i % 4]);
        frame_size = head_size + frame;
        frames_size += frame_size;
    }
}

/* Encrypt everything that the stream is to send. */
static void prepare(struct stream *stream)
{
    BIO *memory = BIO_new(BIO_s_mem()), *network = SSL_get_wbio(stream->ssl);
    BIO_up_ref(network);
    SSL_set0_wbio(stream->ssl, memory);
    size_t frame_count = bytes / frame, room = frame_count * (frame_size + (frame_size / SMALL_BYTES + 1) * RECORD_ROOM_BYTES);
    if ((stream->sealed = malloc(room)) == NULL)
        fail("--prepared");
    for (size_t i = 0, at = 0; i < frame_count; i++, at = (at + frame_size) % frames_size) {
        send_all(stream, frames + at, frame_size);
        int size = BIO_read(memory, stream->sealed + stream->sealed_size, BIO_ctrl_pending(memory));
        stream->sealed_size += stream->piece_size = size;
    }
    SSL_set0_wbio(stream->ssl, network);
}

static void send_prepared(struct stream *stream)
{
    size_t piece = (frame < SMALL_BYTES ? PIECE_BYTES / frame : 1) * stream->piece_size;
    for (size_t at = 0; at < stream->sealed_size; at += piece) {
        size_t left = stream->sealed_size - at, size = left < piece ? left : piece;
        write_all(stream->fd, stream->sealed + at, size);
        stream->moved += size / stream->piece_size * frame;
        count(size / stream->piece_size * frame, true);
    }
    free(stream->sealed);
}

static void *send_stream(void *argument)
{
    struct stream *stream = argument;
    if (stream->sealed) {
        send_prepared(stream);
        return NULL;
    }
    for (size_t at = 0; stream->moved < bytes; at = (at + frame_size) % frames_size) {
        send_all(stream, frames + at, frame_size);
        stream->moved += frame;
        count(frame, true);
    }
    flush(stream);
    return NULL;
}

/* Send a text frame with a record of a resumable flow. */
static void send_record(struct stream *stream, const char *text)
{
    uint8_t data[64] = {0x81, 0x80 | strlen(text)};
    memcpy(data + 6, text, strlen(text));
    send_all(stream, data, 6 + strlen(text));
    flush(stream);
}

static void acknowledge(struct stream *stream)
{
    char text[32];
    if (!resumable || stream->moved - stream->acknowledged < ACK_BYTES)
        return;
    stream->acknowledged = stream->moved;
    snprintf(text, sizeof text, "a %llu", (unsigned long long)stream->moved);
    send_record(stream, text);
}

/* Read the head of a server's frame. Returns: its payload's size; `counts`: it is payload, no control frame or record. */
static uint64_t receive_head(struct stream *stream, bool *counts)
{
    uint8_t *head = receive_exactly(stream, 2);
    uint64_t size = head[1] & 0x7f;
    *counts = !(head[0] & 0x08) && !(resumable && head[0] == 0x81);
    int width = size < 126 ? 0 : size == 126 ? 2 : 8;
    if (width)
        size = 0;
    for (uint8_t *at = receive_exactly(stream, width), *end = at + width; at < end; at++)
        size = size << 8 | *at;
    return size;
}

static void receive_payload(struct stream *stream, uint64_t size, bool counts)
{
    while (size) {
        if (stream->at == stream->end)
            receive_more(stream);
        size_t part = stream->end - stream->at < size ? stream->end - stream->at : size;
        if (counts) {
            count(part, !verify || is_payload(stream->data + stream->at, part, stream->moved));
            stream->moved += part;
        }
        stream->at += part;
        size -= part;
    }
}

static void *receive_stream(void *argument)
{
    struct stream *stream = argument;
    while (stream->moved < bytes) {
        bool counts = true;
        uint64_t size = raw ? bytes : receive_head(stream, &counts);
        receive_payload(stream, size, counts);
        acknowledge(stream);
    }
    return NULL;
}

static void close_stream(struct stream *stream)
{
    static const uint8_t close_frame[] = {0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8};
    if (resumable)
        send_record(stream, "x measured");
    if (!raw)
        send_all(stream, close_frame, sizeof close_frame);
    if (stream->ssl)
        SSL_shutdown(stream->ssl);
    flush(stream);
    close(stream->fd);
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},    {"bytes", required_argument, NULL, 'b'},
        {"streams", required_argument, NULL, 'n'}, {"frame", required_argument, NULL, 'f'},
        {"target", required_argument, NULL, 't'},  {"header", required_argument, NULL, 'h'},
        {"tls", no_argument, NULL, 's'},           {"raw", no_argument, NULL, 'r'},
        {"receive", no_argument, NULL, 'g'},       {"verify", no_argument, NULL, 'v'},
        {"random-mask", no_argument, NULL, 'm'},   {"rate", required_argument, NULL, 'e'},
        {"resumable", no_argument, NULL, 'u'},     {"prepared", no_argument, NULL, 'q'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'b': bytes = strtoull(optarg, NULL, 10); break;
        case 'n': streams = strtoull(optarg, NULL, 10); break;
        case 'f': frame = strtoull(optarg, NULL, 10); break;
        case 't': targets[target_count++ % MOST_TARGETS] = optarg; break;
        case 'h': header = optarg; break;
        case 's': tls = true; break;
        case 'r': raw = true; break;
        case 'g': receives = true; break;
        case 'v': verify = true; break;
        case 'm': random_mask = true; break;
        case 'u': resumable = true; break;
        case 'q': prepared = true; break;
        case 'e': rate = strtoull(optarg, NULL, 10); break;
        default: exit(2);
        }
    }
    if (frame == 0 || PATTERN_BYTES % frame)
        fail("--frame: must divide 1 MiB");
    total.expected = bytes * streams;
}

static void open_stream(struct stream *stream, const char *target)
{
    stream->data = malloc(READ_BYTES);
    connect_tcp(stream);
    if (tls)
        connect_tls(stream);
    if (!raw)
        upgrade(stream, target);
    if (prepared && tls && !receives)
        prepare(stream);
}

static void move_all(struct stream *all)
{
    pthread_t *threads = calloc(streams, sizeof *threads);
    for (uint64_t i = 0; i < streams; i++)
        threads[i] = start_thread(receives ? receive_stream : send_stream, all + i);
    for (uint64_t i = 0; i < streams; i++)
        pthread_join(threads[i], NULL);
    free(threads);
}

static bool is_told(void)
{
    char byte;
    return read(STDIN_FILENO, &byte, 1) > 0;
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    make_pattern();
    make_frames();
    struct stream *all = calloc(streams, sizeof *all);
    for (uint64_t i = 0; i < streams; i++)
        open_stream(all + i, targets[i % (target_count ? target_count : 1)]);
    say_ready();
    if (is_told())
        move_all(all);
    while (is_told())
        continue;
    for (uint64_t i = 0; i < streams; i++)
        close_stream(all + i);
    return 0;
}
