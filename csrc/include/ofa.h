/* The C interface of the CPU kernels: raw pointers, strides in elements, no torch.
 *
 * Every operator takes one struct whose members are all 8 bytes wide, so that a caller in any language can
 * pack it, and returns OFA_OK, or one of the other codes below; outputs are then undefined.
 * Rows are `columns` long with unit stride; `x_stride` and the like lead from one row to the next, `_k` from
 * one tangent to the next. Outputs are contiguous and overlap no input. A null pointer means "absent"
 * (inputs, whose strides must then be 0) or "not wanted" (outputs). Weights, weight tangents and their
 * gradients are contiguous and have `weight_dtype`.
 *
 * There are `weights` weights, one at least, and row r has number weight_index[r]; without a weight_index all rows
 * have the first. The gradient of a weight that no row has is zero. Rows may come in any order of their weights;
 * where the index does not decrease, none has to be made. Likewise seeds[r] is the seed of row r's probes; without
 * seeds it is `seed`.
 *
 * Results depend on `threads` only through the order in which dw is summed, never on timing. Inputs may be as
 * large as their type allows, up to 1e37, and as small as 1e-38 beside others near 1: a row whose products float32
 * does not hold is computed in double.
 */
#ifndef OFA_H
#define OFA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { OFA_FLOAT64 = 0, OFA_FLOAT32 = 1, OFA_BFLOAT16 = 2, OFA_FLOAT16 = 3 };
/* No memory for scratch; an index outside 0 .. weights - 1, which was not followed. */
enum { OFA_OK = 0, OFA_NO_MEMORY = 1, OFA_BAD_INDEX = 2 };

/* y = (weight + offset) x_hat; with a residual, of s = x + residual, which is stored too. */
typedef struct {
    int64_t dtype, weight_dtype, threads, rows, columns, weights, round_x_hat;
    double eps, offset;
    const void* x;
    int64_t x_stride;
    const void* residual;
    int64_t residual_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    void* y; /* [rows, columns] */
    void* s; /* [rows, columns], with a residual */
    void* rstd; /* [rows], float64 for float64 rows, else float32; may be unwanted */
} ofa_norm_forward;

/* dx = r (g - x_hat c) + ds, dw = sum over rows of dy x_hat. With an rstd, which ofa_norm_forward left for the same
 * rows, r is read instead of being computed from them. */
typedef struct {
    int64_t dtype, weight_dtype, threads, rows, columns, weights;
    double eps, offset;
    const void* x;
    int64_t x_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    const void* dy;
    int64_t dy_stride;
    const void* ds;
    int64_t ds_stride;
    void* dx; /* [rows, columns], may be unwanted */
    void* dw; /* [weights, columns], may be unwanted */
    const void* rstd; /* [rows] */
} ofa_norm_backward;

/* y_dot of `tangents` tangents that share x and weight; one of x_dot and weight_dot may be absent. */
typedef struct {
    int64_t dtype, weight_dtype, threads, rows, columns, weights, tangents;
    double eps, offset;
    const void* x;
    int64_t x_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    const void* x_dot;
    int64_t x_dot_k, x_dot_stride;
    const void* weight_dot; /* [tangents, weights, columns] */
    void* y_dot;            /* [tangents, rows, columns] */
} ofa_norm_jvp;

/* The tangent of ofa_norm_backward (without ds); x_dot, weight_dot and dy_dot may be absent. */
typedef struct {
    int64_t dtype, weight_dtype, threads, rows, columns, weights, tangents;
    double eps, offset;
    const void* x;
    int64_t x_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    const void* dy;
    int64_t dy_stride;
    const void* x_dot;
    int64_t x_dot_k, x_dot_stride;
    const void* weight_dot; /* [tangents, weights, columns] */
    const void* dy_dot;
    int64_t dy_dot_k, dy_dot_stride;
    void* dx_dot; /* [tangents, rows, columns] */
    void* dw_dot; /* [tangents, weights, columns], may be unwanted */
} ofa_norm_backward_tangent;

/* Gradients of sum_k <dy_k, y_dot_k>; dx and dw are summed over the tangents. */
typedef struct {
    int64_t dtype, weight_dtype, threads, rows, columns, weights, tangents;
    double eps, offset;
    const void* x;
    int64_t x_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    const void* dy;
    int64_t dy_k, dy_stride;
    const void* x_dot;
    int64_t x_dot_k, x_dot_stride;
    const void* weight_dot; /* [tangents, weights, columns] */
    void* dx;               /* [rows, columns] */
    void* dw;               /* [weights, columns], may be unwanted */
    void* dx_dot;           /* [tangents, rows, columns] */
    void* dw_dot;           /* [tangents, weights, columns], may be unwanted */
} ofa_norm_jvp_backward;

