/* Scheduling from outside the guest: the shared region, for agents in C. docs/delegation.md tells how to use it.
 *
 * Generated from vcpu-sched/src/delegation/abi.rs and door.rs; a test keeps it so. Do not edit.
 *
 * All numbers are little-endian. The first 8 bytes of a message, a status word, a CPU word and a transaction are one 64-bit
 * word, written last by its owner: load it whole, as uint64_t, with __ATOMIC_ACQUIRE before the other fields; exchange that of a
 * transaction whole with __ATOMIC_ACQ_REL after them. Copy what you read, and check it: the other side may write at any time. */

#ifndef TASKVISOR_DELEGATION_H
#define TASKVISOR_DELEGATION_H

#include <stdint.h>

// The region's first page. Written once by the guest, before an agent may see it.
typedef struct tvd_Header {
  // `MAGIC`.
  uint64_t magic;
  // `VERSION`.
  uint32_t version;
  // The enclave's number, unique in the guest.
  uint32_t enclave;
  // CPU numbers go from 0 to this; every section "for each CPU" has so many.
  uint32_t cpus;
  // Status words.
  uint32_t tasks;
  // Channels. Number 0 is the default one.
  uint32_t channels;
  // Messages of each channel, a power of two.
  uint32_t channel_len;
  // Entries of each pick-next ring, a power of two.
  uint32_t pick_len;
  // 0.
  uint32_t reserved;
  // Size of the region in bytes.
  uint64_t bytes;
  // Offset of the guest's page (`GuestPage`); all offsets are in bytes from the region's beginning.
  uint64_t guest;
  // Offset of the CPUs (`CpuWord`).
  uint64_t cpu;
  // Offset of the tasks (`StatusWord`).
  uint64_t task;
  // Offset of the channels (`ChannelHead`, then messages, for each).
  uint64_t channel;
  // Offset of the host's words (`HostWord`).
  uint64_t host;
  // Offset of the agent's page (`AgentPage`).
  uint64_t agent;
  // Offset of the tails (a 64-byte line for each channel, whose first word counts).
  uint64_t tail;
  // Offset of the transactions (`Transaction`).
  uint64_t transaction;
  // Offset of the pick-next rings (a 64-byte line whose first word is the head, then `PickEntry`s, for each).
  uint64_t pick;
  // The enclave's CPUs: bit n of word w is CPU 64 w + n. `CPU_SET_WORDS` of them.
  uint64_t cpu_set[16];
} tvd_Header;

// The page that the guest writes.
typedef struct tvd_GuestPage {
  // Number of the agent that the word beside speaks of.
  uint32_t nonce;
  // A `guest_state`.
  uint32_t state;
  // Number of the last request that was answered.
  uint32_t answered;
  // Its answer, an `answer`.
  uint32_t answer;
} tvd_GuestPage;

// What a CPU does. Written by the guest.
typedef struct tvd_CpuWord {
  // The agent barrier: CPU messages, pings and latches so far.
  uint32_t barrier;
  // `cpu_flags`.
  uint32_t flags;
  // The task it runs, or `GTID_NONE`.
  uint64_t gtid;
  // When that was switched to; nanoseconds of the guest's clock.
  uint64_t switch_time;
  // Its history's number.
  uint64_t cpu_seqnum;
  // Entries of its pick-next ring that were taken.
  uint64_t pick_tail;
  // 0.
  uint64_t reserved[3];
} tvd_CpuWord;

// What a task does. Written by the guest.
typedef struct tvd_StatusWord {
  // The task barrier: its messages so far.
  uint32_t barrier;
  // `task_flags`.
  uint32_t flags;
  // The task, never reused.
  uint64_t gtid;
  // When it was switched to last.
  uint64_t switch_time;
  // CPU time it used before that.
  uint64_t runtime;
} tvd_StatusWord;

// What a channel tells beside its messages. Written by the guest.
typedef struct tvd_ChannelHead {
  // Messages that found no room.
  uint64_t overflow;
  // 0.
  uint64_t reserved[7];
} tvd_ChannelHead;

