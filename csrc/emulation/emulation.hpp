// CUDA's execution model on a CPU, for tests: a fiber for each thread of a cluster, one cluster after another.
//
// It is as unkind as a device may be. Shared memory begins as NaN. A warp runs far ahead of the others or waits, lanes
// and clusters run in any order, and a copy, or what a block is sent, arrives at once or only where the program waits
// for it: a seed decides. Faults, of which `launch` tells, are a barrier, a shuffle or a delivery that not all take
// part in, a vector that is not aligned, a write past the end of shared memory, more of it than there is, and a look
// into that of a block that has not begun or has ended.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.hpp"

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace emulation {

constexpr unsigned WARP = 32;
constexpr std::size_t GUARD_BYTES = 8192;  // after a block's shared memory, to notice what is written there
constexpr char POISON = char(0xFF), GUARD = 1;  // NaN, and numbers so small that no sum is one

struct Barrier {
    unsigned size = 0;
    const char* missed = nullptr;  // what to say where threads wait at it for ever
    unsigned arrived = 0;
    unsigned long phase = 0;
};

struct Warp {
    Barrier barrier, shuffle;
    uint64_t lanes[2][WARP];  // what a shuffle exchanges: this one's and the next one's
};

struct Sent {
    void* to;
    double value;
};

// What a block expects and what was sent to it, which has arrived when all of a phase was sent, or did so before.
struct Delivery {
    Barrier barrier{0, "a delivery of which not all is sent"};  // whose phase is the delivery's
    bool expected = false;
    long missing = 0;  // bytes
    std::vector<Sent> sent;
};

struct Block {
    std::map<const void*, Delivery> deliveries;
    std::unique_ptr<char[]> memory;
    char* shared = nullptr;
    Barrier barrier;
    std::vector<Warp> warps;
    unsigned begun = 0, ended = 0;  // threads
};

// A copy that has not arrived yet.
struct Copy {
    void* to;
    const void* from;
    unsigned bytes, group;
};

struct Thread {
    Fiber fiber;
    dim3 index, block_index;
    unsigned rank = 0, number = 0;  // of its block in the cluster, and its own in the block
    bool begun = false, done = false;
    unsigned shuffles = 0, group = 0;
    const Barrier* waits = nullptr;
    unsigned long phase = 0;
    std::vector<Copy> copies;

    bool runnable() const { return !done && !(waits && waits->phase == phase); }
};

// One launch, as the threads of the cluster that is running see it.
struct Launch {
    dim3 grid, block;
    unsigned cluster = 1;
    std::size_t shared = 0;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Block> blocks;
    Barrier cluster_barrier;
    Fiber scheduler;
    Thread* now = nullptr;
    std::function<void()> body;
    std::string fault;
    uint32_t random;

    uint32_t draw() {
        random = random * 1664525u + 1013904223u;
        return random >> 8;
    }
};

inline thread_local Launch* running = nullptr;
inline uint32_t seed = 1;                // of what may happen in any order
inline std::size_t shared_limit = ~0ul;  // bytes that a block may have

inline Thread& self() { return *running->now; }
inline Block& own_block() { return running->blocks[self().rank]; }
inline Warp& own_warp() { return own_block().warps[self().number / WARP]; }

inline void yield() { self().fiber.switch_to(running->scheduler); }

[[noreturn]] inline void fail(const char* what) {
    if (running->fault.empty()) {
        char text[256];
        const Thread& t = self();
        std::snprintf(text, sizeof text, "%s (thread %u of block %u)", what, t.number, t.block_index.x);
        running->fault = text;
    }
    for (;;) yield();
}

inline void wait(Barrier& barrier) {
    Thread& thread = self();
    const unsigned long phase = barrier.phase;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.phase;
        return;
    }
    thread.waits = &barrier;
    thread.phase = phase;
    while (barrier.phase == phase) yield();
    thread.waits = nullptr;
}

inline void entry() {
    running->body();
    ++own_block().ended;
    self().done = true;
    for (;;) yield();
}

// Why no thread can go on: the barrier of the fewest threads that one waits at.
inline const char* deadlock(const Launch& launch) {
    const Barrier* found = nullptr;
    for (const auto& thread : launch.threads)
        if (thread->waits && (!found || thread->waits->size < found->size)) found = thread->waits;
    return found->missed;
}

