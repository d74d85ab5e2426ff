/* How a process of its own gets at an enclave: taskvisor run --delegate external:SOCKET. docs/delegation.md, "A process of your own". */
#ifndef TASKVISOR_ATTACH_H
#define TASKVISOR_ATTACH_H

#include <stdint.h>

#define ATTACH_MAX_CPUS 1024u

struct enclave {
	unsigned char *base; /* the region: its first part is read-only */
	uint64_t size;
	int socket; /* becomes readable when the guest has ended */
	int doorbell; /* becomes readable when the guest rings; read 8 bytes then */
	uint32_t cpus;
	int kicks[ATTACH_MAX_CPUS]; /* write 8 bytes, a 1, to have that CPU look */
};

/* Waits until the guest has its enclave. 0, or -1 with a message on stderr. */
int attach_enclave(const char *path, struct enclave *enclave);

#endif
