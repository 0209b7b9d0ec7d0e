/* One call a batch instead of one a TLS record, all of it without the interpreter's lock.
 *
 * Inward:  TCP socket --recv--> scratch --memory BIO--> SSL_read, record by record --> block    (pull)
 *          block: find the frames, undo the masks in place, note where payload lies             (decode)
 *          payload --sendmsg--> UNIX socket                                                     (push)
 *          all three, block by block, while everything is as usual                              (pass_on)
 * Outward: UNIX socket --recv--> room, a header put in front --SSL_write--> BIO_read --> block --send--> TCP socket,
 *          frame by frame                                                                        (forward)
 *          one frame or record the same way                                                      (send)
 *
 * OpenSSL is the one that `cryptography` has loaded: its functions come as addresses (bind), and nothing is linked.
 * Every rule that is not about the usual case stays in Python: decode() stops in front of any header that is not that of
 * a whole, unfragmented data frame, and wire/frames.py takes that one. Only CPython's limited API is used.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { MOST_SPANS = 1024 };
enum { HEADER_ROOM = 14, MOST_FRAMES = 32 };
enum { FIN_TEXT = 0x81, FIN_BINARY = 0x82, MASKED = 0x80, LENGTH_16 = 126, LENGTH_64 = 127 };
enum { WANT_READ = 2, ZERO_RETURN = 6 }; /* SSL_ERROR_… */

/* What pull(), send() and forward() say besides byte counts; the names are in native.py too. */
enum outcome { DRAINED = 0, FULL = 1, ENDED = 2, FAILED = 3, TLS_ENDED = 4, TLS_FAILED = 5 };

static struct {
    int (*read)(void *ssl, void *data, int size);
    int (*write)(void *ssl, const void *data, int size);
    int (*get_error)(const void *ssl, int result);
    void (*set_bio)(void *ssl, void *in, void *out);
    void *(*new_mem_buf)(const void *data, int size);
    long (*set_mem_eof_return)(void *bio, int value);
    int (*bio_read)(void *bio, void *data, int size);
    void (*clear_error)(void);
} openssl;

struct span {
    uint32_t begin, end;
};

/* Arguments */

static bool check_count(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "takes %zd arguments", wanted);
    return false;
}

static bool get_buffer(PyObject *object, Py_buffer *view, bool writable)
{
    return PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0;
}

/* A position within a buffer. */
static bool get_position(PyObject *object, Py_ssize_t least, Py_ssize_t most, Py_ssize_t *position)
{
    *position = PyLong_AsSsize_t(object);
    if (*position == -1 && PyErr_Occurred())
        return false;
    if (*position >= least && *position <= most)
        return true;
    PyErr_SetString(PyExc_ValueError, "position outside of the buffer");
    return false;
}