// Run the threads of one cluster to their end, or to a fault.
inline void run_cluster(Launch& launch) {
    const unsigned n_warps = unsigned(launch.threads.size()) / WARP;
    for (bool left = true; left && launch.fault.empty();) {
        bool stuck = true;
        left = false;
        for (unsigned w = 0; w < n_warps; ++w) {
            const bool turn = launch.draw() & 1;
            const unsigned turned = launch.draw() & 1 ? WARP - 1 : 0;  // the last lane runs first
            for (bool ran = true; ran && launch.fault.empty();) {
                ran = false;
                for (unsigned lane = 0; lane < WARP; ++lane) {
                    Thread& thread = *launch.threads[w * WARP + (lane ^ turned)];
                    left |= !thread.done;
                    if (!thread.runnable()) continue;
                    stuck = false;
                    if (!turn) continue;
                    ran = true;
                    launch.now = &thread;
                    if (!thread.begun) {
                        thread.begun = true;
                        ++launch.blocks[thread.rank].begun;
                    }
                    launch.scheduler.switch_to(thread.fiber);
                    if (!launch.fault.empty()) return;
                }
            }
        }
        if (left && stuck) launch.fault = deadlock(launch);
    }
}

// Every cluster's threads and shared memory as they are before it runs.
inline void begin_cluster(Launch& launch, unsigned first) {
    const unsigned threads = launch.block.x;
    launch.cluster_barrier = {threads * launch.cluster, "a barrier that not all threads of the cluster reach"};
    for (Block& block : launch.blocks) {
        if (!block.memory) block.memory.reset(new char[launch.shared + GUARD_BYTES + 16]);
        block.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block.memory.get()) + 15) & ~uintptr_t(15));
        std::memset(block.shared, POISON, launch.shared);
        std::memset(block.shared + launch.shared, GUARD, GUARD_BYTES);
        block.barrier = {threads, "a barrier that not all threads of the block reach"};
        block.warps.assign(threads / WARP, Warp{{WARP, "a barrier that not all lanes of the warp reach"},
                                                {WARP, "a shuffle in which not all lanes take part"},
                                                {}});
        block.begun = block.ended = 0;
        block.deliveries.clear();
    }
    for (unsigned i = 0; i < threads * launch.cluster; ++i) {
        Thread& thread = *launch.threads[i];
        const unsigned block = first + i / threads;
        thread.index = dim3(i % threads, 0, 0);
        thread.block_index = dim3(block % launch.grid.x, block / launch.grid.x, 0);
        thread.rank = i / threads;
        thread.number = i % threads;
        thread.begun = thread.done = false;
        thread.waits = nullptr;
        thread.shuffles = thread.group = 0;
        thread.copies.clear();
        thread.fiber.start(entry);
    }
}

// Run a kernel whose call is `body`; what went wrong, or nothing.
inline std::string launch(dim3 grid, unsigned threads, unsigned cluster, std::size_t shared,
                          std::function<void()> body) {
    if (!threads || threads % WARP || threads > 1024 || !grid.x || !grid.y || grid.x % cluster) return "a bad launch";
    if (shared > shared_limit) return "more shared memory than a block may have";
    Launch launch;
    launch.grid = grid;
    launch.block = dim3(threads);
    launch.cluster = cluster;
    launch.shared = shared;
    launch.random = seed;
    launch.body = std::move(body);
    launch.blocks.resize(cluster);
    static thread_local std::vector<std::unique_ptr<Thread>> pool;  // stacks are dear
    launch.threads = std::move(pool);
    while (launch.threads.size() < threads * cluster) launch.threads.push_back(std::make_unique<Thread>());
    std::vector<std::unique_ptr<Thread>> spare;
    for (; launch.threads.size() > threads * cluster; launch.threads.pop_back())
        spare.push_back(std::move(launch.threads.back()));
    running = &launch;
    std::vector<unsigned> order(grid.x * grid.y / cluster);
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t left = order.size(); left > 1; --left) std::swap(order[left - 1], order[launch.draw() % left]);
    for (unsigned number : order) {
        begin_cluster(launch, number * cluster);
        run_cluster(launch);
        for (const Block& block : launch.blocks)
            for (std::size_t i = 0; i < GUARD_BYTES; ++i)
                if (block.shared[shared + i] != GUARD && launch.fault.empty())
                    launch.fault = "a write past the end of shared memory";
        if (!launch.fault.empty()) break;
    }
    running = nullptr;
    pool = std::move(launch.threads);
    for (auto& thread : spare) pool.push_back(std::move(thread));
    return launch.fault;
}

