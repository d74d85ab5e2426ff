/* QEMU plugin: counts what makes a guest leave to its hypervisor where the interrupt controller is not virtualised by the processor:
 * halts, port accesses, CPUID, and accesses to the local APIC's registers, by register.
 *
 * Only tests/src/bin/taskvisor-bench uses it. The few declarations of QEMU's plugin interface (version 1) stand here, because no
 * package ships its header. Argument: out=FILE, which gets "NAME COUNT" lines.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *), int, int,
                                             void *);
extern struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t, uint64_t);
extern int qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
extern uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { WRITES = 2 };
/* Intel SDM vol. 3A, table 11-1. */
enum { APIC = 0xfee00, EOI = 0x0b0, ICR_LOW = 0x300, ICR_HIGH = 0x310, TIMER_COUNT = 0x380 };
enum kind { HALT, PORT, CPUID, INTERRUPT, TIMER, END_OF_INTERRUPT, OTHER_APIC, KINDS };
static const char *const names[KINDS] = {"halt", "port", "cpuid", "ipi", "timer", "eoi", "apic"};

static uint64_t counts[KINDS];
static char out[4096];

static void executed(unsigned cpu, void *data) {
    (void)cpu;
    counts[(enum kind)(uintptr_t)data]++;
}

static void accessed(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
    (void)cpu;
    (void)data;
    struct qemu_plugin_hwaddr *there = qemu_plugin_get_hwaddr(info, address);
    if (!there || !qemu_plugin_hwaddr_is_io(there) || qemu_plugin_hwaddr_phys_addr(there) >> 12 != APIC) return;
    switch (address & 0xfff) {
    case ICR_LOW:
        counts[INTERRUPT]++;
        break;
    case ICR_HIGH: /* the half that sends nothing; with an x2APIC both are one write */
        break;
    case TIMER_COUNT:
        counts[TIMER]++;
        break;
    case EOI:
        counts[END_OF_INTERRUPT]++;
        break;
    default:
        counts[OTHER_APIC]++;
    }
}

/* The instruction's kind; -1: it stays in the guest. */
static int kind_of(const uint8_t *code, size_t size) {
    switch (code[0]) {
    case 0xf4:
        return HALT;
    case 0xe4: case 0xe5: case 0xe6: case 0xe7: case 0xec: case 0xed: case 0xee: case 0xef:
        return PORT;
    case 0x0f:
        return size > 1 && code[1] == 0xa2 ? CPUID : -1;
    default:
        return -1;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        int kind = kind_of(qemu_plugin_insn_data(instruction), qemu_plugin_insn_size(instruction));
        if (kind >= 0) qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, 0, (void *)(uintptr_t)kind);
        qemu_plugin_register_vcpu_mem_cb(instruction, accessed, 0, WRITES, NULL);
    }
}

static void at_exit(qemu_plugin_id_t id, void *data) {
    (void)id;
    (void)data;
    FILE *file = fopen(out, "w");
    if (!file) return;
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, "%s %" PRIu64 "\n", names[kind], counts[kind]);
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) snprintf(out, sizeof out, "%s", argv[i] + 4);
    if (!out[0]) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
