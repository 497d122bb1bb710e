/* The fast path of a userspace data plane: packets in machine code, whole bursts of them.
 *
 * The waiting for packets is here, and so is all that happens to packets that need no second look: from the device, their
 * super-packets are cut into datagrams that one call sends; from the underlay, what one call brings is joined into
 * super-packets for the device. With a Transport (wireguard), datagrams are sealed and opened on the way. What it knows it
 * was told by Python, which had looked a destination, a sender or a session up before: learn_route(), learn_path() and
 * learn_session(). Everything else is handed to Python together with what was read: what it was not told of, headers that
 * are not plain, what must be refused or answered, sends that fail, handshakes, other descriptors.
 *
 * What is learned is a cache of one entry per slot. A lost entry means Python's path and no harm; forget() is called
 * whenever one might be wrong. Nothing here trusts a length that came in a packet: what is read is bounded by the
 * buffer, and a header is looked at when all of it is there. Packets are read into memory of our own, and what is left to
 * Python is copied to where Python expects it.
 *
 * Bare datagrams that come alone need not come here at all: carry_lone(), and bpf/lone.bpf.c.
 *
 * Sources: linux/virtio_net.h, linux/udp.h, udp(7) (UDP_SEGMENT, UDP_GRO), epoll_wait(2), WireGuard white paper.
 */

#include "transport.h"

#include "lone.h"
#include "packets.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
    BITS = 10,
    SLOTS = 1 << BITS, /* of each cache */
    EVENTS = 16,
    SOCKETS = 2,
    SEGMENT = 103, /* UDP_SEGMENT and UDP_GRO of linux/udp.h, which older headers lack */
    GRO = 104,
    ROWS = 64,                             /* datagrams in one call; UDP_MAX_SEGMENTS of older kernels */
    PADDING = 16,                          /* what is sealed has a multiple of so many bytes */
    PACKET = VNET + LARGEST,               /* the most that one read brings */
    BURST = 4 * (PACKET + PADDING),        /* bytes that are read from one side before it is the other side's turn */
    READS = 64,                            /* packets that are read then, at most */
    RECEIVES = 16,                         /* calls that receive */
    ALIGNMENT = 64,
    GATHERED = 16,   /* packets that are worth a wake-up */
    TRICKLE = 8,     /* wake-ups in quick succession that were for fewer */
    CLOSE = 200,     /* microseconds between such */
    MOMENT = 100,    /* microseconds that packets may take to gather then */
    LINGER = 150,    /* microseconds in which what follows a packet that came alone may be there */
};

/* Where packets to ``destination`` go, unless they are larger than ``mtu``, which is 0 in a slot that is not used. */
struct route {
    struct address destination;
    uint16_t mtu;
    uint8_t version;
    PyObject *peer;       /* its name */
    Transport *transport; /* that seals what goes there, and knows where that is; else it is: */
    struct endpoint endpoint;
    struct lone_written written;
};

/* ``peer`` may send packets from ``source`` to ``destination``; ``address`` is where from, if there is no Transport. */
struct path {
    struct address source, destination;
    uint8_t version;
    PyObject *peer; /* NULL in a slot that is not used */
    uint32_t address;
    struct lone_written written;
};

struct side {
    int fd;
    int rests; /* nothing waited there when last looked at: the next packet comes after a pause */
};

/* A buffer of Python's, which can't move while there is a view on it. */
struct shared {
    PyObject *view;
    unsigned char *data;
};

/* A packet that is to be sent: the header that was made for it, or none if ``body`` is the whole packet. */
struct piece {
    unsigned char *head;
    const unsigned char *body;
    size_t head_size, body_size;
};

/* Packets of one size for one peer; the last may be shorter, and is the last. */
struct batch {
    const struct route *route;
    size_t wire, rows, limit, tail;
    struct piece pieces[ROWS];
    unsigned char heads[ROWS][HEADERS];
};

/* What receive calls brought from one sender: packets of ``size`` bytes, ``gap`` more between them. */
struct train {
    unsigned char *first;
    size_t count, size, gap, last;
    PyObject *peer; /* NULL if it is known by its address */
    uint32_t address;
    int device; /* by which it came, if that is asked for */
};

struct counters {
    unsigned long long sent_packets, sent_bytes, sent_calls, received_packets, received_bytes, received_calls,
        joined_packets, drop_tun_failed, drop_unauthentic, drop_replayed, drop_send_failed, lone_sent_packets,
        lone_received_packets;
};

typedef struct {
    PyObject_HEAD
    PyTypeObject *transport_type; /* NULL if packets go as they are */
    int epoll;
    struct side tun, sockets[SOCKETS];
    int socket_count;
    struct shared packet, received, opened; /* where Python looks for what is left to it */
    PyObject *judge;
    uint16_t port; /* the peers', if packets go as they are */
    int any_port, segments, cuts;
    struct joining joins;
    size_t mtu; /* no padding goes beyond it */
    struct counters counters;
    unsigned long long seen_packets;
    double woken, slept;
    int trickle;
    unsigned long long sent_before; /* it last woke up */
    double lingers_after; /* so many seconds without a packet */
    int yields;           /* to other programs meanwhile */
    int is_sender;        /* what last woke it was the device alone */
    Transport *noted; /* those that have something to tell */
    struct batch batch;
    struct run run;
    unsigned char *outgoing, *incoming, *sealed;
    struct route routes[SLOTS];
    struct path paths[SLOTS];
    Transport *sessions[SLOTS];
    struct lone lone;
    struct lone_counts lone_told;
} FastPath;

/* Time */

static double
now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Milliseconds from now until ``deadline``, rounded up, at most a minute; none if that is no number. */
static int
until(double deadline)
{
    double left = deadline - now();
    return !(left > 0) ? 0 : left > 60 ? 60000 : (int)(left * 1000) + 1;
}

/* Slots. The highest bits of a product depend on all of its factor's. Addresses differ in their last bytes. */

static uint32_t
mixed(const struct address *address, uint32_t factor)
{
    uint32_t mixed = 0;
    for (int at = 0; at < 4; at++)
        mixed = (mixed ^ ntohl(address->words[at])) * factor;
    return mixed;
}

static struct route *
route_slot(FastPath *self, const struct address *destination)
{
    return &self->routes[mixed(destination, 2654435761u) >> (32 - BITS)];
}

static struct path *
path_slot(FastPath *self, const struct address *source, const struct address *destination)
{
    return &self->paths[(mixed(source, 2654435761u) ^ mixed(destination, 2246822519u)) >> (32 - BITS)];
}