template <class T>
T shuffle(T value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle exchanges 8 bytes at most");
    Warp& warp = own_warp();
    uint64_t* lanes = warp.lanes[self().shuffles++ & 1];
    std::memcpy(&lanes[self().number % WARP], &value, sizeof value);
    wait(warp.shuffle);
    std::memcpy(&value, &lanes[from], sizeof value);
    return value;
}

// The same place in the shared memory of another block of the cluster.
inline char* shared_of(const void* place, unsigned rank) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(own_block().shared);
    if (offset >= running->shared) fail("a place in another block that is not in shared memory");
    if (rank >= running->cluster) fail("a block that is not in the cluster");
    Block& block = running->blocks[rank];
    if (!block.begun) fail("the shared memory of a block that has not begun");
    if (block.ended == running->block.x) fail("the shared memory of a block that has ended");
    return block.shared + offset;
}

inline Delivery& delivery_of(Block& block, const void* place) {
    const auto found = block.deliveries.find(place);
    if (found == block.deliveries.end()) fail("a delivery that has not begun");
    return found->second;
}

inline void begin_deliveries(const void* place) {
    if (!own_block().deliveries.try_emplace(place).second) fail("a delivery that has begun already");
}

inline void end_phase(Delivery& delivery) {
    if (!delivery.expected || delivery.missing) return;
    for (const Sent& sent : delivery.sent) std::memcpy(sent.to, &sent.value, sizeof sent.value);
    delivery.sent.clear();
    delivery.expected = false;
    ++delivery.barrier.phase;
}

inline void expect(const void* place, unsigned bytes) {
    Delivery& delivery = delivery_of(own_block(), place);
    if (delivery.expected) fail("a phase of a delivery that is expected twice");
    delivery.expected = true;
    delivery.missing += bytes;
    end_phase(delivery);
}

inline void send(const void* place, unsigned rank, double value, const void* delivery_place) {
    Block& block = running->blocks[rank % running->cluster];
    void* to = shared_of(place, rank);
    Delivery& delivery = delivery_of(block, shared_of(delivery_place, rank));
    delivery.missing -= sizeof value;
    if (running->draw() & 1)
        std::memcpy(to, &value, sizeof value);
    else
        delivery.sent.push_back({to, value});
    end_phase(delivery);
}

// Wait until a phase has ended whose last bit is that of `phase`.
inline void wait_for_delivery(const void* place, unsigned phase) {
    Delivery& delivery = delivery_of(own_block(), place);
    Thread& thread = self();
    thread.waits = &delivery.barrier;
    thread.phase = delivery.barrier.phase;
    while ((delivery.barrier.phase & 1) == phase) yield();
    thread.waits = nullptr;
}

inline void check_aligned(const void* place, std::size_t bytes) {
    if (reinterpret_cast<uintptr_t>(place) % bytes) fail("a vector that is not aligned");
}

// What cp.async does with 16 bytes of shared memory: `bytes` of them copied, zeros after them.
inline void arrive(const Copy& copy) {
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
}

inline void copy_async(void* to, const void* from, unsigned bytes) {
    check_aligned(to, 16);
    check_aligned(from, 16);
    const Copy copy{to, from, bytes, self().group};
    if (running->draw() & 1)
        arrive(copy);
    else
        self().copies.push_back(copy);
}

// The copies of all groups but the last `pending` arrive.
inline void wait_for_groups(unsigned pending) {
    Thread& thread = self();
    std::size_t left = 0;
    for (const Copy& copy : thread.copies) {
        if (copy.group + pending < thread.group)
            arrive(copy);
        else
            thread.copies[left++] = copy;
    }
    thread.copies.resize(left);
}

}  // namespace emulation

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulation::self().index)
#define blockIdx (emulation::self().block_index)
#define blockDim (emulation::running->block)
#define gridDim (emulation::running->grid)

inline void __syncwarp() { emulation::wait(emulation::own_warp().barrier); }
inline void __syncthreads() { emulation::wait(emulation::own_block().barrier); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::shuffle(value, (emulation::self().number % emulation::WARP) ^ unsigned(mask));
}