static PyObject *bind_openssl(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    void **places = (void **)&openssl;
    const Py_ssize_t wanted = sizeof openssl / sizeof *places;
    if (!check_count(count, wanted))
        return NULL;
    for (Py_ssize_t i = 0; i < wanted; i++) {
        places[i] = PyLong_AsVoidPtr(args[i]);
        if (!places[i]) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "address 0");
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* Inward: ciphertext to plaintext */

static enum outcome tls_outcome(void *ssl, int result)
{
    int error = openssl.get_error(ssl, result);
    openssl.clear_error();
    return error == WANT_READ ? DRAINED : error == ZERO_RETURN ? TLS_ENDED : TLS_FAILED;
}

/* Returns: FULL, or why there is no more plaintext. */
static enum outcome decrypt(void *ssl, uint8_t *block, size_t size, size_t *end)
{
    while (*end < size) {
        int result = openssl.read(ssl, block + *end, (int)(size - *end));
        if (result <= 0)
            return tls_outcome(ssl, result);
        *end += (size_t)result;
    }
    return FULL;
}

/* Give OpenSSL a BIO on the ciphertext where it was received; SSL owns it and frees the one before. */
static bool put(void *ssl, void *out, const uint8_t *data, size_t size)
{
    void *bio = openssl.new_mem_buf(data, (int)size);
    if (!bio)
        return false;
    openssl.set_mem_eof_return(bio, -1);
    openssl.set_bio(ssl, bio, out);
    return true;
}

struct inward {
    void *ssl, *out;
    int fd;
    Py_buffer scratch, block;
    size_t end, record_room;
    int error;
};

/* Receive and decrypt until the socket is empty, the block is full, or it is over. Demands for new keys fill no block,
 * but TLS answers each: no more ciphertext than fits into a block is taken, and FULL then comes with less plaintext. */
static enum outcome run_pull(struct inward *in)
{
    size_t size = (size_t)in->block.len, received = 0;
    for (bool drained = false;;) {
        enum outcome outcome = decrypt(in->ssl, in->block.buf, size, &in->end);
        if (outcome != DRAINED || drained)
            return outcome;
        if (in->end + in->record_room >= size || received >= size)
            return FULL;
        size_t room = size - in->end - in->record_room;
        if (room > (size_t)in->scratch.len)
            room = (size_t)in->scratch.len;
        ssize_t got;
        do
            got = recv(in->fd, in->scratch.buf, room, 0);
        while (got < 0 && errno == EINTR);
        if (got == 0)
            return ENDED;
        if (got < 0) {
            in->error = errno;
            return errno == EAGAIN || errno == EWOULDBLOCK ? DRAINED : FAILED;
        }
        if (!put(in->ssl, in->out, in->scratch.buf, (size_t)got))
            return TLS_FAILED;
        received += (size_t)got;
        drained = (size_t)got < room;
    }
}

/* pull(ssl, out, fd, scratch, block, end, record_room) -> (end, outcome, errno) */
static PyObject *pull(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct inward in = {0};
    Py_ssize_t end, room;
    if (!check_count(count, 7))
        return NULL;
    in.ssl = PyLong_AsVoidPtr(args[0]);
    in.out = PyLong_AsVoidPtr(args[1]);
    in.fd = (int)PyLong_AsLong(args[2]);
    if (PyErr_Occurred() || !get_buffer(args[3], &in.scratch, true))
        return NULL;
    PyObject *result = NULL;
    if (get_buffer(args[4], &in.block, true)) {
        if (get_position(args[5], 0, in.block.len, &end) && get_position(args[6], 0, in.block.len, &room)) {
            in.end = (size_t)end;
            in.record_room = (size_t)room;
            enum outcome outcome;
            Py_BEGIN_ALLOW_THREADS
            outcome = run_pull(&in);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("nii", (Py_ssize_t)in.end, (int)outcome, in.error);
        }
        PyBuffer_Release(&in.block);
    }
    PyBuffer_Release(&in.scratch);
    return result;
}

/* Frames */

struct decoding {
    uint8_t *block;
    size_t position, end;
    uint64_t left, limit; /* left: payload bytes of the present frame that are still to come */
    uint8_t key[4];
    bool masked, texts; /* masked: we are the server; texts: text frames are payload like any other */
    size_t gather, payload;
    struct span *spans;
    size_t span_count, most_spans;
};

/* Compiled once more for wider registers, of which the loader takes the widest: three times as fast. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_WIDE_REGISTERS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_WIDE_REGISTERS
#endif

FOR_WIDE_REGISTERS static void unmask(uint8_t *data, size_t size, uint8_t key[4])
{
    uint32_t word;
    memcpy(&word, key, 4);
    if (!word)
        return;
    /* A vector of GCC and clang, in whatever registers the processor has. */
    typedef uint32_t vector __attribute__((vector_size(64)));
    const vector wide = word - (vector){0};
    size_t i = 0;
    for (vector piece; i + sizeof piece <= size; i += sizeof piece) {
        memcpy(&piece, data + i, sizeof piece);
        piece ^= wide;
        memcpy(data + i, &piece, sizeof piece);
    }
    for (size_t k = 0; i < size; i++, k++)
        data[i] ^= key[k & 3];
    uint8_t turned[4];
    for (size_t k = 0; k < 4; k++)
        turned[k] = key[(size + k) & 3];
    memcpy(key, turned, 4);
}

/* Note where payload lies; small pieces are moved down behind the one before. */
static void note(struct decoding *d, size_t begin, size_t end)
{
    size_t size = end - begin;
    struct span *last = d->span_count ? &d->spans[d->span_count - 1] : NULL;
    if (last && (size < d->gather || last->end == begin)) {
        memmove(d->block + last->end, d->block + begin, size);
        last->end += (uint32_t)size;
    } else {
        d->spans[d->span_count++] = (struct span){(uint32_t)begin, (uint32_t)end};
    }
    d->payload += size;
}

/* Take the payload of the present frame, as far as it is there. Returns: false: there is no room for its span. */
static bool take_payload(struct decoding *d)
{
    size_t size = d->end - d->position;
    if (size > d->left)
        size = (size_t)d->left;
    if (size == 0)
        return true;
    if (d->span_count == d->most_spans)
        return false;
    unmask(d->block + d->position, size, d->key);
    note(d, d->position, d->position + size);
    d->position += size;
    d->left -= size;
    return true;
}

