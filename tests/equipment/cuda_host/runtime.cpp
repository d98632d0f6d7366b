// Runs a kernel's blocks one after another, and a block's threads as fibres on one thread of the
// system. A thread that never waits costs no switch: fibres run one thread after another, and
// another fibre starts only where a thread has to wait or is pre-empted.
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
    unsigned x, y, z;
};
uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

// The kernels' shared variables follow or precede it.
thread_local volatile char any_shared_variable;

constexpr int kMaxThreads = 1024;
constexpr int kMaxWords = 40;
constexpr size_t kStackSize = 256 * 1024;
constexpr size_t kGuardSize = 4096;

struct Fibre {
    ucontext_t context;
    char* stack;
    size_t stack_size;
    void* fake_stack;
    int thread;
};

enum State { kUnstarted, kRunnable, kAtBarrier, kAtWarp, kFinished };

struct Thread {
    State state;
    Fibre* fibre;
    // Where and with what it waits.
    const char* name;
    int line;
    unsigned mask;
    int size;
    int source;
    bool predicate;
    unsigned long long value;
};

Fibre system_fibre;
Fibre* current;
Fibre* previous;
Fibre* fibres[kMaxThreads];
int num_fibres;
Fibre* idle[kMaxThreads];
int num_idle;
Fibre* ready[kMaxThreads];
int num_ready;

Thread threads[kMaxThreads];
int order[kMaxThreads];
int num_threads, num_started, num_finished;
int num_at_barrier, num_predicates, barrier_result;
bool preempt;
// A thread is pre-empted at one of so many points.
unsigned preemption_interval;
char message[4096];

void* kernel;
const char* kernel_name;
long long words[kMaxWords];

unsigned long long random_state;

unsigned long long random_word() {
    unsigned long long z = (random_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

unsigned random_below(unsigned bound) {
    return static_cast<unsigned>(((random_word() >> 32) * bound) >> 32);
}

void shuffle(int* values, int size) {
    for (int i = 0; i < size; ++i) values[i] = i;
    for (int i = size - 1; i > 0; --i) {
        const int j = random_below(i + 1);
        const int value = values[i];
        values[i] = values[j];
        values[j] = value;
    }
}

// Fills the shared variables where the given file of the process is this library.
int fill_shared_variables(dl_phdr_info* file, size_t, void*) {
    const ElfW(Phdr)* variables = nullptr;
    bool is_this = false;
    for (int i = 0; i < file->dlpi_phnum; ++i) {
        const ElfW(Phdr) & part = file->dlpi_phdr[i];
        const uintptr_t offset =
            reinterpret_cast<uintptr_t>(&fill_shared_variables) - file->dlpi_addr - part.p_vaddr;
        if (part.p_type == PT_LOAD && offset < part.p_memsz) is_this = true;
        if (part.p_type == PT_TLS) variables = &part;
    }
    if (!is_this) return 0;
    char* bytes = static_cast<char*>(file->dlpi_tls_data);
    for (size_t i = 0; i < variables->p_memsz; i += sizeof(long long)) {
        const unsigned long long garbage = random_word();
        const size_t left = variables->p_memsz - i;
        memcpy(bytes + i, &garbage, left < sizeof(garbage) ? left : sizeof(garbage));
    }
    return 1;
}

// Called first thing on a fibre that was switched to.
void arrived(void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
    previous->stack = static_cast<char*>(const_cast<void*>(bottom));
    previous->stack_size = size;
#else
    (void)fake_stack;
#endif
    threadIdx.x = current->thread;
}

void switch_to(Fibre* fibre) {
    Fibre* self = current;
    previous = self;
    current = fibre;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&self->fake_stack, fibre->stack, fibre->stack_size);
#endif
    swapcontext(&self->context, &fibre->context);
    arrived(self->fake_stack);
}

bool alike(const Thread& a, const Thread& b) {
    if (a.state != b.state) return false;
    if (a.state == kAtBarrier) return a.line == b.line && a.name == b.name;
    return a.state != kAtWarp || (a.line == b.line && a.name == b.name && a.mask == b.mask);
}

size_t append(size_t length, const char* format, ...) __attribute__((format(printf, 2, 3)));
size_t append(size_t length, const char* format, ...) {
    if (length >= sizeof(message)) return length;
    va_list values;
    va_start(values, format);
    length += vsnprintf(message + length, sizeof(message) - length, format, values);
    va_end(values);
    return length;
}

// Ends the launch with a message that tells what the threads of the block do.
[[noreturn]] void fail(const char* what) {
    size_t length = append(0, "kernel %s, block %u, ", kernel_name, blockIdx.x);
    length = append(length, "thread %d: %s. Threads of this block:", current->thread, what);
    for (int first = 0; first < num_threads; ++first) {
        const Thread& thread = threads[first];
        int num_before = 0, num_alike = 0;
        for (int other = 0; other < num_threads; ++other) {
            if (!alike(thread, threads[other])) continue;
            ++num_alike;
            num_before += other < first;
        }
        if (num_before) continue;
        length = append(length, "\n  %d, the first is thread %d: ", num_alike, first);
        if (thread.state == kUnstarted) length = append(length, "not started");
        if (thread.state == kRunnable) length = append(length, "running");
        if (thread.state == kFinished) length = append(length, "finished");
        if (thread.state == kAtBarrier || thread.state == kAtWarp) {
            length = append(length, "at %s in line %d", thread.name, thread.line);
        }
        if (thread.state == kAtWarp) length = append(length, " with mask 0x%08x", thread.mask);
    }
    switch_to(&system_fibre);
    abort();
}

void run_threads();

void prepare(Fibre* fibre) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fibre->stack, fibre->stack_size);
#endif
    getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack;
    fibre->context.uc_stack.ss_size = fibre->stack_size;
    fibre->context.uc_link = nullptr;
    makecontext(&fibre->context, run_threads, 0);
}

