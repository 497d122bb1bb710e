/* WireGuard's transport keys for the fast path: what seals and opens packets, and which numbers have been used.
 *
 * The cipher is OpenSSL's (EVP_chacha20_poly1305), found when the module is loaded; there is none of our own. A Transport
 * is the one place where the numbers of its session are counted, for Python's packets as for the fast path's: a number is
 * claimed before anything is sealed with it, and never given back, whatever becomes of the packet. Its keys exist only
 * inside OpenSSL's contexts, which are wiped when they are freed.
 *
 * Sources: WireGuard white paper, section 5.4.6; RFC 8439; RFC 6479 (replay window); EVP_EncryptInit(3).
 */

#ifndef PYFLANNEL_TRANSPORT_H
#define PYFLANNEL_TRANSPORT_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
    FRAME = 16,        /* before a transport message's ciphertext: type, receiver, number */
    TAG = 16,          /* behind it */
    OVERHEAD = FRAME + TAG,
    MESSAGE = 4,       /* the type */
    WINDOW_WORDS = 128, /* of 64 bits; one of them is always half used, so 8,128 numbers are remembered */
};

/* Numbers from here on are never used (white paper, section 6.1). */
#define REJECT_AFTER_MESSAGES (UINT64_MAX - (UINT64_C(1) << 13))

/* Where a peer is, and the socket that leads there. */
struct endpoint {
    int fd;
    socklen_t length;
    union {
        struct sockaddr any;
        struct sockaddr_in ipv4;
        struct sockaddr_in6 ipv6;
    } to;
};

/* What happened since Python asked last: messages with content, bytes of all, and when the last one was. */
struct note {
    unsigned long long packets, bytes;
    double at;
};

typedef struct Transport {
    PyObject_HEAD
    void *send, *receive; /* contexts of the cipher, with the keys */
    uint64_t next;        /* number to send with */
    uint64_t newest;      /* number that was received */
    uint64_t window[WINDOW_WORDS];
    /* What FastPath.learn_session says: */
    uint32_t index, remote_index; /* of the session: our name for it, and the peer's */
    PyObject *peer;
    struct endpoint endpoint;
    double until; /* it may be used, in monotonic seconds */
    /* What it is told by take_notes(): */
    struct note sent, received;
    int is_noted;
    struct Transport *next_noted;
} Transport;

/* Find the cipher; whether there is one. */
int find_cipher(void);

/* Claim ``count`` numbers, of which ``first`` is the first one. Whether so many are left. */
int claim_numbers(Transport *transport, uint64_t count, uint64_t *first);

/* Note that a number came with an authentic message. Whether it is new. */
int accept_number(Transport *transport, uint64_t number);

/* Make a message of the ``size`` bytes at ``message`` + FRAME, in place, with a number that was claimed. Whether that
 * was possible. */
int seal(Transport *transport, uint64_t number, unsigned char *message, size_t size);

/* Decrypt the message of ``size`` bytes, at least OVERHEAD, in place. Whether it is authentic. */
int open_message(Transport *transport, uint64_t number, unsigned char *message, size_t size);

/* The type Transport; NULL, without an exception, where there is no cipher. */
PyObject *make_transport_type(void);

#endif
