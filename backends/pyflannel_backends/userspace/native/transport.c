/* See transport.h. */

#include "transport.h"

#include <string.h>

#if __has_include(<openssl/evp.h>)

#include <dlfcn.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/opensslv.h>

#if OPENSSL_VERSION_NUMBER >= 0x30000000L
#define LIBRARY "libcrypto.so.3"
#else
#define LIBRARY "libcrypto.so.1.1"
#endif

enum { KEY = 32, NONCE = 12, SEND = 1, RECEIVE = 0 };

/* What is used of OpenSSL. It is loaded, not linked, so that the module can do without. */
static struct {
    __typeof__(&EVP_chacha20_poly1305) cipher;
    __typeof__(&EVP_CIPHER_CTX_new) make;
    __typeof__(&EVP_CIPHER_CTX_free) free;
    __typeof__(&EVP_CIPHER_CTX_ctrl) control;
    __typeof__(&EVP_CipherInit_ex) begin;
    __typeof__(&EVP_CipherUpdate) update;
    __typeof__(&EVP_CipherFinal_ex) finish;
    __typeof__(&OPENSSL_cleanse) wipe;
} crypto;

static int
find(void *library, const char *name, void *function, size_t size)
{
    void *found = dlsym(library, name);
    memcpy(function, &found, size);
    return found != NULL;
}

#define FIND(library, name, member) find(library, name, &crypto.member, sizeof crypto.member)

/* OpenSSL's code for AVX-512 leaves the upper halves of vector registers in use (3.0 does), and while they are, processors
 * take a fifth of a microsecond for each change between the newer instructions and those of SSE that all else is made of:
 * a quarter of the time for a message. */
#if defined(__x86_64__)
static int has_vectors;

__attribute__((target("avx"))) static void
clear_upper_halves(void)
{
    __builtin_ia32_vzeroupper();
}

static void
find_vectors(void)
{
    has_vectors = __builtin_cpu_supports("avx");
}

static void
rest_vectors(void)
{
    if (has_vectors)
        clear_upper_halves();
}
#else
static void
find_vectors(void)
{
}

static void
rest_vectors(void)
{
}
#endif

static EVP_CIPHER_CTX *
make_context(const unsigned char *key, int direction)
{
    EVP_CIPHER_CTX *context = crypto.make();
    if (context != NULL && crypto.begin(context, crypto.cipher(), NULL, key, NULL, direction) != 1) {
        crypto.free(context);
        context = NULL;
    }
    return context;
}

int
find_cipher(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL || !FIND(library, "EVP_chacha20_poly1305", cipher) ||
        !FIND(library, "EVP_CIPHER_CTX_new", make) || !FIND(library, "EVP_CIPHER_CTX_free", free) ||
        !FIND(library, "EVP_CIPHER_CTX_ctrl", control) || !FIND(library, "EVP_CipherInit_ex", begin) ||
        !FIND(library, "EVP_CipherUpdate", update) || !FIND(library, "EVP_CipherFinal_ex", finish) ||
        !FIND(library, "OPENSSL_cleanse", wipe))
        return 0;
    static const unsigned char zeros[KEY];
    EVP_CIPHER_CTX *context = make_context(zeros, SEND); /* it may be there and forbidden */
    if (context == NULL)
        return 0;
    crypto.free(context);
    find_vectors();
    return 1;
}

static int
update(EVP_CIPHER_CTX *context, unsigned char *data, size_t size)
{
    int written, done = size == 0 || crypto.update(context, data, &written, data, (int)size) == 1;
    rest_vectors();
    return done;
}

static int
finish(EVP_CIPHER_CTX *context)
{
    unsigned char nothing[16];
    int written, done = crypto.finish(context, nothing, &written) == 1;
    rest_vectors();
    return done;
}

/* Encrypt in place, and write the tag behind it. */
static int
encrypt(EVP_CIPHER_CTX *context, unsigned char *data, size_t size)
{
    return update(context, data, size) && finish(context) &&
           crypto.control(context, EVP_CTRL_AEAD_GET_TAG, TAG, data + size) == 1;
}

/* Decrypt in place, and compare the tag behind it (in constant time). Nobody may see what a forged one decrypts to. */
static int
decrypt(EVP_CIPHER_CTX *context, unsigned char *data, size_t size)
{
    if (crypto.control(context, EVP_CTRL_AEAD_SET_TAG, TAG, data + size) == 1 && update(context, data, size) &&
        finish(context))
        return 1;
    crypto.wipe(data, size);
    return 0;
}

/* Start with a number: four zero bytes, and the number, little-endian. */
static int
begin(EVP_CIPHER_CTX *context, uint64_t number, int direction)
{
    unsigned char nonce[NONCE] = {0};
    for (int at = 4; at < NONCE; at++, number >>= 8)
        nonce[at] = (unsigned char)number;
    return crypto.begin(context, NULL, NULL, NULL, nonce, direction) == 1;
}

