/* Loading and teaching the programs of bpf/lone.bpf.c, by bpf(2). They go when the worker ends, with their links. */

#include "lone.h"

#include "lone_code.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    ENTRIES = 4096,
    LIFETIME = 10, /* seconds that an entry is good for */
    SMALL = 512,   /* bytes, which fit into each path's MTU (net.ipv4.route.min_pmtu) with what is put before them */
    LINK_CREATE = 28, /* this and the next of linux/bpf.h, which older headers lack */
    MMAPABLE = 1 << 10,
    MAY_LOAD = 39, /* CAP_BPF of linux/capability.h */
    DEVICE_OF_LINK = 4, /* where bpf_link_info has that of a TCX link, in words */
    TCX_INGRESS = 46,
    TCX_EGRESS = 47,
    MAP_WORD = 0x6c6f6e65, /* what bpf/lone.bpf.c has as the upper half of a map */
    LOAD_64 = BPF_LD | BPF_DW | BPF_IMM,
    SECOND = 1000000000,
};

static int
bpf(int command, void *attributes, size_t size)
{
    return (int)syscall(SYS_bpf, command, attributes, size);
}

/* Whether we have one of the two rights without which the kernel refuses the calls below. Where a filter of system
 * calls (seccomp) forbids bpf(2) we mostly have neither, and some such filters kill whoever tries. */
static int
has_right(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct own[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &header, own) < 0)
        return 1; /* it will tell */
    return (own[MAY_LOAD / 32].effective >> MAY_LOAD % 32 & 1) || (own[0].effective >> CAP_SYS_ADMIN & 1);
}

static uint64_t
now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static int
make_map(int number)
{
    static const struct {
        uint32_t type, key, value, entries, flags;
    } kinds[MAPS] = {
        [ROUTES] = {BPF_MAP_TYPE_LRU_HASH, sizeof(uint32_t), sizeof(struct lone_route), ENTRIES, 0},
        [PEERS] = {BPF_MAP_TYPE_LRU_HASH, sizeof(uint32_t), sizeof(struct lone_state), ENTRIES, 0},
        [PATHS] = {BPF_MAP_TYPE_LRU_HASH, sizeof(struct lone_path), sizeof(struct lone_state), ENTRIES, 0},
        [CONTROL] = {BPF_MAP_TYPE_ARRAY, sizeof(uint32_t), sizeof(struct lone_control), 1, MMAPABLE},
    };
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = kinds[number].type;
    attributes.key_size = kinds[number].key;
    attributes.value_size = kinds[number].value;
    attributes.max_entries = kinds[number].entries;
    attributes.map_flags = kinds[number].flags;
    strcpy(attributes.map_name, "pyflannel_lone");
    return bpf(BPF_MAP_CREATE, &attributes, sizeof attributes);
}

/* Put the maps in the place of their numbers. */
static void
link_maps(const struct lone *lone, struct bpf_insn *code, size_t count)
{
    for (size_t at = 0; at + 1 < count; at++) {
        if (code[at].code != LOAD_64 || code[at + 1].imm != MAP_WORD)
            continue;
        int number = code[at].imm;
        code[at].src_reg = number == CONTROL ? BPF_PSEUDO_MAP_VALUE : BPF_PSEUDO_MAP_FD;
        code[at].imm = lone->maps[number];
        code[at + 1].imm = 0;
    }
}

static int
load_program(const struct lone *lone, const struct bpf_insn *code, size_t count)
{
    struct bpf_insn linked[LONE_LONGEST];
    union bpf_attr attributes;
    memcpy(linked, code, count * sizeof *code);
    link_maps(lone, linked, count);
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_SCHED_CLS;
    attributes.insns = (uintptr_t)linked;
    attributes.insn_cnt = (uint32_t)count;
    attributes.license = (uintptr_t) "GPL";
    strcpy(attributes.prog_name, "pyflannel_lone");
    return bpf(BPF_PROG_LOAD, &attributes, sizeof attributes);
}

/* Returns a descriptor, which keeps the program where it is. */
static int
attach(int program, uint32_t device, int place)
{
    uint32_t attributes[4] = {(uint32_t)program, device, (uint32_t)place, 0}; /* the last are flags */
    return bpf(LINK_CREATE, attributes, sizeof attributes);
}

static int
load_and_attach(struct lone *lone, int way, uint32_t device)
{
    int program = way == LEAVING ? load_program(lone, lone_wrap, sizeof lone_wrap / sizeof *lone_wrap)
                                 : load_program(lone, lone_unwrap, sizeof lone_unwrap / sizeof *lone_unwrap);
    if (program < 0)
        return -1;
    lone->links[way] = attach(program, device, way == LEAVING ? TCX_EGRESS : TCX_INGRESS);
    int error = errno;
    close(program);
    errno = error;
    return lone->links[way];
}