Fibre* new_fibre() {
    void* memory = mmap(nullptr, kGuardSize + kStackSize, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    mprotect(memory, kGuardSize, PROT_NONE);
    Fibre* fibre = static_cast<Fibre*>(calloc(1, sizeof(Fibre)));
    fibre->stack = static_cast<char*>(memory) + kGuardSize;
    fibre->stack_size = kStackSize;
    fibres[num_fibres++] = fibre;
    prepare(fibre);
    return fibre;
}

// Takes one of the threads that can go on, at random; a thread not started gets the given fibre, or
// an idle one. Null where there is none.
Fibre* take_next(Fibre* fibre_at_hand) {
    const bool can_start = num_started < num_threads;
    const unsigned choices = num_ready + can_start;
    if (choices == 0) return nullptr;
    const int choice = choices == 1 ? 0 : random_below(choices);
    if (choice < num_ready) {
        Fibre* fibre = ready[choice];
        ready[choice] = ready[--num_ready];
        return fibre;
    }
    Fibre* fibre = fibre_at_hand;
    if (!fibre) fibre = num_idle ? idle[--num_idle] : new_fibre();
    fibre->thread = order[num_started++];
    threads[fibre->thread].state = kRunnable;
    threads[fibre->thread].fibre = fibre;
    return fibre;
}

// Lets another thread go on; returns when this one is taken again.
void wait() {
    Fibre* next = take_next(nullptr);
    if (!next) fail("no thread can go on");
    if (next != current) switch_to(next);
}

void make_ready(Fibre* fibre) {
    threads[fibre->thread].state = kRunnable;
    ready[num_ready++] = fibre;
}

using Word = long long;
using Kernel = void (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                        Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                        Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                        Word, Word, Word, Word);

// Words that a kernel does not take do no harm in the calling convention.
void run_thread() {
    const Word* w = words;
    reinterpret_cast<Kernel>(kernel)(
        w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13],
        w[14], w[15], w[16], w[17], w[18], w[19], w[20], w[21], w[22], w[23], w[24], w[25], w[26],
        w[27], w[28], w[29], w[30], w[31], w[32], w[33], w[34], w[35], w[36], w[37], w[38], w[39]);
}

void run_threads() {
    arrived(nullptr);
    while (true) {
        run_thread();
        const int thread = current->thread;
        threads[thread].state = kFinished;
        ++num_finished;
        if (num_at_barrier) fail("finishes while others wait at a barrier");
        const int warp = thread / 32 * 32;
        for (int other = warp; other < warp + 32 && other < num_threads; ++other) {
            if (threads[other].state == kAtWarp && threads[other].mask >> (thread - warp) & 1) {
                fail("finishes while others of its warp wait for it");
            }
        }
        Fibre* next = take_next(current);
        if (!next) {
            if (num_finished < num_threads) fail("no thread can go on");
            next = &system_fibre;
        }
        if (next == current) {
            threadIdx.x = current->thread;
        } else {
            idle[num_idle++] = current;
            switch_to(next);
        }
    }
}

// Waits until all threads of the mask are here with the same function and mask.
void warp_rendezvous(Thread& self, unsigned mask, const char* name, int line) {
    const int thread = current->thread;
    const int warp = thread / 32 * 32;
    self.mask = mask;
    self.name = name;
    self.line = line;
    self.state = kAtWarp;
    if (!(mask >> (thread - warp) & 1)) fail("is not in its own mask");
    bool complete = true;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (warp + lane >= num_threads) fail("its mask names threads that the block does not have");
        const Thread& other = threads[warp + lane];
        if (other.state == kFinished) fail("its mask names threads that have finished");
        if (other.state == kAtBarrier) fail("its mask names threads that wait at a barrier");
        if (other.state != kAtWarp) {
            complete = false;
        } else if (other.mask != mask || strcmp(other.name, name) || other.size != self.size) {
            fail("its mask names threads that wait with another mask or function");
        }
    }
    if (!complete) return wait();
    unsigned votes = 0;
    unsigned long long results[32];
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const Thread& other = threads[warp + lane];
        votes |= static_cast<unsigned>(other.predicate) << lane;
        // What a thread outside the mask would give is undefined.
        results[lane] =
            mask >> other.source & 1 ? threads[warp + other.source].value : random_word();
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Thread& other = threads[warp + lane];
        other.value = self.size ? results[lane] : votes;
        make_ready(other.fibre);
    }
    wait();
}

}  // namespace