int
seal(Transport *transport, uint64_t number, unsigned char *message, size_t size)
{
    uint64_t fields[] = {MESSAGE | (uint64_t)transport->remote_index << 32, number};
    for (int at = 0; at < FRAME; at++)
        message[at] = (unsigned char)(fields[at / 8] >> 8 * (at % 8));
    return begin(transport->send, number, SEND) && encrypt(transport->send, message + FRAME, size);
}

int
open_message(Transport *transport, uint64_t number, unsigned char *message, size_t size)
{
    return begin(transport->receive, number, RECEIVE) &&
           decrypt(transport->receive, message + FRAME, size - OVERHEAD);
}

/* Use the cipher as it is used for messages, but with any nonce and with associated data, as test vectors have them.
 * ``data`` has room for a tag. */
static int
run_vector(
    Transport *transport, int direction, const char *nonce, const char *extra, Py_ssize_t extra_size, unsigned char *data,
    size_t size)
{
    EVP_CIPHER_CTX *context = direction == SEND ? transport->send : transport->receive;
    int written;
    if (crypto.begin(context, NULL, NULL, NULL, (const unsigned char *)nonce, direction) != 1 ||
        (extra_size && crypto.update(context, NULL, &written, (const unsigned char *)extra, (int)extra_size) != 1))
        return 0;
    return direction == SEND ? encrypt(context, data, size) : decrypt(context, data, size);
}

static int
set_keys(Transport *self, const unsigned char *send, const unsigned char *receive)
{
    self->send = make_context(send, SEND);
    self->receive = make_context(receive, RECEIVE);
    if (self->send != NULL && self->receive != NULL)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "OpenSSL can't make a context for ChaCha20-Poly1305");
    return -1;
}

static void
wipe_keys(Transport *self)
{
    if (self->send != NULL)
        crypto.free(self->send);
    if (self->receive != NULL)
        crypto.free(self->receive);
}

#else /* without OpenSSL's headers packets are sealed and opened in Python */

enum { KEY = 32, NONCE = 12, SEND = 1, RECEIVE = 0 };

int
find_cipher(void)
{
    return 0;
}

static int
run_vector(
    Transport *Py_UNUSED(transport), int Py_UNUSED(direction), const char *Py_UNUSED(nonce),
    const char *Py_UNUSED(extra), Py_ssize_t Py_UNUSED(extra_size), unsigned char *Py_UNUSED(data),
    size_t Py_UNUSED(size))
{
    return 0;
}

int
seal(Transport *Py_UNUSED(transport), uint64_t Py_UNUSED(number), unsigned char *Py_UNUSED(message), size_t Py_UNUSED(size))
{
    return 0;
}

int
open_message(
    Transport *Py_UNUSED(transport), uint64_t Py_UNUSED(number), unsigned char *Py_UNUSED(message),
    size_t Py_UNUSED(size))
{
    return 0;
}

static int
set_keys(Transport *Py_UNUSED(self), const unsigned char *Py_UNUSED(send), const unsigned char *Py_UNUSED(receive))
{
    return -1;
}

static void
wipe_keys(Transport *Py_UNUSED(self))
{
}

#endif

/* Numbers */

int
claim_numbers(Transport *transport, uint64_t count, uint64_t *first)
{
    if (count > REJECT_AFTER_MESSAGES - transport->next)
        return 0;
    *first = transport->next;
    transport->next += count;
    return 1;
}

/* The window is a ring of words: going on clears those that come into use again. */
int
accept_number(Transport *transport, uint64_t number)
{
    if (number >= REJECT_AFTER_MESSAGES)
        return 0;
    if (number > transport->newest) {
        uint64_t word = transport->newest / 64, last = number / 64;
        if (last - word > WINDOW_WORDS)
            word = last - WINDOW_WORDS;
        while (word < last)
            transport->window[++word % WINDOW_WORDS] = 0;
        transport->newest = number;
    } else if (transport->newest - number >= 64 * (WINDOW_WORDS - 1))
        return 0;
    uint64_t *word = &transport->window[number / 64 % WINDOW_WORDS], bit = UINT64_C(1) << number % 64;
    if (*word & bit)
        return 0;
    *word |= bit;
    return 1;
}

/* As Python sees it */

static PyObject *
claim(Transport *self, PyObject *argument)
{
    unsigned long long count = PyLong_AsUnsignedLongLong(argument);
    uint64_t first;
    if (PyErr_Occurred())
        return NULL;
    if (!claim_numbers(self, count, &first))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(first);
}

static PyObject *
accept_one(Transport *self, PyObject *argument)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(accept_number(self, number));
}

/* Whether nothing so new has come yet. */
static int
is_newer(const Transport *self, uint64_t number)
{
    return number > self->newest || (self->newest == 0 && number == 0 && !(self->window[0] & 1));
}