static const char *
open_all(struct lone *lone, const struct lone_control *control)
{
    if (!has_right()) {
        errno = EPERM;
        return "make a BPF map";
    }
    for (int number = 0; number < MAPS; number++)
        if ((lone->maps[number] = make_map(number)) < 0)
            return "make a BPF map";
    void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, lone->maps[CONTROL], 0);
    if (memory == MAP_FAILED)
        return "map a BPF map into memory";
    lone->control = memory;
    *lone->control = *control;
    if (load_and_attach(lone, ARRIVING, control->underlay) < 0)
        return "attach a BPF program to the underlay's device";
    if (load_and_attach(lone, LEAVING, control->device) < 0)
        return "attach a BPF program to the TUN device";
    return NULL;
}

void
lone_init(struct lone *lone)
{
    lone->control = NULL;
    lone->generation = 0;
    for (int number = 0; number < MAPS; number++)
        lone->maps[number] = -1;
    lone->links[LEAVING] = lone->links[ARRIVING] = -1;
}

const char *
lone_open(struct lone *lone, uint32_t device, uint32_t underlay, uint32_t address, uint16_t port)
{
    struct lone_control control = {
        .device = device,
        .underlay = underlay,
        .address = address,
        .port = port,
        .generation = ++lone->generation,
    };
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    errno = ENOEXEC;
    return "use the BPF programs, which were compiled for little-endian machines";
#endif
    const char *failed = open_all(lone, &control);
    if (failed != NULL) {
        int error = errno;
        lone_close(lone);
        errno = error;
    }
    return failed;
}

static void
close_all(int *descriptors, int count)
{
    for (int number = 0; number < count; number++)
        if (descriptors[number] >= 0)
            close(descriptors[number]);
}

void
lone_close(struct lone *lone)
{
    uint32_t generation = lone->control != NULL ? lone->control->generation : lone->generation;
    close_all(lone->links, WAYS);
    if (lone->control != NULL)
        munmap(lone->control, sizeof *lone->control);
    close_all(lone->maps, MAPS);
    lone_init(lone);
    lone->generation = generation;
}

int
lone_is_attached(const struct lone *lone)
{
    for (int way = 0; way < WAYS; way++) {
        uint32_t info[32] = {0};
        union bpf_attr attributes;
        memset(&attributes, 0, sizeof attributes);
        attributes.info.bpf_fd = (uint32_t)lone->links[way];
        attributes.info.info_len = sizeof info;
        attributes.info.info = (uintptr_t)info;
        if (lone->links[way] < 0 || bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes, sizeof attributes) < 0 ||
            info[DEVICE_OF_LINK] == 0)
            return 0;
    }
    return 1;
}

static void
put(const struct lone *lone, int map, const void *key, const void *value)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = (uint32_t)lone->maps[map];
    attributes.key = (uintptr_t)key;
    attributes.value = (uintptr_t)value;
    bpf(BPF_MAP_UPDATE_ELEM, &attributes, sizeof attributes); /* what is not there goes through the worker */
}

/* Whether an entry is to be written, with ``state``: half of its time is over, it was never written, or not for packets
 * of ``size`` bytes. */
static int
is_due(const struct lone *lone, struct lone_written *written, uint32_t size, struct lone_state *state)
{
    if (lone->control == NULL)
        return 0;
    uint64_t time = now();
    uint32_t generation = lone->control->generation;
    if (written->generation == generation && written->until > time + (uint64_t)LIFETIME * SECOND / 2 &&
        size <= written->size)
        return 0;
    *written = (struct lone_written){time + (uint64_t)LIFETIME * SECOND, generation, size};
    *state = (struct lone_state){written->until, time, generation};
    return 1;
}

void
lone_learn_route(
    struct lone *lone, struct lone_written *written, uint32_t destination, uint32_t peer, uint32_t size)
{
    struct lone_route route = {.peer = peer, .size = size > SMALL ? size : SMALL};
    if (is_due(lone, written, route.size, &route.state))
        put(lone, ROUTES, &destination, &route);
}

void
lone_learn_path(
    struct lone *lone, struct lone_written *written, uint32_t device, uint32_t peer, uint32_t source,
    uint32_t destination)
{
    struct lone_path path = {peer, source, destination};
    struct lone_state state;
    if (lone->control == NULL || device != lone->control->underlay || !is_due(lone, written, 0, &state))
        return;
    put(lone, PEERS, &peer, &state);
    put(lone, PATHS, &path, &state);
}

void
lone_forget(struct lone *lone)
{
    if (lone->control != NULL)
        __atomic_add_fetch(&lone->control->generation, 1, __ATOMIC_RELEASE);
}

uint64_t
lone_time(const struct lone *lone)
{
    return lone->control != NULL ? now() : 0;
}

void
lone_rest(struct lone *lone, int way, uint64_t time)
{
    if (lone->control != NULL)
        __atomic_store_n(&lone->control->rested[way], time, __ATOMIC_RELEASE);
}

int
lone_counts(const struct lone *lone, struct lone_counts *counts)
{
    const struct lone_control *control = lone->control;
    if (control == NULL)
        return 0;
    for (int way = 0; way < WAYS; way++) {
        counts->packets[way] = __atomic_load_n(&control->packets[way], __ATOMIC_RELAXED);
        counts->bytes[way] = __atomic_load_n(&control->bytes[way], __ATOMIC_RELAXED);
    }
    counts->lost = __atomic_load_n(&control->lost, __ATOMIC_RELAXED);
    return 1;
}
