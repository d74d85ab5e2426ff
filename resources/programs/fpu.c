/* FPU soak: every thread keeps its own pattern in every vector register (and in x87, MXCSR and mask registers) while it is
 * preempted, enters the kernel and moves between CPUs; then all lanes must be as they were.
 * Usage: fpu [THREADS] [ROUNDS] [SPINS]
 * The registers are loaded, held and stored within one asm statement: the compiler can't touch them in between. */
#define _GNU_SOURCE
#include "check.h"
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

struct state {
    _Alignas(64) uint8_t vector[32][64];
    uint64_t mask[8];
    uint32_t mxcsr, pad;
    double x87[4];
};

enum level { SSE, AVX2, AVX512 };
static const char *const level_name[] = {"SSE2", "AVX2", "AVX-512"};
static enum level level;
static long threads, rounds, spins;
static int cpus[64], cpu_count;

#define FOR_16(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define FOR_32(M) FOR_16(M) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23) M(24) M(25) M(26) M(27) M(28) M(29) M(30) M(31)
#define LINE(op) #op "\n\t"
#define LOAD_XMM(n) "movdqa " #n "*64(%[in]), %%xmm" #n "\n\t"
#define SAVE_XMM(n) "movdqa %%xmm" #n ", " #n "*64(%[out])\n\t"
#define LOAD_YMM(n) "vmovdqa " #n "*64(%[in]), %%ymm" #n "\n\t"
#define SAVE_YMM(n) "vmovdqa %%ymm" #n ", " #n "*64(%[out])\n\t"
#define LOAD_ZMM(n) "vmovdqa64 " #n "*64(%[in]), %%zmm" #n "\n\t"
#define SAVE_ZMM(n) "vmovdqa64 %%zmm" #n ", " #n "*64(%[out])\n\t"

/* Spins, makes one system call (sched_setaffinity, which moves the thread to another CPU), spins again. */
#define HOLD                                                                        \
    "mov %[spins], %%r8\n1:\tpause\n\tdec %%r8\n\tjnz 1b\n\t"                       \
    "mov %[number], %%eax\n\txor %%edi, %%edi\n\tmov $128, %%esi\n\tmov %[cpu], %%rdx\n\tsyscall\n\t" \
    "mov %[spins], %%r8\n2:\tpause\n\tdec %%r8\n\tjnz 2b\n\t"
#define OPERANDS                                                                                              \
    : "=&a"(result)                                                                                           \
    : [in] "r"(in->vector), [out] "r"(out->vector), [spins] "r"(spins), [cpu] "r"(cpu), [number] "i"(SYS_sched_setaffinity) \
    : "rcx", "r11", "rdi", "rsi", "rdx", "r8", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", \
      "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static long hold_sse(const struct state *in, struct state *out, const cpu_set_t *cpu) {
    long result;
    __asm__ volatile(FOR_16(LOAD_XMM) HOLD FOR_16(SAVE_XMM) OPERANDS);
    return result;
}

__attribute__((target("avx2"))) static long hold_avx2(const struct state *in, struct state *out, const cpu_set_t *cpu) {
    long result;
    __asm__ volatile(FOR_16(LOAD_YMM) HOLD FOR_16(SAVE_YMM) "vzeroupper" OPERANDS);
    return result;
}

#define LOAD_K(n) "kmovw 2048+" #n "*8(%[in]), %%k" #n "\n\t"
#define SAVE_K(n) "kmovw %%k" #n ", 2048+" #n "*8(%[out])\n\t"
#define FOR_K(M) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
_Static_assert(offsetof(struct state, mask) == 2048, "the asm knows this offset");

