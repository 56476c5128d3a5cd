/*
 * The pause program: process 1 of a pod's shared namespaces. It does three things only: it keeps the
 * namespaces alive, it reaps processes whose parents have gone, and it ends at once on TERM or INT.
 *
 * No C library, so it is a few hundred bytes of code and one page of memory in every pod. The signals
 * are blocked and fetched by sigtimedwait: process 1 of a PID namespace is not sent signals that have
 * their default action, but a blocked signal is always kept for it (kernel/signal.c, sig_ignored).
 *
 * Built by scripts/build for amd64, arm64, arm and riscv64.
 */
#include <asm/unistd.h>

typedef unsigned long word;

static inline long call4(long nr, word a, word b, word c, word d)
{
#if defined(__x86_64__)
	long ret;
	register word r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register word x0 __asm__("x0") = a;
	register word x1 __asm__("x1") = b;
	register word x2 __asm__("x2") = c;
	register word x3 __asm__("x3") = d;
	register word x8 __asm__("x8") = nr;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory");
	return x0;
#elif defined(__arm__)
	register word r0 __asm__("r0") = a;
	register word r1 __asm__("r1") = b;
	register word r2 __asm__("r2") = c;
	register word r3 __asm__("r3") = d;
	register word r7 __asm__("r7") = nr;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r3), "r"(r7) : "memory");
	return r0;
#elif defined(__riscv) && __riscv_xlen == 64
	register word a0 __asm__("a0") = a;
	register word a1 __asm__("a1") = b;
	register word a2 __asm__("a2") = c;
	register word a3 __asm__("a3") = d;
	register word a7 __asm__("a7") = nr;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a3), "r"(a7) : "memory");
	return a0;
#else
#error "no system call sequence for this architecture"
#endif
}

enum { SIG_INT = 2, SIG_TERM = 15, SIG_CHLD = 17 };
enum { BLOCK = 0, NOHANG = 1 };

/* The kernel's signal set is 64 bits everywhere, whatever the C library's is. */
static inline unsigned long long bit(int sig) { return 1ULL << (sig - 1); }

__attribute__((noreturn)) void _start(void)
{
	const unsigned long long set = bit(SIG_INT) | bit(SIG_TERM) | bit(SIG_CHLD);

	call4(__NR_rt_sigprocmask, BLOCK, (word)&set, 0, sizeof set);
	for (;;) {
		/* Children may have ended before the signal was blocked, and one signal may stand for many. */
		while (call4(__NR_wait4, -1, 0, NOHANG, 0) > 0)
			;
		switch (call4(__NR_rt_sigtimedwait, (word)&set, 0, 0, sizeof set)) {
		case SIG_INT:
		case SIG_TERM:
			call4(__NR_exit_group, 0, 0, 0, 0);
		}
	}
}
