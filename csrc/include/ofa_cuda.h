/* The C interface of the CUDA kernels: the operators of ofa.h on a device's memory, plus where and when they run.
 *
 * A call returns as soon as its kernels are queued on the stream: nothing is allocated, copied or waited for, so it can
 * be captured in a CUDA graph. `threads` of ofa.h's structs is ignored. A seed's low and high words are taken from
 * `seed_pointer` where there is one. Sums over rows (dw, dw_dot) are added up in an order that depends on the device
 * and the sizes only, so that equal calls give equal bits.
 */
#ifndef OFA_CUDA_H
#define OFA_CUDA_H

#include "ofa.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Besides ofa.h's: the rows are longer than the kernel takes on this device, or the call has a weight_index or seeds,
 * which these kernels don't take; and CUDA refused, for which ofa_cuda_last_error has the words. */
enum { OFA_UNSUPPORTED = 3, OFA_CUDA_ERROR = 4 };

/* Where and when an operator runs; all members are 8 bytes wide. */
typedef struct {
    int64_t device;              /* its number, as CUDA counts */
    void* stream;                /* a cudaStream_t of the device */
    void* workspace;             /* as many bytes as ofa_cuda_workspace_* asks for, which may be none; 16-byte aligned */
    const int64_t* seed_pointer; /* one int64 on the device, in place of the call's seed; may be absent */
} ofa_cuda_launch;

/* int ofa_cuda_run_norm_forward(const ofa_norm_forward*, const ofa_cuda_launch*), and the bytes of scratch memory that
 * it needs there, or -1 where it doesn't take such a call: int64_t ofa_cuda_workspace_norm_forward(const
 * ofa_norm_forward*, int64_t device), and so on for each operator. Only sizes, types and which pointers are null
 * matter to the latter. */
#define OFA_CUDA_DECLARE(name)                                                \
    int ofa_cuda_run_##name(const ofa_##name* call, const ofa_cuda_launch* launch); \
    int64_t ofa_cuda_workspace_##name(const ofa_##name* call, int64_t device);
OFA_OPERATORS(OFA_CUDA_DECLARE)
#undef OFA_CUDA_DECLARE

/* How CUDA explains this thread's last OFA_CUDA_ERROR. */
const char* ofa_cuda_last_error(void);

/* The architectures that there is machine code for, such as "80 90a 100"; "emulated" for the library that runs the
 * kernels on a CPU, whose pointers are the host's. */
const char* ofa_cuda_architectures(void);

#ifdef __cplusplus
}
#endif
#endif
