// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Two programs that carry udp's lone packets within the kernel: wrap() where packets leave by the TUN device, unwrap()
 * where datagrams arrive on the underlay. Compiled by tools/compile_bpf.py into lone_code.h; loaded by lone.c.
 *
 * What they know is what the worker found out with an earlier packet of the same kind, and for a few seconds only: then
 * a packet goes through the worker again, and so meets whatever rules this node has for its datagram. Everything that
 * is not as plain as can be is left to the worker, and so is what would overtake that.
 *
 * The datagrams are those that the worker sends, but that they have no checksum, which UDP over IPv4 doesn't need: the
 * packets inside have theirs.
 *
 * Sources: bpf-helpers(7), linux/bpf.h, RFC 768, RFC 791, RFC 1624.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include "../lone_maps.h"

#define section(name) __attribute__((section(name), used))
#define always_inline __attribute__((always_inline)) inline
#define htons(value) __builtin_bswap16(value)
#define opaque(variable) asm volatile("" : "+r"(variable)) /* for the verifier: what is checked is what is used */

/* The loader puts a map's descriptor where such a number is loaded. Of CONTROL it is the address of its only value. */
#define map(number) \
    ({ \
        void *found; \
        asm volatile("%0 = " #number " ll" : "=r"(found)); \
        found; \
    })
#define routes() map(0x6c6f6e6500000000)
#define peers() map(0x6c6f6e6500000001)
#define paths() map(0x6c6f6e6500000002)
#define control() ((struct lone_control *)map(0x6c6f6e6500000003))

enum {
    INET = 2,  /* AF_INET */
    NEXT = -1, /* TCX_NEXT: as if there were no program */
    DROP = 2,  /* TC_ACT_SHOT */
    HERE = 0,  /* PACKET_HOST: not for another machine that shares our wire */
    PLAIN = 0x45,
    MORE_OR_OFFSET = 0x3fff,
    DONT_FRAGMENT = 0x4000,
    TTL = 64,
    LOOPBACK = 1,              /* the index of the device by which routes are asked for what this node itself sends */
    TAKEN_OFF = 24,            /* a header, and some of what follows it */
    SMALLEST = TAKEN_OFF + 20, /* packets of which so much can be taken off */
    CHUNK = 128,               /* bytes that are summed at a time */
    LARGEST = 16 * CHUNK,      /* packets that are summed */
    SKIP_NEIGHBOUR = 1 << 2,   /* BPF_FIB_LOOKUP_SKIP_NEIGH, which older headers lack */
    MOMENT = 1000000, /* nanoseconds in which a packet has surely come to the worker, or, most of the time, gone on */
};

static void *(*const lookup)(void *, const void *) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const now)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const load)(void *, __u32, void *, __u32) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const store)(void *, __u32, const void *, __u32, __u64) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const grow_head)(void *, __u32, __u64) = (void *)BPF_FUNC_skb_change_head;
static long (*const resize)(void *, __u32, __u64) = (void *)BPF_FUNC_skb_change_tail;
static long (*const adjust_room)(void *, __s32, __u32, __u64) = (void *)BPF_FUNC_skb_adjust_room;
static __s64 (*const sum)(const void *, __u32, const void *, __u32, __u32) = (void *)BPF_FUNC_csum_diff;
static long (*const checked)(void *, __u64) = (void *)BPF_FUNC_csum_level;
static void (*const forget_hash)(void *) = (void *)BPF_FUNC_set_hash_invalid;
static long (*const route_to)(void *, struct bpf_fib_lookup *, int, __u32) = (void *)BPF_FUNC_fib_lookup;
static long (*const redirect)(__u32, __u64) = (void *)BPF_FUNC_redirect;
static long (*const redirect_to_neighbour)(__u32, struct bpf_redir_neigh *, int, __u64) =
    (void *)BPF_FUNC_redirect_neigh;

struct outer {
    __u16 frame[ETH_HLEN / 2];
    struct iphdr ip;
    struct udphdr udp;
} __attribute__((packed));

/* What a 32-bit sum is in sixteen bits. */
static always_inline __u16
folded(__u64 value)
{
    value = (value & 0xffffffff) + (value >> 32);
    value = (value & 0xffff) + (value >> 16);
    value = (value & 0xffff) + (value >> 16);
    value = (value & 0xffff) + (value >> 16);
    return (__u16)value;
}

static always_inline __u16
header_sum(const struct iphdr *ip)
{
    const __u32 *words = (const __u32 *)ip;
    __u64 total = 0;
#pragma unroll
    for (int at = 0; at < 5; at++)
        total += words[at];
    return folded(total);
}

static always_inline int
is_plain(const struct iphdr *ip)
{
    return *(const __u8 *)ip == PLAIN && !(ip->frag_off & htons(MORE_OR_OFFSET));
}