static uint64_t big_endian(const uint8_t *data, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value = value << 8 | data[i];
    return value;
}

/* Read the header of a usual frame. Returns: false: it is not all there, or Python is to look at it. */
static bool begin_frame(struct decoding *d)
{
    const uint8_t *head = d->block + d->position;
    size_t there = d->end - d->position;
    if (there < 2 || !(head[0] == FIN_BINARY || (d->texts && head[0] == FIN_TEXT)))
        return false;
    if ((head[1] & MASKED) != (d->masked ? MASKED : 0))
        return false;
    uint64_t length = head[1] & (MASKED - 1);
    size_t extended = length == LENGTH_16 ? 2 : length == LENGTH_64 ? 8 : 0;
    size_t size = 2 + extended + (d->masked ? 4 : 0);
    if (there < size)
        return false;
    if (extended) {
        length = big_endian(head + 2, extended);
        if (length <= (extended == 2 ? LENGTH_16 - 1 : 0xFFFF) || length > d->limit)
            return false;
    }
    memset(d->key, 0, 4);
    if (d->masked)
        memcpy(d->key, head + 2 + extended, 4);
    d->left = length;
    d->position += size;
    return true;
}

static void run_decode(struct decoding *d)
{
    do
        if (d->left && !take_payload(d))
            return;
    while (d->position < d->end && begin_frame(d));
}

/* decode(block, position, end, left, key, masked, texts, limit, gather, spans, span_count)
 *   -> (position, left, key, payload, span_count) */
static PyObject *decode(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!check_count(count, 11))
        return NULL;
    struct decoding d = {0};
    Py_buffer block, key, spans;
    Py_ssize_t position, end, span_count;
    d.left = PyLong_AsUnsignedLongLong(args[3]);
    d.masked = PyObject_IsTrue(args[5]);
    d.texts = PyObject_IsTrue(args[6]);
    d.limit = PyLong_AsUnsignedLongLong(args[7]);
    d.gather = PyLong_AsSize_t(args[8]);
    if (PyErr_Occurred() || !get_buffer(args[0], &block, true))
        return NULL;
    PyObject *result = NULL;
    if (!get_buffer(args[4], &key, false))
        goto release_block;
    if (!get_buffer(args[9], &spans, true))
        goto release_key;
    d.most_spans = (size_t)spans.len / sizeof *d.spans;
    if (key.len != 4 || block.len > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a key has four bytes, a block at most 4 GiB");
    } else if (get_position(args[1], 0, block.len, &position) && get_position(args[2], position, block.len, &end) &&
               get_position(args[10], 0, (Py_ssize_t)d.most_spans, &span_count)) {
        memcpy(d.key, key.buf, 4);
        d.block = block.buf;
        d.spans = spans.buf;
        d.position = (size_t)position;
        d.end = (size_t)end;
        d.span_count = (size_t)span_count;
        Py_BEGIN_ALLOW_THREADS
        run_decode(&d);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("nKy#nn", (Py_ssize_t)d.position, (unsigned long long)d.left, d.key, (Py_ssize_t)4,
                               (Py_ssize_t)d.payload, (Py_ssize_t)d.span_count);
    }
    PyBuffer_Release(&spans);
release_key:
    PyBuffer_Release(&key);
release_block:
    PyBuffer_Release(&block);
    return result;
}

/* Payload to the UNIX socket */

/* Take so many sent bytes off the spans. Returns: the first one that is left. */
static size_t forget(struct span *spans, size_t first, size_t sent)
{
    while (sent) {
        size_t size = spans[first].end - spans[first].begin;
        if (size > sent) {
            spans[first].begin += (uint32_t)sent;
            break;
        }
        sent -= size;
        first++;
    }
    return first;
}

/* Send the spans of a block, as far as the socket takes them, from `*first` on. Returns: how much, 0 with an errno. */
static size_t send_spans(int fd, uint8_t *block, struct span *spans, size_t *first, size_t span_count, int *error)
{
    struct iovec pieces[MOST_SPANS];
    size_t piece_count = 0;
    for (size_t i = *first; i < span_count && piece_count < MOST_SPANS; i++, piece_count++)
        pieces[piece_count] = (struct iovec){block + spans[i].begin, spans[i].end - spans[i].begin};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = piece_count};
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    *error = sent < 0 ? errno : 0;
    if (sent <= 0)
        return 0;
    *first = forget(spans, *first, (size_t)sent);
    return (size_t)sent;
}