static int
is_same(const struct address *one, const struct address *two)
{
    return memcmp(one, two, sizeof *one) == 0;
}

/* What is left to Python: descriptors, and what was read from each. */
struct left {
    PyObject *items; /* a list */
    size_t count;
};

/* All that leave something return 0, or -1 and an error. */

/* Steals ``read``. */
static int
hand_over(struct left *left, int fd, PyObject *read)
{
    PyObject *item = read != NULL ? Py_BuildValue("(iN)", fd, read) : NULL;
    int failed = item == NULL ? -1 : PyList_Append(left->items, item);
    Py_XDECREF(item);
    left->count++;
    return failed;
}

static int
hand_over_unread(struct left *left, int fd)
{
    return hand_over(left, fd, Py_NewRef(Py_None));
}

static void
note(FastPath *self, Transport *transport, struct note *note, size_t packets, size_t bytes, double at)
{
    note->packets += packets;
    note->bytes += bytes;
    note->at = at;
    if (transport->is_noted)
        return;
    transport->is_noted = 1;
    transport->next_noted = self->noted;
    self->noted = (Transport *)Py_NewRef((PyObject *)transport);
}

/* From the device to the underlay */

/* How many bytes a packet is sealed as. */
static size_t
padded(const FastPath *self, size_t size)
{
    size_t full = (size + PADDING - 1) / PADDING * PADDING;
    full = full < self->mtu ? full : self->mtu;
    return full > size ? full : size;
}

/* Copy a packet of the batch; returns its size. */
static size_t
copy_piece(const struct piece *piece, unsigned char *to)
{
    memcpy(to, piece->head, piece->head_size);
    memcpy(to + piece->head_size, piece->body, piece->body_size);
    return piece->head_size + piece->body_size;
}

/* Give the packets of the batch from ``first`` on to Python, which tries again, and says what is wrong. */
static int
hand_batch_over(FastPath *self, struct left *left, size_t first)
{
    struct batch *batch = &self->batch;
    size_t size = (batch->rows - first - 1) * batch->wire + batch->tail;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (data == NULL)
        return -1;
    unsigned char *to = (unsigned char *)PyBytes_AsString(data);
    for (size_t row = first; row < batch->rows; row++)
        to += copy_piece(&batch->pieces[row], to);
    return hand_over(
        left, self->tun.fd, Py_BuildValue("(NnO)", data, (Py_ssize_t)batch->wire, batch->route->peer));
}

/* Make one message of each packet; returns how many bytes they have, 0 if that is not possible. Numbers that were claimed
 * are used for these packets or never. */
static size_t
seal_batch(FastPath *self, Transport *transport)
{
    struct batch *batch = &self->batch;
    unsigned char *at = self->sealed;
    uint64_t number;
    if (!claim_numbers(transport, batch->rows, &number))
        return 0;
    for (size_t row = 0; row < batch->rows; row++, number++) {
        size_t size = copy_piece(&batch->pieces[row], at + FRAME), full = padded(self, size);
        memset(at + FRAME + size, 0, full - size);
        if (!seal(transport, number, at, full))
            return 0;
        at += full + OVERHEAD;
    }
    return (size_t)(at - self->sealed);
}

static int
send_parts(const struct endpoint *endpoint, struct iovec *parts, size_t count, size_t segment)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(uint16_t))];
    } control = {0};
    struct msghdr message = {
        .msg_name = (void *)(uintptr_t)&endpoint->to,
        .msg_namelen = endpoint->length,
        .msg_iov = parts,
        .msg_iovlen = count,
    };
    if (segment) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.space;
        control.header.cmsg_level = IPPROTO_UDP;
        control.header.cmsg_type = SEGMENT;
        control.header.cmsg_len = CMSG_LEN(sizeof(uint16_t));
        uint16_t size = (uint16_t)segment;
        memcpy(CMSG_DATA(&control.header), &size, sizeof size);
    }
    return sendmsg(endpoint->fd, &message, 0) < 0 ? -1 : 0;
}

/* Send the whole batch in one call, or, where the kernel has no segmentation, packet by packet. Returns how many went. */
static size_t
send_batch(FastPath *self, const struct endpoint *endpoint, size_t wire, size_t total)
{
    struct batch *batch = &self->batch;
    struct iovec parts[2 * ROWS];
    size_t count = 0;
    int is_sealed = total > 0;
    if (self->segments || batch->rows == 1) {
        if (is_sealed)
            parts[count++] = (struct iovec){self->sealed, total};
        for (size_t row = 0; !is_sealed && row < batch->rows; row++) {
            const struct piece *piece = &batch->pieces[row];
            if (piece->head_size)
                parts[count++] = (struct iovec){piece->head, piece->head_size};
            parts[count++] = (struct iovec){(void *)(uintptr_t)piece->body, piece->body_size};
        }
        return send_parts(endpoint, parts, count, batch->rows > 1 ? wire : 0) < 0 ? 0 : batch->rows;
    }
    for (size_t row = 0; row < batch->rows; row++) {
        const struct piece *piece = &batch->pieces[row];
        size_t at = row * wire, left = total - at;
        parts[0] = is_sealed ? (struct iovec){self->sealed + at, left < wire ? left : wire}
                             : (struct iovec){piece->head, piece->head_size};
        parts[1] = (struct iovec){(void *)(uintptr_t)piece->body, piece->body_size};
        if (send_parts(endpoint, parts, is_sealed ? 1 : 2, 0) < 0)
            return row;
    }
    return batch->rows;
}

static int
flush(FastPath *self, struct left *left)
{
    struct batch *batch = &self->batch;
    if (batch->rows == 0)
        return 0;
    Transport *transport = batch->route->transport;
    const struct endpoint *endpoint = transport != NULL ? &transport->endpoint : &batch->route->endpoint;
    size_t wire = batch->wire, total = 0, rows = batch->rows, sent = 0;
    double time = transport != NULL ? now() : 0;
    int can = transport == NULL || (time < transport->until && (total = seal_batch(self, transport)) > 0);
    if (transport != NULL)
        wire = padded(self, wire) + OVERHEAD;
    if (can)
        sent = send_batch(self, endpoint, wire, total);
    if (sent) {
        self->counters.sent_calls++;
        self->counters.sent_packets += sent;
        self->counters.sent_bytes += sent < rows ? sent * batch->wire : (rows - 1) * batch->wire + batch->tail;
    }
    if (sent && transport != NULL)
        note(self, transport, &transport->sent, sent, sent < rows ? sent * wire : total, time);
    int failed = sent < rows ? hand_batch_over(self, left, sent) : 0;
    batch->rows = 0;
    return failed;
}