/* Leave a packet to the worker, and all like it that follow for a moment, and until the worker has sent this one on. */
static always_inline int
pass(struct lone_state *state)
{
    state->passed = now();
    return NEXT;
}

static always_inline int
is_good(const struct lone_state *state, const struct lone_control *control, int way)
{
    __u64 time = now();
    return state->generation == control->generation && time < state->until && time - state->passed > MOMENT &&
           control->rested[way] > state->passed;
}

static always_inline void
count(struct lone_control *control, int way, __u32 bytes)
{
    __sync_fetch_and_add(&control->packets[way], 1);
    __sync_fetch_and_add(&control->bytes[way], bytes);
}

/* Zero has two forms. */
static always_inline int
is_same_sum(__u16 one, __u16 two)
{
    return one == two || ((one == 0 || two == 0) && (one ^ two) == 0xffff);
}

/* Add up ``size`` bytes from ``at`` on, at most CHUNK. Returns 0, or 1 if they are not there. */
static always_inline int
add_chunk(struct __sk_buff *skb, __u32 at, __u32 size, __u32 *total)
{
    __u32 chunk[CHUNK / 4] = {0};
    opaque(size);
    if (size > CHUNK)
        size = CHUNK;
    if (size < 1 || load(skb, at, chunk, size))
        return 1;
    *total = (__u32)sum(0, 0, chunk, CHUNK, *total);
    return 0;
}

/* Write a checksum, and have the kernel know that it is whole: to take off what comes before the place where it was to
 * begin does that (skb_postpull_rcsum); then it is put back. Returns 0, or -1 if the packet is lost. */
static always_inline int
write_checksum(struct __sk_buff *skb, __u32 at, __u32 total)
{
    __u16 value = (__u16)~folded(total);
    __u8 head[TAKEN_OFF];
    if (value == 0)
        value = 0xffff;
    return store(skb, at, &value, sizeof value, 0) || load(skb, 0, head, sizeof head) ||
                   adjust_room(skb, -(__s32)sizeof head, BPF_ADJ_ROOM_MAC, 0) ||
                   adjust_room(skb, sizeof head, BPF_ADJ_ROOM_MAC, 0) || store(skb, 0, head, sizeof head, 0)
               ? -1
               : 0;
}

/* Finish a checksum that the kernel left to the device, and see that nobody does so again. Returns 0, or 1 if this is
 * not possible and the packet is as it was, -1 if it is lost.
 *
 * In UDP there may be a tunnel of the containers' own, and what was left to the device may be a checksum inside that.
 * It shows: until that one is finished, UDP's own is wrong, or there is none. */
static always_inline int
finish_checksum(struct __sk_buff *skb, const struct iphdr *ip)
{
    __u32 length = skb->len, total = 0, at;
    if (ip->protocol == IPPROTO_ICMP)
        return 0; /* always whole */
    if (ip->protocol == IPPROTO_TCP)
        at = sizeof *ip + 16;
    else if (ip->protocol == IPPROTO_UDP)
        at = sizeof *ip + 6;
    else
        return 1;
    __u16 value;
    if (load(skb, at, &value, sizeof value))
        return 1;
    if (value == 0 && ip->protocol == IPPROTO_UDP)
        return 1;
    __u64 pseudo = (__u64)ip->saddr + ip->daddr + htons(ip->protocol) + htons((__u16)(length - sizeof *ip));
    __u16 unfinished = folded(pseudo);
    int is_whole = !is_same_sum(value, unfinished);
    if (is_whole && ip->protocol == IPPROTO_TCP)
        return 0;
    if (length > LARGEST)
        return 1;
    __u32 done = sizeof *ip;
    for (int round = 0; round < LARGEST / CHUNK && done < length; round++) {
        if (add_chunk(skb, done, length - done, &total))
            return 1;
        done += CHUNK;
    }
    if (is_whole)
        return folded((__u64)folded(total) + unfinished) != 0xffff;
    if (length < SMALLEST) /* an acknowledgement, say, of which not enough would be left for a moment */
        return resize(skb, SMALLEST, 0) || write_checksum(skb, at, total) || resize(skb, length, 0) ? -1 : 0;
    return write_checksum(skb, at, total);
}

/* Take away what was noted of the packet before, which says nothing of what it is now. */
static always_inline void
forget_notes(struct __sk_buff *skb)
{
    skb->mark = 0;
    skb->priority = 0;
    forget_hash(skb);
}

static always_inline int
lose(struct lone_control *control)
{
    __sync_fetch_and_add(&control->lost, 1);
    return DROP;
}

