/* See packets.h.
 *
 * Sources: RFC 791 (IP), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 1071 and RFC 1624 (checksums), RFC 3168
 * (CWR belongs to the first segment), linux/virtio_net.h, segmentation-offloads.rst.
 */

#include "packets.h"

enum { TCP = 6, UDP = 17 };
enum { FIN = 0x01, SYN = 0x02, RST = 0x04, PSH = 0x08, ACK = 0x10, URG = 0x20, CWR = 0x80 };
enum { NEEDS_CSUM = 1, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };

static size_t
checksum_offset(int protocol)
{
    return protocol == TCP ? 16 : 6;
}

static int
gso_type(int version, int protocol)
{
    return protocol == UDP ? GSO_UDP_L4 : version == 6 ? GSO_TCPV6 : GSO_TCPV4;
}

/* Checksums. A sum is of 16-bit words as this machine reads them, which may be added in any order and width. */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx2", "default")))
#endif
static uint64_t
sum_words(const unsigned char *data, size_t count)
{
    uint64_t sum = 0;
    for (size_t at = 0; at < count; at++) {
        uint32_t word;
        memcpy(&word, data + 4 * at, 4);
        sum += word;
    }
    return sum;
}

static uint64_t
sum_bytes(const unsigned char *data, size_t size)
{
    uint64_t sum = sum_words(data, size / 4);
    unsigned char rest[4] = {0};
    memcpy(rest, data + size / 4 * 4, size & 3);
    uint32_t word;
    memcpy(&word, rest, 4);
    return sum + word;
}

static uint64_t
as_read(unsigned value)
{
    return htons((uint16_t)value);
}

/* 16 bits, in the order of the wire; 0 only for a sum of zeros. */
static unsigned
fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    return ntohs((uint16_t)sum);
}

static unsigned
checksum(uint64_t sum)
{
    return 0xFFFF - fold(sum);
}

/* The pseudo-header's sum: both addresses, the protocol, and ``length`` bytes of TCP or UDP. */
static uint64_t
pseudo(const unsigned char *packet, int version, int protocol, size_t length)
{
    uint64_t sum = version == 6 ? sum_words(packet + 8, 8) : sum_words(packet + 12, 2);
    return sum + as_read((unsigned)protocol) + as_read((unsigned)length);
}

/* Headers */

static int
protocol_of(const unsigned char *packet, int version)
{
    return packet[version == 6 ? 6 : 9];
}

static int
is_fragment(const unsigned char *packet, int version)
{
    return version == 4 && (read16(packet + 6) & 0x3FFF) != 0;
}

int
read_header(const unsigned char *packet, size_t size, struct header *header)
{
    if (size >= HEADER4 && packet[0] == 0x45) {
        header->version = 4;
        header->length = HEADER4;
        header->total = read16(packet + 2);
        memset(header->source.words, 0, 12);
        memset(header->destination.words, 0, 12);
        memcpy(&header->source.words[3], packet + 12, 4);
        memcpy(&header->destination.words[3], packet + 16, 4);
        return header->total >= HEADER4 && header->total <= size;
    }
    if (size >= HEADER6 && packet[0] >> 4 == 6) {
        header->version = 6;
        header->length = HEADER6;
        header->total = HEADER6 + (size_t)read16(packet + 4);
        memcpy(&header->source, packet + 8, 16);
        memcpy(&header->destination, packet + 24, 16);
        return header->total <= size;
    }
    return 0;
}

int
header_holds(const unsigned char *packet, const struct header *header)
{
    return header->version == 6 || fold(sum_words(packet, 5)) == 0xFFFF;
}

/* Whether packets from this address may leave their link: not multicast, link-local, unspecified or loopback. */
static int
is_routable6(const unsigned char *address)
{
    static const unsigned char zeros[15];
    return address[0] != 0xFF && !(address[0] == 0xFE && address[1] >> 6 == 2) && memcmp(address, zeros, 15) != 0;
}

int
has_hops(const unsigned char *packet, const struct header *header)
{
    return header->version == 6 ? packet[7] >= 2 && is_routable6(packet + 8) : packet[8] >= 2;
}

void
take_hop(unsigned char *packet, const struct header *header)
{
    if (header->version == 6) {
        packet[7]--;
        return;
    }
    uint32_t sum = read16(packet + 10) + 0x0100u;
    sum += sum >= 0xFFFF; /* 0 rather than 0xFFFF, too, as RFC 1624 has it */
    packet[8]--;
    write16(packet + 10, sum & 0xFFFF);
}

/* The TCP or UDP header's size; 0 if it is malformed, or of another protocol, or a fragment's. */
static size_t
transport_header(const unsigned char *packet, const struct header *header)
{
    int protocol = protocol_of(packet, header->version);
    size_t at = header->length, rest = header->total - at;
    if (is_fragment(packet, header->version))
        return 0;
    if (protocol == UDP)
        return rest >= 8 ? 8 : 0;
    if (protocol != TCP || rest < 20)
        return 0;
    size_t size = (size_t)(packet[at + 12] >> 4) * 4;
    return size >= 20 && size <= rest ? size : 0;
}

