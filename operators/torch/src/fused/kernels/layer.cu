// Element-wise work between the matrix products of a layer in training.

__device__ __forceinline__ float opening(float gate) { return 1.0f / (1.0f + __expf(-gate)); }

// out = silu(gate) * up (Shazeer 2020). Each thread makes eight values of a row.
//
// Shapes: gate_up [rows, 2, INTERMEDIATE] bf16; out [rows, INTERMEDIATE] bf16.
extern "C" __global__ void __launch_bounds__(256) gated(const u16* gate_up, u16* out) {
    const int place = blockIdx.y * 256 + threadIdx.x;
    if (place >= INTERMEDIATE / 8) return;
    const u64 row = blockIdx.x;
    const uint4* source = reinterpret_cast<const uint4*>(gate_up + row * 2 * INTERMEDIATE);
    float gate[8], up[8];
    unpack(source[place], gate), unpack(source[place + INTERMEDIATE / 8], up);
#pragma unroll
    for (int index = 0; index < 8; index++) up[index] *= gate[index] * opening(gate[index]);
    reinterpret_cast<uint4*>(out + row * INTERMEDIATE)[place] = pack_eight(up);
}

// Its backward pass, in place: the gradients of gate and up take their place, and what came out takes that of its gradient.
//
// Shapes: as above; inner [rows, INTERMEDIATE] bf16.
extern "C" __global__ void __launch_bounds__(256) gated_backward(u16* gate_up, u16* inner) {
    const int place = blockIdx.y * 256 + threadIdx.x;
    if (place >= INTERMEDIATE / 8) return;
    const u64 row = blockIdx.x;
    uint4* both = reinterpret_cast<uint4*>(gate_up + row * 2 * INTERMEDIATE);
    uint4* one = reinterpret_cast<uint4*>(inner + row * INTERMEDIATE);
    float gate[8], up[8], flow[8], out[8];
    unpack(both[place], gate), unpack(both[place + INTERMEDIATE / 8], up), unpack(one[place], flow);
#pragma unroll
    for (int index = 0; index < 8; index++) {
        const float open = opening(gate[index]), opened = gate[index] * open;
        out[index] = opened * up[index];
        gate[index] = flow[index] * up[index] * open * (1.0f + gate[index] * (1.0f - open));
        up[index] = flow[index] * opened;
    }
    both[place] = pack_eight(gate);
    both[place + INTERMEDIATE / 8] = pack_eight(up);
    one[place] = pack_eight(out);
}

// The dims of a head that a lane of a warp has: HALF_EACH of the lower half, and as many of the upper.
#define HALF_EACH (HEAD_DIM / 64)

struct Slice {
    float low[HALF_EACH], high[HALF_EACH];

    __device__ __forceinline__ void read(const u16* head) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            low[index] = wide(head[lane * HALF_EACH + index]);
            high[index] = wide(head[lane * HALF_EACH + index + HEAD_DIM / 2]);
        }
    }

    __device__ __forceinline__ void write(u16* head) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            head[lane * HALF_EACH + index] = narrow(low[index]);
            head[lane * HALF_EACH + index + HEAD_DIM / 2] = narrow(high[index]);
        }
    }

    // Product of two of them, summed over the head.
    __device__ __forceinline__ float dot(const Slice& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) sum += low[index] * other.low[index] + high[index] * other.high[index];
        return warp_sum(sum);
    }

    // Turns by the angles of a row, or back with sign -1.
    __device__ __forceinline__ void turn(const float2* table, u64 row, float sign) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            const float2 angle = table[row * (HEAD_DIM / 2) + lane * HALF_EACH + index];
            const float turned = low[index] * angle.x - sign * high[index] * angle.y;
            high[index] = high[index] * angle.x + sign * low[index] * angle.y;
            low[index] = turned;
        }
    }
};

// Norms, where there are, and rotates queries and keys, in place or to other rows, then values too. One warp for each head of each row;
// blocks of four.
//
// Shapes: qkv [rows, QKV_HEADS, HEAD_DIM] bf16; raw [rows, HEADS + KEY_HEADS, HEAD_DIM] bf16, what was there before, and query_norm, key_norm
// [HEAD_DIM] bf16, or all three null; table [rows, HEAD_DIM / 2] of cosine and sine; places [rows], the row of out, or null where out is qkv.
extern "C" __global__ void __launch_bounds__(128)
    turn(const u16* qkv, u16* out, const int* places, u16* raw, const u16* query_norm, const u16* key_norm, float epsilon,
         const float2* table, int rows) {
    const u64 item = u64(blockIdx.x) * 4 + threadIdx.x / 32, row = item / QKV_HEADS;
    const int head = item % QKV_HEADS;
    const bool is_value = head >= HEADS + KEY_HEADS;
    if (row >= rows || (is_value && places == nullptr)) return;
    const u64 place = places == nullptr ? row : places[row];
    u16* target = out + (place * QKV_HEADS + head) * HEAD_DIM;
    Slice slice;
    slice.read(qkv + item * HEAD_DIM);
    if (is_value) return slice.write(target);
    if (raw != nullptr) {
        slice.write(raw + (row * (HEADS + KEY_HEADS) + head) * HEAD_DIM);
        Slice factor;
        factor.read(head < HEADS ? query_norm : key_norm);
        const float scale = rsqrtf(slice.dot(slice) / HEAD_DIM + epsilon);
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            slice.low[index] *= scale * factor.low[index];
            slice.high[index] *= scale * factor.high[index];
        }
    }
    slice.turn(table, row, 1.0f);
    slice.write(target);
}

