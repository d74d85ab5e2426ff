/* See attach.h. The records are described in taskvisor_delegation.h: tvd_Welcome with three descriptors, then tvd_Kicks with one
 * for each CPU.
 */
#include "attach.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "taskvisor_delegation.h"

/* Receives a record whole, and the descriptors that come with it: how many, or -1. */
static int receive(int socket, void *record, size_t size, int *fds, unsigned room)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(TVD_MAX_KICKS * sizeof(int))];
	} space;
	struct iovec to = { record, size };
	struct msghdr message = { .msg_iov = &to, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space };
	int count = 0;

	if (recvmsg(socket, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC) != (ssize_t)size || message.msg_flags & MSG_CTRUNC)
		return -1;
	for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		count = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if ((unsigned)count > room)
			return -1;
		memcpy(fds, CMSG_DATA(part), (size_t)count * sizeof(int));
	}
	return count;
}

/* Both parts, one behind the other. */
static unsigned char *map(int guest, uint64_t guest_bytes, int agent, uint64_t agent_bytes)
{
	int flags = MAP_SHARED | MAP_FIXED;
	unsigned char *base =
		mmap(NULL, guest_bytes + agent_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (base == MAP_FAILED || mmap(base, guest_bytes, PROT_READ, flags, guest, 0) == MAP_FAILED ||
	    mmap(base + guest_bytes, agent_bytes, PROT_READ | PROT_WRITE, flags, agent, 0) == MAP_FAILED)
		return NULL;
	return base;
}

int attach_enclave(const char *path, struct enclave *enclave)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	tvd_Welcome welcome;
	tvd_Kicks some;
	int parts[TVD_MAX_KICKS];

	if (strlen(path) >= sizeof address.sun_path) {
		fprintf(stderr, "%s: too long a path for a socket\n", path);
		return -1;
	}
	strcpy(address.sun_path, path);
	enclave->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (enclave->socket < 0 || connect(enclave->socket, (struct sockaddr *)&address, sizeof address) != 0) {
		perror(path);
		return -1;
	}
	int count = receive(enclave->socket, &welcome, sizeof welcome, parts, TVD_MAX_KICKS);
	if (count < 0 || welcome.magic != TVD_DOOR_MAGIC || welcome.version != TVD_VERSION) {
		fprintf(stderr, "%s gave no enclave\n", path);
		return -1;
	}
	if (welcome.state != TVD_DOOR_WELCOME) {
		fprintf(stderr, "the enclave has an agent already: process %u\n", (unsigned)welcome.occupant);
		return -1;
	}
	if (count != 3 || welcome.cpus > ATTACH_MAX_CPUS)
		return -1;
	enclave->doorbell = parts[2];
	enclave->size = welcome.guest_bytes + welcome.agent_bytes;
	enclave->base = map(parts[0], welcome.guest_bytes, parts[1], welcome.agent_bytes);
	close(parts[0]);
	close(parts[1]);
	for (enclave->cpus = 0; enclave->cpus < welcome.cpus; enclave->cpus += (uint32_t)count) {
		count = receive(enclave->socket, &some, sizeof some, enclave->kicks + enclave->cpus, welcome.cpus - enclave->cpus);
		if (count <= 0 || some.first != enclave->cpus || some.count != (uint32_t)count)
			return -1;
	}
	return enclave->base == NULL ? -1 : 0;
}