static uint16_t
vnet16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, 2);
    return value;
}

int
complete_checksum(const unsigned char *vnet, unsigned char *packet, const struct header *header)
{
    int protocol = protocol_of(packet, header->version);
    size_t at = header->length;
    if (transport_header(packet, header) == 0 || vnet16(vnet + 6) != at ||
        vnet16(vnet + 8) != checksum_offset(protocol))
        return 0;
    unsigned value = checksum(sum_bytes(packet + at, header->total - at));
    if (value == 0 && protocol == UDP)
        value = 0xFFFF;
    write16(packet + at + checksum_offset(protocol), value);
    return 1;
}

/* Cutting */

int
plan_cut(const unsigned char *vnet, const unsigned char *packet, const struct header *header, struct cut *cut)
{
    size_t transport = transport_header(packet, header), at = header->length, step = vnet16(vnet + 4);
    int protocol = protocol_of(packet, header->version);
    if (transport == 0 || (vnet[1] & ~GSO_ECN) != gso_type(header->version, protocol))
        return 0;
    size_t head = at + transport, payload = header->total - head;
    if (payload == 0 || step == 0 || head + step > LARGEST)
        return 0;
    cut->payload = packet + head;
    cut->payload_size = payload;
    cut->head = head;
    cut->at = at;
    cut->count = (payload + step - 1) / step;
    cut->step = cut->count > 1 ? step : payload;
    cut->wire = head + cut->step;
    cut->version = header->version;
    cut->protocol = protocol;
    cut->first_flags = cut->last_flags = 0;
    unsigned char *template = cut->template;
    memcpy(template, packet, head);
    if (header->version == 6)
        template[7]--;
    else {
        cut->identification = read16(packet + 4);
        template[8]--;
        write16(template + 4, 0);
        write16(template + 10, 0);
    }
    write16(template + (header->version == 6 ? 4 : 2), 0);
    write16(template + at + checksum_offset(protocol), 0);
    if (protocol == TCP) {
        unsigned flags = template[at + 13];
        cut->sequence = read32(template + at + 4);
        cut->first_flags = flags & CWR;
        cut->last_flags = flags & (FIN | PSH);
        template[at + 13] = (unsigned char)(flags & ~(unsigned)(CWR | FIN | PSH));
        write32(template + at + 4, 0);
    } else
        write16(template + at + 4, 0);
    cut->sum = sum_bytes(template + at, transport) + pseudo(template, cut->version, protocol, 0);
    return 1;
}

const unsigned char *
cut_one(const struct cut *cut, size_t number, unsigned char *head, size_t *size)
{
    size_t at = cut->at, from = number * cut->step;
    int is_last = number + 1 == cut->count;
    const unsigned char *payload = cut->payload + from;
    *size = is_last ? cut->payload_size - from : cut->step;
    size_t length = cut->head - at + *size;
    memcpy(head, cut->template, cut->head);
    if (cut->version == 6)
        write16(head + 4, (unsigned)length);
    else {
        write16(head + 2, (unsigned)(at + length));
        write16(head + 4, (cut->identification + number) & 0xFFFF);
        write16(head + 10, checksum(sum_words(head, 5)));
    }
    uint64_t sum = cut->sum + as_read((unsigned)length) + sum_bytes(payload, *size);
    if (cut->protocol == TCP) {
        uint32_t sequence = cut->sequence + (uint32_t)from;
        unsigned flags = (number == 0 ? cut->first_flags : 0) | (is_last ? cut->last_flags : 0);
        write32(head + at + 4, sequence);
        head[at + 13] |= (unsigned char)flags;
        sum += as_read(sequence >> 16) + as_read(sequence & 0xFFFF) + as_read(flags);
    } else {
        write16(head + at + 4, (unsigned)length);
        sum += as_read((unsigned)length);
    }
    unsigned value = checksum(sum);
    if (value == 0 && cut->protocol == UDP)
        value = 0xFFFF;
    write16(head + at + checksum_offset(cut->protocol), value);
    return payload;
}

/* Joining */

static int
transport_holds(const unsigned char *packet, int version, int protocol, size_t at, size_t length)
{
    uint64_t sum = sum_bytes(packet + at, length - at) + pseudo(packet, version, protocol, length - at);
    return fold(sum) == 0xFFFF;
}