// The way back: from the gradients of what was attended with to those of what was projected, side by side, and each warp's part of the
// gradients of the norms. A warp takes items far apart.
//
// Shapes: queries [.., HEADS, HEAD_DIM], keys, values [.., KEY_HEADS, HEAD_DIM], out [rows, QKV_HEADS, HEAD_DIM], all bf16; partials
// [4 blocks, 2, HEAD_DIM] f32 where there are norms; places [rows], where a row's gradients are, or null; the rest as above.
extern "C" __global__ void __launch_bounds__(128)
    turn_back(const u16* queries, const u16* keys, const u16* values, const int* places, const u16* raw, const u16* query_norm,
              const u16* key_norm, float epsilon, const float2* table, u16* out, float* partials, int rows) {
    const u64 warp = u64(blockIdx.x) * 4 + threadIdx.x / 32, warps = u64(gridDim.x) * 4;
    const int lane = threadIdx.x % 32;
    Slice sums[2] = {};
    for (u64 item = warp; item < u64(rows) * QKV_HEADS; item += warps) {
        const u64 row = item / QKV_HEADS;
        const int head = item % QKV_HEADS;
        const bool is_query = head < HEADS, is_value = head >= HEADS + KEY_HEADS;
        const u64 place = places == nullptr ? row : places[row];
        Slice slice;
        if (is_query) slice.read(queries + (place * HEADS + head) * HEAD_DIM);
        else if (is_value) slice.read(values + (place * KEY_HEADS + head - HEADS - KEY_HEADS) * HEAD_DIM);
        else slice.read(keys + (place * KEY_HEADS + head - HEADS) * HEAD_DIM);
        if (!is_value) slice.turn(table, row, -1.0f);
        if (!is_value && raw != nullptr) {
            Slice before, factor;
            before.read(raw + (row * (HEADS + KEY_HEADS) + head) * HEAD_DIM);
            factor.read(is_query ? query_norm : key_norm);
            const float scale = rsqrtf(before.dot(before) / HEAD_DIM + epsilon);
            Slice& sum = sums[is_query ? 0 : 1];
#pragma unroll
            for (int index = 0; index < HALF_EACH; index++) {
                sum.low[index] += slice.low[index] * before.low[index] * scale;
                sum.high[index] += slice.high[index] * before.high[index] * scale;
                slice.low[index] *= factor.low[index];
                slice.high[index] *= factor.high[index];
            }
            const float mean = slice.dot(before) * scale * scale / HEAD_DIM;
#pragma unroll
            for (int index = 0; index < HALF_EACH; index++) {
                slice.low[index] = scale * (slice.low[index] - before.low[index] * mean);
                slice.high[index] = scale * (slice.high[index] - before.high[index] * mean);
            }
        }
        slice.write(out + item * HEAD_DIM);
    }
    if (raw == nullptr) return;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float* part = partials + (warp * 2 + which) * HEAD_DIM;
#pragma unroll
        for (int index = 0; index < HALF_EACH; index++) {
            part[lane * HALF_EACH + index] = sums[which].low[index];
            part[lane * HALF_EACH + index + HEAD_DIM / 2] = sums[which].high[index];
        }
    }
}

// Joins attention to two sets of keys by their log-sum-exps, in place of the first (Dao 2023, FlashAttention-2). One warp for each head of
// each row; blocks of four.
//
// Shapes: out, part [rows, HEADS, HEAD_DIM] bf16; sums [HEADS, stride], of which rows are used, and part_sums [HEADS, rows] f32.
extern "C" __global__ void __launch_bounds__(128)
    join(u16* out, const u16* part, float* sums, const float* part_sums, int stride, int rows) {
    const u64 item = u64(blockIdx.x) * 4 + threadIdx.x / 32, row = item / HEADS;
    const int head = item % HEADS;
    if (row >= rows) return;
    float* place = sums + u64(head) * stride + row;
    const float one = *place, two = part_sums[u64(head) * rows + row];
    const float top = fmaxf(one, two), both = top + logf(expf(one - top) + expf(two - top));
    const float share = expf(one - both), other = expf(two - both);
    Slice slice, added;
    slice.read(out + item * HEAD_DIM);
    added.read(part + item * HEAD_DIM);
#pragma unroll
    for (int index = 0; index < HALF_EACH; index++) {
        slice.low[index] = slice.low[index] * share + added.low[index] * other;
        slice.high[index] = slice.high[index] * share + added.high[index] * other;
    }
    slice.write(out + item * HEAD_DIM);
    // All lanes have read it.
    __syncwarp();
    if (threadIdx.x % 32 == 0) *place = both;
}