/* See that a packet of ``size`` bytes can be added; what doesn't go with it is sent. */
static int
make_room(FastPath *self, struct left *left, const struct route *route, size_t size)
{
    struct batch *batch = &self->batch;
    if (batch->rows > 0 && batch->rows < batch->limit && size <= batch->wire && batch->tail == batch->wire &&
        route->peer == batch->route->peer && route->transport == batch->route->transport)
        return 0;
    int failed = flush(self, left);
    size_t wire = route->transport != NULL ? padded(self, size) + OVERHEAD : size;
    size_t largest = LARGEST - (route->transport != NULL ? 48 : 28); /* which may go over IPv6, or not */
    batch->limit = largest / wire < ROWS ? largest / wire : ROWS;
    batch->route = route;
    batch->wire = size;
    if (batch->limit == 0)
        batch->limit = 1;
    return failed;
}

static void
add_piece(FastPath *self, struct piece piece)
{
    struct batch *batch = &self->batch;
    batch->pieces[batch->rows++] = piece;
    batch->tail = piece.head_size + piece.body_size;
}

static int
leave_cut(FastPath *self, struct left *left, const struct route *route, const struct cut *cut)
{
    for (size_t number = 0; number < cut->count; number++) {
        size_t rest = cut->payload_size - number * cut->step, size;
        if (make_room(self, left, route, cut->head + (rest < cut->step ? rest : cut->step)) < 0)
            return -1;
        unsigned char *head = self->batch.heads[self->batch.rows];
        const unsigned char *payload = cut_one(cut, number, head, &size);
        add_piece(self, (struct piece){head, payload, cut->head, size});
    }
    return 1;
}

/* Add what was read from the device to what is sent. Returns 1, 0 if it is Python's and as it was, -1 and an error. */
static int
leave(FastPath *self, struct left *left, unsigned char *vnet, size_t length)
{
    unsigned char *packet = vnet + VNET;
    struct header header;
    if (length < VNET || vnet[0] & ~3 || !read_header(packet, length - VNET, &header) ||
        header.total != length - VNET || !has_hops(packet, &header))
        return 0;
    struct route *route = route_slot(self, &header.destination);
    if (route->mtu == 0 || route->version != header.version || !is_same(&route->destination, &header.destination))
        return 0;
    if (vnet[1]) {
        struct cut cut;
        if (!self->cuts || !plan_cut(vnet, packet, &header, &cut) || cut.wire > route->mtu)
            return 0;
        return leave_cut(self, left, route, &cut);
    }
    if (header.total > route->mtu || (vnet[0] & 1 && !complete_checksum(vnet, packet, &header)))
        return 0;
    take_hop(packet, &header);
    if (make_room(self, left, route, header.total) < 0)
        return -1;
    add_piece(self, (struct piece){packet, packet, 0, header.total});
    if (route->transport == NULL)
        lone_learn_route(
            &self->lone, &route->written, route->destination.words[3], route->endpoint.to.ipv4.sin_addr.s_addr,
            (uint32_t)header.total);
    return 1;
}

static int
hand_packet_over(FastPath *self, struct left *left, const unsigned char *read, size_t length)
{
    if (flush(self, left) < 0)
        return -1;
    memcpy(self->packet.data, read, length);
    return hand_over(left, self->tun.fd, PyLong_FromSize_t(length));
}

