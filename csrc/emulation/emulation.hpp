// CUDA's execution model on a CPU, for tests: a fiber for each thread of a cluster, one cluster after another.
//
// It is as unkind as a device may be. Shared memory begins as NaN. A warp runs far ahead of the others or waits, in an
// order that a seed decides. An asynchronous copy arrives only where the program waits for it. A barrier that not all
// threads reach, a vector that is not aligned, a write past the end of shared memory, and a look into the shared memory
// of a block that has not begun or has ended are faults, of which `launch` tells.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
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
constexpr std::size_t GUARD_BYTES = 256;  // after a block's shared memory, to notice what is written there
constexpr char POISON = char(0xFF);

struct Barrier {
    unsigned size = 0, arrived = 0;
    unsigned long phase = 0;
};

struct Warp {
    Barrier barrier;
    uint64_t lanes[2][WARP];  // what a shuffle exchanges: this one's and the next one's
};

struct Block {
    std::unique_ptr<char[]> memory;
    char* shared = nullptr;
    Barrier barrier;
    std::vector<Warp> warps;
    unsigned begun = 0, ended = 0;  // threads
};

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
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Block> blocks;
    Barrier cluster_barrier;
    Fiber scheduler;
    Thread* now = nullptr;
    std::function<void()> body;
    std::string fault;
};

inline thread_local Launch* running = nullptr;
inline uint32_t seed = 1;  // of the order of warps

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

inline uint32_t draw(uint32_t& state) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

// Run the threads of one cluster to their end, or to a fault.
inline void run_cluster(Launch& launch, uint32_t& order) {
    const unsigned n_warps = unsigned(launch.threads.size()) / WARP;
    for (bool left = true; left && launch.fault.empty();) {
        bool stuck = true;
        left = false;
        for (unsigned w = 0; w < n_warps; ++w) {
            const bool turn = draw(order) & 1;
            for (bool ran = true; ran && launch.fault.empty();) {
                ran = false;
                for (unsigned lane = 0; lane < WARP; ++lane) {
                    Thread& thread = *launch.threads[w * WARP + lane];
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
        if (left && stuck) launch.fault = "a barrier that not all threads reach";
    }
}

// Run a kernel whose call is `body`; what went wrong, or nothing.
inline std::string launch(dim3 grid, unsigned threads, unsigned cluster, std::size_t shared,
                          std::function<void()> body) {
    if (!threads || threads % WARP || threads > 1024 || !grid.x || grid.x % cluster) return "a bad launch";
    Launch launch;
    launch.grid = grid;
    launch.block = dim3(threads);
    launch.cluster = cluster;
    launch.body = std::move(body);
    launch.blocks.resize(cluster);
    static thread_local std::vector<std::unique_ptr<Thread>> pool;  // stacks are dear
    launch.threads = std::move(pool);
    while (launch.threads.size() < threads * cluster) launch.threads.push_back(std::make_unique<Thread>());
    std::vector<std::unique_ptr<Thread>> spare;
    for (; launch.threads.size() > threads * cluster; launch.threads.pop_back())
        spare.push_back(std::move(launch.threads.back()));
    uint32_t order = seed;
    running = &launch;
    for (unsigned first = 0; first < grid.x * grid.y && launch.fault.empty(); first += cluster) {
        launch.cluster_barrier = {threads * cluster, 0, 0};
        for (Block& block : launch.blocks) {
            if (!block.memory) block.memory.reset(new char[shared + GUARD_BYTES + 16]);
            block.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block.memory.get()) + 15) & ~uintptr_t(15));
            std::memset(block.shared, POISON, shared + GUARD_BYTES);
            block.barrier = {threads, 0, 0};
            block.warps.assign(threads / WARP, Warp{{WARP, 0, 0}, {}});
            block.begun = block.ended = 0;
        }
        for (unsigned i = 0; i < threads * cluster; ++i) {
            Thread& thread = *launch.threads[i];
            const unsigned block = first + i / threads;
            thread.index = dim3(i % threads, 0, 0);
            thread.block_index = dim3(block % grid.x, block / grid.x, 0);
            thread.rank = i / threads;
            thread.number = i % threads;
            thread.begun = thread.done = false;
            thread.waits = nullptr;
            thread.shuffles = thread.group = 0;
            thread.copies.clear();
            thread.fiber.start(entry);
        }
        run_cluster(launch, order);
        for (const Block& block : launch.blocks)
            for (std::size_t i = 0; i < GUARD_BYTES; ++i)
                if (block.shared[shared + i] != POISON && launch.fault.empty())
                    launch.fault = "a write past the end of shared memory";
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
    wait(warp.barrier);
    std::memcpy(&value, &lanes[from], sizeof value);
    return value;
}

// The same place in the shared memory of another block of the cluster.
inline char* shared_of(const void* place, unsigned rank) {
    if (rank >= running->cluster) fail("a block that is not in the cluster");
    Block& block = running->blocks[rank];
    if (!block.begun) fail("the shared memory of a block that has not begun");
    if (block.ended == running->block.x) fail("the shared memory of a block that has ended");
    return block.shared + (static_cast<const char*>(place) - own_block().shared);
}

inline void check_aligned(const void* place, std::size_t bytes) {
    if (reinterpret_cast<uintptr_t>(place) % bytes) fail("a vector that is not aligned");
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
