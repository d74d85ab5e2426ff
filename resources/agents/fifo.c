/* A scheduling agent in C: global FIFO. Whoever has waited longest gets the next idle CPU. docs/delegation.md has the rules.
 *
 *     taskvisor run --delegate external:/run/user/1000/agent.sock -- PROGRAM &
 *     cc -O2 -I resources/include -o fifo resources/agents/fifo.c resources/agents/attach.c
 *     ./fifo /run/user/1000/agent.sock
 *
 * It sleeps when there is nothing to be decided, and ends when the guest does, or when it is ejected. Without a socket it is started with
 * the region's memory as descriptor 3 and the writing end of a pipe as descriptor 4, for a simulated guest: the number of a CPU written
 * there, four bytes, kicks that CPU.
 *
 * The other side of the memory is a guest: everything read there is copied once and checked before it is used.
 */
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach.h"
#include "taskvisor_delegation.h"

#define NONE UINT32_MAX
#define MAX_CPUS ATTACH_MAX_CPUS
/* Turns without anything to do before it sleeps, and milliseconds after which it looks again even if nobody rings. */
#define TURNS_BEFORE_SLEEP 200
#define NAP 5
/* The doorbell in the agent's page. */
enum { AWAKE, ASLEEP };
#define MAX_TASKS (1u << 20)

enum state { UNKNOWN, BLOCKED, QUEUED, SUBMITTED, RUNNING };

struct task {
	uint64_t gtid;
	uint32_t barrier;
	uint32_t cpu; /* where it runs or was asked for */
	uint32_t next; /* in the queue */
	enum state state;
};

struct cpu {
	bool member;
	uint32_t busy; /* the task that runs or was asked for there, or NONE */
	bool waits; /* for the end of its transaction */
};

static struct enclave enclave; /* if there is a socket */
static bool attached;
static unsigned char *base;
static tvd_Header head; /* a copy, checked; the guest may change its own later */
static struct task *tasks;
static struct cpu *cpus;
static uint32_t first = NONE, last = NONE;
static uint64_t tail;

static _Atomic uint64_t *word(uint64_t section, uint64_t n, uint64_t bytes, uint64_t at)
{
	return (_Atomic uint64_t *)(base + section + n * bytes + at);
}

static uint64_t load(_Atomic uint64_t *from)
{
	return atomic_load_explicit(from, memory_order_relaxed);
}

static void store(_Atomic uint64_t *to, uint64_t value)
{
	atomic_store_explicit(to, value, memory_order_relaxed);
}

static void push(uint32_t slot)
{
	tasks[slot].state = QUEUED;
	tasks[slot].next = NONE;
	if (last == NONE)
		first = slot;
	else
		tasks[last].next = slot;
	last = slot;
}

static uint32_t pop(void)
{
	uint32_t slot = first;

	if (slot != NONE) {
		first = tasks[slot].next;
		if (first == NONE)
			last = NONE;
	}
	return slot;
}

static void remove_queued(uint32_t slot)
{
	uint32_t before = NONE;

	for (uint32_t at = first; at != NONE; before = at, at = tasks[at].next) {
		if (at != slot)
			continue;
		if (before == NONE)
			first = tasks[at].next;
		else
			tasks[before].next = tasks[at].next;
		if (last == at)
			last = before;
		return;
	}
}

/* The task is in no queue and on no CPU. */
static void take_out(uint32_t slot)
{
	struct task *task = &tasks[slot];

	if (task->state == QUEUED)
		remove_queued(slot);
	if ((task->state == SUBMITTED || task->state == RUNNING) && cpus[task->cpu].busy == slot)
		cpus[task->cpu].busy = NONE;
	task->state = BLOCKED;
}

