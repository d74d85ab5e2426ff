/* QEMU plugin: counts the kernel's instructions from its entry to the first user instruction, for each vCPU and address; or, of one
 * vCPU, from an address to another one, the least of all times.
 *
 * Only tests/src/bin/taskvisor-bench uses it. The few declarations of QEMU's plugin interface (version 1) stand here, because no
 * package ships its header. Arguments: entry=ADDRESS (physical = virtual) and out=FILE. The file gets "cpu N COUNT" lines and
 * "pc ADDRESS COUNT" lines. With from=ADDRESS and to=ADDRESS instead of entry it gets "span COUNT", both ends counted: from the
 * last time at the first address before the second was reached; and the "pc" lines of that time.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct place {
    uint64_t address, count;
    /* Which span `count` belongs to, and what it was in the least one. */
    uint64_t span, in_least;
    struct place *next;
};

static struct place *places;
static uint64_t entry, per_cpu[256];
static enum { BEFORE, INSIDE, AFTER } window;
static char out[4096];
static uint64_t from, to, span, spans, least_span = UINT64_MAX;
static int in_span;

/* Between the boot segment and the upper half lies nothing of the kernel. */
static int is_user(uint64_t address) { return address >= 0x200000 && address < 0x800000000000; }

static void measured(struct place *place) {
    if (place->address == from) {
        in_span = 1;
        span = 0;
        spans++;
    }
    if (!in_span || is_user(place->address)) return;
    span++;
    if (place->span != spans) place->count = 0;
    place->span = spans;
    place->count++;
    if (place->address != to) return;
    in_span = 0;
    if (span >= least_span) return;
    least_span = span;
    for (struct place *other = places; other; other = other->next)
        other->in_least = other->span == spans ? other->count : 0;
}

static void executed(unsigned cpu, void *data) {
    struct place *place = data;
    if (from) {
        measured(place);
        return;
    }
    if (window == BEFORE && place->address == entry) window = INSIDE;
    if (window != INSIDE) return;
    if (is_user(place->address)) {
        window = AFTER;
        return;
    }
    per_cpu[cpu % 256]++;
    place->count++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    if (window == AFTER) return;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        struct place *place = calloc(1, sizeof *place);
        place->address = qemu_plugin_insn_vaddr(instruction);
        place->next = places;
        places = place;
        qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, 0, place);
    }
}

static void finished(qemu_plugin_id_t id, void *unused) {
    (void)id, (void)unused;
    FILE *file = fopen(out, "w");
    if (!file) return;
    if (from) {
        if (least_span != UINT64_MAX) fprintf(file, "span %" PRIu64 "\n", least_span);
        for (struct place *place = places; place; place = place->next)
            if (place->in_least) fprintf(file, "pc %#" PRIx64 " %" PRIu64 "\n", place->address, place->in_least);
        fclose(file);
        return;
    }
    fprintf(file, "window %d\n", (int)window);
    for (int cpu = 0; cpu < 256; cpu++)
        if (per_cpu[cpu]) fprintf(file, "cpu %d %" PRIu64 "\n", cpu, per_cpu[cpu]);
    for (struct place *place = places; place; place = place->next)
        if (place->count) fprintf(file, "pc %#" PRIx64 " %" PRIu64 "\n", place->address, place->count);
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "entry=", 6)) entry = strtoull(argv[i] + 6, NULL, 0);
        if (!strncmp(argv[i], "from=", 5)) from = strtoull(argv[i] + 5, NULL, 0);
        if (!strncmp(argv[i], "to=", 3)) to = strtoull(argv[i] + 3, NULL, 0);
        if (!strncmp(argv[i], "out=", 4)) snprintf(out, sizeof out, "%s", argv[i] + 4);
    }
    if ((!entry && (!from || !to)) || !out[0]) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