static size_t
aligned(size_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Take a burst, or the one packet that comes after a pause. */
static int
from_tun(FastPath *self, struct left *left)
{
    struct side *tun = &self->tun;
    size_t at = 0;
    size_t before = left->count;
    for (int reads = 0; reads < READS && at + PACKET <= BURST && left->count == before; reads++) {
        unsigned char *buffer = self->outgoing + at;
        ssize_t length = read(tun->fd, buffer, PACKET);
        if (length <= 0) {
            int is_empty = length == 0 || errno == EAGAIN;
            if (flush(self, left) < 0 || (!is_empty && hand_over_unread(left, tun->fd) < 0))
                return -1;
            tun->rests = 1;
            return 0;
        }
        int taken = leave(self, left, buffer, (size_t)length);
        if (taken <= 0) {
            tun->rests = 0;
            return taken < 0 ? -1 : hand_packet_over(self, left, buffer, (size_t)length);
        }
        if (tun->rests) {
            tun->rests = 0;
            break;
        }
        at += aligned((size_t)length);
    }
    return flush(self, left);
}

/* From the underlay to the device */

static void
write_run(FastPath *self)
{
    struct run *run = &self->run;
    size_t count = run->count;
    if (count == 0)
        return;
    int parts = finish_run(run);
    if (writev(self->tun.fd, run->vectors, parts) < 0)
        self->counters.drop_tun_failed += count;
    if (count > 1)
        self->counters.joined_packets += count;
    run->count = 0;
}

/* Whether two names are one: they are texts, and most of the time the same object. */
static int
is_peer(PyObject *one, PyObject *two)
{
    return one == two || PyUnicode_Compare(one, two) == 0;
}

/* Hand a packet to the device, soon; returns how many bytes count as its own, 0 if its sender may not send it. */
static size_t
accept_packet(FastPath *self, const struct train *train, const unsigned char *packet, size_t size)
{
    struct header header;
    if (!read_header(packet, size, &header) || !header_holds(packet, &header))
        return 0;
    struct path *path = path_slot(self, &header.source, &header.destination);
    if (path->peer == NULL || path->version != header.version || !is_same(&path->source, &header.source) ||
        !is_same(&path->destination, &header.destination) ||
        (train->peer != NULL ? !is_peer(path->peer, train->peer) : path->address != train->address))
        return 0;
    if (train->peer == NULL && train->count == 1)
        lone_learn_path(
            &self->lone, &path->written, (uint32_t)train->device, path->address, path->source.words[3],
            path->destination.words[3]);
    /* What is sealed is padded; any other packet with something behind it is looked at alone. */
    int is_whole = size - header.total < (train->peer != NULL ? PADDING : 1);
    if (self->run.count > 0 && is_whole && extend_run(&self->run, packet, header.total))
        return header.total;
    write_run(self);
    begin_run(&self->run, packet, &header, is_whole ? self->joins : (struct joining){0, 0});
    return is_whole ? header.total : size;
}

/* Take packets of a train until one is Python's; returns how many were taken. Empty ones are for nobody. */
static size_t
accept_train(FastPath *self, const struct train *train)
{
    struct counters *counters = &self->counters;
    const unsigned char *packet = train->first;
    for (size_t number = 0; number < train->count; number++, packet += train->size + train->gap) {
        size_t bytes = accept_packet(self, train, packet, number + 1 < train->count ? train->size : train->last);
        if (bytes == 0)
            return number;
        counters->received_packets++;
        counters->received_bytes += bytes;
    }
    counters->received_calls++;
    return train->count;
}

/* What one call received. */
struct arrival {
    int fd;
    unsigned char *data;
    size_t length, size;
    struct endpoint from;
    int device; /* its index, 0 if it wasn't told */
};

/* Let Python judge datagrams from byte ``skipped`` on. Returns 0, or -1 and an error. */
static int
hand_datagrams_over(FastPath *self, struct left *left, const struct arrival *arrival, size_t skipped)
{
    char host[NI_MAXHOST] = "";
    size_t length = arrival->length - skipped;
    const struct endpoint *from = &arrival->from;
    getnameinfo(&from->to.any, from->length, host, sizeof host, NULL, 0, NI_NUMERICHOST);
    memcpy(self->received.data, arrival->data + skipped, length);
    write_run(self);
    PyObject *judged = PyObject_CallFunction(
        self->judge, "nn(si)", (Py_ssize_t)length, (Py_ssize_t)(arrival->size < length ? arrival->size : length), host,
        (int)ntohs(from->to.ipv4.sin_port)); /* which is where IPv6's is */
    return hand_over(left, arrival->fd, judged);
}

static int
arrive_bare(FastPath *self, struct left *left, const struct arrival *arrival)
{
    size_t count = arrival->size ? (arrival->length + arrival->size - 1) / arrival->size : 0;
    struct train train = {
        .first = arrival->data,
        .count = count,
        .size = arrival->size,
        .last = count ? arrival->length - (count - 1) * arrival->size : 0,
        .address = arrival->from.to.ipv4.sin_addr.s_addr,
        .device = arrival->device,
    };
    int is_right_port = self->any_port || ntohs(arrival->from.to.ipv4.sin_port) == self->port;
    size_t taken = is_right_port && count > 0 ? accept_train(self, &train) : 0;
    if (count > 0 && taken == count)
        return 0;
    return hand_datagrams_over(self, left, arrival, taken * arrival->size);
}

static int
is_from(const struct endpoint *endpoint, const struct endpoint *from)
{
    if (endpoint->to.any.sa_family != from->to.any.sa_family ||
        endpoint->to.ipv4.sin_port != from->to.ipv4.sin_port)
        return 0;
    if (from->to.any.sa_family == AF_INET)
        return endpoint->to.ipv4.sin_addr.s_addr == from->to.ipv4.sin_addr.s_addr;
    return memcmp(&endpoint->to.ipv6.sin6_addr, &from->to.ipv6.sin6_addr, sizeof(struct in6_addr)) == 0;
}

static uint64_t
little_endian(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

/* The session of all these datagrams, if they are messages of one that was taught, from where its peer is. */
static Transport *
session_of(FastPath *self, const struct arrival *arrival, double time)
{
    size_t length = arrival->length, size = arrival->size;
    if (size < OVERHEAD || (length % size != 0 && length % size < OVERHEAD))
        return NULL;
    uint32_t index = (uint32_t)little_endian(arrival->data + 4, 4);
    Transport *session = self->sessions[index % SLOTS];
    if (session == NULL || session->index != index || !(time < session->until) ||
        session->next >= REJECT_AFTER_MESSAGES || !is_from(&session->endpoint, &arrival->from))
        return NULL;
    for (size_t at = 0; at < length; at += size)
        if (little_endian(arrival->data + at, 4) != MESSAGE || memcmp(arrival->data + at + 4, arrival->data + 4, 4) != 0)
            return NULL;
    return session;
}

/* Open all messages in place, and close the ranks where some are forged or have come before. The train of packets. */
static struct train
open_all(FastPath *self, Transport *session, const struct arrival *arrival, double time)
{
    struct train train = {
        .first = arrival->data + FRAME,
        .size = arrival->size - OVERHEAD,
        .gap = OVERHEAD,
        .peer = session->peer,
    };
    size_t bytes = 0, messages = 0;
    unsigned char *kept = arrival->data;
    for (size_t at = 0; at < arrival->length; at += arrival->size) {
        size_t left = arrival->length - at, size = left < arrival->size ? left : arrival->size;
        unsigned char *message = arrival->data + at;
        uint64_t number = little_endian(message + 8, 8);
        if (!open_message(session, number, message, size)) {
            self->counters.drop_unauthentic++;
            continue;
        }
        if (!accept_number(session, number)) {
            self->counters.drop_replayed++;
            continue;
        }
        messages++;
        bytes += size;
        if (size == OVERHEAD)
            continue; /* a keepalive */
        if (kept != message)
            memmove(kept, message, size);
        kept += size;
        train.count++;
        train.last = size - OVERHEAD;
    }
    if (messages)
        note(self, session, &session->received, train.count, bytes, time);
    return train;
}

/* A packet of a train, and its size, without padding where its header says so. */
static const unsigned char *
packet_of(const struct train *train, size_t number, size_t *size)
{
    const unsigned char *packet = train->first + number * (train->size + train->gap);
    struct header header;
    *size = number + 1 < train->count ? train->size : train->last;
    if (read_header(packet, *size, &header) && *size - header.total < PADDING)
        *size = header.total;
    return packet;
}

/* Give packets of a train from number ``first`` on to Python, as far apart as the first one is long, or, if others are
 * longer, as all are with their padding. Returns 0, or -1 and an error. */
static int
hand_train_over(FastPath *self, struct left *left, int fd, const struct train *train, size_t first)
{
    size_t count = train->count - first, stride, size;
    packet_of(train, first, &stride);
    for (size_t number = first; number < train->count; number++) {
        packet_of(train, number, &size);
        if (size > stride)
            stride = train->size;
    }
    write_run(self);
    for (size_t number = 0; number < count; number++) {
        const unsigned char *packet = packet_of(train, first + number, &size);
        memcpy(self->opened.data + number * stride, packet, number + 1 < count ? stride : size);
    }
    size_t length = (count - 1) * stride + size;
    return hand_over(
        left, fd,
        Py_BuildValue("(nnO)", (Py_ssize_t)length, (Py_ssize_t)(count > 1 ? stride : length), train->peer));
}

static int
arrive_sealed(FastPath *self, struct left *left, const struct arrival *arrival)
{
    double time = now();
    Transport *session = session_of(self, arrival, time);
    if (session == NULL)
        return hand_datagrams_over(self, left, arrival, 0);
    struct train train = open_all(self, session, arrival, time);
    size_t taken = train.count ? accept_train(self, &train) : 0;
    return taken == train.count ? 0 : hand_train_over(self, left, arrival->fd, &train, taken);
}

/* One receive call. Whether it brought something. */
static int
receive(struct arrival *arrival)
{
    struct iovec part = {arrival->data, LARGEST};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
    } control;
    struct msghdr message = {
        .msg_name = &arrival->from.to,
        .msg_namelen = sizeof arrival->from.to,
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t length = recvmsg(arrival->fd, &message, MSG_DONTWAIT);
    if (length < 0)
        return 0; /* nothing there, or an ICMP error that is about a datagram of the past */
    arrival->from.length = message.msg_namelen;
    arrival->length = arrival->size = (size_t)length;
    arrival->device = 0;
    for (struct cmsghdr *note = CMSG_FIRSTHDR(&message); note != NULL; note = CMSG_NXTHDR(&message, note)) {
        if (note->cmsg_level == IPPROTO_UDP && note->cmsg_type == GRO) {
            int size;
            memcpy(&size, CMSG_DATA(note), sizeof size);
            if (size > 0 && size < length)
                arrival->size = (size_t)size;
        } else if (note->cmsg_level == IPPROTO_IP && note->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(note), sizeof info);
            arrival->device = info.ipi_ifindex;
        }
    }
    return 1;
}

/* Take a burst, or what one call brings after a pause. The kernel may have answered that while it was written: a ping, or a
 * segment by its acknowledgement; so the device's turn is next, unless it has one. */
static int
from_socket(FastPath *self, struct side *side, struct left *left, int tun_has_turn)
{
    size_t at = 0;
    size_t before = left->count;
    int failed = 0;
    for (int calls = 0; calls < RECEIVES && at + LARGEST <= BURST && !failed; calls++) {
        struct arrival arrival = {.fd = side->fd, .data = self->incoming + at};
        if (!receive(&arrival)) {
            write_run(self);
            side->rests = 1;
            return 0;
        }
        failed = self->transport_type != NULL ? arrive_sealed(self, left, &arrival) : arrive_bare(self, left, &arrival);
        int rested = side->rests;
        side->rests = 0;
        if (rested)
            write_run(self);
        if (rested && !tun_has_turn && !failed && left->count == before)
            failed = from_tun(self, left);
        if (rested || left->count != before)
            break;
        at += aligned(arrival.length);
    }
    write_run(self);
    return failed;
}

/* Waiting */

/* Of two sockets, one may leave something to Python at a time: it goes to the same place. */
static int
dispatch(FastPath *self, const struct epoll_event *events, int count, struct left *left)
{
    int ready = 0, failed = 0, is_busy = 0, tun_has_turn = 0;
    for (int number = 0; number < count; number++)
        tun_has_turn |= events[number].data.fd == self->tun.fd;
    for (int number = 0; number < count && !failed; number++) {
        int fd = events[number].data.fd, place = 0;
        while (place < self->socket_count && self->sockets[place].fd != fd)
            place++;
        if (fd == self->tun.fd) {
            ready |= 1 << SOCKETS;
            failed = from_tun(self, left);
        } else if (place < self->socket_count) {
            ready |= 1 << place;
            size_t before = left->count;
            failed = is_busy ? 0 : from_socket(self, &self->sockets[place], left, tun_has_turn);
            is_busy |= left->count != before;
        } else
            failed = hand_over_unread(left, fd);
    }
    self->tun.rests |= !(ready >> SOCKETS);
    for (int place = 0; place < self->socket_count; place++)
        self->sockets[place].rests |= !(ready >> place & 1);
    return failed;
}

/* Whether what was done since it last woke up was to send on a packet that had come alone. */
static int
may_linger(const FastPath *self)
{
    return self->is_sender && self->counters.sent_packets != self->sent_before &&
           self->woken - self->slept > self->lingers_after;
}

/* Who sleeps must be woken up, and where a processor sleeps, that must be first. A packet that came alone is rarely the
 * last: its answer follows, and what answers that. So these are waited for without sleeping, for a moment. */
static int
linger(FastPath *self, struct epoll_event *events)
{
    double end = now() + LINGER * 1e-6;
    int count = 0;
    while (count == 0 && now() < end) {
        if (self->yields)
            sched_yield();
        count = epoll_wait(self->epoll, events, EVENTS, 0);
    }
    self->is_sender = 0;
    return count;
}

/* See what is ready, without waiting. Where nothing is, all that had come was sent on. */
static int
look_for_events(FastPath *self, struct epoll_event *events)
{
    uint64_t time = lone_time(&self->lone);
    int count = epoll_wait(self->epoll, events, EVENTS, 0), is_ready[WAYS] = {0};
    for (int number = 0; number < count; number++)
        is_ready[events[number].data.fd == self->tun.fd ? LEAVING : ARRIVING] = 1;
    for (int way = 0; way < WAYS && count >= 0; way++)
        if (!is_ready[way])
            lone_rest(&self->lone, way, time);
    return count;
}

/* What is ready; nothing at the deadline, or after a signal. Returns the number of events, or -1 and an error. The lock
 * of the interpreter is kept: a worker is one thread, and taking the lock again would be the first thing to wait for. */
static int
wait_for_events(FastPath *self, double deadline, struct epoll_event *events)
{
    int count = look_for_events(self, events);
    if (count == 0 && may_linger(self))
        count = linger(self, events);
    if (count == 0) {
        self->slept = now();
        self->tun.rests = self->sockets[0].rests = self->sockets[1].rests = 1;
        count = epoll_wait(self->epoll, events, EVENTS, until(deadline));
        self->is_sender = count == 1 && events[0].data.fd == self->tun.fd;
        self->sent_before = self->counters.sent_packets;
    }
    if (count < 0 && errno == EINTR)
        return PyErr_CheckSignals();
    if (count < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return count;
}

/* A worker that is scheduled before others would be woken by every packet of a fast flow, to send it alone, and leave
 * no time to the programs that the flow is for. So while many come one by one, in quick succession, they are given a
 * moment to gather. */
static void
gather(FastPath *self)
{
    double time = now();
    unsigned long long packets = self->counters.sent_packets + self->counters.received_packets;
    unsigned long long fresh = packets - self->seen_packets;
    int is_trickle = fresh > 0 && fresh < GATHERED && time - self->woken < CLOSE * 1e-6;
    self->trickle = is_trickle ? self->trickle + 1 : 0;
    if (self->trickle >= TRICKLE) {
        struct timespec moment = {0, MOMENT * 1000};
        nanosleep(&moment, NULL);
        time = now();
    }
    self->woken = time;
    self->seen_packets = packets;
}

static PyObject *
poll(FastPath *self, PyObject *argument)
{
    double deadline = PyFloat_AsDouble(argument);
    struct left left = {.items = PyErr_Occurred() ? NULL : PyList_New(0)};
    while (left.items != NULL && left.count == 0) {
        struct epoll_event events[EVENTS];
        gather(self);
        int count = wait_for_events(self, deadline, events);
        if (count < 0 || dispatch(self, events, count, &left) < 0)
            Py_CLEAR(left.items);
        else if (count == 0 || until(deadline) == 0)
            break;
    }
    return left.items;
}

/* Learning */

static int
check_range(const char *name, long value)
{
    if (value > 0 && value <= LARGEST)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s of the fast path must be from 1 to %d, not %ld", name, LARGEST, value);
    return -1;
}

/* An address of four or sixteen bytes; returns the version, or -1 and an error. */
static int
parse_address(const char *bytes, Py_ssize_t length, struct address *address)
{
    memset(address, 0, sizeof *address);
    if (length == 4)
        memcpy(&address->words[3], bytes, 4);
    else if (length == 16)
        memcpy(address, bytes, 16);
    else {
        PyErr_Format(PyExc_ValueError, "%zd bytes of an address, not 4 or 16", length);
        return -1;
    }
    return length == 4 ? 4 : 6;
}

/* An address in text form and a port. Returns 0, or -1 and an error. */
static int
parse_endpoint(const FastPath *self, const char *host, int port, struct endpoint *endpoint)
{
    struct addrinfo wanted = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM}, *found = NULL;
    if (check_range("port", port) < 0)
        return -1;
    if (getaddrinfo(host, NULL, &wanted, &found) != 0 || found->ai_addrlen > sizeof endpoint->to) {
        PyErr_Format(PyExc_ValueError, "not an address: %s", host);
        return -1;
    }
    endpoint->length = found->ai_addrlen;
    memcpy(&endpoint->to, found->ai_addr, found->ai_addrlen);
    endpoint->to.ipv4.sin_port = htons((uint16_t)port);
    freeaddrinfo(found);
    for (int place = 0; place < self->socket_count; place++) {
        struct sockaddr_storage own;
        socklen_t length = sizeof own;
        endpoint->fd = self->sockets[place].fd;
        if (getsockname(endpoint->fd, (struct sockaddr *)&own, &length) == 0 &&
            own.ss_family == endpoint->to.any.sa_family)
            return 0;
    }
    PyErr_Format(PyExc_ValueError, "no socket leads to %s", host);
    return -1;
}

static void
clear_route(struct route *route)
{
    Py_XDECREF(route->peer);
    Py_XDECREF((PyObject *)route->transport);
    memset(route, 0, sizeof *route);
}

static PyObject *
learn_route(FastPath *self, PyObject *arguments)
{
    const char *destination, *host;
    Py_ssize_t length;
    int mtu, port;
    PyObject *peer, *way;
    struct route route = {0};
    if (!PyArg_ParseTuple(arguments, "y#UiO", &destination, &length, &peer, &mtu, &way) ||
        check_range("mtu", mtu) < 0)
        return NULL;
    int version = parse_address(destination, length, &route.destination);
    if (version < 0)
        return NULL;
    if (self->transport_type != NULL && PyObject_TypeCheck(way, self->transport_type)) {
        route.transport = (Transport *)way;
        if (route.transport->peer == NULL || route.transport->endpoint.length == 0) {
            PyErr_SetString(PyExc_ValueError, "a session that the fast path was not told of");
            return NULL;
        }
    } else if (self->transport_type != NULL || !PyTuple_Check(way)) {
        PyErr_SetString(PyExc_TypeError, "a way is a Transport, or an address and a port where there are none");
        return NULL;
    } else if (!PyArg_ParseTuple(way, "si", &host, &port) || parse_endpoint(self, host, port, &route.endpoint) < 0)
        return NULL;
    route.mtu = (uint16_t)mtu;
    route.version = (uint8_t)version;
    route.peer = Py_NewRef(peer);
    Py_XINCREF((PyObject *)route.transport);
    struct route *slot = route_slot(self, &route.destination);
    clear_route(slot);
    *slot = route;
    Py_RETURN_NONE;
}

static PyObject *
learn_path(FastPath *self, PyObject *arguments)
{
    const char *addresses;
    Py_ssize_t length;
    PyObject *peer;
    struct path path = {0};
    if (!PyArg_ParseTuple(arguments, "Uy#", &peer, &addresses, &length))
        return NULL;
    int version = parse_address(addresses, length / 2, &path.source);
    if (version < 0 || length % 2 != 0 ||
        parse_address(addresses + length / 2, length / 2, &path.destination) < 0) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of two addresses, not 8 or 32", length);
        return NULL;
    }
    if (self->transport_type == NULL) {
        PyObject *text = PyUnicode_AsASCIIString(peer);
        int is_address = text != NULL && inet_pton(AF_INET, PyBytes_AsString(text), &path.address) == 1 &&
                         PyBytes_Size(text) == (Py_ssize_t)strlen(PyBytes_AsString(text));
        Py_XDECREF(text);
        if (!is_address) {
            PyErr_Clear();
            PyErr_SetString(PyExc_ValueError, "a peer of the fast path is an IPv4 address");
            return NULL;
        }
    }
    path.version = (uint8_t)version;
    path.peer = Py_NewRef(peer);
    struct path *slot = path_slot(self, &path.source, &path.destination);
    Py_XDECREF(slot->peer);
    *slot = path;
    Py_RETURN_NONE;
}