static bool check_spans(const struct span *spans, Py_ssize_t first, Py_ssize_t span_count, Py_ssize_t block_size)
{
    for (Py_ssize_t i = first; i < span_count; i++)
        if (spans[i].begin > spans[i].end || spans[i].end > (size_t)block_size) {
            PyErr_SetString(PyExc_ValueError, "span outside of the block");
            return false;
        }
    return true;
}

/* push(fd, block, spans, first, span_count) -> (first, sent, errno) */
static PyObject *push(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!check_count(count, 5))
        return NULL;
    Py_buffer block, spans_view;
    Py_ssize_t first, span_count;
    int fd = (int)PyLong_AsLong(args[0]), error = 0;
    if (PyErr_Occurred() || !get_buffer(args[1], &block, false))
        return NULL;
    PyObject *result = NULL;
    if (!get_buffer(args[2], &spans_view, true))
        goto release_block;
    struct span *spans = spans_view.buf;
    if (!get_position(args[4], 0, spans_view.len / (Py_ssize_t)sizeof *spans, &span_count) ||
        !get_position(args[3], 0, span_count, &first))
        goto release_spans;
    if (!check_spans(spans, first, span_count, block.len))
        goto release_spans;
    size_t next = (size_t)first, sent;
    Py_BEGIN_ALLOW_THREADS
    sent = send_spans(fd, block.buf, spans, &next, (size_t)span_count, &error);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("nni", (Py_ssize_t)next, (Py_ssize_t)sent, error);
release_spans:
    PyBuffer_Release(&spans_view);
release_block:
    PyBuffer_Release(&block);
    return result;
}

/* All of it: ciphertext to the UNIX socket */

struct passing {
    struct inward in;
    struct decoding d;
    int fd;
    size_t first, found, sent, most;
    int error;
};

/* Block by block, until one is not full of payload, there is something that Python is to look at, the UNIX socket takes
 * no more, or `most` payload was found. Returns: what became of the carrier. */
static enum outcome run_pass_on(struct passing *p)
{
    for (;;) {
        p->in.end = p->d.position = p->d.payload = 0;
        enum outcome outcome = run_pull(&p->in);
        p->d.end = p->in.end;
        run_decode(&p->d);
        p->found += p->d.payload;
        if (p->first < p->d.span_count)
            p->sent += send_spans(p->fd, p->d.block, p->d.spans, &p->first, p->d.span_count, &p->error);
        if (p->first < p->d.span_count) {
            if (p->error == EAGAIN)
                p->error = 0;
            return outcome;
        }
        p->first = p->d.span_count = 0;
        bool is_usual = p->d.position == p->d.end && p->d.payload >= (size_t)p->in.block.len / 2;
        if (outcome != FULL || !is_usual || p->found >= p->most)
            return outcome;
    }
}

/* pass_on(ssl, out, fd, local_fd, scratch, block, record_room, left, key, masked, texts, limit, gather, spans, most)
 *   -> (outcome, errno, end, position, left, key, found, sent, first, span_count, local_errno) */
static PyObject *pass_on(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!check_count(count, 15))
        return NULL;
    struct passing p = {0};
    Py_buffer key, spans;
    Py_ssize_t room;
    p.in.ssl = PyLong_AsVoidPtr(args[0]);
    p.in.out = PyLong_AsVoidPtr(args[1]);
    p.in.fd = (int)PyLong_AsLong(args[2]);
    p.fd = (int)PyLong_AsLong(args[3]);
    p.d.left = PyLong_AsUnsignedLongLong(args[7]);
    p.d.masked = PyObject_IsTrue(args[9]);
    p.d.texts = PyObject_IsTrue(args[10]);
    p.d.limit = PyLong_AsUnsignedLongLong(args[11]);
    p.d.gather = PyLong_AsSize_t(args[12]);
    p.most = PyLong_AsSize_t(args[14]);
    if (PyErr_Occurred() || !get_buffer(args[4], &p.in.scratch, true))
        return NULL;
    PyObject *result = NULL;
    if (!get_buffer(args[5], &p.in.block, true))
        goto release_scratch;
    if (!get_buffer(args[8], &key, false))
        goto release_block;
    if (!get_buffer(args[13], &spans, true))
        goto release_key;
    if (key.len != 4 || p.in.block.len > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a key has four bytes, a block at most 4 GiB");
    } else if (get_position(args[6], 0, p.in.block.len, &room)) {
        memcpy(p.d.key, key.buf, 4);
        p.in.record_room = (size_t)room;
        p.d.block = p.in.block.buf;
        p.d.spans = spans.buf;
        p.d.most_spans = (size_t)spans.len / sizeof *p.d.spans;
        enum outcome outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = run_pass_on(&p);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("iinnKy#nnnni", (int)outcome, p.in.error, (Py_ssize_t)p.in.end, (Py_ssize_t)p.d.position,
                               (unsigned long long)p.d.left, p.d.key, (Py_ssize_t)4, (Py_ssize_t)p.found,
                               (Py_ssize_t)p.sent, (Py_ssize_t)p.first, (Py_ssize_t)p.d.span_count, p.error);
    }
    PyBuffer_Release(&spans);