static PyObject *
accept_run(Transport *self, PyObject *arguments)
{
    unsigned long long first, count;
    if (!PyArg_ParseTuple(arguments, "KK", &first, &count))
        return NULL;
    if (!is_newer(self, first) || first >= REJECT_AFTER_MESSAGES || count > REJECT_AFTER_MESSAGES - first)
        Py_RETURN_FALSE;
    uint64_t end = first + count, at = count > 64 * WINDOW_WORDS ? end - 64 * WINDOW_WORDS : first;
    while (at < end)
        accept_number(self, at++);
    Py_RETURN_TRUE;
}

static PyObject *
get_sent(Transport *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->next);
}

static PyObject *
state(Transport *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue(
        "(KKy#)", (unsigned long long)self->next, (unsigned long long)self->newest, (const char *)self->window,
        (Py_ssize_t)sizeof self->window);
}

/* For tests of how the cipher is used. */

enum { LONGEST = 2048 };

static PyObject *
seal_one(Transport *self, PyObject *arguments)
{
    const char *plain;
    Py_ssize_t size;
    unsigned long long number;
    if (!PyArg_ParseTuple(arguments, "Ky#", &number, &plain, &size))
        return NULL;
    PyObject *message = PyBytes_FromStringAndSize(NULL, size + OVERHEAD);
    if (message == NULL)
        return NULL;
    unsigned char *data = (unsigned char *)PyBytes_AsString(message);
    memcpy(data + FRAME, plain, (size_t)size);
    if (size <= 0xFFFF && seal(self, number, data, (size_t)size))
        return message;
    Py_DECREF(message);
    PyErr_SetString(PyExc_ValueError, "OpenSSL can't seal this");
    return NULL;
}

static PyObject *
open_one(Transport *self, PyObject *arguments)
{
    const char *message;
    Py_ssize_t size;
    unsigned long long number;
    if (!PyArg_ParseTuple(arguments, "Ky#", &number, &message, &size))
        return NULL;
    if (size < OVERHEAD || size > 0xFFFF)
        Py_RETURN_NONE;
    PyObject *copy = PyBytes_FromStringAndSize(message, size);
    if (copy == NULL)
        return NULL;
    unsigned char *data = (unsigned char *)PyBytes_AsString(copy);
    PyObject *plain = open_message(self, number, data, (size_t)size)
                          ? PyBytes_FromStringAndSize((const char *)data + FRAME, size - OVERHEAD)
                          : Py_NewRef(Py_None);
    Py_DECREF(copy);
    return plain;
}

static PyObject *
crypt_one(Transport *self, PyObject *arguments)
{
    const char *nonce, *extra, *data;
    Py_ssize_t nonce_size, extra_size, size;
    int sealing;
    if (!PyArg_ParseTuple(
            arguments, "py#y#y#", &sealing, &nonce, &nonce_size, &extra, &extra_size, &data, &size))
        return NULL;
    if (nonce_size != NONCE || size > LONGEST || extra_size > LONGEST || (!sealing && size < TAG))
        Py_RETURN_NONE;
    unsigned char buffer[LONGEST + TAG];
    memcpy(buffer, data, (size_t)size);
    size_t plain = (size_t)size - (sealing ? 0 : TAG);
    if (!run_vector(self, sealing ? SEND : RECEIVE, nonce, extra, extra_size, buffer, plain))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)buffer, (Py_ssize_t)plain + (sealing ? TAG : 0));
}

static PyObject *
make(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"send", "receive", NULL};
    const char *send, *receive;
    Py_ssize_t send_size, receive_size;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "y#y#", keywords, &send, &send_size, &receive, &receive_size))
        return NULL;
    if (send_size != KEY || receive_size != KEY) {
        PyErr_Format(PyExc_ValueError, "a key has %d bytes", KEY);
        return NULL;
    }
    Transport *self = (Transport *)PyType_GenericAlloc(type, 0);
    if (self != NULL && set_keys(self, (const unsigned char *)send, (const unsigned char *)receive) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void
dealloc(Transport *self)
{
    PyTypeObject *type = Py_TYPE(self);
    wipe_keys(self);
    Py_XDECREF(self->peer);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"claim", (PyCFunction)claim, METH_O, NULL},
    {"accept", (PyCFunction)accept_one, METH_O, NULL},
    {"accept_run", (PyCFunction)accept_run, METH_VARARGS, NULL},
    {"state", (PyCFunction)state, METH_NOARGS, NULL},
    {"seal", (PyCFunction)seal_one, METH_VARARGS, NULL},
    {"open", (PyCFunction)open_one, METH_VARARGS, NULL},
    {"crypt", (PyCFunction)crypt_one, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"sent", (getter)get_sent, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make}, {Py_tp_dealloc, dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, attributes}, {0, NULL},
};

static PyType_Spec specification = {
    .name = "pyflannel_backends.userspace._fastpath.Transport",
    .basicsize = sizeof(Transport),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

PyObject *
make_transport_type(void)
{
    return find_cipher() ? PyType_FromSpec(&specification) : NULL;
}