static void note(const uint64_t w[8])
{
	uint16_t kind = w[0] >> 32, flags = w[0] >> 48;
	uint32_t slot = (uint32_t)w[1], seqnum = w[1] >> 32;
	struct task *task;

	if (kind >= TVD_MSG_TICK || slot >= head.tasks)
		return;
	task = &tasks[slot];
	if (kind == TVD_MSG_NEW) {
		take_out(slot);
		task->gtid = w[2];
	} else if (task->state == UNKNOWN || task->gtid != w[2] || (int32_t)(seqnum - task->barrier) <= 0) {
		return; /* of one that has left, or was told of to another agent */
	}
	task->barrier = seqnum;
	switch (kind) {
	case TVD_MSG_NEW:
		if (flags & TVD_MSGF_RUNNABLE)
			push(slot);
		break;
	case TVD_MSG_WAKEUP:
		if (task->state == BLOCKED)
			push(slot);
		break;
	case TVD_MSG_YIELD:
	case TVD_MSG_PREEMPT:
		take_out(slot);
		push(slot);
		break;
	case TVD_MSG_BLOCKED:
	case TVD_MSG_SWITCH_TO:
		take_out(slot);
		break;
	case TVD_MSG_DEAD:
	case TVD_MSG_DEPARTED:
		take_out(slot);
		task->state = UNKNOWN;
		break;
	default:
		break;
	}
}

static bool drain(void)
{
	uint64_t before = tail;

	for (;;) {
		uint64_t n = tail & (head.channel_len - 1);
		_Atomic uint64_t *from = word(head.channel, 1 + n, 64, 0);
		uint64_t w[8] = { atomic_load_explicit(from, memory_order_acquire) };

		if ((uint32_t)w[0] != (uint32_t)(tail + 1))
			break;
		for (int i = 1; i < 8; i++)
			w[i] = load(from + i);
		tail++;
		note(w);
	}
	atomic_store_explicit(word(head.tail, 0, 64, 0), tail, memory_order_release);
	return tail != before;
}

static void reap(uint32_t n)
{
	uint64_t state = atomic_load_explicit(word(head.transaction, n, 64, 0), memory_order_acquire) & 0xffff;
	uint32_t slot = cpus[n].busy;

	if (!cpus[n].waits || state >= TVD_TXN_READY)
		return;
	cpus[n].waits = false;
	if (slot == NONE || tasks[slot].state != SUBMITTED)
		return; /* it ran and has left already */
	if (state == TVD_TXN_COMPLETE) {
		tasks[slot].state = RUNNING;
		return;
	}
	take_out(slot);
	if (state != TVD_TXN_TARGET_NOT_RUNNABLE) /* else a message says so soon */
		push(slot);
}

static void kick(uint32_t n)
{
	uint64_t one = 1;
	ssize_t written = attached ? write(enclave.kicks[n], &one, sizeof one) : write(4, &n, sizeof n);

	/* An event descriptor that is full has kicked already. */
	if (written <= 0 && !attached)
		exit(1);
}

/* Nothing to do: sleeps until the guest rings. False: it has ended. */
static bool rest(void)
{
	_Atomic uint64_t *bell = word(head.agent, 0, 0, offsetof(tvd_AgentPage, bell));
	struct pollfd fds[] = { { enclave.doorbell, POLLIN, 0 }, { enclave.socket, POLLIN, 0 } };
	uint64_t awake = AWAKE;

	/* If the guest has rung since the last turn, there is something to read. */
	if (atomic_compare_exchange_strong(bell, &awake, ASLEEP) && poll(fds, 2, NAP) > 0 && fds[0].revents != 0 &&
	    read(enclave.doorbell, &awake, sizeof awake) < 0)
		return false;
	atomic_exchange(bell, AWAKE);
	return fds[1].revents == 0;
}