release_key:
    PyBuffer_Release(&key);
release_block:
    PyBuffer_Release(&p.in.block);
release_scratch:
    PyBuffer_Release(&p.in.scratch);
    return result;
}

/* Outward */

struct outward {
    void *ssl, *out;
    int fd;
    Py_buffer data, block;
    size_t begin, end, sent;
    int error;
};

static bool encrypt(struct outward *o, const uint8_t *data, size_t size)
{
    for (size_t start = 0; start < size;) {
        int result = openssl.write(o->ssl, data + start, (int)(size - start));
        if (result <= 0) {
            openssl.get_error(o->ssl, result);
            openssl.clear_error();
            return false;
        }
        start += (size_t)result;
    }
    return true;
}

/* Send what is in the block, then what else TLS has to say. */
static enum outcome flush(struct outward *o)
{
    uint8_t *block = o->block.buf;
    for (;;) {
        while (o->begin < o->end) {
            ssize_t sent = send(o->fd, block + o->begin, o->end - o->begin, MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR)
                continue;
            if (sent < 0) {
                o->error = errno;
                return errno == EAGAIN || errno == EWOULDBLOCK ? FULL : FAILED;
            }
            o->begin += (size_t)sent;
            o->sent += (size_t)sent;
        }
        int got = openssl.bio_read(o->out, block, (int)o->block.len);
        if (got <= 0)
            return DRAINED;
        o->begin = 0;
        o->end = (size_t)got;
    }
}

/* The first three arguments of send() and forward(), and their block. */
static bool get_outward(PyObject *const *args, PyObject *block, struct outward *o)
{
    o->ssl = PyLong_AsVoidPtr(args[0]);
    o->out = PyLong_AsVoidPtr(args[1]);
    o->fd = (int)PyLong_AsLong(args[2]);
    return !PyErr_Occurred() && get_buffer(block, &o->block, true);
}

/* send(ssl, out, fd, data, block, begin, end) -> (begin, end, sent, outcome, errno) */
static PyObject *send_tls(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!check_count(count, 7))
        return NULL;
    struct outward o = {0};
    Py_ssize_t begin, end;
    if (!get_outward(args, args[4], &o))
        return NULL;
    PyObject *result = NULL;
    if (get_buffer(args[3], &o.data, false)) {
        if (get_position(args[6], 0, o.block.len, &end) && get_position(args[5], 0, end, &begin)) {
            o.begin = (size_t)begin;
            o.end = (size_t)end;
            enum outcome outcome;
            Py_BEGIN_ALLOW_THREADS
            outcome = encrypt(&o, o.data.buf, (size_t)o.data.len) ? flush(&o) : TLS_FAILED;
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("nnnii", (Py_ssize_t)o.begin, (Py_ssize_t)o.end, (Py_ssize_t)o.sent, (int)outcome,
                                   o.error);
        }
        PyBuffer_Release(&o.data);
    }
    PyBuffer_Release(&o.block);
    return result;
}

struct forwarding {
    int fd;
    size_t payload, most; /* the largest payload of a frame; how many frames */
    bool masked, keeps;   /* masked: we are the client; keeps: each frame lies behind the one before */
    uint32_t sizes[MOST_FRAMES];
    size_t count;
    enum outcome local; /* FULL: there may be more */
    int error;
};