static PyObject *
learn_session(FastPath *self, PyObject *arguments)
{
    PyObject *transport, *peer;
    unsigned long index, remote_index;
    const char *host;
    int port;
    double last;
    struct endpoint endpoint = {0};
    if (!PyArg_ParseTuple(arguments, "OkkU(si)d", &transport, &index, &remote_index, &peer, &host, &port, &last))
        return NULL;
    if (self->transport_type == NULL || !PyObject_TypeCheck(transport, self->transport_type)) {
        PyErr_SetString(PyExc_TypeError, "a session of the fast path has a Transport");
        return NULL;
    }
    if (index > UINT32_MAX || remote_index > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "an index has 32 bits");
        return NULL;
    }
    if (parse_endpoint(self, host, port, &endpoint) < 0)
        return NULL;
    Transport *session = (Transport *)transport;
    session->index = (uint32_t)index;
    session->remote_index = (uint32_t)remote_index;
    session->endpoint = endpoint;
    session->until = last;
    Py_INCREF(peer);
    Py_XDECREF(session->peer);
    session->peer = peer;
    Transport **slot = &self->sessions[index % SLOTS];
    Py_INCREF(transport);
    Py_XDECREF((PyObject *)*slot);
    *slot = session;
    Py_RETURN_NONE;
}