void
begin_run(struct run *run, const unsigned char *packet, const struct header *header, struct joining joining)
{
    int protocol = protocol_of(packet, header->version);
    size_t at = header->length, transport = transport_header(packet, header), head = at + transport;
    run->count = 1;
    run->first = packet;
    run->row = header->total;
    run->open = 0;
    run->vectors[1] = (struct iovec){(void *)(uintptr_t)packet, header->total};
    run->parts = 2;
    if (transport == 0 || head == header->total || !(protocol == TCP ? joining.tcp : joining.udp))
        return;
    run->at = at;
    run->head = head;
    run->payload = header->total - head;
    run->version = header->version;
    run->protocol = protocol;
    run->flags = run->last_flags = 0;
    if (protocol == TCP) {
        unsigned flags = packet[at + 13];
        if ((flags & (SYN | RST | URG | ACK | FIN | PSH)) != ACK)
            return;
        run->flags = flags & ~(unsigned)CWR;
    }
    run->open = transport_holds(packet, run->version, protocol, at, run->row);
}

/* Whether a packet's IP header is the one that follows; ``exactly`` is set if it is the very bytes that cutting makes. */
static int
ip_follows(const struct run *run, const unsigned char *packet, size_t length, int *exactly)
{
    const unsigned char *first = run->first;
    *exactly = 1;
    if (run->version == 6)
        return memcmp(packet, first, 4) == 0 && read16(packet + 4) == length - HEADER6 &&
               memcmp(packet + 6, first + 6, HEADER6 - 6) == 0;
    *exactly = read16(packet + 10) != 0xFFFF;
    return memcmp(packet, first, 2) == 0 && read16(packet + 2) == length &&
           read16(packet + 4) == ((read16(first + 4) + run->count) & 0xFFFF) &&
           memcmp(packet + 6, first + 6, 4) == 0 && memcmp(packet + 12, first + 12, 8) == 0 &&
           fold(sum_words(packet, 5)) == 0xFFFF;
}

static int
tcp_follows(const struct run *run, const unsigned char *tcp, int *is_last)
{
    const unsigned char *first = run->first + run->at;
    unsigned ends = tcp[13] & (FIN | PSH);
    *is_last |= ends != 0;
    return memcmp(tcp, first, 4) == 0 && read32(tcp + 4) == read32(first + 4) + (uint32_t)run->payload &&
           memcmp(tcp + 8, first + 8, 5) == 0 && tcp[13] == (run->flags | ends) &&
           memcmp(tcp + 14, first + 14, 2) == 0 && memcmp(tcp + 18, first + 18, run->head - run->at - 18) == 0;
}

static int
udp_follows(const struct run *run, const unsigned char *udp, size_t length)
{
    return memcmp(udp, run->first + run->at, 4) == 0 && read16(udp + 4) == length - run->at &&
           read16(udp + 6) != 0; /* what came without a checksum stays alone */
}

int
extend_run(struct run *run, const unsigned char *packet, size_t length)
{
    int exactly, is_last = length != run->row;
    if (!run->open || run->count == MAX_ROWS || length <= run->head || length > run->row ||
        run->payload + length > LARGEST || !ip_follows(run, packet, length, &exactly))
        return 0;
    const unsigned char *transport = packet + run->at;
    if (!(run->protocol == TCP ? tcp_follows(run, transport, &is_last) : udp_follows(run, transport, length)) ||
        !transport_holds(packet, run->version, run->protocol, run->at, length))
        return 0;
    if (run->count == 1)
        run->vectors[1] = (struct iovec){(void *)(uintptr_t)(run->first + run->head), run->row - run->head};
    run->vectors[run->parts++] = (struct iovec){(void *)(uintptr_t)(packet + run->head), length - run->head};
    run->payload += length - run->head;
    run->count++;
    if (run->protocol == TCP)
        run->last_flags = transport[13] & (FIN | PSH);
    run->open = !is_last && exactly;
    return 1;
}

int
finish_run(struct run *run)
{
    unsigned char *vnet = run->start, *head = run->start + VNET;
    memset(vnet, 0, VNET);
    run->vectors[0] = (struct iovec){run->start, VNET};
    if (run->count == 1)
        return 2;
    size_t at = run->at, total = run->head + run->payload;
    int kind = gso_type(run->version, run->protocol);
    memcpy(head, run->first, run->head);
    if (run->version == 6)
        write16(head + 4, (unsigned)(total - at));
    else {
        write16(head + 2, (unsigned)total);
        write16(head + 10, 0);
        write16(head + 10, checksum(sum_words(head, 5)));
    }
    if (run->protocol == TCP) {
        kind |= head[at + 13] & CWR ? GSO_ECN : 0;
        head[at + 13] |= (unsigned char)run->last_flags;
    } else
        write16(head + at + 4, (unsigned)(total - at));
    write16(
        head + at + checksum_offset(run->protocol),
        fold(pseudo(head, run->version, run->protocol, total - at)));
    vnet[0] = NEEDS_CSUM;
    vnet[1] = (unsigned char)kind;
    uint16_t fields[] = {
        (uint16_t)run->head, (uint16_t)(run->row - run->head), (uint16_t)at,
        (uint16_t)checksum_offset(run->protocol)};
    memcpy(vnet + 2, fields, sizeof fields);
    run->vectors[0].iov_len = VNET + run->head;
    return (int)run->parts;
}
