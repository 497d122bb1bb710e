/* The fast path of a userspace data plane: packets that come alone, in machine code.
 *
 * A packet that comes after a pause finds nothing of the interpreter in the processor's caches, and fetching that takes
 * ten times as long as running it. So the waiting for packets is here, and so is all that happens to an IPv4 packet that
 * needs no second look: Python has looked its destination or its sender up before, and said so with learn_route() and
 * learn_path(); it has no options, nothing undone, hops left, and fits. Every other packet, every packet that closely
 * follows another, and every other descriptor is Python's, which batches, cuts, joins, answers, refuses and counts.
 *
 * What is learned is a cache of one entry per slot. A lost entry means Python's path and no harm; forget() is called
 * whenever one might be wrong. Nothing here trusts a length that came in a packet: what is read is bounded by the
 * buffer, and a header is looked at when all of it is there.
 *
 * Sources: linux/virtio_net.h, RFC 791, RFC 1624 (checksum after a change), udp(7) (UDP_GRO), epoll_wait(2).
 */

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    VNET = 10,         /* struct virtio_net_hdr, before every packet of the device */
    HEADER = 20,       /* of IPv4, without options */
    NO_OPTIONS = 0x45, /* its first byte then */
    LARGEST = 0xFFFF,  /* datagram, packet, and port */
    BITS = 10,
    SLOTS = 1 << BITS, /* of each cache */
    EVENTS = 16,
    GRO = 104, /* UDP_GRO of linux/udp.h, which older headers lack */
};

/* Addresses are as on the wire. */

/* Where packets to ``destination`` go, unless they are larger than ``mtu``, which is 0 in a slot that is not used. */
struct route {
    uint32_t destination, peer;
    uint16_t mtu;
};

/* ``peer`` may send packets from ``source`` to ``destination``. */
struct path {
    uint32_t peer, source, destination;
    int known;
};

struct side {
    int fd;
    int rests;      /* nothing waited there when last looked at: the next packet comes after a pause */
    PyObject *view; /* on the bytearray, which can't move while there is one */
    unsigned char *buffer;
};

typedef struct {
    PyObject_HEAD
    int epoll;
    struct side tun, udp;
    PyObject *judge;
    uint16_t port; /* the peers' */
    int any_port;
    unsigned long long sent, sent_bytes, received, received_bytes;
    struct route routes[SLOTS];
    struct path paths[SLOTS];
} FastPath;

/* Packets */