static void
forget_all(FastPath *self)
{
    lone_forget(&self->lone);
    for (int slot = 0; slot < SLOTS; slot++) {
        clear_route(&self->routes[slot]);
        Py_CLEAR(self->paths[slot].peer);
        Py_XDECREF((PyObject *)self->sessions[slot]);
        self->sessions[slot] = NULL;
    }
}

static PyObject *
forget(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    forget_all(self);
    Py_RETURN_NONE;
}

static PyObject *
let_linger(FastPath *self, PyObject *arguments)
{
    return PyArg_ParseTuple(arguments, "dp", &self->lingers_after, &self->yields) ? Py_NewRef(Py_None) : NULL;
}

/* Count what was carried without the worker since this was last done. */
static void
count_lone(FastPath *self)
{
    struct lone_counts all, *told = &self->lone_told;
    struct counters *counters = &self->counters;
    if (!lone_counts(&self->lone, &all))
        return;
    counters->lone_sent_packets += all.packets[LEAVING] - told->packets[LEAVING];
    counters->sent_packets += all.packets[LEAVING] - told->packets[LEAVING];
    counters->sent_bytes += all.bytes[LEAVING] - told->bytes[LEAVING];
    counters->lone_received_packets += all.packets[ARRIVING] - told->packets[ARRIVING];
    counters->received_packets += all.packets[ARRIVING] - told->packets[ARRIVING];
    counters->received_bytes += all.bytes[ARRIVING] - told->bytes[ARRIVING];
    counters->drop_send_failed += all.lost - told->lost;
    *told = all;
}