__attribute__((target("avx512f"))) static long hold_avx512(const struct state *in, struct state *out, const cpu_set_t *cpu) {
    long result;
    __asm__ volatile(FOR_K(LOAD_K) FOR_32(LOAD_ZMM) HOLD FOR_32(SAVE_ZMM) FOR_K(SAVE_K) "vzeroupper" OPERANDS,
                     "k1", "k2", "k3", "k4", "k5", "k6", "k7", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                     "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
    return result;
}

static void fill(struct state *s, long thread, long round) {
    uint64_t seed = (uint64_t)(thread + 1) * 0x9e3779b97f4a7c15u + (uint64_t)round;
    memset(s, 0, sizeof *s);
    for (int reg = 0; reg < 32; reg++)
        for (int lane = 0; lane < 8; lane++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            memcpy(&s->vector[reg][lane * 8], &seed, 8);
        }
    for (int k = 1; k < 8; k++) s->mask[k] = (uint16_t)(seed >> (4 * k));
    s->mxcsr = 0x1f80u | (uint32_t)(thread & 3) << 13; /* each thread its own rounding mode */
}

static int vector_bytes(void) { return level == SSE ? 16 : level == AVX2 ? 32 : 64; }

static void *soak(void *argument_) {
    long thread = (long)argument_;
    struct state in, out;
    for (long round = 0; round < rounds; round++) {
        cpu_set_t cpu;
        CPU_ZERO(&cpu);
        CPU_SET(cpus[(thread + round) % cpu_count], &cpu);
        fill(&in, thread, round);
        memset(&out, 0, sizeof out);
        /* x87 and MXCSR are held over the same stretch. */
        long double ours = (long double)(thread * 1000003 + round) / 3.0L, theirs;
        uint16_t control = (uint16_t)(0x037f & ~(0xc00 * (thread & 1))), control_after;
        __asm__ volatile("fldcw %0" : : "m"(control));
        __asm__ volatile("fldt %0" : : "m"(ours));
        _mm_setcsr(in.mxcsr);
        long result = level == SSE ? hold_sse(&in, &out, &cpu) : level == AVX2 ? hold_avx2(&in, &out, &cpu) : hold_avx512(&in, &out, &cpu);
        uint32_t mxcsr_after = _mm_getcsr();
        _mm_setcsr(0x1f80);
        __asm__ volatile("fstpt %0" : "=m"(theirs) : : "memory");
        __asm__ volatile("fnstcw %0\n\tfninit" : "=m"(control_after));

        CHECK(result == 0, "sched_setaffinity to CPU %d: %ld", cpus[(thread + round) % cpu_count], result);
        CHECK(mxcsr_after == in.mxcsr, "thread %ld round %ld: MXCSR %#x, was %#x", thread, round, mxcsr_after, in.mxcsr);
        CHECK(control_after == control, "thread %ld round %ld: x87 control word %#x, was %#x", thread, round, control_after, control);
        CHECK(memcmp(&ours, &theirs, 10) == 0, "thread %ld round %ld: x87 stack", thread, round);
        int registers = level == AVX512 ? 32 : 16;
        for (int reg = 0; reg < registers; reg++)
            for (int byte = 0; byte < vector_bytes(); byte++)
                CHECK(in.vector[reg][byte] == out.vector[reg][byte], "thread %ld round %ld: register %d byte %d is %#x, was %#x", thread,
                      round, reg, byte, out.vector[reg][byte], in.vector[reg][byte]);
        if (level == AVX512) CHECK(memcmp(in.mask, out.mask, sizeof in.mask) == 0, "thread %ld round %ld: mask registers", thread, round);
    }
    return NULL;
}

int main(int argc, char **argv) {
    threads = argument(argc, argv, 1, 6);
    rounds = argument(argc, argv, 2, 100);
    spins = argument(argc, argv, 3, 20000);
    CHECK(threads >= 1 && threads <= 64 && spins >= 1, "THREADS 1..64, SPINS 1..");
    __builtin_cpu_init();
    level = __builtin_cpu_supports("avx512f") ? AVX512 : __builtin_cpu_supports("avx2") ? AVX2 : SSE;

    cpu_set_t allowed;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE && cpu_count < 64; cpu++)
        if (CPU_ISSET(cpu, &allowed)) cpus[cpu_count++] = cpu;
    fprintf(stderr, "%s on %d CPU(s), %d bytes a register\n", level_name[level], cpu_count, vector_bytes());

    pthread_t thread[64];
    for (long i = 0; i < threads; i++) CHECK(pthread_create(&thread[i], NULL, soak, (void *)i) == 0, "thread %ld", i);
    for (long i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    printf("PASS fpu: %s, %ld threads, %ld rounds, all lanes kept\n", level_name[level], threads, rounds);
    return 0;
}