static uint16_t
read16(const unsigned char *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t
read32(const unsigned char *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static uint32_t
fold(uint32_t sum)
{
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (sum & 0xFFFF) + (sum >> 16);
}

static int
checksum_holds(const unsigned char *header)
{
    uint32_t sum = 0;
    for (int at = 0; at < HEADER; at += 2)
        sum += read16(header + at);
    return fold(sum) == 0xFFFF;
}

/* One hop less, and the header's checksum after it. */
static void
take_hop(unsigned char *header)
{
    uint32_t sum = read16(header + 10) + 0x0100u;
    sum += sum >= 0xFFFF; /* 0 rather than 0xFFFF, too, as RFC 1624 has it */
    header[8]--;
    header[10] = (unsigned char)(sum >> 8);
    header[11] = (unsigned char)sum;
}

/* The highest bits of a product depend on all of its factor's. Addresses differ in their last bytes. */
static unsigned
slot(uint32_t one, uint32_t two)
{
    return (ntohl(one) * 2654435761u ^ ntohl(two) * 2246822519u) >> (32 - BITS);
}

/* Send on what was read from the device. Whether that was possible; if not, the packet is as it was. */
static int
leave(FastPath *self, size_t length)
{
    const unsigned char *undone = self->tun.buffer;
    unsigned char *packet = self->tun.buffer + VNET;
    if (length < VNET + HEADER)
        return 0;
    size_t total = length - VNET;
    if (undone[0] || undone[1] || packet[0] != NO_OPTIONS || read16(packet + 2) != total || packet[8] < 2)
        return 0;
    uint32_t destination = read32(packet + 16);
    const struct route *route = &self->routes[slot(destination, 0)];
    if (route->destination != destination || total > route->mtu)
        return 0;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(self->port), .sin_addr.s_addr = route->peer};
    unsigned char before[HEADER];
    memcpy(before, packet, HEADER);
    take_hop(packet);
    if (sendto(self->udp.fd, packet, total, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to) < 0) {
        memcpy(packet, before, HEADER); /* Python tries again, waits for room, and says what is wrong */
        return 0;
    }
    self->sent++;
    self->sent_bytes += total;
    return 1;
}

/* Hand what was received to the device. Whether that was possible. */
static int
arrive(FastPath *self, size_t length, size_t size, const struct sockaddr_in *from)
{
    unsigned char *packet = self->udp.buffer;
    if (length < HEADER || size != length || packet[0] != NO_OPTIONS || read16(packet + 2) != length)
        return 0;
    uint32_t source = read32(packet + 12), destination = read32(packet + 16);
    const struct path *path = &self->paths[slot(source, destination)];
    if (!path->known || path->peer != from->sin_addr.s_addr || path->source != source ||
        path->destination != destination || !(self->any_port || ntohs(from->sin_port) == self->port) ||
        !checksum_holds(packet))
        return 0;
    unsigned char complete[VNET] = {0};
    struct iovec parts[] = {{complete, VNET}, {packet, length}};
    if (writev(self->tun.fd, parts, 2) < 0)
        return 0;
    self->received++;
    self->received_bytes += length;
    return 1;
}

/* Waiting */

/* Add a descriptor, and what was read from it, to what is left to do. Steals ``read``. Returns 0, or -1 and an error. */
static int
hand_over(PyObject *left, int fd, PyObject *read)
{
    PyObject *item = read != NULL ? Py_BuildValue("(iN)", fd, read) : NULL;
    int failed = item == NULL ? -1 : PyList_Append(left, item);
    Py_XDECREF(item);
    return failed;
}

static int
hand_over_unread(PyObject *left, int fd)
{
    return hand_over(left, fd, Py_BuildValue("")); /* None */
}

static int
from_tun(FastPath *self, PyObject *left)
{
    struct side *tun = &self->tun;
    if (!tun->rests)
        return hand_over_unread(left, tun->fd);
    ssize_t length = read(tun->fd, tun->buffer, VNET + LARGEST);
    if (length < 0)
        return errno == EAGAIN ? 0 : hand_over_unread(left, tun->fd);
    tun->rests = 0;
    return leave(self, (size_t)length) ? 0 : hand_over(left, tun->fd, PyLong_FromSsize_t(length));
}

static int
from_udp(FastPath *self, PyObject *left)
{
    struct side *udp = &self->udp;
    if (!udp->rests)
        return hand_over_unread(left, udp->fd);
    struct sockaddr_in from = {0};
    struct iovec part = {udp->buffer, LARGEST};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_name = &from,
        .msg_namelen = sizeof from,
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t length = recvmsg(udp->fd, &message, MSG_DONTWAIT);
    if (length < 0)
        return 0; /* nothing there, or an ICMP error that is about a datagram of the past */
    udp->rests = 0;
    int size = (int)length;
    const struct cmsghdr *note = CMSG_FIRSTHDR(&message);
    if (note != NULL && note->cmsg_level == IPPROTO_UDP && note->cmsg_type == GRO)
        memcpy(&size, CMSG_DATA(note), sizeof size);
    if (arrive(self, (size_t)length, (size_t)size, &from))
        return 0;
    char address[INET_ADDRSTRLEN] = "";
    inet_ntop(AF_INET, &from.sin_addr, address, sizeof address);
    return hand_over(
        left, udp->fd, PyObject_CallFunction(self->judge, "ni(si)", length, size, address, ntohs(from.sin_port)));
}

static int
dispatch(FastPath *self, const struct epoll_event *events, int count, PyObject *left)
{
    int tun = 0, udp = 0, failed = 0;
    for (int number = 0; number < count && !failed; number++) {
        int fd = events[number].data.fd;
        if (fd == self->tun.fd) {
            tun = 1;
            failed = from_tun(self, left);
        } else if (fd == self->udp.fd) {
            udp = 1;
            failed = from_udp(self, left);
        } else
            failed = hand_over_unread(left, fd);
    }
    self->tun.rests |= !tun;
    self->udp.rests |= !udp;
    return failed;
}

/* Milliseconds from now until ``deadline``, rounded up, at most a minute; none if that is no number. */
static int
until(double deadline)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    double left = deadline - ((double)time.tv_sec + (double)time.tv_nsec / 1e9);
    return !(left > 0) ? 0 : left > 60 ? 60000 : (int)(left * 1000) + 1;
}

/* What is ready; nothing at the deadline, or after a signal. Returns the number of events, or -1 and an error. The lock
 * of the interpreter is kept: a worker is one thread, and taking the lock again would be the first thing to wait for. */