section("tcx/wrap") int
wrap(struct __sk_buff *skb)
{
    struct lone_control *shared = control();
    struct iphdr ip;
    if (skb->protocol != htons(ETH_P_IP) || load(skb, 0, &ip, sizeof ip))
        return NEXT;
    struct lone_route *known = lookup(routes(), &ip.daddr);
    if (!known)
        return NEXT;
    if (skb->gso_size || !is_plain(&ip) || ip.ttl < 2 || htons(ip.tot_len) != skb->len || skb->len > known->size ||
        !is_good(&known->state, shared, LEAVING))
        return pass(&known->state);
    __u32 length = skb->len, peer = known->peer;
    struct bpf_fib_lookup fib;
    __builtin_memset(&fib, 0, sizeof fib); /* a union's rest, too, without which nobody may who lacks CAP_PERFMON */
    fib.family = INET;
    fib.l4_protocol = IPPROTO_UDP;
    fib.sport = fib.dport = (__u16)shared->port;
    fib.tot_len = (__u16)(length + sizeof(struct iphdr) + sizeof(struct udphdr));
    fib.ifindex = LOOPBACK;
    fib.ipv4_src = shared->address;
    fib.ipv4_dst = peer;
    if (route_to(skb, &fib, sizeof fib, SKIP_NEIGHBOUR) != BPF_FIB_LKUP_RET_SUCCESS ||
        fib.ifindex != shared->underlay || fib.family != INET)
        return pass(&known->state);
    int failed = finish_checksum(skb, &ip);
    if (failed)
        return failed > 0 ? pass(&known->state) : lose(shared);
    ip.ttl--;
    __u32 check = ip.check + htons(0x0100);
    ip.check = (__u16)(check + (check >= 0xffff));
    if (store(skb, 0, &ip, sizeof ip, 0) || grow_head(skb, sizeof(struct outer), 0))
        return lose(shared);
    struct outer outer = {
        .frame[ETH_HLEN / 2 - 1] = htons(ETH_P_IP),
        .ip = {
            .frag_off = htons(DONT_FRAGMENT),
            .ttl = TTL,
            .protocol = IPPROTO_UDP,
            .tot_len = htons((__u16)(length + sizeof(struct iphdr) + sizeof(struct udphdr))),
            .saddr = shared->address,
            .daddr = peer,
        },
        .udp = {
            .source = (__u16)shared->port,
            .dest = (__u16)shared->port,
            .len = htons((__u16)(length + sizeof(struct udphdr))),
        },
    };
    *(__u8 *)&outer.ip = PLAIN;
    struct iphdr own = outer.ip;
    outer.ip.check = (__u16)~header_sum(&own);
    if (store(skb, 0, &outer, sizeof outer, 0))
        return lose(shared);
    forget_notes(skb);
    count(shared, LEAVING, length);
    struct bpf_redir_neigh next;
    __builtin_memset(&next, 0, sizeof next);
    next.nh_family = INET;
    next.ipv4_nh = fib.ipv4_dst;
    return (int)redirect_to_neighbour(shared->underlay, &next, sizeof next, 0);
}

section("tcx/unwrap") int
unwrap(struct __sk_buff *skb)
{
    struct lone_control *shared = control();
    struct {
        struct iphdr ip;
        struct udphdr udp;
        struct iphdr inner;
    } read;
    if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present ||
        load(skb, ETH_HLEN, &read, sizeof read.ip + sizeof read.udp))
        return NEXT;
    if (read.ip.daddr != shared->address || read.ip.protocol != IPPROTO_UDP || read.udp.dest != (__u16)shared->port)
        return NEXT;
    struct lone_state *peer = lookup(peers(), &read.ip.saddr);
    if (!peer)
        return NEXT;
    if (skb->gso_size || skb->pkt_type != HERE || !is_plain(&read.ip) || read.udp.source != (__u16)shared->port ||
        !is_good(peer, shared, ARRIVING) || load(skb, ETH_HLEN, &read, sizeof read))
        return pass(peer);
    struct iphdr outer = read.ip, inner = read.inner;
    __u32 length = htons(inner.tot_len);
    if (header_sum(&outer) != 0xffff || htons(outer.tot_len) != length + sizeof outer + sizeof read.udp ||
        htons(read.udp.len) != length + sizeof read.udp || skb->len < ETH_HLEN + (__u32)htons(outer.tot_len) ||
        *(__u8 *)&inner != PLAIN || length < sizeof inner || header_sum(&inner) != 0xffff)
        return pass(peer);
    if (read.udp.check && checked(skb, BPF_CSUM_LEVEL_QUERY) < 0)
        return pass(peer);
    struct lone_path key = {outer.saddr, inner.saddr, inner.daddr};
    struct lone_state *path = lookup(paths(), &key);
    if (!path || !is_good(path, shared, ARRIVING))
        return pass(peer);
    if (adjust_room(skb, -(__s32)(sizeof outer + sizeof read.udp), BPF_ADJ_ROOM_MAC, 0))
        return pass(peer);
    forget_notes(skb);
    count(shared, ARRIVING, length);
    return (int)redirect(shared->device, BPF_F_INGRESS);
}