/* Have the kernel say by which device each datagram came. */
static int
ask_for_devices(const FastPath *self, int asked)
{
    int failed = 0;
    for (int place = 0; place < self->socket_count; place++)
        failed |= setsockopt(self->sockets[place].fd, IPPROTO_IP, IP_PKTINFO, &asked, sizeof asked);
    return failed;
}

static void
end_lone(FastPath *self)
{
    if (self->lone.control != NULL)
        ask_for_devices(self, 0);
    count_lone(self);
    lone_close(&self->lone);
    memset(&self->lone_told, 0, sizeof self->lone_told);
}

static PyObject *
carry_lone(FastPath *self, PyObject *arguments)
{
    int device, underlay;
    const char *address;
    struct in_addr own;
    if (!PyArg_ParseTuple(arguments, "iis", &device, &underlay, &address))
        return NULL;
    if (device <= 0 || underlay <= 0)
        return PyErr_Format(PyExc_ValueError, "no index of a device: %d", device <= 0 ? device : underlay);
    if (inet_pton(AF_INET, address, &own) != 1 || self->transport_type != NULL || self->any_port)
        return PyErr_Format(PyExc_ValueError, "only bare datagrams over IPv4, from one port, pass the worker by");
    end_lone(self);
    const char *failed =
        lone_open(&self->lone, (uint32_t)device, (uint32_t)underlay, own.s_addr, htons(self->port));
    if (failed == NULL && ask_for_devices(self, 1) < 0)
        failed = "learn by which device datagrams come";
    if (failed == NULL)
        Py_RETURN_NONE;
    int error = errno;
    end_lone(self);
    PyObject *told = Py_BuildValue("(iN)", error, PyUnicode_FromFormat("can't %s: %s", failed, strerror(error)));
    PyErr_SetObject(PyExc_OSError, told);
    Py_XDECREF(told);
    return NULL;
}

static PyObject *
carries_lone(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(lone_is_attached(&self->lone));
}

static PyObject *
carry_all(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    end_lone(self);
    Py_RETURN_NONE;
}

/* Telling */

static PyObject *
take_counters(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    count_lone(self);
    const struct counters *counters = &self->counters;
    PyObject *told = Py_BuildValue(
        "{sKsKsKsKsKsKsKsKsKsKsKsKsK}", "sent_packets", counters->sent_packets, "sent_bytes", counters->sent_bytes,
        "sent_calls", counters->sent_calls, "received_packets", counters->received_packets, "received_bytes",
        counters->received_bytes, "received_calls", counters->received_calls, "joined_packets",
        counters->joined_packets, "drop_tun_failed", counters->drop_tun_failed, "drop_unauthentic",
        counters->drop_unauthentic, "drop_replayed", counters->drop_replayed, "drop_send_failed",
        counters->drop_send_failed, "lone_sent_packets", counters->lone_sent_packets, "lone_received_packets",
        counters->lone_received_packets);
    if (told == NULL)
        return NULL;
    self->seen_packets = 0;
    self->counters = (struct counters){0};
    return told;
}

/* Take the first of those that have something to tell; NULL if there is none. */
static Transport *
unnote(FastPath *self)
{
    Transport *transport = self->noted;
    if (transport != NULL) {
        self->noted = transport->next_noted;
        transport->is_noted = 0;
    }
    return transport;
}

static PyObject *
tell(Transport *transport)
{
    PyObject *told = Py_BuildValue(
        "(k(KKd)(KKd))", (unsigned long)transport->index, transport->sent.packets, transport->sent.bytes,
        transport->sent.at, transport->received.packets, transport->received.bytes, transport->received.at);
    transport->sent = transport->received = (struct note){0};
    Py_DECREF((PyObject *)transport);
    return told;
}

static PyObject *
take_notes(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *notes = PyList_New(0);
    Transport *transport;
    while (notes != NULL && (transport = unnote(self)) != NULL) {
        PyObject *told = tell(transport);
        if (told == NULL || PyList_Append(notes, told) < 0)
            Py_CLEAR(notes);
        Py_XDECREF(told);
    }
    return notes;
}

