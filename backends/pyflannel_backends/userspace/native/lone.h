/* Lone packets that never come to the worker: see bpf/lone.bpf.c. No Python in here, and nothing that raises. */

#ifndef PYFLANNEL_LONE_H
#define PYFLANNEL_LONE_H

#include "lone_maps.h"

#include <stdint.h>

struct lone {
    struct lone_control *control; /* NULL where packets all come to the worker */
    int maps[MAPS], links[WAYS];
    uint32_t generation; /* the last one: what was written before these maps were made is not in them */
};

/* When an entry was last written, and for packets of how many bytes. */
struct lone_written {
    uint64_t until;
    uint32_t generation, size;
};

struct lone_counts {
    unsigned long long packets[WAYS], bytes[WAYS], lost;
};

/* To be called first. */
void lone_init(struct lone *lone);

/* Load the programs and attach them to a TUN device and to what datagrams come in by, both by their indices. Returns
 * NULL, or what can't be done, and errno. */
const char *lone_open(struct lone *lone, uint32_t device, uint32_t underlay, uint32_t address, uint16_t port);
void lone_close(struct lone *lone);

/* Whether the programs are where they were attached: a device that is deleted takes them along. */
int lone_is_attached(const struct lone *lone);

/* A packet like this was carried by the worker; the next ones need not be. One that came by another ``device`` than the
 * underlay's says nothing of those that come by that, which this node's rp_filter may drop. */
void lone_learn_route(
    struct lone *lone, struct lone_written *written, uint32_t destination, uint32_t peer, uint32_t size);
void lone_learn_path(
    struct lone *lone, struct lone_written *written, uint32_t device, uint32_t peer, uint32_t source,
    uint32_t destination);

void lone_forget(struct lone *lone);

/* The time, if packets pass the worker by; and what had come one way by then was all sent on. */
uint64_t lone_time(const struct lone *lone);
void lone_rest(struct lone *lone, int way, uint64_t time);

/* What was carried so far; false if nothing can be. */
int lone_counts(const struct lone *lone, struct lone_counts *counts);

#endif
