// The entry points: each calls the widest instruction set that the processor had when the library was loaded.
#include <cstdlib>
#include <cstring>

#include "ofa.h"

namespace ofa {

struct Kernels {
    const char* instruction_set;
#define OFA_MEMBER(name) int (*name)(const ofa_##name&);
    OFA_OPERATORS(OFA_MEMBER)
};

#define OFA_VARIANT(isa)                                        \
    namespace isa {                                             \
    OFA_OPERATORS(OFA_PROTOTYPE)                                \
    static const Kernels kernels = {#isa, OFA_OPERATORS(OFA_NAME)}; \
    }
#define OFA_PROTOTYPE(name) int name(const ofa_##name&);
#define OFA_NAME(name) name,

OFA_VARIANT(portable)
#ifdef OFA_X86
OFA_VARIANT(avx2)
OFA_VARIANT(avx512)
#endif

static bool allowed(const char* name) {
    const char* asked = std::getenv("OFA_NATIVE_ISA");
    return !asked || !*asked || !std::strcmp(asked, name);
}

static const Kernels& choose() {
#ifdef OFA_X86
    __builtin_cpu_init();
    if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return avx512::kernels;
    if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return avx2::kernels;
#endif
    return portable::kernels;
}

static const Kernels& chosen = choose();

}  // namespace ofa

#define OFA_EXPORT __attribute__((visibility("default")))
#define OFA_ENTRY(name) \
    extern "C" OFA_EXPORT int ofa_run_##name(const ofa_##name* call) { return ofa::chosen.name(*call); }
OFA_OPERATORS(OFA_ENTRY)

extern "C" OFA_EXPORT const char* ofa_instruction_set(void) { return ofa::chosen.instruction_set; }
