/* Packets as bytes, for the fast path: reading headers, checksums, cutting super-packets and joining packets again.
 *
 * Pure functions over memory that the caller has bounded; what Python does in packet.py, ipv6.py and offload.py is done
 * here to the same bytes. Whatever is out of the ordinary is not carried: the answer is "no", and nothing was changed.
 */

#ifndef PYFLANNEL_PACKETS_H
#define PYFLANNEL_PACKETS_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

enum {
    VNET = 10,       /* struct virtio_net_hdr, before every packet of the device */
    HEADER4 = 20,    /* of IPv4, without options */
    HEADER6 = 40,    /* of IPv6, without extension headers */
    HEADERS = 100,   /* of IPv6 and TCP with all options, the longest that is cut or joined */
    LARGEST = 0xFFFF,
    MAX_ROWS = 512, /* packets in one super-packet that is joined here */
};

/* Byte by byte, so that the order of bytes and alignment are of no concern. */
static inline uint16_t
read16(const unsigned char *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t
read32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void
write16(unsigned char *at, unsigned value)
{
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
}

static inline void
write32(unsigned char *at, uint32_t value)
{
    write16(at, value >> 16);
    write16(at + 2, value & 0xFFFF);
}

/* Addresses of either family; IPv4's is in the last four bytes, behind zeros. */
struct address {
    uint32_t words[4];
};

/* An IP header that needs no second look: no options, and ``total`` is the length that it says. */
struct header {
    int version;
    size_t length; /* of the header */
    size_t total;
    struct address source, destination;
};

/* Whether ``size`` bytes begin with such a header, and hold all of its packet. */
int read_header(const unsigned char *packet, size_t size, struct header *header);

/* Whether the header's own checksum is right; IPv6 has none. */
int header_holds(const unsigned char *packet, const struct header *header);

/* Whether a packet with this header may go one hop on as far as the header says, as both families' routers see it. */
int has_hops(const unsigned char *packet, const struct header *header);

/* One hop less. */
void take_hop(unsigned char *packet, const struct header *header);

/* Finish a checksum that the kernel left partial: the virtio header says where. Whether it was TCP's or UDP's. */
int complete_checksum(const unsigned char *vnet, unsigned char *packet, const struct header *header);

/* A super-packet from the device, and the packets that it will be cut into: ``count`` of ``wire`` bytes, the last one
 * shorter perhaps. ``template`` is the header of one from the middle, with one hop less and checksums of zero. */
struct cut {
    const unsigned char *payload;
    size_t payload_size, head, wire, count, step;
    unsigned char template[HEADERS];
    size_t at; /* of the transport header */
    int version, protocol;
    unsigned first_flags, last_flags;
    uint16_t identification;
    uint32_t sequence;
    uint64_t sum; /* of what all headers have in common */
};

/* Whether the super-packet makes sense, and how to cut it. */
int plan_cut(const unsigned char *vnet, const unsigned char *packet, const struct header *header, struct cut *cut);

/* Write the headers of packet ``number`` to ``head``; returns its payload and that one's size. */
const unsigned char *cut_one(const struct cut *cut, size_t number, unsigned char *head, size_t *size);

/* Packets that follow each other in one flow, and become one for the device; or one packet alone. */
struct run {
    size_t count, payload; /* packets, and bytes of payload */
    size_t row, at, head;  /* of each packet: all of it, IP header, all headers */
    int open;              /* whether another one may follow */
    int version, protocol;
    unsigned flags, last_flags;
    const unsigned char *first;
    size_t parts; /* of ``parts`` that are used: the header's, and each packet's payload */
    struct iovec vectors[1 + MAX_ROWS];
    unsigned char start[VNET + HEADERS];
};

/* Which super-packets the device takes. */
struct joining {
    int tcp, udp;
};

/* Begin with a packet, whose header is right; the run must be empty. */
void begin_run(struct run *run, const unsigned char *packet, const struct header *header, struct joining joining);

/* Add the packet that came next, if it continues the flow and its checksum is right. */
int extend_run(struct run *run, const unsigned char *packet, size_t length);

/* What to write to the device: ``vectors`` and how many of them. */
int finish_run(struct run *run);

#endif
