// The two C functions of each operator. An operator is a class of its storage type T, which says how a call is planned,
// how much scratch memory it needs, and runs it.
#pragma once

#include "launch.cuh"

namespace ofa {

// Makes a device the current one for as long as it lives.
class Current {
  public:
    explicit Current(int64_t device);
    ~Current();

  private:
    int before_ = -1;
};

template <class F>
inline auto with_storage(int64_t dtype, F&& f) {
    switch (dtype) {
        case OFA_FLOAT64: return f(static_cast<double*>(nullptr));
        case OFA_FLOAT32: return f(static_cast<float*>(nullptr));
        case OFA_BFLOAT16: return f(static_cast<bfloat16*>(nullptr));
        default: return f(static_cast<float16*>(nullptr));
    }
}

// Whether a call has a weight or a seed for each row; a struct without such a member has none.
template <class Call>
inline auto has_index(const Call& call, int) -> decltype(call.weight_index != nullptr) {
    return call.weight_index != nullptr;
}
template <class Call>
inline bool has_index(const Call&, long) {
    return false;
}
template <class Call>
inline auto has_seeds(const Call& call, int) -> decltype(call.seeds != nullptr) {
    return call.seeds != nullptr;
}
template <class Call>
inline bool has_seeds(const Call&, long) {
    return false;
}

template <template <class> class Operator, class Call>
inline int run_call(const Call& call, const ofa_cuda_launch& where) {
    const Device* device = device_of(where.device);
    if (!device) return OFA_CUDA_ERROR;
    if (has_index(call, 0) || has_seeds(call, 0)) return OFA_UNSUPPORTED;
    const Current current(where.device);
    return with_storage(call.dtype, [&](auto* type) -> int {
        using Of = Operator<std::remove_pointer_t<decltype(type)>>;
        const Plan plan = Of::plan(*device, call);
        return plan.possible() ? Of::run(*device, plan, call, where) : int(OFA_UNSUPPORTED);
    });
}

template <template <class> class Operator, class Call>
inline int64_t workspace_of(const Call& call, int64_t number) {
    const Device* device = device_of(number);
    if (!device) return -1;
    return with_storage(call.dtype, [&](auto* type) -> int64_t {
        using Of = Operator<std::remove_pointer_t<decltype(type)>>;
        const Plan plan = Of::plan(*device, call);
        return plan.possible() ? Of::workspace(plan, call) : -1;
    });
}

}  // namespace ofa

#define OFA_EXPORT __attribute__((visibility("default")))
#define OFA_CUDA_ENTRY(name, Operator)                                                                      \
    extern "C" OFA_EXPORT int ofa_cuda_run_##name(const ofa_##name* call, const ofa_cuda_launch* launch) {  \
        return ofa::run_call<ofa::Operator>(*call, *launch);                                                \
    }                                                                                                       \
    extern "C" OFA_EXPORT int64_t ofa_cuda_workspace_##name(const ofa_##name* call, int64_t device) {       \
        return ofa::workspace_of<ofa::Operator>(*call, device);                                             \
    }
