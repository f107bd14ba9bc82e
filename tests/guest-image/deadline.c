/*
 * Leaves a task behind that sleeps, but has a claim on nine tenths of a CPU.
 *
 * Linux admits such a task (SCHED_DEADLINE, sched(7)) only if the CPUs it may
 * run on can keep the promise, and from then on takes none of them offline that
 * is needed to.  Exits with 0 when the claim stands.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From linux/sched/types.h, which cannot be included next to glibc's sched.h. */
struct sched_attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime; /* ns, and so are the next two */
	uint64_t deadline;
	uint64_t period;
};

enum { SCHED_DEADLINE = 6, MILLISECOND = 1000000 };

int main(void)
{
	struct sched_attr claim = {
		.size = sizeof claim,
		.policy = SCHED_DEADLINE,
		.runtime = 9 * MILLISECOND,
		.deadline = 10 * MILLISECOND,
		.period = 10 * MILLISECOND,
	};
	pid_t task = fork();

	if (task < 0) {
		perror("deadline: fork");
		return 1;
	}
	if (task == 0)
		for (;;)
			pause();
	if (syscall(SYS_sched_setattr, task, &claim, 0) < 0) {
		perror("deadline: sched_setattr");
		kill(task, SIGKILL);
		return 1;
	}
	return 0;
}