// One message. `word0` is written last and read first.
typedef struct tvd_Message {
  // Position in the channel plus one, modulo 2^32: the message is there when this is the one awaited.
  uint32_t position;
  // What happened: a `TVD_MSG_` number, `MessageType`.
  uint16_t kind;
  // `message_flags`.
  uint16_t flags;
  // Of a task message: its status word. Of a CPU message: 0.
  uint32_t slot;
  // Of a task message: the task barrier after it. Of a CPU message: the agent barrier.
  uint32_t seqnum;
  // The task, or `GTID_NONE`.
  uint64_t gtid;
  // Number of the CPU's history; 0 in messages that say nothing of a CPU.
  uint64_t cpu_seqnum;
  // CPU time of the task up to now.
  uint64_t runtime;
  // When it happened; nanoseconds of the guest's clock.
  uint64_t time;
  // The CPU it happened on. WAKEUP: the CPU it ran on last.
  uint16_t cpu;
  // WAKEUP: the CPU where it is queued now.
  uint16_t wake_up_cpu;
  // WAKEUP: the CPU of the waker.
  uint16_t waker_cpu;
  // NEW, PRIORITY_CHANGED: the nice value, signed.
  int16_t nice;
  // NEW: the parent, or 0. TIMER_EXPIRED: the cookie. LATCH_FAILURE: the state that the commit would have had. NOT_IDLE: what runs next.
  uint64_t extra;
} tvd_Message;

// What the agent asks for on one CPU.
typedef struct tvd_Transaction {
  // A `TVD_TXN_` number, `TxnState`.
  uint16_t state;
  // While claimed: the CPU that claimed it.
  uint16_t claimer;
  // `VERSION`.
  uint16_t version;
  // `txn_flags`.
  uint16_t flags;
  // The task, or one of the three special numbers.
  uint64_t gtid;
  // Its status word.
  uint32_t slot;
  // The task barrier that the agent has seen.
  uint32_t task_barrier;
  // The agent barrier that an agent in the guest has seen.
  uint32_t agent_barrier;
  // The CPU, again; must agree with the transaction's place.
  uint16_t cpu;
  // Sync group: the CPU that commits the whole group, plus one; 0: no group.
  uint16_t sync_group_owner;
  // `run_flags`.
  uint32_t run_flags;
  // `commit_flags`.
  uint32_t commit_flags;
  // Result: when it was committed.
  uint64_t commit_time;
  // Result: number of the CPU's history at the commit.
  uint64_t cpu_seqnum;
  // 0.
  uint64_t reserved;
} tvd_Transaction;

// One entry of a pick-next ring.
typedef struct tvd_PickEntry {
  // The task's status word.
  uint32_t slot;
  // The task barrier that the agent has seen.
  uint32_t task_barrier;
  // The task.
  uint64_t gtid;
} tvd_PickEntry;

// What only the hypervisor knows of a vCPU. Written by the VMM; all 0 if nobody does.
typedef struct tvd_HostWord {
  // `host_flags`.
  uint32_t flags;
  // The host CPU it runs or ran on.
  uint32_t host_cpu;
  // Since when it is as `flags` say; nanoseconds of the guest's clock.
  uint64_t since;
  // Nanoseconds for which it wanted to run and did not, since the beginning.
  uint64_t stolen;
  // Number of the core that it shares with the CPUs of the same number, plus one; 0: unknown.
  uint64_t core;
  // 0.
  uint64_t reserved[4];
} tvd_HostWord;

// The page that the agent writes.
typedef struct tvd_AgentPage {
  // The agent's number, chosen at random and not 0; 0: no agent. Taken by compare-and-swap of both fields.
  uint32_t nonce;
  // `attach_flags`.
  uint32_t flags;
  // `tunables`.
  uint32_t tunables;
  // Milliseconds that a task may wait queued before the agent counts as hung; 0 or more than the enclave's limit: that limit.
  uint32_t runnable_timeout;
  // The doorbell: 1 while the agent sleeps, 2 rung, 0 awake.
  uint64_t bell;
  // Number of the request; a new number posts it. Written last.
  uint32_t request;
  // A `request`.
  uint32_t op;
  // The task's status word. ARM_TIMER: the CPU.
  uint32_t slot;
  // The task barrier seen.
  uint32_t barrier;
  // ASSOCIATE: the channel. ARM_TIMER: the time.
  uint64_t value;
  // ARM_TIMER: comes back in TIMER_EXPIRED.
  uint64_t cookie;
} tvd_AgentPage;

