// Element-wise work between the matrix products of a layer.

// Cosine and sine of every row's rotary angles.
//
// Shapes: positions [3, rows] (time, height, width); inverse, axis [HEAD_DIM / 2]; table [rows, HEAD_DIM / 2].
extern "C" __global__ void rotary_table(const int* positions, const float* inverse, const int* axis, float2* table, int rows) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * (HEAD_DIM / 2)) return;
    const int row = index / (HEAD_DIM / 2), frequency = index % (HEAD_DIM / 2);
    const float angle = float(positions[axis[frequency] * rows + row]) * inverse[frequency];
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    table[index] = make_float2(cosine, sine);
}

// One warp: a query, key or value of a row with its bias, normalised and rotated: dims `lane * each ..` of the lower half in `low`, of the
// upper half in `high`.
//
// Shapes: qkv [rows, QKV_HEADS, HEAD_DIM] bf16; bias [QKV_HEADS * HEAD_DIM] or null; query_norm, key_norm [HEAD_DIM] or null;
// table as above.
struct Rotation {
    const u16 *bias, *query_norm, *key_norm;
    float epsilon;
    const float2* table;
};

#define HALF_EACH (HEAD_DIM / 64)

__device__ __forceinline__ void rotated(const u16* qkv, const Rotation& rotation, u64 row, int head, float* low, float* high) {
    const int lane = threadIdx.x % 32;
    const u16* at = qkv + (row * QKV_HEADS + head) * HEAD_DIM;
#pragma unroll
    for (int index = 0; index < HALF_EACH; index++) {
        const int dim = lane * HALF_EACH + index;
        low[index] = wide(at[dim]);
        high[index] = wide(at[dim + HEAD_DIM / 2]);
        if (rotation.bias != nullptr) {
            low[index] += wide(rotation.bias[head * HEAD_DIM + dim]);
            high[index] += wide(rotation.bias[head * HEAD_DIM + dim + HEAD_DIM / 2]);
        }
    }
    if (head >= HEADS + KEY_HEADS) return;
    const u16* norm = head < HEADS ? rotation.query_norm : rotation.key_norm;
    if (norm != nullptr) {
        float squares = 0.0f;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) squares += low[index] * low[index] + high[index] * high[index];
        const float scale = rsqrtf(warp_sum(squares) / HEAD_DIM + rotation.epsilon);
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            const int dim = lane * HALF_EACH + index;
            low[index] *= scale * wide(norm[dim]);
            high[index] *= scale * wide(norm[dim + HEAD_DIM / 2]);
        }
    }
#pragma unroll
    for (int index = 0; index < HALF_EACH; index++) {
        const float2 turn = rotation.table[row * (HEAD_DIM / 2) + lane * HALF_EACH + index];
        const float turned = low[index] * turn.x - high[index] * turn.y;
        high[index] = high[index] * turn.x + low[index] * turn.y;
        low[index] = turned;
    }
}

// One warp: puts a key or value into its page, at `place` = page * PAGE + offset.
//
// Shapes: keys [pages, KEY_HEADS, PAGE, HEAD_DIM]; values [pages, KEY_HEADS, HEAD_DIM, PAGE].
__device__ __forceinline__ void keep(u16* keys, u16* values, int place, int head, const float* low, const float* high) {
    const int lane = threadIdx.x % 32, offset = place % PAGE;
    const u64 page = place / PAGE;
#pragma unroll
    for (int index = 0; index < HALF_EACH; index++) {
        const int dim = lane * HALF_EACH + index;
        const u16 a = narrow(low[index]), b = narrow(high[index]);
        if (head >= HEADS + KEY_HEADS) {
            u16* kept = values + (page * KEY_HEADS + head - HEADS - KEY_HEADS) * HEAD_DIM * PAGE + offset;
            kept[dim * PAGE] = a;
            kept[(dim + HEAD_DIM / 2) * PAGE] = b;
        } else {
            u16* kept = keys + ((page * KEY_HEADS + head - HEADS) * PAGE + offset) * HEAD_DIM;
            kept[dim] = a;
            kept[dim + HEAD_DIM / 2] = b;
        }
    }
}

// For prompts: adds the bias, normalises and rotates in place, and puts keys and values into their pages. One warp for each head of
// each row; places [rows] with -1 for a row that is not kept.
extern "C" __global__ void __launch_bounds__(128)
    rotate_store(u16* qkv, const u16* bias, const u16* query_norm, const u16* key_norm, float epsilon, const float2* table,
                 const int* places, u16* keys, u16* values) {
    const u64 row = blockIdx.x;
    const int head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (head >= QKV_HEADS) return;
    float low[HALF_EACH], high[HALF_EACH];
    rotated(qkv, Rotation{bias, query_norm, key_norm, epsilon, table}, row, head, low, high);
    u16* at = qkv + (row * QKV_HEADS + head) * HEAD_DIM;
#pragma unroll
    for (int index = 0; index < HALF_EACH; index++) {
        at[lane * HALF_EACH + index] = narrow(low[index]);
        at[lane * HALF_EACH + index + HEAD_DIM / 2] = narrow(high[index]);
    }
    if (head >= HEADS && places[row] >= 0) keep(keys, values, places[row], head, low, high);
}

__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

// out = silu(gate) * up (Shazeer 2020).
//
// Shapes: gate_up [rows, 2, INTERMEDIATE] bf16; out [rows, INTERMEDIATE] bf16. Each thread makes eight values.
extern "C" __global__ void __launch_bounds__(256) silu_gate(const u16* gate_up, u16* out) {
    const int place = blockIdx.x * 256 + threadIdx.x;
    if (place >= INTERMEDIATE / 8) return;
    const u64 row = blockIdx.y;
    const uint4* source = reinterpret_cast<const uint4*>(gate_up + row * 2 * INTERMEDIATE);
    const uint4 gate = source[place], up = source[place + INTERMEDIATE / 8];
    const uint4 result = make_uint4(
        pack(gated(first(gate.x), first(up.x)), gated(second(gate.x), second(up.x))),
        pack(gated(first(gate.y), first(up.y)), gated(second(gate.y), second(up.y))),
        pack(gated(first(gate.z), first(up.z)), gated(second(gate.z), second(up.z))),
        pack(gated(first(gate.w), first(up.w)), gated(second(gate.w), second(up.w))));
    reinterpret_cast<uint4*>(out + row * INTERMEDIATE)[place] = result;
}