static void submit(uint32_t n, uint32_t slot)
{
	_Atomic uint64_t *to = word(head.transaction, n, 64, 0);
	uint64_t old;

	store(to + 1, tasks[slot].gtid);
	store(to + 2, slot | (uint64_t)tasks[slot].barrier << 32);
	store(to + 3, (uint64_t)n << 32);
	store(to + 4, 0);
	old = atomic_exchange_explicit(to, TVD_TXN_READY | (uint64_t)TVD_VERSION << 32, memory_order_acq_rel);
	tasks[slot].state = SUBMITTED;
	tasks[slot].cpu = n;
	cpus[n].busy = slot;
	cpus[n].waits = true;
	if (old >> 48 & TVD_TXNF_KICK)
		kick(n);
}

static bool attach(uint32_t nonce)
{
	uint64_t flags = TVD_ATTACH_ONLINE | TVD_ATTACH_DISCOVER | (attached ? TVD_ATTACH_SLEEPS : 0);
	uint64_t nobody = 0, wish = nonce | flags << 32;

	tail = atomic_load_explicit(word(head.tail, 0, 64, 0), memory_order_acquire);
	return atomic_compare_exchange_strong(word(head.agent, 0, 0, 0), &nobody, wish);
}

static bool fits(uint64_t offset, uint64_t count, uint64_t bytes, uint64_t size)
{
	return offset % TVD_SECTION_ALIGN == 0 && offset <= size && count <= (size - offset) / bytes;
}

int main(int argc, char **argv)
{
	uint32_t nonce = (uint32_t)getpid(), idle = 0;
	struct stat info;
	uint64_t size;

	attached = argc > 1;
	if (attached) {
		if (attach_enclave(argv[1], &enclave) != 0)
			return 2;
		base = enclave.base;
		size = enclave.size;
	} else {
		if (fstat(3, &info) != 0 || info.st_size < (off_t)TVD_SECTION_ALIGN)
			return 2;
		size = (uint64_t)info.st_size;
		base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	}
	if (base == MAP_FAILED || atomic_load_explicit(word(0, 0, 0, 0), memory_order_acquire) != TVD_MAGIC)
		return 2;
	head = *(volatile tvd_Header *)base;
	if (head.version != TVD_VERSION || head.cpus > (attached ? enclave.cpus : MAX_CPUS) || head.tasks > MAX_TASKS || head.channel_len == 0 ||
	    (head.channel_len & (head.channel_len - 1)) != 0 || !fits(head.channel, 1 + (uint64_t)head.channel_len, 64, size) ||
	    !fits(head.transaction, head.cpus, 64, size) || !fits(head.tail, 1, 64, size) ||
	    !fits(head.agent, 1, 4096, size) || !fits(head.guest, 1, 4096, size))
		return 2;
	tasks = calloc(head.tasks, sizeof *tasks);
	cpus = calloc(head.cpus, sizeof *cpus);
	if (tasks == NULL || cpus == NULL)
		return 2;
	for (uint32_t n = 0; n < head.cpus; n++) {
		cpus[n].member = head.cpu_set[n / 64] >> n % 64 & 1;
		cpus[n].busy = NONE;
	}
	if (!attach(nonce)) {
		fprintf(stderr, "the enclave has an agent already\n");
		return 3;
	}
	/* Any CPU sees it. */
	for (uint32_t n = 0; attached && n < head.cpus; n++)
		if (cpus[n].member) {
			kick(n);
			break;
		}
	for (;;) {
		uint64_t told = atomic_load_explicit(word(head.guest, 0, 0, 0), memory_order_acquire);

		if ((uint32_t)told == nonce && told >> 32 >= TVD_GUEST_EJECTED_TIMEOUT) {
			fprintf(stderr, "ejected (%u)\n", (unsigned)(told >> 32));
			return 4;
		}
		idle = drain() ? 0 : idle + 1;
		for (uint32_t n = 0; n < head.cpus; n++) {
			reap(n);
			if (cpus[n].member && cpus[n].busy == NONE && !cpus[n].waits && first != NONE) {
				submit(n, pop());
				idle = 0;
			}
		}
		if (attached && idle >= TURNS_BEFORE_SLEEP) {
			if (!rest())
				return 0;
			idle = 0;
		}
	}
}
