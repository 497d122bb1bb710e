/* What the two programs of bpf/lone.bpf.c and the worker that loads them share. Addresses and ports are in network
 * order, times are CLOCK_MONOTONIC's nanoseconds.
 */

#ifndef PYFLANNEL_LONE_MAPS_H
#define PYFLANNEL_LONE_MAPS_H

#include <linux/types.h>

enum { ROUTES, PEERS, PATHS, CONTROL, MAPS }; /* the maps, by what the programs call them */
enum { LEAVING, ARRIVING, WAYS };

/* An entry of another generation than the control's is void. ``passed`` is when the worker last got something like it,
 * and is written by the programs. */
struct lone_state {
    __u64 until, passed;
    __u32 generation;
};

/* Where packets to a destination (the key, an IPv4 address) go, unless they are larger than ``size`` bytes, which the
 * worker has sent there. What a route says of its MTU is for nobody else to ask. */
struct lone_route {
    struct lone_state state;
    __u32 peer, size;
};

/* The key of PEERS is a peer's address on the underlay; this one's says who may send packets from ``source`` to
 * ``destination``. Both have a state as value. */
struct lone_path {
    __u32 peer, source, destination;
};

/* The worker maps this into its memory. */
struct lone_control {
    __u32 device, underlay; /* their indices */
    __u32 address;          /* our own, on the underlay */
    __u32 port;
    __u32 generation;
    __u64 packets[WAYS], bytes[WAYS]; /* so far */
    __u64 lost;                       /* packets, for want of memory */
    __u64 rested[WAYS]; /* what had come to the worker by then, it has sent on */
};

#endif