void cuda_host_sleep() {
    make_ready(current);
    wait();
}

void cuda_host_preemption_point() {
    if (preempt && random_below(preemption_interval) == 0) cuda_host_sleep();
}

[[noreturn]] void cuda_host_refuse(const char* what, int line) {
    Thread& self = threads[current->thread];
    self.line = line;
    fail(what);
}

int cuda_host_lane() { return current->thread % 32; }

int cuda_host_barrier(bool predicate, const char* name, int line) {
    Thread& self = threads[current->thread];
    self.state = kAtBarrier;
    self.name = name;
    self.line = line;
    if (num_finished) fail("waits at a barrier that others have left out");
    for (int other = 0; num_at_barrier && other < num_threads; ++other) {
        if (threads[other].state != kAtBarrier || other == current->thread) continue;
        if (!alike(self, threads[other])) fail("waits at another barrier than others");
        break;
    }
    num_predicates += predicate;
    if (++num_at_barrier < num_threads) {
        wait();
        return barrier_result;
    }
    barrier_result = num_predicates;
    num_at_barrier = num_predicates = 0;
    for (int thread = 0; thread < num_threads; ++thread) make_ready(threads[thread].fibre);
    wait();
    return barrier_result;
}

unsigned long long cuda_host_shuffle(unsigned mask, unsigned long long value, int size, int source,
                                     const char* name, int line) {
    Thread& self = threads[current->thread];
    self.value = value;
    self.size = size;
    self.source = source;
    self.predicate = false;
    warp_rendezvous(self, mask, name, line);
    return self.value;
}

unsigned cuda_host_vote(unsigned mask, bool predicate, const char* name, int line) {
    Thread& self = threads[current->thread];
    self.size = 0;
    self.source = 0;
    self.predicate = predicate;
    warp_rendezvous(self, mask, name, line);
    return static_cast<unsigned>(self.value);
}

// Null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* cuda_host_run(
    void* kernel_to_run, const char* name, long long grid, long long block,
    const long long* arguments, int num_arguments, unsigned long long seed, int with_preemption) {
    if (block > kMaxThreads || num_arguments > kMaxWords) return "too many threads or arguments";
    kernel = kernel_to_run;
    kernel_name = name;
    memset(words, 0, sizeof(words));
    memcpy(words, arguments, num_arguments * sizeof(long long));
    gridDim = {static_cast<unsigned>(grid), 1, 1};
    blockDim = {static_cast<unsigned>(block), 1, 1};
    num_threads = static_cast<int>(block);
    random_state = seed;
    preempt = with_preemption;
    // Rare and frequent switches find different errors.
    preemption_interval = 2u << random_below(6);
    message[0] = 0;
    current = &system_fibre;
    int* blocks = static_cast<int*>(malloc(grid * sizeof(int)));
    shuffle(blocks, static_cast<int>(grid));
    for (long long i = 0; i < grid && !message[0]; ++i) {
        blockIdx.x = blocks[i];
        shuffle(order, num_threads);
        memset(threads, 0, num_threads * sizeof(Thread));
        num_started = num_finished = num_ready = num_at_barrier = num_predicates = 0;
        // Before its first use in a thread of the system it has no place.
        any_shared_variable = 0;
        dl_iterate_phdr(fill_shared_variables, nullptr);
        switch_to(take_next(nullptr));
    }
    free(blocks);
    if (!message[0]) return nullptr;
    // Threads that were left in the middle never go on.
    num_idle = 0;
    for (int i = 0; i < num_fibres; ++i) {
        prepare(fibres[i]);
        idle[num_idle++] = fibres[i];
    }
    return message;
}

// What ThreadSanitizer's instrumentation calls before every access to memory: every access becomes
// a preemption point. Its own library is not linked.
#define CUDA_HOST_HOOK(access) \
    extern "C" void __tsan_##access(void*) { cuda_host_preemption_point(); }
#define CUDA_HOST_HOOKS(size)            \
    CUDA_HOST_HOOK(read##size)           \
    CUDA_HOST_HOOK(write##size)          \
    CUDA_HOST_HOOK(unaligned_read##size) \
    CUDA_HOST_HOOK(unaligned_write##size)
CUDA_HOST_HOOKS(1)
CUDA_HOST_HOOKS(2)
CUDA_HOST_HOOKS(4)
CUDA_HOST_HOOKS(8)
CUDA_HOST_HOOKS(16)
extern "C" void __tsan_read_range(void*, long) { cuda_host_preemption_point(); }
extern "C" void __tsan_write_range(void*, long) { cuda_host_preemption_point(); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
