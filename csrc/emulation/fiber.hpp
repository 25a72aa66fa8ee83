// A fiber: a function with a stack of its own that another can switch to and from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

#ifdef __x86_64__
// Save what a call must preserve, go on where `to` was left. (swapcontext would ask the kernel each time.)
extern "C" void ofa_emulation_switch(void** from, void* to);
#endif

class Fiber {
  public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() { std::free(stack_); }

    // Make the next `switch_to` call `entry`, which must never return.
    void start(void (*entry)()) {
        if (!stack_ && !(stack_ = static_cast<char*>(std::aligned_alloc(64, STACK_BYTES)))) throw std::bad_alloc();
#ifdef __x86_64__
        void** top = reinterpret_cast<void**>(stack_ + STACK_BYTES - 64);
        *--top = nullptr;                         // so that the stack is aligned as after a call
        *--top = reinterpret_cast<void*>(entry);  // where the switch returns to
        top -= 6;                                 // the registers that it restores
        at_ = top;
#else
        getcontext(&at_);
        at_.uc_stack.ss_sp = stack_;
        at_.uc_stack.ss_size = STACK_BYTES;
        makecontext(&at_, entry, 0);
#endif
    }

    void switch_to(Fiber& to) {
#ifdef __x86_64__
        ofa_emulation_switch(&at_, to.at_);
#else
        swapcontext(&at_, &to.at_);
#endif
    }

  private:
    static constexpr std::size_t STACK_BYTES = 64 * 1024;
    char* stack_ = nullptr;
#ifdef __x86_64__
    void* at_ = nullptr;
#else
    ucontext_t at_{};
#endif
};

}  // namespace emulation