static int
wait_for_events(FastPath *self, double deadline, struct epoll_event *events)
{
    int count = epoll_wait(self->epoll, events, EVENTS, 0);
    if (count == 0) {
        self->tun.rests = self->udp.rests = 1;
        count = epoll_wait(self->epoll, events, EVENTS, until(deadline));
    }
    if (count < 0 && errno == EINTR)
        return PyErr_CheckSignals();
    if (count < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return count;
}

static PyObject *
poll(FastPath *self, PyObject *argument)
{
    double deadline = PyFloat_AsDouble(argument);
    PyObject *left = PyErr_Occurred() ? NULL : PyList_New(0);
    while (left != NULL && PyList_Size(left) == 0) {
        struct epoll_event events[EVENTS];
        int count = wait_for_events(self, deadline, events);
        if (count < 0 || dispatch(self, events, count, left) < 0)
            Py_CLEAR(left);
        else if (count == 0 || until(deadline) == 0)
            break;
    }
    return left;
}

/* Learning */

static int
parse_peer(const char *text, uint32_t *peer)
{
    if (inet_pton(AF_INET, text, peer) == 1)
        return 0;
    PyErr_Format(PyExc_ValueError, "a peer of the fast path is an IPv4 address, not %s", text);
    return -1;
}

static int
check_length(Py_ssize_t length, Py_ssize_t right)
{
    if (length == right)
        return 0;
    PyErr_Format(PyExc_ValueError, "%zd bytes of addresses, not %zd", length, right);
    return -1;
}

static int
check_range(const char *name, int value)
{
    if (value > 0 && value <= LARGEST)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s of the fast path must be from 1 to %d, not %d", name, LARGEST, value);
    return -1;
}

static PyObject *
learn_route(FastPath *self, PyObject *arguments)
{
    const char *destination, *peer;
    Py_ssize_t length;
    int mtu;
    struct route route;
    if (!PyArg_ParseTuple(arguments, "y#si", &destination, &length, &peer, &mtu) || check_length(length, 4) ||
        parse_peer(peer, &route.peer) || check_range("mtu", mtu))
        return NULL;
    route.mtu = (uint16_t)mtu;
    route.destination = read32((const unsigned char *)destination);
    self->routes[slot(route.destination, 0)] = route;
    Py_RETURN_NONE;
}

static PyObject *
learn_path(FastPath *self, PyObject *arguments)
{
    const char *peer, *addresses;
    Py_ssize_t length;
    struct path path = {.known = 1};
    if (!PyArg_ParseTuple(arguments, "sy#", &peer, &addresses, &length) || parse_peer(peer, &path.peer) ||
        check_length(length, 8))
        return NULL;
    path.source = read32((const unsigned char *)addresses);
    path.destination = read32((const unsigned char *)addresses + 4);
    self->paths[slot(path.source, path.destination)] = path;
    Py_RETURN_NONE;
}

static PyObject *
forget(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    memset(self->routes, 0, sizeof self->routes);
    memset(self->paths, 0, sizeof self->paths);
    Py_RETURN_NONE;
}

static PyObject *
take_counters(FastPath *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *counters =
        Py_BuildValue("(KKKK)", self->sent, self->sent_bytes, self->received, self->received_bytes);
    if (counters != NULL)
        self->sent = self->sent_bytes = self->received = self->received_bytes = 0;
    return counters;
}

/* Life: all is there from the beginning and stays, so that there is no half a fast path to use. Like a tuple it needs
 * no tp_clear: who makes it part of a cycle has one. */

static int
open_side(struct side *side, int fd, PyObject *buffer)
{
    if (PyByteArray_Size(buffer) < VNET + LARGEST) {
        PyErr_Format(PyExc_ValueError, "a buffer of the fast path has at least %d bytes", VNET + LARGEST);
        return -1;
    }
    side->fd = fd;
    side->rests = 1;
    side->view = PyMemoryView_FromObject(buffer);
    side->buffer = (unsigned char *)PyByteArray_AsString(buffer);
    return side->view == NULL ? -1 : 0;
}

static PyObject *
make(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"epoll", "tun", "tun_buffer", "udp", "udp_buffer", "port", "any_port", "judge", NULL};
    PyObject *tun_buffer, *udp_buffer, *judge;
    int epoll, tun, udp, port, any_port;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, names, "$iiO!iO!ipO", keywords, &epoll, &tun, &PyByteArray_Type, &tun_buffer, &udp,
            &PyByteArray_Type, &udp_buffer, &port, &any_port, &judge) ||
        check_range("port", port))
        return NULL;
    FastPath *self = (FastPath *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->epoll = epoll;
    self->port = (uint16_t)port;
    self->any_port = any_port;
    self->judge = Py_NewRef(judge);
    if (open_side(&self->tun, tun, tun_buffer) || open_side(&self->udp, udp, udp_buffer))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int
traverse(FastPath *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->judge);
    Py_VISIT(self->tun.view);
    Py_VISIT(self->udp.view);
    return 0;
}

static void
dealloc(FastPath *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->judge);
    Py_XDECREF(self->tun.view);
    Py_XDECREF(self->udp.view);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"poll", (PyCFunction)poll, METH_O, NULL},
    {"learn_route", (PyCFunction)learn_route, METH_VARARGS, NULL},
    {"learn_path", (PyCFunction)learn_path, METH_VARARGS, NULL},
    {"forget", (PyCFunction)forget, METH_NOARGS, NULL},
    {"take_counters", (PyCFunction)take_counters, METH_NOARGS, NULL},
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
execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&specification);
    int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, "FastPath", type);
    Py_XDECREF(type);
    return failed;
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