/* +-1 [layers, probes, examples, columns] from the seed; see ofa_kernels/probes.py for which bit is whose. */
typedef struct {
    int64_t dtype, threads, layers, probes, examples, columns;
    uint64_t seed;
    const int64_t* layer_ids;
    const int64_t* example_ids;
    void* signs;
} ofa_rademacher;

/* out = (weight + offset) r(z) sign, [probes, rows, columns]. */
typedef struct {
    int64_t dtype, weight_dtype, threads, probes, rows, columns, weights;
    uint64_t seed;
    int64_t layer;
    double eps, offset;
    const int64_t* seeds;       /* [rows] */
    const int64_t* example_ids; /* [rows] */
    const void* z;
    int64_t z_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    void* out;
} ofa_preconditioned_probes;

/* Gradients of <dp, ofa_preconditioned_probes> in z and weight. */
typedef struct {
    int64_t dtype, weight_dtype, threads, probes, rows, columns, weights;
    uint64_t seed;
    int64_t layer;
    double eps, offset;
    const int64_t* seeds;       /* [rows] */
    const int64_t* example_ids; /* [rows] */
    const void* z;
    int64_t z_stride;
    const void* weight;          /* [weights, columns] */
    const int64_t* weight_index; /* [rows] */
    const void* dp;
    int64_t dp_k, dp_stride;
    void* dz; /* [rows, columns] */
    void* dw; /* [weights, columns] */
} ofa_preconditioned_probes_backward;

/* dots[k, row] = sum over columns of sign t, in float64 for a float64 t, else float32. */
typedef struct {
    int64_t dtype, threads, probes, rows, columns;
    uint64_t seed;
    int64_t layer;
    const int64_t* seeds;       /* [rows] */
    const int64_t* example_ids; /* [rows] */
    const void* t;
    int64_t t_k, t_stride;
    void* dots;
} ofa_probe_dot;

/* out[k, row, column] = scale[k, row] sign, scale as the dots above: the transpose of ofa_probe_dot. */
typedef struct {
    int64_t dtype, threads, probes, rows, columns;
    uint64_t seed;
    int64_t layer;
    const int64_t* seeds;       /* [rows] */
    const int64_t* example_ids; /* [rows] */
    const void* scale; /* [probes, rows] */
    void* out;
} ofa_probe_scale;

/* lengths[t, b] = |Z[t+1, b] - Z[t, b]| for states [steps + 1, examples, columns]. */
typedef struct {
    int64_t dtype, threads, steps, examples, columns;
    const void* states;
    int64_t states_t, states_b;
    void* lengths; /* [steps, examples], float64 for float64 states, else float32 */
} ofa_step_lengths;

/* Gradient of <dlengths, lengths> in the states, zero where a length is. */
typedef struct {
    int64_t dtype, threads, steps, examples, columns;
    const void* states;
    int64_t states_t, states_b;
    const void* lengths;
    const void* dlengths; /* [steps, examples] */
    void* dstates;        /* [steps + 1, examples, columns] */
} ofa_step_lengths_backward;

/* The instruction set that was chosen when the library was loaded: "avx512", "avx2" or "portable". It is the
 * widest that the processor has; the environment variable OFA_NATIVE_ISA=avx512|avx2|portable allows one only
 * (and portable, where the processor lacks it). */
const char* ofa_instruction_set(void);

#define OFA_OPERATORS(X)             \
    X(norm_forward)                  \
    X(norm_backward)                 \
    X(norm_jvp)                      \
    X(norm_backward_tangent)         \
    X(norm_jvp_backward)             \
    X(rademacher)                    \
    X(preconditioned_probes)         \
    X(preconditioned_probes_backward)\
    X(probe_dot)                     \
    X(probe_scale)                   \
    X(step_lengths)                  \
    X(step_lengths_backward)

/* int ofa_run_norm_forward(const ofa_norm_forward*), and so on for each operator. */
#define OFA_DECLARE(name) int ofa_run_##name(const ofa_##name* call);
OFA_OPERATORS(OFA_DECLARE)
#undef OFA_DECLARE

#ifdef __cplusplus
}
#endif
#endif