// What a process gets first that connects.
typedef struct tvd_Welcome {
  // `DOOR_MAGIC`.
  uint64_t magic;
  // The region's version.
  uint32_t version;
  // `DOOR_WELCOME` or `DOOR_OCCUPIED`.
  uint32_t state;
  // If welcome: CPUs, for each of which an event descriptor follows (`Kicks`).
  uint32_t cpus;
  // If not: the process that decides.
  uint32_t occupant;
  // Bytes of the region's first part: all that the guest and the host write.
  uint64_t guest_bytes;
  // Bytes of its second part, from the agent's page to the end.
  uint64_t agent_bytes;
  // 0.
  uint64_t reserved[3];
} tvd_Welcome;


// What follows until there is one for each CPU. With it come `count` event descriptors, in the order of the CPUs; writing to one (eight
// bytes, a 1) kicks its CPU.
typedef struct tvd_Kicks {
  // The CPU of the first one.
  uint32_t first;
  // At most `MAX_KICKS`.
  uint32_t count;
} tvd_Kicks;


#endif  /* TASKVISOR_DELEGATION_H */

#define TVD_MAGIC 0x47454c45445654ULL
#define TVD_DOOR_MAGIC 0x524f4f445654ULL
#define TVD_DOOR_WELCOME 0x0u
#define TVD_DOOR_OCCUPIED 0x1u
#define TVD_MAX_KICKS 0x40u
#define TVD_VERSION 0x1u
#define TVD_SECTION_ALIGN 0x1000u
#define TVD_GTID_NONE 0x0ULL
#define TVD_GTID_AGENT 0xffffffffffffffffULL
#define TVD_GTID_IDLE 0xfffffffffffffffeULL
#define TVD_MSG_NEW 0x1u
#define TVD_MSG_WAKEUP 0x2u
#define TVD_MSG_BLOCKED 0x3u
#define TVD_MSG_YIELD 0x4u
#define TVD_MSG_PREEMPT 0x5u
#define TVD_MSG_DEAD 0x6u
#define TVD_MSG_DEPARTED 0x7u
#define TVD_MSG_SWITCH_TO 0x8u
#define TVD_MSG_AFFINITY_CHANGED 0x9u
#define TVD_MSG_PRIORITY_CHANGED 0xau
#define TVD_MSG_ON_CPU 0xbu
#define TVD_MSG_LATCH_FAILURE 0xcu
#define TVD_MSG_TICK 0x40u
#define TVD_MSG_TIMER_EXPIRED 0x41u
#define TVD_MSG_NOT_IDLE 0x42u
#define TVD_MSG_AVAILABLE 0x43u
#define TVD_MSG_BUSY 0x44u
#define TVD_MSG_AGENT_BLOCKED 0x45u
#define TVD_MSG_AGENT_WAKEUP 0x46u
#define TVD_TXN_COMPLETE 0x0u
#define TVD_TXN_ABORTED 0x1u
#define TVD_TXN_TARGET_ONCPU 0x2u
#define TVD_TXN_TARGET_STALE 0x3u
#define TVD_TXN_TARGET_NOT_FOUND 0x4u
#define TVD_TXN_TARGET_NOT_RUNNABLE 0x5u
#define TVD_TXN_AGENT_STALE 0x6u
#define TVD_TXN_CPU_OFFLINE 0x7u
#define TVD_TXN_CPU_UNAVAIL 0x8u
#define TVD_TXN_INVALID_FLAGS 0x9u
#define TVD_TXN_INVALID_TARGET 0xau
#define TVD_TXN_INVALID_CPU 0xbu
#define TVD_TXN_NOT_PERMITTED 0xcu
#define TVD_TXN_NO_AGENT 0xdu
#define TVD_TXN_UNSUPPORTED_VERSION 0xeu
#define TVD_TXN_POISONED 0xfu
#define TVD_TXN_READY 0x100u
#define TVD_TXN_CLAIMED 0x101u
#define TVD_CPU_ONLINE 0x1u
#define TVD_CPU_CPU_AVAIL 0x2u
#define TVD_CPU_BOOST_PRIO 0x4u
#define TVD_CPU_LATCHED 0x8u
#define TVD_TASK_INUSE 0x1u
#define TVD_TASK_CANFREE 0x2u
#define TVD_TASK_ALLOCATED 0x4u
#define TVD_TASK_TASK_ONCPU 0x100u
#define TVD_TASK_TASK_RUNNABLE 0x200u
#define TVD_TASK_IS_AGENT 0x400u
#define TVD_TASK_MSG_GATED 0x800u
#define TVD_MSGF_FROM_SWITCHTO 0x1u
#define TVD_MSGF_WAS_LATCHED 0x2u
#define TVD_MSGF_WAS_CURRENT 0x4u
#define TVD_MSGF_DEFERRABLE 0x8u
#define TVD_MSGF_RUNNABLE 0x10u
#define TVD_TXNF_KICK 0x1u
#define TVD_TXNF_HALTED 0x2u
#define TVD_COMMIT_AT_SCHEDULE 0x1u
#define TVD_COMMIT_AT_TXN_COMMIT 0x2u
#define TVD_COMMIT_ALLOW_TASK_ONCPU 0x4u
#define TVD_COMMIT_ELIDE_AGENT_BARRIER_INC 0x8u
#define TVD_COMMIT_INC_AGENT_BARRIER_ON_FAILURE 0x10u
#define TVD_RUN_RTLA_ON_PREEMPT 0x1u
#define TVD_RUN_RTLA_ON_BLOCKED 0x2u
#define TVD_RUN_RTLA_ON_YIELD 0x4u
#define TVD_RUN_RTLA_ON_IDLE 0x8u
#define TVD_RUN_NEED_CPU_NOT_IDLE 0x10u
#define TVD_RUN_ELIDE_PREEMPT 0x20u
#define TVD_RUN_SEND_TASK_ON_CPU 0x40u
#define TVD_RUN_DEFER_LATCHED_PREEMPTION_BY_AGENT 0x80u
#define TVD_RUN_DO_NOT_PREEMPT 0x100u
#define TVD_HOST_KNOWN 0x1u
#define TVD_HOST_RUNNING 0x2u
#define TVD_HOST_HALTED 0x4u
#define TVD_ATTACH_ONLINE 0x1u
#define TVD_ATTACH_DISCOVER 0x2u
#define TVD_ATTACH_SLEEPS 0x4u
#define TVD_TUNE_COMMIT_AT_TICK 0x1u
#define TVD_TUNE_DELIVER_TICKS 0x2u
#define TVD_TUNE_DELIVER_AGENT_RUNNABILITY 0x4u
#define TVD_TUNE_DELIVER_CPU_AVAILABILITY 0x8u
#define TVD_TUNE_SWITCHTO_DISABLED 0x10u
#define TVD_TUNE_WAKE_ON_WAKER_CPU 0x20u
#define TVD_GUEST_VACANT 0x0u
#define TVD_GUEST_ONLINE 0x1u
#define TVD_GUEST_HAND_OFF 0x2u
#define TVD_GUEST_EJECTED_TIMEOUT 0x3u
#define TVD_GUEST_EJECTED_FLOOD 0x4u
#define TVD_GUEST_EJECTED_OWNER 0x5u
#define TVD_REQUEST_ASSOCIATE 0x1u
#define TVD_REQUEST_DISCOVER 0x2u
#define TVD_REQUEST_ARM_TIMER 0x3u
#define TVD_REQUEST_FREE 0x4u
#define TVD_ANSWER_OK 0x0u
#define TVD_ANSWER_STALE 0x1u
#define TVD_ANSWER_NO_TASK 0x2u
#define TVD_ANSWER_ALREADY 0x3u
#define TVD_ANSWER_INVALID 0x4u