/* Put the header of a binary frame in front of its payload; a client's mask is zero. Returns: its size. */
static size_t put_header(uint8_t *payload, size_t size, bool masked)
{
    size_t extended = size < LENGTH_16 ? 0 : size <= 0xFFFF ? 2 : 8;
    size_t header = 2 + extended + (masked ? 4 : 0);
    uint8_t *at = payload - header;
    *at++ = FIN_BINARY;
    *at++ = (uint8_t)((masked ? MASKED : 0) | (extended == 0 ? size : extended == 2 ? LENGTH_16 : LENGTH_64));
    for (size_t i = extended; i-- > 0;)
        *at++ = (uint8_t)((uint64_t)size >> (8 * i));
    if (masked)
        memset(at, 0, 4);
    return header;
}

/* Read from the UNIX socket. Returns: how much, 0: nothing; then f->local says why. */
static size_t take_local(struct forwarding *f, uint8_t *payload)
{
    ssize_t got;
    do
        got = recv(f->fd, payload, f->payload, 0);
    while (got < 0 && errno == EINTR);
    if (got > 0)
        return (size_t)got;
    f->error = got ? errno : 0;
    f->local = got == 0 ? ENDED : errno == EAGAIN || errno == EWOULDBLOCK ? DRAINED : FAILED;
    return 0;
}

/* Receive, encrypt and send frames. Returns: what became of the carrier. A read of less than half a frame is the last
 * one: its writer has not kept up. A larger one is what was in the writer's buffer, which it fills again meanwhile. */
static enum outcome run_forward(struct outward *o, struct forwarding *f)
{
    uint8_t *at = o->data.buf;
    size_t left = (size_t)o->data.len, size = f->payload;
    while (size >= f->payload / 2 && f->count < f->most && left >= HEADER_ROOM + f->payload) {
        uint8_t *payload = at + HEADER_ROOM;
        size = take_local(f, payload);
        if (size == 0)
            break;
        f->sizes[f->count++] = (uint32_t)size;
        size_t header = put_header(payload, size, f->masked);
        if (!encrypt(o, payload - header, header + size))
            return TLS_FAILED;
        enum outcome outcome = flush(o);
        if (outcome != DRAINED)
            return outcome;
        if (f->keeps) {
            at = payload + size;
            left -= HEADER_ROOM + size;
        }
    }
    return DRAINED;
}

/* forward(ssl, out, fd, local_fd, room, payload, most, masked, keeps, block)
 *   -> (sizes, local, local_errno, begin, end, sent, outcome, errno) */
static PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (!check_count(count, 10))
        return NULL;
    struct outward o = {0};
    struct forwarding f = {.fd = (int)PyLong_AsLong(args[3]), .local = FULL};
    Py_ssize_t payload, most;
    f.masked = PyObject_IsTrue(args[7]);
    f.keeps = PyObject_IsTrue(args[8]);
    if (PyErr_Occurred() || !get_outward(args, args[9], &o))
        return NULL;
    PyObject *result = NULL;
    if (get_buffer(args[4], &o.data, true)) {
        if (get_position(args[5], 1, UINT32_MAX, &payload) && get_position(args[6], 0, MOST_FRAMES, &most)) {
            f.payload = (size_t)payload;
            f.most = (size_t)most;
            enum outcome outcome;
            Py_BEGIN_ALLOW_THREADS
            outcome = run_forward(&o, &f);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("y#iinnnii", (const char *)f.sizes, (Py_ssize_t)(f.count * sizeof *f.sizes),
                                   (int)f.local, f.error, (Py_ssize_t)o.begin, (Py_ssize_t)o.end, (Py_ssize_t)o.sent,
                                   (int)outcome, o.error);
        }
        PyBuffer_Release(&o.data);
    }
    PyBuffer_Release(&o.block);
    return result;
}

/* Grows with each change of a function's arguments or results; native.py wants the same. */
#define INTERFACE 3

static PyMethodDef methods[] = {
    {"bind", (PyCFunction)(void (*)(void))bind_openssl, METH_FASTCALL, "Take the addresses of OpenSSL's functions."},
    {"pull", (PyCFunction)(void (*)(void))pull, METH_FASTCALL, "Receive and decrypt a batch."},
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, "Find the usual frames of a batch, unmask them."},
    {"push", (PyCFunction)(void (*)(void))push, METH_FASTCALL, "Send payload to the UNIX socket."},
    {"pass_on", (PyCFunction)(void (*)(void))pass_on, METH_FASTCALL, "All three, for a turn."},
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, "Frame, encrypt and send a batch."},
    {"send", (PyCFunction)(void (*)(void))send_tls, METH_FASTCALL, "Encrypt and send."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_batch", "One call a batch; see native.py.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__batch(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0)
        Py_CLEAR(module);
    return module;
}