/* Life: all is there from the beginning and stays, so that there is no half a fast path to use. Like a tuple it needs
 * no tp_clear: who makes it part of a cycle has one. */

static int
share(struct shared *shared, PyObject *buffer, Py_ssize_t least)
{
    if (PyByteArray_Size(buffer) < least) {
        PyErr_Format(PyExc_ValueError, "a buffer of the fast path has at least %zd bytes", least);
        return -1;
    }
    shared->view = PyMemoryView_FromObject(buffer);
    shared->data = (unsigned char *)PyByteArray_AsString(buffer);
    return shared->view == NULL ? -1 : 0;
}

static int
take_sockets(FastPath *self, PyObject *sockets)
{
    Py_ssize_t count = PyTuple_Size(sockets);
    if (count < 1 || count > SOCKETS) {
        PyErr_Format(PyExc_ValueError, "a fast path has 1 or %d sockets, not %zd", SOCKETS, count);
        return -1;
    }
    for (Py_ssize_t place = 0; place < count; place++) {
        int fd = PyObject_AsFileDescriptor(PyTuple_GetItem(sockets, place));
        if (fd < 0)
            return -1;
        self->sockets[place] = (struct side){fd, 1};
    }
    self->socket_count = (int)count;
    return 0;
}

static int
take_memory(FastPath *self)
{
    self->outgoing = malloc(BURST + ALIGNMENT);
    self->incoming = malloc(BURST + ALIGNMENT);
    self->sealed = malloc(PACKET + ROWS * (OVERHEAD + PADDING));
    if (self->outgoing != NULL && self->incoming != NULL && self->sealed != NULL)
        return 0;
    PyErr_NoMemory();
    return -1;
}

static int
take_type(FastPath *self, PyTypeObject *type)
{
    PyObject *module = PyType_GetModule(type);
    PyObject *found = module != NULL ? PyObject_GetAttrString(module, "Transport") : NULL;
    self->transport_type = (PyTypeObject *)found;
    return found != NULL ? 0 : -1;
}

static PyObject *
make(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {
        "epoll", "tun", "sockets", "packet", "received", "opened", "judge", "port", "any_port", "sealed", "mtu",
        "segments", "cuts", "joins_tcp", "joins_udp", NULL};
    PyObject *sockets, *packet, *received, *opened, *judge;
    int epoll, tun, port, any_port, sealed, mtu, segments, cuts, joins_tcp, joins_udp;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, names, "$iiO!O!O!O!Oippipppp", keywords, &epoll, &tun, &PyTuple_Type, &sockets,
            &PyByteArray_Type, &packet, &PyByteArray_Type, &received, &PyByteArray_Type, &opened, &judge, &port,
            &any_port, &sealed, &mtu, &segments, &cuts, &joins_tcp, &joins_udp) ||
        check_range("port", port) < 0 || check_range("mtu", mtu) < 0)
        return NULL;
    FastPath *self = (FastPath *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->epoll = epoll;
    self->tun = (struct side){tun, 1};
    self->port = (uint16_t)port;
    self->any_port = any_port;
    self->mtu = (size_t)mtu;
    self->lingers_after = HUGE_VAL;
    self->segments = segments;
    self->cuts = cuts;
    self->joins = (struct joining){joins_tcp, joins_udp};
    self->judge = Py_NewRef(judge);
    lone_init(&self->lone);
    if (take_memory(self) < 0 || (sealed && take_type(self, type) < 0) || take_sockets(self, sockets) < 0 ||
        share(&self->packet, packet, PACKET) < 0 || share(&self->received, received, LARGEST) < 0 ||
        share(&self->opened, opened, LARGEST) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int
traverse(FastPath *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->transport_type);
    Py_VISIT(self->judge);
    Py_VISIT(self->packet.view);
    Py_VISIT(self->received.view);
    Py_VISIT(self->opened.view);
    return 0;
}

static void
dealloc(FastPath *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Transport *transport;
    PyObject_GC_UnTrack(self);
    lone_close(&self->lone);
    forget_all(self);
    while ((transport = unnote(self)) != NULL)
        Py_DECREF((PyObject *)transport);
    Py_XDECREF((PyObject *)self->transport_type);
    Py_XDECREF(self->judge);
    Py_XDECREF(self->packet.view);
    Py_XDECREF(self->received.view);
    Py_XDECREF(self->opened.view);
    free(self->outgoing);
    free(self->incoming);
    free(self->sealed);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"poll", (PyCFunction)poll, METH_O, NULL},
    {"learn_route", (PyCFunction)learn_route, METH_VARARGS, NULL},
    {"learn_path", (PyCFunction)learn_path, METH_VARARGS, NULL},
    {"learn_session", (PyCFunction)learn_session, METH_VARARGS, NULL},
    {"forget", (PyCFunction)forget, METH_NOARGS, NULL},
    {"carry_lone", (PyCFunction)carry_lone, METH_VARARGS, NULL},
    {"carries_lone", (PyCFunction)carries_lone, METH_NOARGS, NULL},
    {"carry_all", (PyCFunction)carry_all, METH_NOARGS, NULL},
    {"let_linger", (PyCFunction)let_linger, METH_VARARGS, NULL},
    {"take_counters", (PyCFunction)take_counters, METH_NOARGS, NULL},
    {"take_notes", (PyCFunction)take_notes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make}, {Py_tp_traverse, traverse}, {Py_tp_dealloc, dealloc}, {Py_tp_methods, methods}, {0, NULL},
};

static PyType_Spec specification = {
    .name = "pyflannel_backends.userspace._fastpath.FastPath",
    .basicsize = sizeof(FastPath),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

static int
add_type(PyObject *module, const char *name, PyObject *type)
{
    int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, name, type);
    Py_XDECREF(type);
    return failed;
}

#ifndef SOURCES
#define SOURCES "" /* a digest of them: setup.py and userspace/fastpath.py have the same */
#endif

static int
execute(PyObject *module)
{
    if (PyModule_AddStringConstant(module, "SOURCES", SOURCES) < 0)
        return -1;
    PyObject *transport = make_transport_type();
    if (transport == NULL && PyErr_Occurred())
        return -1;
    if (transport != NULL && add_type(module, "Transport", transport) < 0)
        return -1;
    return add_type(module, "FastPath", PyType_FromModuleAndSpec(module, &specification, NULL));
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_fastpath",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__fastpath(void)
{
    return PyModuleDef_Init(&definition);
}
